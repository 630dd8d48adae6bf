"""Decoding, the plain way: the KV cache and a stream of token ids. Knows nothing of text.

`generate` is the loop to read and the one that everything faster is tested against;
model/engine.py is what evaluation, chat and the server decode with.

Shapes in this file:
    L  layers    B  rows    K  key/value heads    S  cached tokens    D  head_dim    V  vocab_size
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from model.attention import attention
from model.config import LMConfig
from model.model import MiniMindLM
from model.sampling import Draws, Sampler, Sampling


class KVCache:
    """Keys and values of the tokens seen so far: for every layer two [B, K, max, D].

    A token's slot is its position in its row. Rows of different lengths are aligned at slot 0:
    `set_lengths` says how many tokens each holds, what lies behind them is hidden by a mask and
    overwritten by the tokens that come.
    """

    def __init__(self, config: LMConfig, batch_size: int, max_tokens: int, device, dtype):
        shape = (batch_size, config.num_key_value_heads, max_tokens, config.head_dim)
        kind = {"device": device, "dtype": dtype}
        layers = range(config.num_hidden_layers)
        # zeros: a hidden slot's weight is 0, but 0 times what memory happens to hold may be NaN
        self.keys = [torch.zeros(shape, **kind) for _ in layers]
        self.values = [torch.zeros(shape, **kind) for _ in layers]
        self.length = 0  # slots in use: the tokens of the longest row
        self.lengths = None  # int64 [B], tokens of each row; None: all rows hold `length`
        self.slots = None  # int64 [S] = 0, 1, ...: the slots looked at; beside `lengths` only

    @classmethod
    def over(cls, memory: Tensor) -> KVCache:
        """A cache in memory that is there: keys and values, [L, 2, B, K, max, D]."""
        cache = cls.__new__(cls)
        cache.keys, cache.values = [kv[0] for kv in memory], [kv[1] for kv in memory]
        cache.length, cache.lengths, cache.slots = 0, None, None
        return cache

    def set_lengths(self, lengths: Tensor):
        """From now on rows hold these numbers of tokens, int64 [B], and grow one by one."""
        self.lengths = lengths.clone()
        self.length = int(lengths.max())
        self.slots = torch.arange(self.length + 1, device=lengths.device)

    def positions_and_mask(self, T: int) -> tuple[Tensor, Tensor | None]:
        """For T new tokens per row: positions [B|1, T]; mask [B|1, 1, T, S] or None, as attention
        takes it (True = may look; None = causal, or one token that looks at all slots)."""
        if self.lengths is not None:
            assert T == 1, "rows of different lengths grow by one token at a time"
            return self.lengths[:, None], (self.slots <= self.lengths[:, None])[:, None, None]
        device, end = self.keys[0].device, self.length + T
        positions = torch.arange(self.length, end, device=device)[None]
        if self.length == 0 or T == 1:
            return positions, None
        mask = torch.ones(T, end, dtype=torch.bool, device=device).tril(self.length)
        return positions, mask[None, None]

    def layer(self, i: int) -> LayerCache:
        return LayerCache(self, i)

    def advance(self, T: int):
        """T new tokens per row are in, in every layer: the model says so after its last one."""
        if self.lengths is None:
            self.length += T

    def next_slot(self):
        """Beside `lengths`: make room for one more token in every row."""
        self.length += 1
        self.lengths += 1
        if len(self.slots) <= self.length:  # else all slots are looked at, in a CUDA graph
            self.slots = torch.arange(self.length + 1, device=self.slots.device)

    def keep_rows(self, rows: Tensor):
        """The others leave the batch. rows: int64, increasing."""
        self.keys = [k[rows] for k in self.keys]
        self.values = [v[rows] for v in self.values]
        self.lengths = self.lengths[rows]


class LayerCache:
    """One layer's view of a KVCache."""

    def __init__(self, cache: KVCache, i: int):
        self.cache, self.i = cache, i

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of new tokens q [B, A, T, D] over all keys and values, k and v among them."""
        return attention(q, *self.append(k, v), mask)

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store new k, v [B, K, T, D]; return all keys and values so far [B, K, S, D]."""
        cache = self.cache
        keys, values = cache.keys[self.i], cache.values[self.i]
        if cache.lengths is not None:
            rows = torch.arange(len(k), device=k.device)
            keys[rows, :, cache.lengths] = k[:, :, 0]
            values[rows, :, cache.lengths] = v[:, :, 0]
            end = len(cache.slots)
        else:
            end = cache.length + k.shape[2]
            keys[:, :, cache.length : end] = k
            values[:, :, cache.length : end] = v
        return keys[:, :, :end], values[:, :, :end]


