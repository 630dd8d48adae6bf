"""Muon against its published mathematics and torch.optim.Muon; who is updated by what."""

import pytest
import torch

from model.config import LMConfig
from model.model import MiniMindLM
from training.optimizers import Muon, build_optimizer, orthogonalize

TINY = {
    "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48,
}  # fmt: skip


def matrices(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(5, 16, 16), (3, 8, 24), (2, 40, 12), (1, 1, 7)])
def test_orthogonalize_applies_the_polynomial_to_the_singular_values(shape):
    """U S Vᵀ becomes U p(s) Vᵀ, p the five quintic steps computed on the numbers alone."""
    x = matrices(*shape).double()
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    s = s / s.norm(dim=-1, keepdim=True)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    expected = u @ torch.diag_embed(s) @ v
    torch.testing.assert_close(orthogonalize(x.float()).double(), expected, rtol=0, atol=2e-5)


def test_orthogonalize_brings_singular_values_near_one():
    """A random matrix's singular values, spread over a factor of a thousand, end near 1."""
    u, _, v = torch.linalg.svd(matrices(4, 32, 64), full_matrices=False)
    s = torch.logspace(-2, 1, 32)
    result = torch.linalg.svdvals(orthogonalize(u @ torch.diag(s) @ v))
    assert result.min() > 0.1 and result.max() < 1.25
    assert ((result > 0.65) & (result < 1.25)).float().mean() > 0.75


def test_a_zero_gradient_gives_a_zero_update():
    """No division by a zero norm."""
    assert orthogonalize(torch.zeros(2, 4, 6)).abs().max() == 0


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_muon_steps_are_those_of_torch(shape):
    """Six updates equal torch.optim.Muon's (its products are bfloat16: so are ours here)."""
    ours = [torch.nn.Parameter(matrices(*shape, seed=i)) for i in range(3)]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    settings = {"lr": 0.02, "weight_decay": 0.1}
    muon = Muon([{"params": ours, "muon": True}], torch.bfloat16, **settings)
    oracle = torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **settings)
    first = [p.detach().clone() for p in ours]
    for step in range(6):
        for i, (p, q) in enumerate(zip(ours, theirs)):
            p.grad = matrices(*shape, seed=100 * step + i)
            q.grad = p.grad.clone()
        muon.step()
        oracle.step()
    for start, p, q in zip(first, ours, theirs):
        moved = (q - start).norm()
        assert moved > 0.3
        assert (p - q).norm() < 0.01 * moved


@pytest.mark.parametrize("experts", [False, True])
def test_every_parameter_is_updated_by_the_right_one(experts):
    """Matrices between hidden vectors by Muon; embeddings, head, router and norms by AdamW."""
    config = LMConfig(**TINY, use_moe=experts, tie_word_embeddings=False)
    model = MiniMindLM(config)
    optimizer = build_optimizer("muon", model, 1e-3, 0.1, torch.float32)
    names = {p: n for n, p in model.named_parameters()}
    grouped = [(names.pop(p), g) for g in optimizer.param_groups for p in g["params"]]
    assert not names  # each once
    for name, group in grouped:
        is_muon = "_proj" in name
        assert group.get("muon", False) == is_muon, name
        assert group["weight_decay"] == (0.0 if "norm" in name else 0.1), name


def test_what_muon_leaves_is_adamw():
    """Embeddings and norms move exactly as under torch.optim.AdamW; experts as single matrices."""
    torch.manual_seed(0)
    config = LMConfig(**TINY, use_moe=True)
    one, other = MiniMindLM(config), MiniMindLM(config)
    other.load_state_dict(one.state_dict())
    muon = build_optimizer("muon", one, 1e-2, 0.1, torch.float32)
    adamw = build_optimizer("adamw", other, 1e-2, 0.1, torch.float32)
    for step in range(3):
        for i, (p, q) in enumerate(zip(one.parameters(), other.parameters())):
            p.grad = matrices(*p.shape, seed=1000 * step + i)
            q.grad = p.grad.clone()
        muon.step()
        adamw.step()
    expert = one.model.layers[0].mlp.up_proj
    assert expert.ndim == 3
    for (name, p), q in zip(one.named_parameters(), other.parameters()):
        assert torch.equal(p, q) == ("_proj" not in name), name

    alone = torch.nn.Parameter(matrices(*expert.shape[1:]))
    stack = torch.nn.Parameter(torch.stack([alone.detach()] * 2))
    alone.grad, stack.grad = matrices(*alone.shape, seed=5), torch.zeros_like(stack)
    stack.grad[1] = alone.grad
    for p in (alone, stack):
        Muon([{"params": [p], "muon": True}], lr=0.1, weight_decay=0.0).step()
    torch.testing.assert_close(stack[1], alone)
