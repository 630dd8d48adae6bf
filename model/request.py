"""What an engine is asked, and what its steps tell."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from model.sampling import Sampling


@dataclass(eq=False)
class Request:
    """A prompt, how it is to be answered, and what has become of it.

    prompt            ids, at least one
    max_new_tokens    longest answer; 0 is allowed where only the prompt is to be looked at
    stop_ids          the answer ends with any of these, which is its last token then
    seed, number      as in `sampling.uniforms`; the answer is that of `generate` with this seed
    logprobs          also tell the log-probability (nats) of every token of the answer, and of so
                      many of the likeliest; None: not asked for
    prompt_logprobs   … and of the prompt's tokens from the second on
    as_drawn          log-probabilities under the distribution that was drawn from (penalties, bias,
                      temperature; not the filters) in place of the model's own
    grammar           what the engine's make_matcher is to make a Matcher of: the answer follows it

    tokens            the answer so far
    ending            "stop" (a stop id), "length", "cancelled" or "failed"; "" while it goes on
    failure           why it has failed: what its matcher raised
    prompt_tops       with prompt_logprobs, once the prompt was read: a LogProb for each of its
                      tokens but the first
    cached            tokens of the prompt that did not have to be computed
    """

    prompt: list[int]
    max_new_tokens: int
    stop_ids: frozenset[int] | set[int] = frozenset()
    sampling: Sampling = field(default_factory=Sampling)
    seed: int | None = None
    number: int = 0
    logprobs: int | None = None
    prompt_logprobs: bool = False
    as_drawn: bool = False
    grammar: str | None = None

    tokens: list[int] = field(default_factory=list)
    ending: str = ""
    failure: str = ""
    prompt_tops: list[LogProb] = field(default_factory=list)
    cached: int = 0


class LogProb(NamedTuple):
    """Log-probabilities at one place, in nats: of the token there, and of the likeliest ones."""

    token: float
    likeliest: list[tuple[int, float]]  # (id, log-probability), the likeliest first


class Drawn(NamedTuple):
    """What a step made: one more token of a request, or (token None) the end of one without any.

    last: whether the request has ended with it.
    """

    request: Request
    token: int | None
    logprob: LogProb | None
    last: bool