def next_logits(model: MiniMindLM, tokens: Tensor, cache: KVCache) -> Tensor:
    """Logits [B, V] after new tokens [B, T], which the cache then holds too."""
    return model(tokens, cache=cache, last_only=True)[0][:, -1]


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

    sampling: the fields of `Sampling`. seed: makes the draws repeatable. Ends early when the
    model's max_position_embeddings are used up. Raises ValueError for an empty prompt or one that
    leaves no room.
    """
    room = room_after(model, prompt)
    max_new_tokens = min(max_new_tokens, room)
    device, dtype = device_and_dtype(model)
    vocab_size = model.config.vocab_size
    draws = Draws(Sampling(**sampling), prompt, seed, 0, vocab_size, device)
    sampler = Sampler([draws], device)
    cache = KVCache(model.config, 1, len(prompt) + max_new_tokens, device, dtype)
    new = torch.tensor([prompt], device=device)  # [1, T], what the cache does not hold yet
    for _ in range(max_new_tokens):
        [token] = sampler.next(next_logits(model, new, cache))
        yield token
        if token in stop_ids:
            return
        new = torch.tensor([[token]], device=device)


def room_after(model: MiniMindLM, prompt: list[int]) -> int:
    """Tokens that fit the context after the prompt; ValueError if it is empty or leaves none."""
    room = model.config.max_position_embeddings - len(prompt)
    if not prompt:
        raise ValueError("the prompt has no tokens")
    if room < 1:
        raise ValueError(
            f"the prompt has {len(prompt)} tokens, the model's context is "
            f"{model.config.max_position_embeddings} (max_position_embeddings)"
        )
    return room


def device_and_dtype(model: MiniMindLM) -> tuple[torch.device, torch.dtype]:
    weight = model.model.norm.weight  # never quantised
    return weight.device, weight.dtype


@torch.inference_mode()
def generate_batch(
    model: MiniMindLM,
    prompts: list[list[int]],
    max_new_tokens: int,
    stop_ids: set[int],
    seed: int | None = None,
    **sampling,
) -> list[list[int]]:
    """The token ids that follow each prompt, its stop id (if it came to one) included.

    All prompts, of any lengths, run as one batch; rows that have finished leave it when they are
    half. Arguments and errors as in `generate`: the first row has its tokens, row i those of the
    seed's i-th sequence.
    """
    limits = [min(max_new_tokens, room_after(model, prompt)) for prompt in prompts]
    device, dtype = device_and_dtype(model)
    settings, vocab_size = Sampling(**sampling), model.config.vocab_size
    draws = [
        Draws(settings, prompt, seed, row, vocab_size, device) for row, prompt in enumerate(prompts)
    ]
    sampler = Sampler(draws, device)
    longest = max(len(prompt) for prompt in prompts)
    cache = KVCache(model.config, len(prompts), longest + max(limits), device, dtype)
    filled = [prompt + [0] * (longest - len(prompt)) for prompt in prompts]
    tokens = torch.tensor(filled, device=device)  # [B, longest]
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    logits = model(tokens, cache=cache, last_only=lengths - 1)[0][:, -1]
    cache.set_lengths(lengths)

    answers: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # the prompt that each row of the batch belongs to
    going = [limit > 0 for limit in limits]
    while any(going):
        new = sampler.next(logits)
        for at, (row, token) in enumerate(zip(rows, new)):
            if going[at]:
                answers[row].append(token)
                going[at] = token not in stop_ids and len(answers[row]) < limits[row]
        if not any(going):
            break
        if 2 * sum(going) <= len(rows):
            kept = [at for at in range(len(rows)) if going[at]]
            rows, going = [rows[at] for at in kept], [True] * len(kept)
            new = [new[at] for at in kept]
            cache.keep_rows(torch.tensor(kept, device=device))
            sampler = Sampler([draws[row] for row in rows], device)
        logits = next_logits(model, torch.tensor(new, device=device)[:, None], cache)
        cache.next_slot()
    return answers
