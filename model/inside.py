"""What a model thinks while it reads: surprise, attention, each layer's guess, chosen experts.

One pass through the blocks of a MiniMindLM gives all of it, and nothing is hooked into the model:
it may answer others meanwhile. Knows ids, not text.

Shapes in this file:
    T  tokens        C  hidden_size        V  vocab_size        n  likeliest tokens that are named
    L  layers        A  query heads        K  key heads         D  head_dim
    E  experts       k  experts per token
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from model.attention import attention
from model.model import MiniMindLM
from model.moe import expert_load

LONGEST = 1024  # tokens; an attention picture and a lens have T² and L·T·V numbers behind them
LIKELIEST = 10  # tokens named at each place
LIKELIEST_IN_LENS = 3  # … and at each place in each layer
LOGITS_AT_ONCE = 1 << 23  # 32 MB in float32, whatever the vocabulary


class Pass(NamedTuple):
    """What one forward pass leaves behind.

    streams        the residual stream [T, C] after the embedding, then after each block: L + 1
    router_logits  of each layer [T, E], or None in a layer without experts
    watched        what attention was given in the layer that was watched
    """

    streams: list[Tensor]
    router_logits: list[Tensor | None]
    watched: Watch


class Watch:
    """Stands where a layer's cache would: keeps the queries and keys that its attention is given.

    q  [1, A, T, D], normed and turned
    k  [1, K, T, D]
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        self.q, self.k = q, k
        return attention(q, k, v, mask)


class Reading(NamedTuple):
    """What a residual stream says of the next token, at every place.

    ids       int64 [T, n], the likeliest next tokens, likeliest first
    probs     float32 [T, n], their probabilities
    surprise  float32 [T - 1]: -ln p of the token that came, in nats; of token 1, 2, …
    rank      int64 [T - 1]: 1 where it was the likeliest one
    """

    ids: Tensor
    probs: Tensor
    surprise: Tensor
    rank: Tensor


class Inside(NamedTuple):
    """All that `look_inside` finds.

    reading         of the last layer: what the model says
    lens            of each stream, L + 1 of them (the logit lens, nostalgebraist 2020), or None
    attention       float32 [T, T], how much each token (row) looks at each earlier one, or None
    experts         int64 [L, T, k], the experts each token went to, likeliest first, or None
    expert_weights  float32 [L, T, k], what their outputs were multiplied by, or None
    expert_load     float32 [L, E], the share of the text's token copies that each got, or None
    """

    reading: Reading
    lens: list[Reading] | None
    attention: Tensor | None
    experts: Tensor | None
    expert_weights: Tensor | None
    expert_load: Tensor | None


@torch.inference_mode()
def look_inside(
    model: MiniMindLM,
    ids: list[int],
    layer: int | None = None,
    head: int | None = None,
    lens: bool = False,
    longest: int = LONGEST,
) -> Inside:
    """Read `ids` once, with the attention of one head and the lens only where asked for.

    model        also one of `for_decoding`; in eval mode
    layer, head  counted from 0; both or neither

    Raises ValueError for no ids or more than `longest`, for an id that the model has no row for,
    and for a layer or head that it has not.
    """
    _check(model, ids, layer, head, longest)
    tokens = torch.tensor(ids, device=model.inv_freq.device)
    run = read_once(model, tokens, layer)
    readings = None
    if lens:
        readings = [read_out(model, x, tokens, LIKELIEST_IN_LENS) for x in run.streams]
    weights = None if layer is None else attention_weights(run.watched, head)
    experts = chosen_experts(model, run) if model.config.use_moe else (None, None, None)
    reading = read_out(model, run.streams[-1], tokens, LIKELIEST)
    return Inside(reading, readings, weights, *experts)


@torch.inference_mode()
def read_once(model: MiniMindLM, tokens: Tensor, watched_layer: int | None = None) -> Pass:
    """The forward pass of MiniMindLM over one row, int64 [T], with all that it leaves behind."""
    x = model.model.embed_tokens(tokens[None])  # [1, T, C]
    angles = torch.arange(len(tokens), device=x.device)[:, None].float() * model.inv_freq
    angles = torch.cat((angles, angles), dim=-1)[None, None]  # [1, 1, T, D]
    cos = (angles.cos() * model.rotary_scale).to(x.dtype)
    sin = (angles.sin() * model.rotary_scale).to(x.dtype)
    streams, router_logits, watch = [x[0]], [], Watch()
    for i, block in enumerate(model.model.layers):
        x, chosen = block(x, cos, sin, None, watch if i == watched_layer else None)
        streams.append(x[0])
        router_logits.append(chosen)
    return Pass(streams, router_logits, watch)


