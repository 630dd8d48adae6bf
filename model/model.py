"""MiniMindLM: a decoder-only transformer that computes exactly what Qwen3 computes.

Pre-norm blocks of grouped-query attention (RMSNorm on every query and key head, rotary positions)
and SwiGLU or a mixture of experts, no biases. Parameter names are those of transformers'
Qwen3ForCausalLM, so a state dict is already the content of a standard `model.safetensors`.

Shapes in this file:
    B  rows in the batch         T  new tokens per row         S  tokens attended to (cache + T)
    C  hidden_size               V  vocab_size                 I  intermediate_size
    A  query heads               K  key/value heads            D  head_dim
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.attention import (
    PackedRows,
    attention,
    document_starts,
    flash_attn_serves,
    flex_attention_serves,
    packed_rows,
)
from model.config import LMConfig
from model.moe import MoEFeedForward, expert_load, load_balancing_loss


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight over the last dimension (Zhang & Sennrich 2019).

    The statistics are computed in float32 whatever the input's dtype, as Qwen3 does.
    """

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


def rotary_frequencies(config: LMConfig) -> tuple[Tensor, float]:
    """Inverse frequencies float32 [D/2] in radians per token, and the scale of cos and sin.

    Plain RoPE (Su et al. 2021): θ^(-2i/D), scale 1. YaRN (Peng et al. 2023, arXiv 2309.00071):
    frequencies that turn more than beta_fast times within the trained context stay, those that turn
    less than beta_slow times are divided by the factor, with a linear ramp between.
    """
    D, theta = config.head_dim, config.rope_theta
    inv_freq = 1.0 / theta ** (torch.arange(0, D, 2, dtype=torch.float32) / D)
    if config.yarn_factor == 1:
        return inv_freq, 1.0

    def channel(rotations: float) -> float:  # the channel pair that turns this often in the context
        length = config.yarn_original_length
        return D * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(channel(config.yarn_beta_fast)), 0)
    high = min(math.ceil(channel(config.yarn_beta_slow)), D - 1)
    width = max(high - low, 0.001)  # equal ends would divide by zero
    ramp = ((torch.arange(D // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    stretched = inv_freq / config.yarn_factor
    scale = config.yarn_attention_factor or 0.1 * math.log(config.yarn_factor) + 1.0
    return inv_freq * (1 - ramp) + stretched * ramp, scale


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel pairs (i, i + D/2) of x [B, heads, T, D] by angles: cos, sin [B|1, 1, T, D]."""
    first, second = x.chunk(2, dim=-1)  # [B, heads, T, D/2] each
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def document_positions(document_ids: Tensor, prefixes: Tensor | None = None) -> Tensor:
    """Position of every token within its own document: int64 [B, T] from ids [B, T].

    [7, 7, 7, 9, 9] gives [0, 1, 2, 0, 1]. With prefixes it goes on from the end of the document
    that is continued: with [7, 7, 7, 7, 7] this gives [0, 1, 2, 3, 4].
    """
    index = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
    is_start = document_starts(document_ids)
    positions = index - torch.where(is_start, index, 0).cummax(dim=1).values
    if prefixes is None:
        return positions
    B, T = document_ids.shape
    ones = torch.ones_like(document_ids)
    lengths = ones.new_zeros(B, T + 1).scatter_add(1, document_ids, ones)  # of each document
    return positions + torch.where(prefixes == document_ids, 0, lengths.gather(1, prefixes))


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023) with RMSNorm on every query and key head."""

    def __init__(self, config: LMConfig):
        super().__init__()
        C, A, K = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.head_dim = D = config.head_dim
        self.q_proj = nn.Linear(C, A * D, bias=False)
        self.k_proj = nn.Linear(C, K * D, bias=False)
        self.v_proj = nn.Linear(C, K * D, bias=False)
        self.o_proj = nn.Linear(A * D, C, bias=False)
        self.q_norm = RMSNorm(D, config.rms_norm_eps)
        self.k_norm = RMSNorm(D, config.rms_norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | PackedRows | None, cache=None
    ) -> Tensor:
        """x [B, T, C] → [B, T, C]. mask: as model.attention.attention takes it; None = causal."""
        B, T, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(B, T, -1, self.head_dim))  # [B, T, A, D]
        k = self.k_norm(self.k_proj(x).view(B, T, -1, self.head_dim))  # [B, T, K, D]
        v = self.v_proj(x).view(B, T, -1, self.head_dim)  # [B, T, K, D]
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [B, heads, T, D]
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        # [B, A, T, D]
        y = attention(q, k, v, mask) if cache is None else cache.attend(q, k, v, mask)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) · up(x))."""

    def __init__(self, config: LMConfig):
        super().__init__()
        C, I = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(C, I, bias=False)
        self.up_proj = nn.Linear(C, I, bias=False)
        self.down_proj = nn.Linear(I, C, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # [B, T, C]


class Block(nn.Module):
    """One transformer layer: x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: LMConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MoEFeedForward(config) if config.use_moe else FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, cos, sin, mask, cache=None, checkpointing: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """x [B, T, C] → x [B, T, C] and, with experts, the router's logits [B·T, E].

        checkpointing: see MiniMindLM. It happens in here, since under FSDP a block is compiled by
        itself, and what calls it is not.
        """
        if checkpointing:
            return checkpoint(self._compute, x, cos, sin, mask, use_reentrant=False)
        return self._compute(x, cos, sin, mask, cache)

    def _compute(self, x: Tensor, cos, sin, mask, cache=None) -> tuple[Tensor, Tensor | None]:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cos, sin, mask, cache))
        y, router_logits = self.post_attention_layernorm(x), None
        if isinstance(self.mlp, MoEFeedForward):
            y, router_logits = self.mlp(y)
        else:
            y = self.mlp(y)
        return x + self.dropout(y), router_logits


