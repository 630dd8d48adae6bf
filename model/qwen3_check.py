"""Does the model here compute what Qwen3 computes? An edited one must not call itself by that name.

A folder that says "qwen3" is opened by other tools with their own code: whoever edits model.py
(another activation, no norm on queries) would get other numbers there, without a word. So the
tensors' names and shapes are compared with the list below, and a small model of the same classes,
with weights made by a formula, is asked for a few logits that Qwen3's own code was asked for.
tests/test_qwen3_check.py asks it again.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.config import LMConfig

# Logits at these positions of these tokens, from transformers' Qwen3ForCausalLM and
# Qwen3MoeForCausalLM for the small model of each kind. The row is long, so that a window over the
# last 1024 tokens shows, too.
TOKENS, POSITIONS, ENTRIES = 1100, (3, 500, 1099), (7, 50)
RECORD = {
    "dense": [4.1374, 2.6123, -2.6331, -1.2011, -6.7120, -2.4919],
    "yarn": [4.3377, 2.5156, -3.6246, -1.1908, -6.8498, -2.5509],
    "tied": [1.3327, -14.1398, -5.9692, 1.1738, -4.3046, 6.7698],
    "tied yarn": [1.4722, -13.4699, -5.4308, -0.5406, -4.7350, 6.6591],
    "experts": [2.7719, 0.4498, 3.3166, 3.7760, 1.0775, 2.3322],
    "experts yarn": [3.5831, 1.4242, 3.9844, 3.4417, 0.8350, 2.1642],
    "experts tied": [8.2333, -12.1144, -3.5777, -1.3236, -0.8290, -1.8688],
    "experts tied yarn": [6.2781, -10.8913, -3.9845, -1.3958, -0.9050, -1.1733],
    "experts norm": [1.7924, -0.2104, 3.2665, 3.7555, 1.2778, 2.2930],
    "experts norm yarn": [2.7788, 1.1326, 3.8906, 3.4156, 1.0906, 2.1432],
    "experts norm tied": [8.9746, -10.9956, -3.6178, -1.2871, -0.4352, -2.0310],
    "experts norm tied yarn": [6.0973, -9.4027, -4.0402, -1.4193, -0.4276, -1.3564],
}  # fmt: skip
TOLERANCE = 1e-3  # logits have the size of 3; machines and kernels differ by 1e-5


def shapes(config: LMConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a Qwen3 or Qwen3-MoE folder with these numbers, by its name on disk."""
    C, D, V = config.hidden_size, config.head_dim, config.vocab_size
    A, K = config.num_attention_heads, config.num_key_value_heads
    found = {"model.embed_tokens.weight": (V, C), "model.norm.weight": (C,)}
    if not config.tie_word_embeddings:
        found["lm_head.weight"] = (V, C)

    def feed_forward(prefix: str, width: int):
        found[f"{prefix}.gate_proj.weight"] = found[f"{prefix}.up_proj.weight"] = (width, C)
        found[f"{prefix}.down_proj.weight"] = (C, width)

    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        found[f"{layer}.input_layernorm.weight"] = (C,)
        found[f"{layer}.post_attention_layernorm.weight"] = (C,)
        found[f"{layer}.self_attn.q_proj.weight"] = (A * D, C)
        found[f"{layer}.self_attn.k_proj.weight"] = (K * D, C)
        found[f"{layer}.self_attn.v_proj.weight"] = (K * D, C)
        found[f"{layer}.self_attn.o_proj.weight"] = (C, A * D)
        found[f"{layer}.self_attn.q_norm.weight"] = (D,)
        found[f"{layer}.self_attn.k_norm.weight"] = (D,)
        if config.use_moe:
            found[f"{layer}.mlp.gate.weight"] = (config.num_experts, C)
            for e in range(config.num_experts):
                feed_forward(f"{layer}.mlp.experts.{e}", config.moe_intermediate_size)
        else:
            feed_forward(f"{layer}.mlp", config.intermediate_size)
    return found


def small(config: LMConfig) -> LMConfig:
    """A small model of the same kind. Fields that are not Qwen3's keep what `config` has there."""
    yarn = {"yarn_factor": 4.0, "yarn_original_length": 64} if config.yarn_factor > 1 else {}
    return config.with_changes(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, intermediate_size=48, max_position_embeddings=4096,
        rms_norm_eps=1e-2, rope_theta=50.0, initializer_range=0.02, dropout=0.0, num_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=24, router_aux_loss_coef=0.01,
        **{"yarn_factor": 1.0, "yarn_original_length": 0, "yarn_beta_fast": 32.0,
           "yarn_beta_slow": 1.0, "yarn_attention_factor": 0.0} | yarn,
    )  # fmt: skip


def kind(config: LMConfig) -> str:
    """The key of RECORD for a small model."""
    words = [config.use_moe and "experts", config.use_moe and config.norm_topk_prob and "norm"]
    words += [config.tie_word_embeddings and "tied", config.yarn_factor > 1 and "yarn"]
    return " ".join(word for word in words if word) or "dense"