@torch.inference_mode()
def logits_of(model: MiniMindLM, stream: Tensor) -> Tensor:
    """Next-token logits [T, V] of a residual stream [T, C] by the model's last norm and its head.

    For the last block's they are the model's; for an earlier one's they are those that it would
    have if the blocks behind it added nothing.
    """
    return model.lm_head(model.model.norm(stream))


@torch.inference_mode()
def read_out(model: MiniMindLM, stream: Tensor, tokens: Tensor, n: int) -> Reading:
    """What the stream [T, C] says of the token after each of `tokens` [T]; a part at a time."""
    parts = []
    n, step = min(n, model.config.vocab_size), max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    for start in range(0, len(tokens), step):
        logits = logits_of(model, stream[start : start + step]).float()  # [step, V]
        log_sum = logits.logsumexp(-1, keepdim=True)
        best, ids = logits.topk(n)  # [step, n]
        came = tokens[start + 1 : start + 1 + step, None]  # [step, 1]; the text's last has none
        known = logits[: len(came)]
        real = known.gather(1, came)
        surprise = (log_sum[: len(came)] - real).flatten()
        rank = 1 + (known > real).sum(-1)
        parts.append((ids, (best - log_sum).exp(), surprise, rank))
    return Reading(*(torch.cat(part) for part in zip(*parts)))


@torch.inference_mode()
def attention_weights(watched: Watch, head: int) -> Tensor:
    """float32 [T, T], rows sum to 1: the weights by which a head adds up the values of tokens.

    softmax(q kᵀ / √D) over what came before. Query heads share key heads: head h reads those of
    key head h // (A / K).
    """
    q, k = watched.q[0], watched.k[0]  # [A, T, D], [K, T, D]
    q, k = q[head].float(), k[head // (len(q) // len(k))].float()  # [T, D] each
    scores = q @ k.T * q.shape[-1] ** -0.5  # [T, T]
    later = torch.ones_like(scores, dtype=torch.bool).triu(1)
    return scores.masked_fill(later, float("-inf")).softmax(-1)


@torch.inference_mode()
def chosen_experts(model: MiniMindLM, run: Pass) -> tuple[Tensor, Tensor, Tensor]:
    """Experts int64 [L, T, k], weights float32 [L, T, k], load float32 [L, E], as in Inside.

    From the router's logits of the pass, by the rule of model/moe.py.
    """
    router_logits, k = torch.stack(run.router_logits), model.config.num_experts_per_tok
    weights, experts = router_logits.softmax(-1, dtype=torch.float32).topk(k)  # [L, T, k] each
    if model.config.norm_topk_prob:
        weights = weights / weights.sum(-1, keepdim=True)
    return experts, weights, expert_load(router_logits, k)


def as_numbers(model: MiniMindLM, inside: Inside) -> dict:
    """The same as plain numbers, for JSON (where they may be NaN or infinite, as in a tensor).

    Of attention the lower triangle alone: row t has t + 1 weights.
    """
    config = model.config
    found = {
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "experts_per_layer": config.num_experts if config.use_moe else 0,
        **_lists(inside.reading),
        "attention": None,
        "lens": None,
        "experts": None,
    }
    if inside.attention is not None:
        rows = inside.attention.tolist()
        found["attention"] = [row[: t + 1] for t, row in enumerate(rows)]
    if inside.lens is not None:
        found["lens"] = [_lists(reading) for reading in inside.lens]
    if inside.experts is not None:
        found["experts"] = {
            "ids": inside.experts.tolist(),
            "weights": inside.expert_weights.tolist(),
            "load": inside.expert_load.tolist(),
        }
    return found


def _lists(reading: Reading) -> dict:
    return {name: tensor.tolist() for name, tensor in reading._asdict().items()}


def _check(model: MiniMindLM, ids: list[int], layer: int | None, head: int | None, longest: int):
    config = model.config
    assert not model.training, "dropout would make every look another one"
    if not 1 <= len(ids) <= longest:
        raise ValueError(f"expected 1 to {longest} tokens, got {len(ids)}")
    if min(ids) < 0 or max(ids) >= config.vocab_size:
        raise ValueError(f"expected ids from 0 to {config.vocab_size - 1}, got others")
    if (layer is None) != (head is None):
        raise ValueError("layer and head: expected both or neither")
    if layer is None:
        return
    for name, value, count in (
        ("layer", layer, config.num_hidden_layers),
        ("head", head, config.num_attention_heads),
    ):
        if not 0 <= value < count:
            raise ValueError(f"{name}: expected 0 to {count - 1}, got {value}")
