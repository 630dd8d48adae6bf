"""Causal attention by the kernel that is fastest for the device and the kind of row.

Everything here computes softmax(q kᵀ / √D) v over the tokens that may be looked at:

    torch's scaled_dot_product_attention   whatever is not listed below; on CUDA with those of its
                                           kernels that are right for the card (`cuda_backends`)
    flash_attn_varlen_func                 packed rows on CUDA in half precision, where flash-attn
                                           is installed: every document is a sequence of its own
    flex_attention                         packed rows, compiled for CUDA, without that package:
                                           skips the blocks of pairs that share no document; not
                                           where its blocks do not fit (`flex_attention_serves`)
    blockwise_attention                    compiled for a CPU: torch's own kernel there takes two
                                           to three times as long, most of it in its backward pass

Shapes in this file:
    B  rows in the batch         T  new tokens per row         S  tokens attended to (cache + T)
    A  query heads               K  key/value heads            D  head_dim        G  A / K
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

try:
    from flash_attn import flash_attn_varlen_func
except ImportError:  # not installed, or built for another torch
    flash_attn_varlen_func = None

HALF = (torch.float16, torch.bfloat16)
FIXED_CUDNN = 91501  # 9.15.1, from which torch itself puts cuDNN's attention first
# Longer rows are left to torch's kernel, whose memory does not grow with T².
LONGEST_BLOCKWISE = 2048


class PackedRows(NamedTuple):
    """Rows of several documents: attention stays inside each.

    runs    int64 [B, T], the number of a token's document within its row
    mask    bool [B, 1, T, T], True = may look; not made by a compiled graph that does not read it;
            None beside bounds
    blocks  flex_attention's list of the blocks to compute; None: another kernel is used
    bounds  int32 [N + 1], where each document begins in the rows laid end to end, filled up with
            B·T; None: another kernel than flash-attn's is used
    prefixes  int64 [B, T], the number of the document that a token's own one continues, which is
            looked at as well; its own number where there is none. None: there is none anywhere
    """

    runs: Tensor
    mask: Tensor | None
    blocks: BlockMask | None = None
    bounds: Tensor | None = None
    prefixes: Tensor | None = None


def document_starts(document_ids: Tensor) -> Tensor:
    """True at the first token of every document: bool [B, T] from ids [B, T].

    A document is a run of equal ids: [7, 7, 7, 9, 9] gives [True, False, False, True, False].
    """
    is_start = torch.ones_like(document_ids, dtype=torch.bool)
    is_start[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return is_start


def packed_rows(
    document_ids: Tensor, documents_per_row: int | None = None, blocks: bool = True,
    prefixes: Tensor | None = None,
) -> PackedRows:  # fmt: skip
    """What attention needs to know of document_ids [B, T], made once for all layers.

    documents_per_row: no row has more runs of equal ids. Not None: for flash-attn. blocks: compiled
    for CUDA, for flex_attention. prefixes [B, T]: ids of the documents that are continued, then no
    id may come back later in a row, and flash-attn is not used.
    """
    if prefixes is not None:
        runs = document_ids
    else:
        runs = document_starts(document_ids).cumsum(1)  # [B, T]; an id may come back later
        if documents_per_row is not None:
            return PackedRows(runs, None, bounds=document_bounds(runs, documents_per_row))
    T = runs.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=runs.device).tril()
    mask = same_document(runs, runs, prefixes)[:, None] & causal  # [B, 1, T, T]
    blocks = blocks and torch.compiler.is_compiling() and runs.is_cuda
    blocks = document_blocks(runs, prefixes) if blocks else None
    return PackedRows(runs, mask, blocks, prefixes=prefixes)


def same_document(queries: Tensor, keys: Tensor, prefixes: Tensor | None) -> Tensor:
    """Whether a query's document, or the one that it continues, is a key's: bool [B, Q, S].

    queries, prefixes [B, Q] and keys [B, S]: numbers of documents as in PackedRows.
    """
    same = queries[:, :, None] == keys[:, None]
    return same if prefixes is None else same | (prefixes[:, :, None] == keys[:, None])


def flash_attn_serves(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the flash-attn package is there and can do it: half precision, Ampere or newer."""
    if flash_attn_varlen_func is None or device.type != "cuda":
        return False
    can = dtype in HALF and head_dim <= 256
    return can and torch.cuda.get_device_capability(device) >= (8, 0)