def formula(name: str, shape: tuple[int, ...]) -> Tensor:
    """The weight of that name, float32: the same numbers on every machine, far from a start's."""
    x = torch.arange(math.prod(shape), dtype=torch.int64) * 2654435761 + zlib.crc32(name.encode())
    for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39)):
        x = x & 0xFFFFFFFF
        x = (x ^ (x >> shift)) * factor
    uniform = ((x & 0xFFFFFFFF).double() / 2**31 - 1).view(shape)  # [-1, 1)
    if len(shape) == 1:
        return (1 + 0.5 * uniform).float()
    width = 1 if "embed" in name else shape[-1]
    gain = 3.0 if name.endswith((".gate.weight", "lm_head.weight")) else 1.2
    return (uniform * gain * math.sqrt(3 / width)).float()


def tokens(config: LMConfig) -> Tensor:
    """The input: int64 [1, TOKENS]."""
    index = torch.arange(TOKENS)
    return ((index * index + 3 * index + index // 7) % config.vocab_size)[None]


def chosen(logits: Tensor) -> list[float]:
    """The logits that are compared, of logits [1, T, V]."""
    return logits[0, list(POSITIONS)][:, list(ENTRIES)].flatten().tolist()


class Verdict(NamedTuple):
    """What was found out about a class of models, or about one model."""

    reason: str | None  # how it departs from Qwen3, in a few words
    values: list[float] | None = None  # the logits of the small model, `chosen`
    modules: frozenset[tuple[str, type]] = frozenset()  # name and class of each of its modules


@lru_cache
@torch.no_grad()
def verdict(cls: type[nn.Module], config: LMConfig, from_disk: Callable) -> Verdict:
    """What a small model of this class computes. config: `small` of the model's own.

    from_disk: (tensors by their names on disk, config) → the class's state dict. Takes no random
    numbers, and some 50 ms once in a process.
    """
    try:
        with torch.device("meta"):
            model = cls(config).eval()
        state = from_disk({name: formula(name, s) for name, s in shapes(config).items()}, config)
        if config.tie_word_embeddings:
            state["lm_head.weight"] = state["model.embed_tokens.weight"]
        problem = model.load_state_dict(state, strict=False, assign=True)
        if names := [*problem.missing_keys, *problem.unexpected_keys]:
            have = "has no" if problem.unexpected_keys else "has a"
            name = (problem.unexpected_keys or names)[0]
            reason = f"it {have} {name}"
            state = {n: formula(n, tuple(p.shape)) for n, p in model.state_dict().items()}
            model.load_state_dict(state, assign=True)
        else:
            reason = None
        model.make_buffers("cpu")
        with torch.device("cpu"), torch.autocast("cpu", enabled=False):
            values = chosen(model(tokens(config))[0].float())
    except Exception as error:  # whatever an edited model may raise
        return Verdict(f"a small one cannot be computed: {type(error).__name__}")
    furthest = max(abs(a - b) for a, b in zip(values, RECORD[kind(config)]))
    if reason is None and not furthest <= TOLERANCE:
        reason = f"its logits on a fixed input differ by {furthest:.2g}"
    return Verdict(reason, values, _modules(model))


def verdict_on(model: nn.Module, on_disk: dict[str, Tensor], from_disk: Callable) -> Verdict:
    """Of this very model: its tensors' names and shapes, its modules, and what they compute."""
    config, cls = small(model.config), _class_of(model)
    found = verdict(cls, config, from_disk)
    have = {name: tuple(tensor.shape) for name, tensor in on_disk.items()}
    want = shapes(model.config)
    if found.reason is None and have != want:
        name = min(name for name in {**have, **want} if have.get(name) != want.get(name))
        return Verdict(f"{name} is {have.get(name)}, Qwen3's {want.get(name)}", found.values)
    if found.reason is None and (strange := _modules(model) - found.modules):
        name, module = min((name, module.__name__) for name, module in strange)
        return Verdict(f"its {name} is a {module}")  # no logits: those of the class are not its own
    return found


def same(a: list[float], b: object) -> bool:
    """Two lists of logits of one small model, the second one read from a file."""
    numbers = isinstance(b, list) and len(b) == len(a)
    numbers = numbers and all(isinstance(x, int | float) and not isinstance(x, bool) for x in b)
    return numbers and all(abs(x - y) <= TOLERANCE for x, y in zip(a, b))


def _modules(model: nn.Module) -> frozenset[tuple[str, type]]:
    """The class of every module; layers have one name."""
    modules = model.named_modules()
    return frozenset((re.sub(r"\.\d+", ".N", name), _class_of(m)) for name, m in modules)


def _class_of(module: nn.Module) -> type:
    """FSDP puts a class of its own before a module's."""
    return next(cls for cls in type(module).__mro__ if not cls.__name__.startswith("FSDP"))
