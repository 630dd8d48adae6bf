"""Mixture of experts: a router, E SwiGLU experts with stacked weights, the load-balancing loss.

Shapes in this file:
    N  tokens (B·T)      C  hidden_size      E  experts      k  experts per token
    L  layers            I  moe_intermediate_size            M  token copies sent out (N·k)
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import LMConfig

BLOCK = 16  # rows, as many as a GPU's matrix units take at least


class MoEFeedForward(nn.Module):
    """Every token goes through its k most probable experts, weighted by the router's softmax.

    The weights of all experts are one tensor per projection, so that a layer's experts run as three
    grouped matrix products instead of a Python loop. On disk they are split per expert, as
    transformers' Qwen3-MoE writes them (see hf_format.py).
    """

    def __init__(self, config: LMConfig):
        super().__init__()
        C, E, I = config.hidden_size, config.num_experts, config.moe_intermediate_size
        self.num_experts, self.k = E, config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob
        self.gate = nn.Linear(C, E, bias=False)  # the router; Qwen3-MoE calls it `gate`
        self.gate_proj = nn.Parameter(torch.empty(E, I, C))
        self.up_proj = nn.Parameter(torch.empty(E, I, C))
        self.down_proj = nn.Parameter(torch.empty(E, C, I))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, T, C] → output [B, T, C] and the router's logits [N, E]."""
        shape = x.shape
        x = x.reshape(-1, shape[-1])  # [N, C]
        router_logits = self.gate(x)  # [N, E]
        probs = router_logits.softmax(-1, dtype=torch.float32)
        weights, experts = probs.topk(self.k, dim=-1)  # [N, k] each
        if self.norm_topk_prob:
            weights = weights / weights.sum(-1, keepdim=True)

        # Sort the token copies by expert, so that each expert's tokens are one contiguous slice.
        M, E = experts.numel(), self.num_experts
        waits = grouped_mm_waits(x.device, _product_dtype(x))
        by_blocks = waits and M <= BLOCK * E
        block = BLOCK if by_blocks else 1 if x.is_cuda else max(1, M // (16 * E))
        slot, source, is_filling, ends = sort_by_expert(experts.flatten(), E, block)
        copies = x[:, None].expand(-1, self.k, -1).reshape(M, -1)  # [M, C], k of each token
        rows = Permute.apply(copies, source, slot)  # [R, C]
        if by_blocks:  # zeros, since in float16 a row might overflow in another's expert
            rows = rows.masked_fill(is_filling[:, None], 0)
            owner = block_owners(ends, len(rows))  # [R / BLOCK]
            product = partial(_by_blocks, owner=owner)
        else:  # the host waits here, once, and in none of the layer's nine products
            product = partial(_grouped, ends=_on_host(ends) if waits else ends)
        hidden = F.silu(product(rows, self.gate_proj)) * product(rows, self.up_proj)  # [R, I]
        hidden = hidden.masked_fill(is_filling[:, None], 0)  # and with it all gradients of filling
        rows = product(hidden, self.down_proj)  # [R, C]
        rows = Permute.apply(rows, slot, source).view(*weights.shape, -1)  # [N, k, C]
        y = (rows * weights[..., None].to(rows.dtype)).sum(1)  # [N, C]
        return y.to(x.dtype).view(shape), router_logits


def grouped_mm_waits(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's grouped product makes the host wait for the GPU, to read where slices end.

    It does on CUDA, but for bfloat16 on capability 9 and 10 (`_grouped_mm_cuda` in torch's source).
    Then a layer reads them once, or, with few tokens as in decoding, takes products of blocks,
    which read nothing and may be part of a CUDA graph.
    """
    if device.type != "cuda":
        return False
    return dtype != torch.bfloat16 or torch.cuda.get_device_capability(device)[0] not in (9, 10)


def sort_by_expert(
    experts: Tensor, num_experts: int, block: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where each of M token copies goes, from the number of its expert: int64 [M].

    block       slices are filled up to multiples of so many rows. On a CPU, of a sixteenth of their
                mean length: for every new length oneDNN would compile a kernel, in each layer of
                each step (3% more rows, and the step takes 0.8 of the time)
    slot        int64 [M], the row of each copy among R rows sorted by expert
    source      int64 [R], the copy that lies in each row; 0 in rows that only fill up
    is_filling  bool [R]
    ends        int32 [E], where each expert's slice ends

    R is a multiple of block and does not depend on the tokens.
    """
    M, E = len(experts), num_experts
    counts = one_hot(experts, E).sum(0)  # [E]
    lengths = (counts + block - 1) // block * block
    ends = lengths.cumsum(0)
    order = experts.argsort(stable=True)  # [M]
    shift = (ends - lengths) - (counts.cumsum(0) - counts)  # [E], how far each slice moves
    index = torch.arange(M, device=experts.device)
    rows = index + shift[experts[order]]  # [M], of the copies in their new order
    R = (M + min(M, E) * (block - 1)) // block * block  # min: with few copies, few slices hold any
    slot = torch.empty_like(index).scatter(0, order, rows)
    source = torch.zeros(R, dtype=torch.int64, device=experts.device).scatter(0, rows, order)
    is_filling = torch.ones(R, dtype=torch.bool, device=experts.device).scatter(0, rows, False)
    return slot, source, is_filling, ends.to(torch.int32)


def one_hot(index: Tensor, count: int) -> Tensor:
    """bool [..., count], True at each index. On a CPU torch's own reads the largest index first."""
    return index[..., None] == torch.arange(count, device=index.device)


class Permute(torch.autograd.Function):
    """x, indices and the indices that lead back → the rows x[there]; gradients are read back.

    The backward pass reads rows, too. That of plain indexing adds to them, since it cannot know
    that none comes twice: slow on CPUs, and in any order on GPUs. Rows of x that `there` does not
    name get any gradient, so they have to be without effect.
    """

    @staticmethod
    def forward(ctx, x: Tensor, there: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x[there]

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (back,) = ctx.saved_tensors
        return gradient[back], None, None


def _product_dtype(x: Tensor) -> torch.dtype:
    """The dtype of autocast, where it is on: grouped_mm is not on its lists."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


@torch.library.custom_op("minimind::on_host", mutates_args=())
def _on_host(ends: Tensor) -> Tensor:
    """A copy on the CPU, which waits for the GPU; an operator that no backward pass repeats."""
    return ends.to("cpu", copy=True)


@_on_host.register_fake
def _(ends: Tensor) -> Tensor:
    return torch.empty_like(ends, device="cpu")


def _grouped(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """x [M, in] @ weight[e].T for the expert e that owns each slice of rows: → [M, out].

    weight [E, out, in]; ends int32 [E] are the slices' ends, on x's device or the CPU.
    """
    dtype = _product_dtype(x)
    return GroupedLinear.apply(x.to(dtype), weight.to(dtype), ends)


def _by_blocks(x: Tensor, weight: Tensor, owner: Tensor) -> Tensor:
    """The same as one batched product of blocks: x [R, in] → [R, out]; owner as below.

    Each block gets a copy of its expert's weights: where experts have many rows, grouped products
    are several times as fast.
    """
    dtype = _product_dtype(x)
    blocks = x.to(dtype).view(len(owner), BLOCK, -1)
    return torch.bmm(blocks, weight[owner].to(dtype).transpose(1, 2)).flatten(0, 1)


def block_owners(ends: Tensor, rows: int) -> Tensor:
    """int64 [rows / BLOCK], the expert whose slice holds each block; any where none does."""
    starts = torch.arange(0, rows, BLOCK, dtype=ends.dtype, device=ends.device)
    return torch.searchsorted(ends, starts, right=True).clamp(max=len(ends) - 1)


class GroupedLinear(torch.autograd.Function):
    """x [M, in], weight [E, out, in], ends [E] → [M, out], as `_grouped` says.

    Its own backward pass, because autograd's gives the weight's gradient as [E, in, out], which
    would then be turned round, and because `_product` must be differentiable in every dtype.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, ends)
        return _product(x, weight.transpose(1, 2), ends)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, weight, ends = ctx.saved_tensors
        gradient = gradient.contiguous()  # [M, out]
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = _product(gradient, weight, ends)  # [M, in]
        if ctx.needs_input_grad[1]:
            grad_weight = _product(gradient.T, x, ends)  # [E, out, in]
        return grad_x, grad_weight, None


def _product(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    """a [M, p] with b [E, p, q] → [M, q]; a [p, M] with b [M, q], cut at the ends → [E, p, q]."""
    if a.is_cuda and not ends.is_cuda:
        return _product_by_product(a, b, ends)
    if a.dtype == torch.bfloat16:
        return F.grouped_mm(a, b, offs=ends)
    return _product_in_other_dtypes(a, b, ends)


@torch.library.custom_op("minimind::product_by_product", mutates_args=())
def _product_by_product(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    """Where the ends are known to the host: a product for each expert, as torch's fallback does."""
    y = _product_shape(a, b, ends)
    start = 0
    for e, end in enumerate(ends.tolist()):
        if b.ndim == 3:
            torch.mm(a[start:end], b[e], out=y[start:end])
        else:
            torch.mm(a[:, start:end], b[start:end], out=y[e])
        start = end
    return y


@torch.library.custom_op("minimind::grouped_mm", mutates_args=())
def _product_in_other_dtypes(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    """The compiler knows grouped_mm in bfloat16 alone; this operator it need not look into."""
    return F.grouped_mm(a, b, offs=ends)


@_product_in_other_dtypes.register_fake
@_product_by_product.register_fake
def _product_shape(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    experts = () if b.ndim == 3 else (len(ends),)
    return a.new_empty(*experts, a.shape[0], b.shape[-1])


@torch.no_grad()
def expert_load(router_logits: Tensor, k: int) -> Tensor:
    """Share of each layer's token copies that goes to each expert: float32 [L, E], rows sum to 1.

    router_logits [L, N, E]. 1 / E everywhere is perfect balance.
    """
    chosen = router_logits.topk(k, dim=-1).indices.flatten(1)  # [L, N·k]
    return one_hot(chosen, router_logits.shape[-1]).float().mean(1)


def load_balancing_loss(router_logits: Tensor, k: int, token_mask: Tensor | None = None) -> Tensor:
    """E · Σₑ fₑ Pₑ (Switch Transformer, Fedus et al. 2021, eq. 4-6), as transformers pools it.

    router_logits [L, N, E]; token_mask [B, T] (N = B·T), 0 = padding, left out. f is the share of
    (token, choice) pairs sent to each expert times k, P the mean router probability, both over all
    layers and tokens. Perfect balance gives k. Returns a float32 scalar; 0 if all is padding.
    """
    L, N, E = router_logits.shape
    probs = router_logits.softmax(-1, dtype=torch.float32)  # [L, N, E]
    chosen = one_hot(probs.topk(k, dim=-1).indices, E).sum(2).float()  # [L, N, E]
    weight = torch.ones(N, device=probs.device) if token_mask is None else token_mask.flatten()
    weight = weight.to(torch.float32)[None, :, None]  # [1, N, 1]
    total = (L * weight.sum()).clamp(min=1)
    f = (chosen * weight).sum((0, 1)) / total  # [E]
    P = (probs * weight).sum((0, 1)) / total  # [E]
    return E * (f * P).sum()
