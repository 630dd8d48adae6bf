"""What an answerer is: whoever answers in the chat, a model in this process or a server.

is_chat      whether it answers messages; a base model only continues the last one
can_think    whether thinking can be switched on
kind         what `names` are: "adapter" or "model"
names        what /lora NAME or /model NAME may choose from
choose(name)
answer(messages, tools, thinking, attempt)
             a generator: the answer's parts as they come, `serving.answer.Delta`, then an End.
             messages are in the checked form of dataset/messages.py, tools descriptions in
             OpenAI's form or None. thinking: None where nothing was said about it. attempt: 0,
             or how often /retry was asked, for other draws with the same seed. ValueError, in
             one line, where there is no answer.
"""

from __future__ import annotations

import time
from typing import NamedTuple


class End(NamedTuple):
    """How an answer ended, and how fast it came.

    is_whole  whether it came to its own end, and not to the longest answer's
    tokens    that were generated; None where a server does not tell
    first     seconds until something came
    rest      seconds from there to the last token
    """

    is_whole: bool
    tokens: int | None
    first: float
    rest: float

    def __str__(self) -> str:
        parts = []
        if self.tokens is not None:
            longest = "" if self.is_whole else ", which is the longest answer"
            parts.append(f"{self.tokens:,} token{'s' * (self.tokens != 1)}{longest}")
            if self.rest > 0.01:  # else they came at once, which says nothing of how fast
                parts.append(f"{(self.tokens - 1) / self.rest:,.0f} tokens/s")
        return ", ".join([*parts, f"the first after {self.first:.2f} s"])


class Stopwatch:
    """When the first and the last part of an answer came."""

    def __init__(self):
        self.begun = time.perf_counter()
        self.first = self.last = self.begun

    def lap(self):
        self.last = time.perf_counter()
        if self.first == self.begun:
            self.first = self.last

    def end(self, is_whole: bool, tokens: int | None) -> End:
        return End(is_whole, tokens, self.first - self.begun, self.last - self.first)