def flex_attention_serves(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether flex_attention's blocks fit the shared memory of this GPU.

    Its kernel keeps 64 queries and, twice (one is read while the other is computed with), 64 keys
    and values, each filled up to a power of 2. With less memory compiling ends in "No valid triton
    configs": float32 on a 3090 or 4090 (99 KB), where head_dim is above 64.
    """
    if device.type != "cuda":
        return False
    row = 2 ** (head_dim - 1).bit_length() * dtype.itemsize
    return (64 + 2 * (64 + 64)) * row <= shared_memory(torch.cuda.get_device_capability(device))


def shared_memory(capability: tuple[int, int]) -> int:
    """Bytes that a block of threads may ask for (CUDA's programming guide, by capability)."""
    sizes = {(7, 5): 64, (8, 0): 163, (8, 7): 163}
    large = 227 if capability[0] in (9, 10, 11) else 99  # 8.6, 8.9 and 12.x: cards of the desktop
    return sizes.get(capability, large) * 1024


def document_bounds(runs: Tensor, documents_per_row: int) -> Tensor:
    """int32 [B · documents_per_row + 1]: first token of every document, then B·T, from runs [B, T].

    Tokens are counted through all rows. The size is the same for every batch, so that nothing is
    compiled anew and the host need not know how many documents there are.
    """
    B, T = runs.shape
    before = runs[:, -1].cumsum(0) - runs[:, -1]  # [B], documents in earlier rows
    number = (before[:, None] + runs).flatten() - 1  # [B·T], 0, 0, 0, 1, 1, ...
    wanted = torch.arange(B * documents_per_row + 1, device=runs.device)
    bounds = torch.searchsorted(number, wanted)
    torch._assert_async(bounds[-1] == B * T, "a row has more than documents_per_row documents")
    return bounds.int()


def document_blocks(runs: Tensor, prefixes: Tensor | None = None) -> BlockMask:
    """Which blocks of 128 × 128 pairs have any that may look at each other, from runs [B, T]."""
    continued = runs if prefixes is None else prefixes

    def visible(b, _head, query, key):
        same = (runs[b, query] == runs[b, key]) | (continued[b, query] == runs[b, key])
        return (query >= key) & same

    B, T = runs.shape
    return create_block_mask(visible, B, None, T, T, device=runs.device)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | PackedRows | None) -> Tensor:
    """q [B, A, T, D], k and v [B, K, S, D] → [B, A, T, D].

    mask: bool [B|1, 1, T, S], True = may look; PackedRows; None = causal.
    """
    packed = isinstance(mask, PackedRows)
    if packed and mask.bounds is not None:
        return varlen_attention(q, k, v, mask.bounds)
    if torch.compiler.is_compiling() and q.device.type == "cpu" and (packed or mask is None):
        T, S = q.shape[2], k.shape[2]
        if 1 < T == S <= LONGEST_BLOCKWISE:
            return blockwise_attention(q, k, v, *((mask.runs, mask.prefixes) if packed else ()))
    if packed and mask.blocks is not None:
        q, k = q.to(v.dtype), k.to(v.dtype)
        return flex_attention(q, k, v, block_mask=mask.blocks, enable_gqa=True)
    if packed:
        mask = mask.mask
    if q.shape[2] == 1 and torch.compiler.is_compiling() and q.device.type == "cpu":
        return one_token_attention(q, k, v, mask)
    if q.shape[2] == 1:  # the query heads of one key head become its rows: six times faster in bf16
        rows = q.reshape(len(q), k.shape[1], -1, q.shape[3])  # [B, K, A/K, D]
        return torch_attention(rows, k, v, mask, causal=False).reshape(q.shape)
    return torch_attention(q, k, v, mask, causal=mask is None)


def torch_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """scaled_dot_product_attention; on CUDA by a kernel that `cuda_backends` allows.

    Their order is torch's own and is never set: `set_priority` in a process's first call would
    leave all later calls, others' too, with another order than torch's.
    """
    shared = k.shape[1] < q.shape[1]  # key heads
    if not q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=shared)
    capability = torch.cuda.get_device_capability(q.device)
    flash = v.dtype in HALF and capability >= (8, 0) and flash_is_built() and mask is None
    if shared and not flash:
        # the one kernel left that needs no T × T memory knows no shared key heads
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        shared = False
    # batches in training, and all that is compiled, keep their shapes; eager decoding does not
    fixed_shapes = torch.compiler.is_compiling() or q.requires_grad
    exact = torch.are_deterministic_algorithms_enabled()
    with sdpa_kernel(cuda_backends(capability, mask is not None, fixed_shapes, exact)):
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=shared)


