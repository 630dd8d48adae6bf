"""From logits to the next token: penalties, filters, and a draw that depends on nothing else.

A draw inverts the distribution's cumulative sum at one number in [0, 1), which comes from the
sequence's own source (`uniforms`). So what a sequence draws depends on its seed and its logits, not
on the sequences computed beside it, nor on the device.

Shapes in this file:
    B  rows    V  vocab_size    k  candidates of a row, the likeliest first
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

PREFIX = 128  # likeliest tokens looked at before all are sorted, for top_k, top_p and min_p
CACHED_ROWS = 16  # whose sums in float64 stay in the cache of a CPU


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The penalties and filters apply in this order.

    repetition_penalty  positive logits of all tokens so far are divided by it, negative ones
                        multiplied (Keskar et al. 2019)
    frequency_penalty   times how often the token was generated is taken off its logit (OpenAI)
    presence_penalty    taken off the logit of every token that was generated (OpenAI)
    logit_bias          added to the logits of these tokens, by id
    temperature         divides the logits; 0 takes the likeliest token, whatever the filters say
    top_k               only the k likeliest tokens; 0 is no limit
    top_p               only the smallest set of tokens whose probability reaches p (Holtzman 2019)
    min_p               only tokens at least so many times as likely as the likeliest (Nguyen 2024)
    """

    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def looks_back(self) -> bool:
        """Whether the logits are changed by what was said, or by a bias."""
        return (
            self.repetition_penalty != 1
            or self.frequency_penalty != 0
            or self.presence_penalty != 0
            or bool(self.logit_bias)
        )


def uniforms(seed: int | None, number: int = 0) -> random.Random:
    """Where a sequence's draws come from: `.random()` for each token, in [0, 1).

    number: which of the sequences with this seed. None: other draws every time.
    """
    return random.Random(None if seed is None else f"{seed}/{number}")


class Said:
    """What one sequence has said, for the settings that look back."""

    def __init__(self, sampling: Sampling, tokens: Iterable[int], vocab_size: int, device):
        """tokens: the prompt's ids."""
        self.sampling = sampling
        self.counts = torch.zeros(vocab_size, device=device)  # how often each was generated
        self.present = torch.zeros(vocab_size, dtype=torch.bool, device=device)  # prompt and answer
        self.present[torch.tensor(list(tokens), dtype=torch.int64, device=device)] = True
        ids = torch.tensor(list(sampling.logit_bias), dtype=torch.int64, device=device)
        bias = torch.tensor(list(sampling.logit_bias.values()), device=device)
        self.bias = torch.zeros(vocab_size, device=device).index_add(0, ids, bias.float())

    def add(self, token: int):
        self.counts[token] += 1
        self.present[token] = True

    def penalise(self, logits: Tensor) -> Tensor:
        """Logits float32 [V] with the penalties and the bias."""
        s = self.sampling
        if s.repetition_penalty != 1:
            weaker = torch.where(
                logits < 0, logits * s.repetition_penalty, logits / s.repetition_penalty
            )
            logits = torch.where(self.present, weaker, logits)
        logits = logits - s.frequency_penalty * self.counts
        return logits - s.presence_penalty * (self.counts > 0) + self.bias


class Matcher(Protocol):
    """What may be said next, by rules that only whoever made it knows. It may raise ValueError."""

    def allowed(self) -> np.ndarray:
        """Which ids may come next: bool [V], at least one of them."""

    def accept(self, token: int):
        """This one came."""


class Draws:
    """What the draws of one sequence depend on: its settings, its numbers, what it has said.

    matcher  rules for what it may say, or None
    allowed  bool [V]: the ids that may come next, or None: all of them
    """

    def __init__(
        self, sampling: Sampling, prompt: Iterable[int], seed: int | None, number: int,
        vocab_size: int, device, matcher: Matcher | None = None,
    ):  # fmt: skip
        self.sampling = sampling
        self.uniforms = uniforms(seed, number)
        self.said = Said(sampling, prompt, vocab_size, device) if sampling.looks_back else None
        self.matcher = matcher
        self.allowed: Tensor | None = None
        self._device = device

    def look_ahead(self):
        """Ask the matcher what may come next."""
        if self.matcher is not None:
            self.allowed = torch.from_numpy(self.matcher.allowed()).to(self._device)


