"""Decoding, the plain way: the KV cache and a stream of token ids. Knows nothing of text.

`generate` is the loop to read and the one that everything faster is tested against;
model/engine.py is what evaluation, chat and the server decode with.

Shapes in this file:
    L  layers    B  rows    K  key/value heads    S  cached tokens    D  head_dim    V  vocab_size
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import FunctionType
from weakref import WeakKeyDictionary

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


class PromptCache:
    """Keeps keys and values between calls of `generate`, as a chat's turns need them.

    The next prompt computes only what differs: everything from its first token that is not where
    the last call had it. One model's alone; make a new one when weights or adapters change.
    """

    def __init__(self):
        self.ids: list[int] = []  # the tokens that `cache` holds
        self.cache: KVCache | None = None

    def take(self, config: LMConfig, prompt: list[int], max_tokens: int, device, dtype) -> KVCache:
        """The cache, with room for `max_tokens`, holding what is known of the prompt.

        The prompt's last token is never held: the model is asked what comes after it.
        """
        same = 0
        while same < min(len(self.ids), len(prompt) - 1) and self.ids[same] == prompt[same]:
            same += 1
        old = self.cache
        if old is None or old.keys[0].shape[2] < max_tokens:
            self.cache = KVCache(config, 1, max_tokens, device, dtype)
            if same > 0:
                new = (*self.cache.keys, *self.cache.values)
                for to, known in zip(new, (*old.keys, *old.values)):
                    to[:, :, :same] = known[:, :, :same]
        self.ids = prompt[:same]
        self.cache.length, self.cache.lengths = same, None
        return self.cache


def next_logits(model: MiniMindLM, tokens: Tensor, cache: KVCache) -> Tensor:
    """Logits [B, V] after new tokens [B, T], which the cache then holds too."""
    return model(tokens, cache=cache, last_only=True)[0][:, -1]


# by model, for as long as the model is used
_compiled_steps: WeakKeyDictionary[MiniMindLM, Callable] = WeakKeyDictionary()


def compiled_next_logits(model: MiniMindLM) -> Callable[[MiniMindLM, Tensor, KVCache], Tensor]:
    """`next_logits` compiled for this model, for one new token per row and a cache with `lengths`.

    A CUDA graph on a GPU, where all shapes are fixed; on a CPU the number of slots stays open.
    Layers must not be replaced afterwards: asking all of them at every token whether they are still
    the ones that were compiled takes a good part of a small model's step, and is left out.
    """
    if model not in _compiled_steps:
        options = {}
        if not model.config.use_moe:  # the chosen experts split the step, and the parts do ask
            options["guard_filter_fn"] = torch.compiler.skip_guard_on_all_nn_modules_unsafe
        on_gpu = device_and_dtype(model)[0].type == "cuda"
        if on_gpu:
            options["triton.cudagraphs"] = True  # what mode="reduce-overhead" does
        # torch finds compiled code by the function's code object: every model has one of its own
        own = FunctionType(next_logits.__code__.replace(), globals())
        _compiled_steps[model] = torch.compile(
            own, dynamic=False if on_gpu else None, options=options
        )
    return _compiled_steps[model]


def fix_shapes(cache: KVCache, lengths: Tensor):
    """Turn the cache into one that `compiled_next_logits` can take again and again."""
    cache.set_lengths(lengths)
    buffers = (*cache.keys, *cache.values)
    if lengths.device.type == "cuda":  # a CUDA graph writes to fixed addresses
        cache.slots = torch.arange(buffers[0].shape[2], device=lengths.device)
        for tensor in buffers:
            torch._dynamo.mark_static_address(tensor)
        return
    torch._dynamo.mark_dynamic(cache.slots, 0)
    for tensor in buffers:
        torch._dynamo.mark_dynamic(tensor, 2)


@torch.inference_mode()
def generate(
    model: MiniMindLM,
    prompt: list[int],
    max_new_tokens: int,
    stop_ids: set[int],
    seed: int | None = None,
    prompt_cache: PromptCache | None = None,
    compiled: bool = False,
    **sampling,
) -> Iterator[int]:
    """Yield the token ids that follow `prompt`, one by one, until a stop id (which is yielded too).

    prompt_cache: from the call before; what the prompts have in common is not computed again.
    compiled: run the steps after the prompt as one compiled function, which the first call has to
    compile; meant for a model from `decoding_layers.for_decoding`, whose layers stay: one that gets
    an adapter afterwards has to be made anew. On a GPU calls that share a prompt_cache share the
    CUDA graph; another cache is another graph.
    sampling: the fields of `Sampling`. seed: makes the draws repeatable. Ends
    early when the model's max_position_embeddings are used up. Raises ValueError
    for an empty prompt or one that leaves no room.
    """
    room = room_after(model, prompt)
    max_new_tokens = min(max_new_tokens, room)
    device, dtype = device_and_dtype(model)
    vocab_size = model.config.vocab_size
    draws = Draws(Sampling(**sampling), prompt, seed, 0, vocab_size, device)
    sampler = Sampler([draws], device)
    total = len(prompt) + max_new_tokens
    slots = -(-total // 256) * 256  # so that a chat does not outgrow its cache at every turn
    prompt_cache = PromptCache() if prompt_cache is None else prompt_cache
    cache = prompt_cache.take(model.config, prompt, slots, device, dtype)
    tokens = torch.empty(1, total, dtype=torch.int64, device=device)
    tokens[0, : len(prompt)] = torch.tensor(prompt)
    try:
        for end in range(len(prompt), total):
            if end == len(prompt) or not compiled:
                logits = next_logits(model, tokens[:, cache.length : end], cache)
            else:
                if cache.lengths is None:
                    fix_shapes(cache, torch.tensor([cache.length], device=device))
                last = tokens[0, end - 1 : end][None]  # [1, 1], with strides that never change
                logits = compiled_next_logits(model)(model, last, cache)
                cache.next_slot()
            [token] = sampler.next(logits)
            tokens[0, end] = token
            yield token
            if token in stop_ids:
                return
    finally:  # also when the caller has heard enough
        prompt_cache.ids = tokens[0, : cache.length].tolist()


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
    compiled: bool = False,
    **sampling,
) -> list[list[int]]:
    """The token ids that follow each prompt, its stop id (if it came to one) included.

    All prompts, of any lengths, run as one batch; rows that have finished leave it when they are
    half (compiled, they stay: every number of rows is compiled once). Arguments and errors as in
    `generate`: the first row has its tokens, row i those of the seed's i-th sequence.
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
    fix_shapes(cache, lengths) if compiled else cache.set_lengths(lengths)
    step = compiled_next_logits(model) if compiled else next_logits

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
        if 2 * sum(going) <= len(rows) and not compiled:
            kept = [at for at in range(len(rows)) if going[at]]
            rows, going = [rows[at] for at in kept], [True] * len(kept)
            new = [new[at] for at in kept]
            cache.keep_rows(torch.tensor(kept, device=device))
            sampler = Sampler([draws[row] for row in rows], device)
        logits = step(model, torch.tensor(new, device=device)[:, None], cache)
        cache.next_slot()
    return answers
