"""Losses that several scripts share.

Shapes: B rows, T tokens, V vocab_size.
"""

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