class Sampler:
    """Draws for rows that each have settings of their own; made anew when the rows change."""

    def __init__(self, rows_draws: list[Draws], device):
        self.draws = rows_draws
        settings = [draws.sampling for draws in rows_draws]

        def column(values: Iterable, dtype=torch.float32) -> Tensor:  # [B, 1]
            return torch.tensor(list(values), dtype=dtype, device=device)[:, None]

        def rows(chosen: list[bool]) -> Tensor | slice | None:
            if all(chosen):
                return slice(None)
            index = [i for i, is_chosen in enumerate(chosen) if is_chosen]
            return torch.tensor(index, device=device) if index else None

        drawn = [s.temperature != 0 for s in settings]
        filtered = [d and has_filters(s) for d, s in zip(drawn, settings)]
        self.greedy = rows([not d for d in drawn])
        self.plain = rows([d and not f for d, f in zip(drawn, filtered)])
        self.filtered = rows(filtered)
        self.temperature = column(s.temperature or 1.0 for s in settings)
        self.at_one = all(s.temperature in (0, 1) for s in settings)
        self.filters = {
            "top_k": column((s.top_k for s in settings), torch.int64),
            "top_p": column(s.top_p for s in settings),
            "min_p": column(s.min_p for s in settings),
        }

    def penalised(self, logits: Tensor) -> Tensor:
        """Logits float32 [B, V] of the model with each row's penalties and bias.

        -inf for what a row may not say next.
        """
        logits = logits.float()
        changed = [
            i
            for i, draws in enumerate(self.draws)
            if draws.said is not None or draws.allowed is not None
        ]
        if changed:
            logits = logits.clone()
        for i in changed:
            draws = self.draws[i]
            if draws.said is not None:
                logits[i] = draws.said.penalise(logits[i])
            if draws.allowed is not None:
                logits[i].masked_fill_(~draws.allowed, -math.inf)
        return logits

    def scaled(self, logits: Tensor, rows: Tensor | slice) -> Tensor:
        """Logits of some rows, divided by each one's temperature."""
        return logits[rows] if self.at_one else logits[rows] / self.temperature[rows]

    def next(self, logits: Tensor) -> list[int]:
        """The next token of every row, which each remembers. logits [B, V], the model's."""
        numbers = [draws.uniforms.random() for draws in self.draws]
        uniform = torch.tensor(numbers, dtype=torch.float64, device=logits.device)
        tokens = self.draw(self.penalised(logits), uniform).tolist()
        for draws, token in zip(self.draws, tokens):
            if draws.said is not None:
                draws.said.add(token)
        return tokens

    def draw(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """The next token of every row: int64 [B].

        logits float32 [B, V], with penalties. uniform float64 [B], in [0, 1).
        """
        if isinstance(self.greedy, slice):
            return logits.argmax(-1)
        tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
        if self.greedy is not None:
            tokens[self.greedy] = logits[self.greedy].argmax(-1)
        if (rows := self.plain) is not None:
            scaled = self.scaled(logits, rows)
            tokens[rows] = inverse(scaled.softmax(-1), uniform[rows])
        if (rows := self.filtered) is not None:
            scaled = self.scaled(logits, rows)
            filters = {name: values[rows] for name, values in self.filters.items()}
            tokens[rows] = draw_filtered(scaled, uniform[rows], filters)
        return tokens


def has_filters(sampling: Sampling) -> bool:
    return sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0


def inverse(probs: Tensor, uniform: Tensor) -> Tensor:
    """Where the cumulative sum of probs [B, n] passes uniform float64 [B]: int64 [B].

    Never a place of probability 0.
    """
    if len(probs) > CACHED_ROWS and probs.device.type == "cpu":
        parts = zip(probs.split(CACHED_ROWS), uniform.split(CACHED_ROWS))
        return torch.cat([inverse(*part) for part in parts])
    sums = probs.cumsum(-1, dtype=torch.float64)
    # a number so near to 1 that the product is rounded to the whole sum would pass nowhere
    target = torch.minimum(uniform * sums[:, -1], torch.nextafter(sums[:, -1], sums.new_zeros(())))
    return torch.searchsorted(sums, target[:, None], right=True)[:, 0]


def draw_filtered(
    logits: Tensor, uniform: Tensor, filters: dict[str, Tensor], k: int = PREFIX
) -> Tensor:
    """A token of every row, of those that its filters leave: int64 [B]. Arguments as below.

    What is left nearly always lies within the first few, so these are looked at first; of rows for
    which they are not enough, more are sorted.
    """
    kept, ids, is_enough = candidates(logits, **filters, k=k)
    tokens = ids.gather(1, inverse(kept.softmax(-1), uniform)[:, None])[:, 0]
    if not bool(is_enough.all()):
        rows = (~is_enough).nonzero()[:, 0]
        more = {name: values[rows] for name, values in filters.items()}
        tokens[rows] = draw_filtered(logits[rows], uniform[rows], more, 8 * k)
    return tokens


def candidates(
    logits: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The k likeliest tokens of each row, those that the filters drop at -inf; their ids.

    logits float32 [B, V], already divided by the temperature; top_k int64, top_p and min_p float32,
    [B, 1] each, as in `Sampling`. Returns logits and ids, [B, k] each, the likeliest first, and
    bool [B]: whether nothing but these can be left.
    """
    V = logits.shape[-1]
    k = min(k, V)
    ordered, ids = logits.topk(k)  # [B, k], descending
    rank = torch.arange(k, device=logits.device)
    limit = torch.where((top_k > 0) & (top_k < V), top_k, V)  # [B, 1]
    last = ordered.gather(1, limit.clamp(max=k) - 1)
    dropped = (rank >= limit) & (ordered < last)  # those as likely as the k-th stay
    among = torch.where(limit < k, ordered.masked_fill(dropped, -math.inf).logsumexp(-1, True),
                        logits.logsumexp(-1, True))  # fmt: skip
    probs = (ordered - among).exp()
    dropped |= (top_p < 1) & (probs.cumsum(-1) - probs >= top_p)  # what stands before reaches p
    dropped |= ordered < ordered[:, :1] + min_p.log()
    is_enough = dropped[:, -1] & ((limit < k) | (limit == V))[:, 0] | (k == V)
    is_enough |= ordered[:, -1].isneginf()  # a matcher has ruled out all others
    dropped[:, 0] = False
    return ordered.masked_fill(dropped, -math.inf), ids, is_enough


def filter_logits(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits float32 [B, V] of what is drawn from, -inf where a token is ruled out.

    logits [B, V], with penalties; one setting for all rows, of a temperature above 0.
    """
    logits = logits.float() / sampling.temperature
    if not has_filters(sampling):
        return logits
    names = ("top_k", "top_p", "min_p")
    columns = {
        name: torch.full((len(logits), 1), getattr(sampling, name), device=logits.device)
        for name in names
    }
    kept, ids, _ = candidates(logits, **columns, k=logits.shape[-1])
    return torch.full_like(logits, -math.inf).scatter(1, ids, kept)