def cuda_backends(
    capability: tuple[int, int], masked: bool, fixed_shapes: bool, exact: bool
) -> list[SDPBackend]:
    """The kernels that may run on CUDA; of those that can, torch takes the first in its own order.

    capability: of the card, (9, 0) for Hopper. exact: the same bits every time; all but one add up
    in any order.

    cuDNN's comes before FlashAttention 2 in torch's order where it is the faster one: capability 9
    and 10. It builds a plan for every new shape, up to a second each; with a mask its gradient may
    be NaN (torch issue 196678); before 9.15.1 it has memory errors (torch issue 169849).
    """
    if exact:
        return [SDPBackend.MATH]
    backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    wanted = capability[0] in (9, 10) and fixed_shapes and not masked
    return [SDPBackend.CUDNN_ATTENTION] * (wanted and cudnn_version() >= FIXED_CUDNN) + backends


@torch.compiler.assume_constant_result
def cudnn_version() -> int:
    """9.15.1 is 91501; 0 where there is none."""
    return torch.backends.cudnn.version() or 0


@torch.compiler.assume_constant_result
def flash_is_built() -> bool:
    """Whether this torch has FlashAttention 2; some builds for Windows do not."""
    return torch.backends.cuda.is_flash_attention_available()


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor) -> Tensor:
    """Causal attention inside each document by the flash-attn package (Dao 2023).

    q [B, A, T, D], k and v [B, K, T, D] in half precision → [B, A, T, D]; bounds as in PackedRows.
    """
    B, _, T, D = q.shape
    q, k, v = (t.to(v.dtype).transpose(1, 2).reshape(B * T, -1, D) for t in (q, k, v))
    exact = torch.are_deterministic_algorithms_enabled()
    y = flash_attn_varlen_func(q, k, v, bounds, bounds, T, T, causal=True, deterministic=exact)
    return y.view(B, T, -1, D).transpose(1, 2)


