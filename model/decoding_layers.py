"""Linear layers for decoding: weights laid out as a CPU reads them fastest, or as 8-bit integers.

One token's step is a product of every weight matrix with one vector: it takes as long as reading
the weights. So what counts is the rate they are read at, and their size.

Shapes in this file:
    N  tokens in a step (rows · new tokens)      E  experts      k  experts per token
    in, out  features of a linear layer          C  hidden_size
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import lora
from model.model import MiniMindLM
from model.moe import MoEFeedForward

DEQUANTISE_ABOVE = 32  # tokens; with more, unpacking the weights first costs less than it saves


class PackedLinear(nn.Module):
    """A linear layer whose weight [out, in] is also kept in oneDNN's blocked layout.

    On CPUs. In float32, torch gives plain matrices to MKL, which reads them at half the rate on
    machines not made by Intel; oneDNN's own layout also helps bfloat16. torch.compile uses the same
    operators when it freezes a model. The plain weight stays for the compiled product of one token.
    """

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        # 32 tokens: the layout for these is the faster one for a single token, too
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 32)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] → [..., out]."""
        if not torch.compiler.is_compiling():
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")
        if x.numel() == x.shape[-1]:  # one token: the compiler makes one loop of product and sum
            y = (self.weight.float() * x.flatten().float()).sum(-1)  # [out]
            return y.to(x.dtype).view(*x.shape[:-1], -1)
        return _packed_product(x, self.packed, len(self.weight))


@torch.library.custom_op("minimind::packed_product", mutates_args=())
def _packed_product(x: Tensor, packed: Tensor, out_features: int) -> Tensor:
    """x [..., in] → [..., out_features]. An operator that the compiler need not look into."""
    return torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


@_packed_product.register_fake
def _(x: Tensor, packed: Tensor, out_features: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


class Int8Linear(nn.Module):
    """A linear layer with weights W ≈ scale · int8, one scale per output feature.

    scale = max|W| / 127 over a row, so that a weight is off by half of it (where bfloat16 rounds
    the scale down, the largest by three quarters). Inputs and sums stay floating point.
    """

    def __init__(self, weight: Tensor):
        super().__init__()
        exact = weight.detach().float()
        scale = (exact.abs().amax(dim=1).clamp(min=1e-6) / 127).to(weight.dtype)  # [out]
        rounded = (exact / scale.float()[:, None]).round().clamp(-127, 127)
        self.register_buffer("weight", rounded.to(torch.int8))  # [out, in]
        self.register_buffer("scale", scale)
        out_features, in_features = weight.shape
        self.in_tiles = out_features % 16 == 0 and in_features % 32 == 0  # else the kernel crashes

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] → [..., out]."""
        tokens = x.numel() // x.shape[-1]  # N
        on_cpu = x.device.type == "cpu"
        if on_cpu and x.dtype == torch.bfloat16 and self.in_tiles and tokens <= DEQUANTISE_ABOVE:
            y = torch._weight_int8pack_mm(x.reshape(tokens, -1), self.weight, self.scale)
            return y.view(*x.shape[:-1], -1)
        return F.linear(x, self.weight.to(x.dtype)) * self.scale  # unpacked first, then scaled


class ExpertsForDecoding(MoEFeedForward):
    """A MoEFeedForward whose experts are separate layers: a step reads the chosen ones alone."""

    def __init__(self, moe: MoEFeedForward, linear: type[nn.Module]):
        nn.Module.__init__(self)
        self.gate, self.k, self.norm_topk_prob = moe.gate, moe.k, moe.norm_topk_prob

        def layers(stacked: Tensor) -> nn.ModuleList:  # [E, out, in]
            return nn.ModuleList(linear(weight) for weight in stacked.detach())

        self.gate_proj, self.up_proj = layers(moe.gate_proj), layers(moe.up_proj)
        self.down_proj = layers(moe.down_proj)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, T, C] → output [B, T, C] and the router's logits [N, E]."""
        rows = x.reshape(-1, x.shape[-1])  # [N, C]
        router_logits = self.gate(rows)  # [N, E]
        weights, experts = router_logits.softmax(-1, dtype=torch.float32).topk(self.k)  # [N, k]
        if self.norm_topk_prob:
            weights = weights / weights.sum(-1, keepdim=True)
        y = torch.zeros_like(rows)  # [N, C]
        for e in experts.unique().tolist():
            token, choice = (experts == e).nonzero(as_tuple=True)  # [tokens of this expert] each
            part = rows[token]
            part = self.down_proj[e](F.silu(self.gate_proj[e](part)) * self.up_proj[e](part))
            y.index_add_(0, token, part * weights[token, choice, None].to(part.dtype))
        return y.view(x.shape), router_logits


def for_decoding(
    model: MiniMindLM, int8: bool = False, dtype: torch.dtype | None = None
) -> MiniMindLM:
    """A model that computes the same as `model`, faster for one token at a time.

    It shares the embedding and the norms; adapters are merged. int8: weights as in Int8Linear, but
    for the embedding and the router of experts. Otherwise the weights are laid out for the CPU (a
    second copy in memory); on other devices, and in float16, layers stay as they are. dtype: what
    weights are rounded to first; buffers stay, for angles need float32. For inference only: it is
    not changed when `model` is trained on, and is not to be saved.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    if dtype is not None:
        shared |= {id(p): nn.Parameter(p.detach().to(dtype)) for p in model.parameters()}
    fast = copy.deepcopy(model, shared)
    lora.merge(fast)
    linear = Int8Linear if int8 else PackedLinear
    if not int8 and not _can_pack(fast.lm_head.weight):
        return fast
    for name, layer in list(fast.named_modules()):
        parent, _, child = name.rpartition(".")
        if isinstance(layer, MoEFeedForward):
            setattr(fast.get_submodule(parent), child, ExpertsForDecoding(layer, linear))
        elif isinstance(layer, nn.Linear) and not name.endswith("mlp.gate"):
            setattr(fast.get_submodule(parent), child, linear(layer.weight))
    return fast


def _can_pack(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    bfloat16 = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32 or bfloat16
