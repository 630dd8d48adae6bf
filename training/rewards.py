"""Built-in rewards, until tasks/ is there: the interface is that of tasks/rewards.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """What is asked: `ids` go up to where the assistant begins to speak."""

    text: str
    ids: list[int]
    answer: object = None
    messages: list | None = None
    tools: list | None = None


@dataclass(frozen=True)
class Completion:
    """What was answered. ids: with the stop id if it ended by one; is_cut: at the limit."""

    prompt: Prompt
    text: str
    raw: str
    ids: list[int]
    is_cut: bool


Reward = Callable[[list[Completion]], list[float]]
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def exact(completions: list[Completion]) -> list[float]:
    """1 for the expected text."""
    return [float(c.text.strip() == str(c.prompt.answer).strip()) for c in completions]


def _last_number(text: str) -> float | None:
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def number(completions: list[Completion]) -> list[float]:
    """1 where the last number is that of the answer."""
    right = [_last_number(str(c.prompt.answer)) for c in completions]
    return [float(r is not None and _last_number(c.text) == r) for c, r in zip(completions, right)]


def make_rewards(specs: list[str]) -> list[tuple[str, float, Reward]]:
    """(name, weight, reward) of every "name=weight"."""
    known, made = {"exact": exact, "number": number}, []
    for spec in specs:
        name, _, weight = spec.partition("=")
        if name not in known:
            raise ValueError(f"--reward {spec}: expected one of {', '.join(known)}")
        made.append((name, float(weight or 1), known[name]))
    return made
