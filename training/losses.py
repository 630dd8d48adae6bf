"""Losses that several scripts share.

Shapes: B rows, T tokens, V vocab_size.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 2**26  # logits taken at once where they are copied to float32: 256 MB a copy


def masked_cross_entropy(logits: Tensor, Y: Tensor, loss_mask: Tensor) -> Tensor:
    """Mean of -log p(Y) in nats over the targets whose mask is 1, in float32.

    logits [B, T, V]; Y int64 [B, T]; loss_mask [B, T] of 0 and 1. An all-zero mask gives 0 (with
    zero gradients), never NaN.
    """
    return masked_mean(token_cross_entropy(logits, Y), loss_mask)


def masked_mean(values: Tensor, loss_mask: Tensor) -> Tensor:
    """Mean of the values [B, T] whose mask is 1; 0 if there is none."""
    return (values * loss_mask).sum() / loss_mask.sum().clamp(min=1)


def token_cross_entropy(logits: Tensor, Y: Tensor) -> Tensor:
    """-log p(Y) of every token in nats: float32 [B, T] from logits [B, T, V] and Y int64 [B, T].

    Compiled, it is one pass over the logits in their own dtype. Otherwise they are copied to
    float32, twice with the backward pass; so large ones are taken in chunks of rows, whose copies
    are made anew in the backward pass and never exist together.
    """
    return in_chunks(_nats, logits.flatten(0, 1), Y.flatten()).view_as(Y)  # [B·T, V], [B·T]


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), targets, reduction="none")


def in_chunks(
    function: Callable[..., Tensor], logits: Tensor, *others: Tensor, size: int = CHUNK
) -> Tensor:
    """function(logits, *others), which looks at every row alone, in chunks of rows if there are
    more than `size` logits: what it computes on the way never exists for all rows together.

    logits [N, V], others [N, ...]; the result [N, ...]. Compiled, it is called once.
    """
    if torch.compiler.is_compiling() or logits.numel() <= size:
        return function(logits, *others)
    rows = max(1, size // logits.shape[1])
    chunks = zip(*(tensor.split(rows) for tensor in (logits, *others)))
    return torch.cat([checkpoint(function, *chunk, use_reentrant=False) for chunk in chunks])


def document_log_probs(
    logits: Tensor, Y: Tensor, loss_mask: Tensor, document_ids: Tensor, count: int
) -> Tensor:
    """log p of the targets whose mask is 1, summed over each document: float32 [B, count].

    logits [B, T, V]; Y int64 [B, T]; loss_mask [B, T] of 0 and 1; document_ids int64 [B, T] from 0
    to count. Document 0 is padding; column d of the result is document d + 1.
    """
    log_probs = -token_cross_entropy(logits, Y) * loss_mask
    sums = torch.zeros(len(Y), count + 1, device=logits.device)
    return sums.scatter_add(1, document_ids, log_probs)[:, 1:]


def document_scores(
    scores: Tensor, Y: Tensor, loss_mask: Tensor, document_ids: Tensor, count: int
) -> Tensor:
    """A reward model's score of each document, read at its last token: float32 [B, count].

    scores [B, T, 1], one for every token; loss_mask [B, T], 1 at the last token of each document
    alone; document_ids and the result as in `document_log_probs`; Y is not looked at.
    """
    chosen = scores[..., 0].float() * loss_mask
    sums = torch.zeros(len(Y), count + 1, device=scores.device)
    return sums.scatter_add(1, document_ids, chosen)[:, 1:]
