"""Rewards by name and weight: `--reward number=1 think_format=0.2 my.py:score=0.5`.

    exact                  the right text                            tasks/text.py
    values                 the share of the right values said
    number                 the right number                          tasks/number.py
    choice                 the right letter                          tasks/multiple_choice.py
    json                   an equal JSON value                       tasks/json_value.py
    tool_call, tool_name   the right calls; the right functions      tasks/tool_calls.py
    think_format           one think block, at the beginning         tasks/form.py
    length:LOW:HIGH        1 for so many tokens, less for others
    overlong:LOW:HIGH      DAPO's punishment, 0 at LOW tokens, -1 at HIGH
    repetition:N           minus the share of repeated n-grams, N = 3 unless given
    FILE.py:FUNCTION       a function of one's own: list[Completion] → a number for each
    model=FOLDER           the score of a reward model; model=FOLDER=0.5 gives it a weight

What a checker does wrong stops no run: it counts as 0, and is told the first time.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dataset.records import did_you_mean
from model.json_file import shown
from tasks import form
from tasks.json_value import json_equal, right_value
from tasks.multiple_choice import choice, right_letter
from tasks.number import number, right_number
from tasks.task import Completion, Prompt
from tasks.text import exact, right_text, right_values, values
from tasks.tool_calls import right_calls, tool_call, tool_name
from tools.own_files import load_file, what_failed

Reward = Callable[[list[Completion]], list[float]]  # one number for each
Report = Callable[[str], None]
MODEL = "model="
TAKEN = ("std", "failed")  # reward_std and reward_failed are figures of another kind
LARGEST = 1e6  # of a weight, and of what a reward gives: float32 adds such numbers up


class Checker(NamedTuple):
    """How one completion is judged.

    judge     Completion → a number; the settings are further arguments
    right     Prompt → what is right; ValueError for a prompt that says nothing of it
    settings  names of the whole numbers behind the checker's name …
    defaults  … and their values where they may be left out
    """

    judge: Callable[..., float]
    right: Callable[[Prompt], object] | None = None
    settings: tuple[str, ...] = ()
    defaults: tuple[int, ...] = ()


CHECKERS = {
    "exact": Checker(exact, right_text),
    "values": Checker(values, right_values),
    "number": Checker(number, right_number),
    "choice": Checker(choice, right_letter),
    "json": Checker(json_equal, right_value),
    "tool_call": Checker(tool_call, right_calls),
    "tool_name": Checker(tool_name, right_calls),
    "think_format": Checker(form.think_format),
    "length": Checker(form.length, None, ("LOW", "HIGH")),
    "overlong": Checker(form.overlong, None, ("LOW", "HIGH")),
    "repetition": Checker(form.repetition, None, ("N",), (3,)),
}


def say(line: str):
    """Print a line where warnings go."""
    print(line, file=sys.stderr, flush=True)


def make_rewards(
    specs: list[str],
    flag: str = "--reward",
    report: Report = say,
    model_reward: Callable[[Path], Reward] | None = None,
) -> list[tuple[str, float, Reward]]:
    """(name, weight, reward) of every spec of the kinds that this file's docstring lists.

    report        is told the first error of each reward, in one line
    model_reward  makes the reward of a reward model's folder; None: there is none

    A reward gives a finite number for each completion; `num_failed` of a CheckedReward counts those
    that could not be judged. Raises ValueError, one line that begins with the flag.
    """
    if not specs:
        raise ValueError(f"{flag}: expected at least one reward, got none")
    made: list[tuple[str, float, Reward]] = []
    for spec in specs:
        try:
            what, weight = _what_and_weight(spec)
            name, reward = _named_reward(what, report, model_reward)
            if name in [other for other, _, _ in made]:
                raise ValueError(f"there is a reward of the name {name} already")
            if name in TAKEN:
                raise ValueError(f"reward_{name} is another figure of the log: rename the function")
        except ValueError as error:
            raise ValueError(f"{flag} {shown(spec, 100)}: {error}") from None
        made.append((name, weight, reward))
    return made


def paths_in(specs: list[str]) -> list[Path]:
    """The models' folders and Python files that specs name and that are there."""
    paths = []
    for spec in specs:
        with contextlib.suppress(ValueError):
            what, _ = _what_and_weight(spec)
            file, _, _ = what.rpartition(":")
            if what.startswith(MODEL):
                paths.append(Path(what.removeprefix(MODEL)))
            elif file.endswith(".py"):
                paths.append(Path(file))
    return [path for path in paths if path.exists()]


def judged(
    rewards: list[tuple[str, float, Reward]], completions: list[Completion]
) -> tuple[list[float], dict[str, list[float]]]:
    """(the weighted sum of each completion, {name of a reward: its number for each})."""
    parts = {name: reward(completions) for name, _, reward in rewards}
    weights = [weight for _, weight, _ in rewards]
    sums = [sum(w * x for w, x in zip(weights, row)) for row in zip(*parts.values())]
    return sums, parts