class Decoder(nn.Module):
    """The container whose name, `model.`, prefixes all weights but the head's in a Qwen3 folder."""

    def __init__(self, config: LMConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class MiniMindLM(nn.Module):
    """Token ids in, next-token logits and the MoE auxiliary loss out."""

    def __init__(self, config: LMConfig):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.dropout = nn.Dropout(config.dropout)
        # True: only each block's input is kept for the backward pass, which computes the rest anew
        self.activation_checkpointing = False
        # packed rows hold at most so many documents; None: not known. flash-attn needs to know
        self.documents_per_row: int | None = None
        self.make_buffers()
        self.apply(self._init_weights)

    def make_buffers(self, device: str | torch.device | None = None):
        """(Re)make what follows from the config, or from the last batch, and is never saved."""
        inv_freq, self.rotary_scale = rotary_frequencies(self.config)
        self.register_buffer("inv_freq", inv_freq.to(device), persistent=False)  # [D/2]
        if self.config.use_moe:  # share of each layer's token copies that went to each expert
            load = torch.zeros(self.config.num_hidden_layers, self.config.num_experts)
            self.register_buffer("expert_load", load.to(device), persistent=False)  # [layers, E]

    def _init_weights(self, module: nn.Module):
        """Normal(0, initializer_range) everywhere but the norms, as Qwen3 starts."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, MoEFeedForward):
            for weight in (module.gate_proj, module.up_proj, module.down_proj):
                nn.init.normal_(weight, std=self.config.initializer_range)

    def forward(
        self,
        input_ids: Tensor,
        document_ids: Tensor | None = None,
        cache=None,
        token_mask: Tensor | None = None,
        last_only: bool | Tensor = False,
        places: Tensor | None = None,
        prefixes: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits for the token after each position, and the weighted auxiliary loss.

        input_ids     int64 [B, T]
        document_ids  [B, T], equal within a document: attention stays inside each run of equal ids
                      and positions restart there. None: every row is one document.
        cache         a model.generation.KVCache with earlier tokens; new ones are appended.
        token_mask    [B, T], 0 where a token is padding: left out of the auxiliary loss. None: all
                      tokens count.
        last_only     logits of the last position alone, for decoding; int64 [B]: of this position
                      in each row instead, where prompts of several lengths are padded; int64 [n]
                      beside a single row: of these positions, as if they were rows.
        places        int64 [n]: logits [n, V] of these positions alone, counted through all rows.
        prefixes      int64 [B, T] beside document_ids, which are then 0 … T and each one run: the
                      id of an earlier document of the row that the token's own one continues, so
                      that several continuations share it; its own id where it continues none.

        Returns logits [B, T, V] ([B|n, 1, V] with last_only) and aux_loss, a float32 scalar:
        router_aux_loss_coef · load-balancing loss with experts, 0 without.
        """
        T = input_ids.shape[1]
        x = self.dropout(self.model.embed_tokens(input_ids))  # [B, T, C]
        dtype = torch.get_autocast_dtype(x.device.type) if _autocast_on(x) else x.dtype
        if cache is not None:
            if document_ids is not None:
                raise ValueError("document_ids and cache together: packed rows are not decoded")
            positions, mask = cache.positions_and_mask(T)  # [B|1, T], [B|1, 1, T, S] or None
        elif document_ids is None:
            positions, mask = torch.arange(T, device=input_ids.device)[None], None  # [1, T]
        else:
            positions = document_positions(document_ids, prefixes)  # [B, T]
            kind = x.device, dtype, self.config.head_dim
            most = self.documents_per_row if flash_attn_serves(*kind) else None
            blocks = flex_attention_serves(*kind)
            mask = packed_rows(document_ids, most, blocks, prefixes)

        with torch.autocast(x.device.type, enabled=False):  # angles need float32
            angles = positions[..., None].float() * self.inv_freq  # [B|1, T, D/2]
            angles = torch.cat((angles, angles), dim=-1)[:, None]  # [B|1, 1, T, D]
            cos, sin = angles.cos() * self.rotary_scale, angles.sin() * self.rotary_scale
        cos, sin = cos.to(dtype), sin.to(dtype)

        router_logits = []
        checkpointing = self.activation_checkpointing and torch.is_grad_enabled()
        more = {"checkpointing": True} if checkpointing else {}
        for i, layer in enumerate(self.model.layers):
            x, layer_router_logits = layer(x, cos, sin, mask, cache and cache.layer(i), **more)
            router_logits.append(layer_router_logits)
        if cache is not None:
            cache.advance(T)
        if isinstance(last_only, Tensor):
            x = x[torch.arange(len(x), device=x.device), last_only][:, None]  # [B, 1, C]
        elif last_only:
            x = x[:, -1:]
        elif places is not None:
            x = x.flatten(0, 1)[places]  # [n, C]
        logits = self.lm_head(self.model.norm(x))
        return logits, self._auxiliary_loss(router_logits, token_mask, x.device)

    def _auxiliary_loss(self, router_logits: list, token_mask, device) -> Tensor:
        if not self.config.use_moe:
            return torch.zeros((), device=device)
        router_logits, k = torch.stack(router_logits), self.config.num_experts_per_tok
        self.expert_load.copy_(expert_load(router_logits.detach(), k))
        loss = load_balancing_loss(router_logits, k, token_mask)
        return self.config.router_aux_loss_coef * loss

    def num_parameters(self) -> int:
        """Trainable and frozen numbers, a tied head counted once."""
        return sum(p.numel() for p in self.parameters())


def _autocast_on(x: Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type)
