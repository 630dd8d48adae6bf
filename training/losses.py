"""Losses that several scripts share.

Shapes: B rows, T tokens, V vocab_size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_cross_entropy(logits: Tensor, Y: Tensor, loss_mask: Tensor) -> Tensor:
    """Mean of -log p(Y) in nats over the targets whose mask is 1, in float32.

    logits [B, T, V]; Y int64 [B, T]; loss_mask [B, T] of 0 and 1. An all-zero mask gives 0 (with
    zero gradients), never NaN.
    """
    loss = F.cross_entropy(logits.flatten(0, 1).float(), Y.flatten(), reduction="none")  # [B·T]
    mask = loss_mask.flatten()
    return (loss * mask).sum() / mask.sum().clamp(min=1)


def document_log_probs(
    logits: Tensor, Y: Tensor, loss_mask: Tensor, document_ids: Tensor, count: int
) -> Tensor:
    """log p of the targets whose mask is 1, summed over each document: float32 [B, count].

    logits [B, T, V]; Y int64 [B, T]; loss_mask [B, T] of 0 and 1; document_ids int64 [B, T] from 0
    to count. Document 0 is padding; column d of the result is document d + 1.
    """
    log_probs = -F.cross_entropy(logits.flatten(0, 1).float(), Y.flatten(), reduction="none")
    log_probs = log_probs.view_as(loss_mask) * loss_mask
    sums = torch.zeros(len(Y), count + 1, device=logits.device)
    return sums.scatter_add(1, document_ids, log_probs)[:, 1:]
