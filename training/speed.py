"""How much arithmetic an update takes, and how much of it this device does in a second."""

from __future__ import annotations

import time

import torch

from model.model import MiniMindLM


def flops_per_token(model: MiniMindLM, context: float) -> float:
    """Floating-point operations of forward and backward pass for one position of a row.

    context: the tokens that a token looks at on average, half a row in causal attention.

    A product with a weight takes 2 operations per weight and token forward, 2 for the gradient of
    its input and 2 for that of the weight: 6 N (Kaplan et al. 2020), 4 N where it is frozen. N
    counts the head, and of several experts those that a token goes through, but not the embedding,
    which is looked up. Attention adds 12 L A D · context (Chowdhery et al. 2022, appendix B).
    """
    config = model.config
    C, L, D = config.hidden_size, config.num_hidden_layers, config.head_dim
    A, K = config.num_attention_heads, config.num_key_value_heads
    feed_forward = 3 * C * config.intermediate_size
    if config.use_moe:
        experts = config.num_experts_per_tok * 3 * C * config.moe_intermediate_size
        feed_forward = experts + C * config.num_experts
    head = C * model.lm_head.weight.shape[0]
    weights = L * (2 * C * A * D + 2 * C * K * D + feed_forward) + head
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return (4 + 2 * trained / model.num_parameters()) * weights + 12 * L * A * D * context


def matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.1) -> float:
    """Operations per second of a large matrix product in `dtype`: the best of several runs.

    A step's share of it is its model-FLOPs utilisation (MFU), with no table of devices.
    """
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, begin = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        a @ b
        if device.type != "cpu":
            getattr(torch, device.type).synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
