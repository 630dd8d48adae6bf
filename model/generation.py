"""Decoding: the KV cache, sampling, and a stream of token ids. Knows nothing of text.

Shapes in this file:
    L  layers    B  rows    K  key/value heads    S  cached tokens    D  head_dim    V  vocab_size
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from model.config import LMConfig
from model.model import MiniMindLM


class KVCache:
    """Keys and values of the tokens seen so far, in memory taken once: 2 × [L, B, K, max, D]."""

    def __init__(self, config: LMConfig, batch_size: int, max_tokens: int, device, dtype):
        shape = (config.num_hidden_layers, batch_size, config.num_key_value_heads, max_tokens)
        self.keys = torch.empty(*shape, config.head_dim, device=device, dtype=dtype)
        self.values = torch.empty_like(self.keys)
        self.length = 0  # tokens held; the model advances it after its last layer

    def layer(self, i: int) -> LayerCache:
        return LayerCache(self, i)


class LayerCache:
    """One layer's view of a KVCache."""

    def __init__(self, cache: KVCache, i: int):
        self.cache, self.i = cache, i

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store new k, v [B, K, T, D]; return all keys and values so far [B, K, S, D]."""
        end = self.cache.length + k.shape[2]
        keys, values = self.cache.keys[self.i], self.cache.values[self.i]
        keys[:, :, self.cache.length : end] = k
        values[:, :, self.cache.length : end] = v
        return keys[:, :, :end], values[:, :, :end]


def filter_logits(
    logits: Tensor,
    seen: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
) -> Tensor:
    """Logits float32 [B, V] of the distribution to draw from, -inf where a token is ruled out.

    logits              [B, V], the model's
    seen                int64 [B, S], the tokens so far, for the repetition penalty (Keskar et al.
                        2019): their positive logits are divided by it, negative ones multiplied
    temperature         divides the logits; 0 leaves them as they are, for the most probable token
    top_k               only the k most probable tokens; 0 is no limit
    top_p               only the smallest set of tokens whose probability reaches p (Holtzman 2019)

    In this order, as transformers applies them.
    """
    logits = logits.float()
    if repetition_penalty != 1:
        scores = logits.gather(1, seen)
        scores = torch.where(scores < 0, scores * repetition_penalty, scores / repetition_penalty)
        logits = logits.scatter(1, seen, scores)
    if temperature == 0:
        return logits
    logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        smallest_kept = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest_kept, -torch.inf)
    if top_p < 1:
        ordered, index = logits.sort(descending=True)
        probs = ordered.softmax(-1)
        dropped = probs.cumsum(-1) - probs >= top_p  # what stands before already reaches p
        dropped[:, 0] = False
        logits = logits.scatter(1, index, ordered.masked_fill(dropped, -torch.inf))
    return logits


def sample(
    logits: Tensor,
    seen: Tensor,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    **filters,
) -> Tensor:
    """The next token of every row: int64 [B] from logits [B, V]; temperature 0 takes the best.

    seen int64 [B, S] and filters (top_k, top_p, repetition_penalty) as in `filter_logits`.
    """
    logits = filter_logits(logits, seen, temperature, **filters)
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


@torch.inference_mode()
def generate(
    model: MiniMindLM,
    prompt: list[int],
    max_new_tokens: int,
    stop_ids: set[int],
    seed: int | None = None,
    **sampling,
) -> Iterator[int]:
    """Yield the token ids that follow `prompt`, one by one, until a stop id (which is yielded too).

    sampling: temperature, top_k, top_p, repetition_penalty as in `sample`. seed: makes the draw
    repeatable. Ends early when the model's max_position_embeddings are used up. Raises ValueError
    for an empty prompt or one that leaves no room.
    """
    room = model.config.max_position_embeddings - len(prompt)
    if not prompt:
        raise ValueError("the prompt has no tokens")
    if room < 1:
        raise ValueError(
            f"the prompt has {len(prompt)} tokens, the model's context is "
            f"{model.config.max_position_embeddings} (max_position_embeddings)"
        )
    max_new_tokens = min(max_new_tokens, room)
    weight = model.lm_head.weight
    generator = None
    if seed is not None:
        generator = torch.Generator(weight.device).manual_seed(seed)
    total = len(prompt) + max_new_tokens
    cache = KVCache(model.config, 1, total, weight.device, weight.dtype)
    tokens = torch.empty(1, total, dtype=torch.int64, device=weight.device)
    tokens[0, : len(prompt)] = torch.tensor(prompt)
    for end in range(len(prompt), total):
        logits, _ = model(tokens[:, cache.length : end], cache=cache, last_only=True)
        tokens[:, end] = sample(logits[:, -1], tokens[:, :end], generator=generator, **sampling)
        token = int(tokens[0, end])
        yield token
        if token in stop_ids:
            return


@torch.inference_mode()
def greedy_answers(
    model: MiniMindLM,
    prompts: list[list[int]],
    max_new_tokens: int,
    stop_ids: set[int],
    is_over: Callable[[], bool] | None = None,
) -> list[list[int]]:
    """The most probable continuation of every prompt, without its stop id.

    Prompts of equal length run as one batch, so no row is padded. is_over: asked before every
    batch; once it says so, the remaining continuations stay empty.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    device, dtype = model.lm_head.weight.device, model.lm_head.weight.dtype
    stops = torch.tensor(sorted(stop_ids), device=device)
    for length in sorted({len(prompt) for prompt in prompts}):
        if is_over is not None and is_over():
            break
        rows = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
        cache = KVCache(model.config, len(rows), length + max_new_tokens, device, dtype)
        tokens = torch.tensor([prompts[i] for i in rows], device=device)
        stopped = torch.zeros(len(rows), dtype=torch.bool, device=device)
        new = []
        while len(new) < max_new_tokens and not stopped.all():
            logits, _ = model(tokens, cache=cache, last_only=True)
            tokens = logits[:, -1].argmax(-1, keepdim=True)  # [rows, 1]
            stopped |= torch.isin(tokens[:, 0], stops)
            new.append(tokens)
        for i, row in zip(rows, torch.cat(new, dim=1).tolist()):
            for token in row:
                if token in stop_ids:
                    break
                answers[i].append(token)
    return answers
