"""Optimizers and their parameter groups: AdamW, and Muon for the matrices beside AdamW."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.distributed import like, whole


def build_optimizer(
    name: str, model: nn.Module, learning_rate: float, weight_decay: float, dtype: torch.dtype
) -> torch.optim.AdamW:
    """The optimizer of everything that is trained: AdamW, or Muon with AdamW for what it leaves.

    name "adamw": AdamW (Loshchilov & Hutter 2017) with betas (0.9, 0.95), as is usual for language
    models. "muon": Muon (see the class) for the matrices between hidden vectors, AdamW for
    embeddings, head, routers and norms, both at the same learning rate; its products are bfloat16
    if the run's `dtype` is, else float32.

    Weight decay pulls on matrices and embeddings, not on the norms' gains. `fused` updates all
    tensors in one kernel, on CPUs too.
    """
    by_muon, matrices, vectors = [], [], []
    for n, p in model.named_parameters():
        if p.requires_grad:
            is_muons = name == "muon" and _is_hidden_matrix(n, p)
            (by_muon if is_muons else matrices if p.ndim >= 2 else vectors).append(p)
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if by_muon:
        groups.append({"params": by_muon, "weight_decay": weight_decay, "muon": True})
    fused = all(p.device.type in ("cpu", "cuda") for p in [*by_muon, *matrices, *vectors])
    settings = {"lr": learning_rate, "betas": (0.9, 0.95), "eps": 1e-8, "fused": fused}
    if name == "muon":
        return Muon(groups, dtype if dtype == torch.bfloat16 else torch.float32, **settings)
    return torch.optim.AdamW(groups, **settings)


def _is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """A matrix (or a stack of experts' matrices) that maps hidden vectors to hidden vectors."""
    outside = ("embed_tokens", "lm_head", "score.", "mlp.gate.")
    return parameter.ndim >= 2 and not any(part in name for part in outside)


def clip_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """Scale the whole gradient down to a norm of at most max_norm (0: any); the norm it had."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm or float("inf"))
    return whole(norm)  # with --fsdp every rank has a shard of it


def skip_unless_finite(optimizer: torch.optim.AdamW, scaler, loss: Tensor, grad_norm: Tensor):
    """Let the optimizer's next step change nothing if the loss or the gradient is not finite.

    loss, grad_norm: scalars, the same on every rank. Nothing is read back from the device: the
    kernels look at a flag, the one that a GradScaler sets for float16 (which decides by itself).
    """
    if scaler.is_enabled():
        return
    is_bad = ~(loss.isfinite() & grad_norm.isfinite())
    if optimizer.defaults["fused"]:
        optimizer.grad_scale, optimizer.found_inf = None, is_bad.float()
    elif is_bad:
        optimizer.zero_grad(set_to_none=True)  # without gradients a step does nothing


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al. 2024) for the groups marked "muon", AdamW for the others.

    M ← μ M + (1 - μ) G        momentum, μ = 0.95
    U ← (1 - μ) G + μ M        Nesterov's look ahead
    W ← W (1 - η λ) - η 0.2 √max(rows, columns) · orthogonalize(U)

    The factor 0.2 √max gives an update the size that AdamW's typically has (Liu et al. 2025, arXiv
    2502.16982), so that learning rate η and weight decay λ mean the same for both.

    All matrices of one shape are orthogonalized in one batched product. With several processes each
    takes its part of every batch and the results are gathered: all ranks get the same bits. With
    --fsdp the matrices are gathered for it, one shape after the other. The products are computed
    in product_dtype.
    """

    MOMENTUM = 0.95

    def __init__(self, groups: list[dict], product_dtype=torch.float32, **settings):
        super().__init__(groups, **settings)
        # GradScaler then skips the whole step on an overflow; fused AdamW would skip its part alone
        self._step_supports_amp_scaling = False
        device = next(p.device for group in self.param_groups for p in group["params"])
        self._product_dtype = product_dtype
        self._orthogonalize = orthogonalize
        if device.type == "cuda":
            self._orthogonalize = torch.compile(orthogonalize, dynamic=False)

    @torch.no_grad()
    def step(self):
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            if group.get("muon"):
                self._muon_step(group)
                for parameter in group["params"]:
                    parameter.grad = None  # AdamW passes over parameters without a gradient
        super().step()

    def _muon_step(self, group: dict):
        found_inf = getattr(self, "found_inf", None)  # 1: change nothing (see skip_unless_finite)
        same_shape = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                same_shape[parameter.shape, parameter.device].append(parameter)
        for (shape, _), parameters in same_shape.items():
            for p in parameters:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            momenta = [self.state[p]["momentum_buffer"] for p in parameters]
            gradients = [p.grad for p in parameters]
            if found_inf is not None:  # its momentum again in place of such a gradient: M stays M
                is_bad = found_inf > 0
                gradients = [torch.where(is_bad, m, g) for m, g in zip(momenta, gradients)]
            torch._foreach_lerp_(momenta, gradients, 1 - self.MOMENTUM)
            torch._foreach_lerp_(gradients, momenta, self.MOMENTUM)  # they are not needed any more
            rows, columns = shape[-2:]
            stack = torch.stack([whole(gradient) for gradient in gradients]).view(-1, rows, columns)
            updates = self._in_parts(stack).view(len(parameters), *shape)
            updates = [like(update, p) for update, p in zip(updates, parameters)]
            size = 0.2 * math.sqrt(max(rows, columns))
            decay, rate = 1 - group["lr"] * group["weight_decay"], -group["lr"] * size
            if found_inf is not None:
                decay = torch.where(is_bad, 1.0, decay)
                torch._foreach_mul_(updates, torch.where(is_bad, 0.0, 1.0))
            torch._foreach_mul_(parameters, decay)
            torch._foreach_add_(parameters, updates, alpha=rate)

    def _in_parts(self, stack: Tensor) -> Tensor:
        """orthogonalize(stack [N, rows, columns]), every rank computing N / ranks of them."""
        dtype, stack = stack.dtype, stack.to(self._product_dtype)
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        if ranks == 1:
            return self._orthogonalize(stack).to(dtype)
        share = -(-len(stack) // ranks)
        padded = stack.new_zeros(share * ranks, *stack.shape[1:])
        padded[: len(stack)] = stack
        own = self._orthogonalize(padded[dist.get_rank() * share :][:share])
        dist.all_gather_into_tensor(padded, own.contiguous())
        return padded[: len(stack)].to(dtype)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Each of [N, rows, columns] with its singular values brought near 1: U S Vᵀ → about U Vᵀ.

    Newton–Schulz with the quintic polynomial of Jordan et al. 2024 (kellerjordan.github.io/posts/
    muon). Values above a two-hundredth of the matrix's norm end between 0.68 and 1.16; smaller ones
    have grown 80-fold or more, but are still smaller. Works in the dtype it is given.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else matrices.mT  # the smaller Gram matrix
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        update = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b G + c G G
        x = torch.baddbmm(x, update, x, beta=a)
    return x if wide else x.mT