def check_prompts(specs: list[str], prompts: list[Prompt], flag: str = "--reward") -> list[str]:
    """What to say of rewards that cannot judge some of the prompts, a line each.

    For a prompt without a number as its right answer "number" gives 0 whatever is said, and nothing
    is learned from it. Raises ValueError if a reward can judge none of the prompts.
    """
    lines = []
    for spec in specs:
        name = spec.partition("=")[0].partition(":")[0]
        right = CHECKERS[name].right if name in CHECKERS else None
        count, first = 0, ""
        for prompt in prompts if right else ():
            try:
                right(prompt)
            except ValueError as error:
                first = first or f"{shown(prompt.text, 60)!r}: {error}"
                count += 1
        if count:
            told = f"{flag} {name}: {count:,} of {len(prompts):,} prompts cannot be judged"
            if count == len(prompts):
                raise ValueError(f"{told}; the first is {first}")
            lines.append(f"warning: {told} and count as 0; the first is {first}")
    return lines


class CheckedReward:
    """A reward that gives a finite number for each completion, whatever happens inside.

    judge       list[Completion] → a number for each
    one_by_one  hand it the completions one at a time: an error costs no more than one 0
    num_failed  completions that counted as 0 because of an error, or because it gave no number
    is_own      whether it is a function of a user's file
    """

    def __init__(self, name: str, judge: Reward, report: Report, one_by_one: bool = False):
        self.name, self.judge, self.report, self.one_by_one = name, judge, report, one_by_one
        self.num_failed, self.is_own = 0, not one_by_one

    def __call__(self, completions: list[Completion]) -> list[float]:
        if self.one_by_one:
            return [x for completion in completions for x in self._judged([completion])]
        return self._judged(completions)

    def _judged(self, completions: list[Completion]) -> list[float]:
        shown_to = completions
        if self.is_own:  # whatever it does to what it is given
            shown_to = [replace(one, ids=[*one.ids]) for one in completions]
        try:
            given = list(self.judge(shown_to))
            if len(given) != len(completions):
                raise ValueError(f"expected {len(completions)} numbers, got {len(given)}")
        except (Exception, SystemExit) as error:
            self._failed(len(completions), what_failed(error))
            return [0.0] * len(completions)
        return list(map(self._finite, given))

    def _finite(self, value: object) -> float:
        try:
            given = math.nan if isinstance(value, str) else float(value)  # of a tensor, too
        except Exception:
            given = math.nan
        if abs(given) <= LARGEST:  # false of nan
            return given
        what = f"a number from {-LARGEST:,.0f} to {LARGEST:,.0f}"
        self._failed(1, f"expected {what}, got {shown(repr(value), 60)}")
        return 0.0

    def _failed(self, count: int, why: str):
        if count and not self.num_failed:
            self.report(f"reward {self.name}: what it cannot judge counts as 0; first {why}")
        self.num_failed += count


def load_reward(path: Path, function: str) -> Reward:
    """A function of a Python file, which is run, with what rights this process has.

    It is the user's own code, for the user to judge. ValueError if the file fails, or has no such
    function.
    """
    module = load_file(path)
    found = getattr(module, function, None)
    if not callable(found) or inspect.isclass(found):
        names = [name for name, value in vars(module).items() if inspect.isfunction(value)]
        raise ValueError(f"{path} has no function {function!r}{did_you_mean(function, names)}")
    return found


def _what_and_weight(spec: str) -> tuple[str, float]:
    """A spec in its two parts; ValueError for a weight that is none."""
    what, equals, text = spec.rpartition("=")
    if not equals or what + equals == MODEL:
        return spec, 1.0
    try:
        weight = float(text)
    except ValueError:
        if spec.startswith(MODEL):  # a folder with "=" in its name
            return spec, 1.0
        weight = math.nan
    if not abs(weight) <= LARGEST:
        raise ValueError(f"expected a number up to {LARGEST:,.0f} as the weight, got {text!r}")
    return what, weight


def _named_reward(what: str, report: Report, model_reward) -> tuple[str, Reward]:
    """A reward and its name, in which its figures are logged; ValueError."""
    if what.startswith(MODEL):
        if model_reward is None:
            raise ValueError("there is no reward model in this script")
        return MODEL.rstrip("="), model_reward(Path(what.removeprefix(MODEL)))
    file, colon, function = what.rpartition(":")
    if colon and file.endswith(".py"):
        return function, CheckedReward(function, load_reward(Path(file), function), report)
    name, *given = what.split(":")
    if name not in CHECKERS:
        known = ", ".join([*CHECKERS, f"{MODEL}FOLDER", "FILE.py:FUNCTION"])
        raise ValueError(f"expected one of {known}{did_you_mean(name, CHECKERS)}")
    numbers = _settings(CHECKERS[name], given)
    judge = CHECKERS[name].judge
    return name, CheckedReward(name, lambda one: [judge(one[0], *numbers)], report, True)


def _settings(checker: Checker, given: list[str]) -> list[int]:
    """The whole numbers behind a checker's name; ValueError."""
    names, missing = checker.settings, len(checker.settings) - len(given)
    usage = f"whole numbers from 1 on as {':'.join(names)}" if names else "no numbers"
    if missing < 0 or missing > len(checker.defaults):
        raise ValueError(f"expected {usage} behind the name, got {len(given)}")
    if not all(text.isascii() and text.isdigit() and 0 < int(text[:10]) < 10**9 for text in given):
        raise ValueError(f"expected {usage} behind the name, got {':'.join(given)!r}")
    numbers = [*map(int, given), *checker.defaults[len(checker.defaults) - missing :]]
    if numbers != sorted(numbers):
        raise ValueError(f"expected {names[0]} of at most {names[1]}")
    return numbers