def blockwise_attention(
    q: Tensor, k: Tensor, v: Tensor, runs: Tensor | None = None, prefixes: Tensor | None = None
) -> Tensor:
    """Causal attention in plain products, one block of queries after the other.

    q [B, A, T, D], k and v [B, K, T, D] → [B, A, T, D] in v's dtype. runs int64 [B, T]: tokens look
    at equal numbers only, and at their prefixes. None: every row is one document.

    A block's queries see the keys up to its own end, so nearly half of the square of scores is
    never computed. Sums are in float32. Compiled, what lies between two products is one loop over
    scores that are still in the CPU's cache.
    """
    (B, A, T, D), K = q.shape, k.shape[1]
    # the A / K query heads that share a key head lie side by side: keys are not copied for each
    q = (q * D**-0.5).to(v.dtype).reshape(B * K, A // K, T, D)
    k, v = k.to(v.dtype).reshape(B * K, T, D), v.reshape(B * K, T, D)
    return BlockwiseAttention.apply(q, k, v, runs, prefixes).view(B, A, T, D)


class BlockwiseAttention(torch.autograd.Function):
    """q [H, G, T, D], k and v [H, T, D] with H = B·K → softmax(q kᵀ) v, [H, G, T, D].

    Its own backward pass (the formulas are those of FlashAttention, Dao et al. 2022, appendix B)
    keeps exp(scores) in v's dtype and a row's sum, where autograd would keep the softmax in float32
    and add up gradients over padded blocks.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, runs, prefixes) -> Tensor:
        (H, G, T, D), y, saved = q.shape, [], []
        index = torch.arange(T, device=q.device)
        for start, end in query_blocks(T):
            scores = torch.bmm(_rows(q, start, end), k[:, :end].transpose(1, 2)).float()
            visible = index[start:end, None] >= index[:end]  # [block, end]
            if runs is not None:
                continued = None if prefixes is None else prefixes[:, start:end]
                same = same_document(runs[:, start:end], runs[:, :end], continued)
                visible = (visible & same).repeat_interleave(H // len(runs), dim=0)[:, None]
            scores = scores.view(H, G, end - start, end).masked_fill(~visible, float("-inf"))
            scores = scores.view(H, -1, end)  # [H, G·block, end]
            exp = (scores - scores.amax(-1, keepdim=True)).exp()
            total = exp.sum(-1, keepdim=True)  # float32 [H, G·block, 1]
            exp = exp.to(v.dtype)
            block = torch.bmm(exp, v[:, :end]) / total
            y.append(block.to(v.dtype).view(H, G, -1, D))
            saved += [exp, total]
        y = torch.cat(y, dim=2)
        ctx.save_for_backward(q, k, v, y, *saved)
        return y

    @staticmethod
    def backward(ctx, dy: Tensor):
        q, k, v, y, *saved = ctx.saved_tensors
        blocks = query_blocks(q.shape[2])
        dq, dk, dv = [], [], []
        for (start, end), exp, total in zip(blocks, saved[::2], saved[1::2]):
            queries, dy_rows = _rows(q, start, end), _rows(dy, start, end)  # [H, G·block, D]
            dot = (dy_rows.float() * _rows(y, start, end)).sum(-1, keepdim=True)
            dweights = torch.bmm(dy_rows, v[:, :end].transpose(1, 2))  # [H, G·block, end]
            dscores = (exp * ((dweights - dot) / total)).to(v.dtype)
            dq.append(torch.bmm(dscores, k[:, :end]).view(*q.shape[:2], -1, q.shape[3]))
            dk.append(torch.bmm(dscores.transpose(1, 2), queries))  # [H, end, D]
            dv.append(torch.bmm(exp.transpose(1, 2), (dy_rows / total).to(v.dtype)))
        # a block of keys is seen by its own queries and by all later ones
        dk = [sum(part[:, a:b].float() for part in dk[i:]) for i, (a, b) in enumerate(blocks)]
        dv = [sum(part[:, a:b].float() for part in dv[i:]) for i, (a, b) in enumerate(blocks)]
        dk, dv = torch.cat(dk, dim=1).to(k.dtype), torch.cat(dv, dim=1).to(v.dtype)
        return torch.cat(dq, dim=2), dk, dv, None, None


def one_token_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """q [B, A, 1, D], k and v [B, K, S, D], mask bool [B|1, 1, 1, S] or None → [B, A, 1, D].

    Compiled, products and sums are loops that read keys and values once. Sums are in float32.
    """
    queries = _computed(q.float() * q.shape[3] ** -0.5)
    queries = queries.view(len(q), k.shape[1], -1, 1, q.shape[3])  # [B, K, A/K, 1, D]
    scores = (queries * k[:, :, None].float()).sum(-1)  # [B, K, A/K, S]
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    y = (scores.softmax(-1)[..., None] * v[:, :, None].float()).sum(3)  # [B, K, A/K, D]
    return y.to(v.dtype).view(q.shape)


@torch.library.custom_op("minimind::computed", mutates_args=())
def _computed(x: Tensor) -> Tensor:
    """x. The compiler would compute the rotation of a query anew for every key it meets."""
    return x.clone(memory_format=torch.contiguous_format)


@_computed.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def query_blocks(T: int) -> list[tuple[int, int]]:
    """Start and end of every block of queries; at most 8: each adds to the time of compiling."""
    block = max(128, -(-T // 8))
    return [(start, min(start + block, T)) for start in range(0, T, block)]


def _rows(x: Tensor, start: int, end: int) -> Tensor:
    """Queries start to end of x [H, G, T, D], all heads below each other: [H, G·(end-start), D]."""
    return x[:, :, start:end].reshape(x.shape[0], -1, x.shape[3])
