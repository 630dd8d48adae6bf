r"""Numbers in texts: `1,200` is `1200.0`, `$1,200` and `１，２００`; 0.75 is 3/4 and \frac{3}{4}.

Which of a text's numbers is its answer: the one in the last \boxed{…}, or behind ####, or the last.
Values are exact fractions, nothing is evaluated, and all takes time in proportion to the length.
What is not read: numbers in words (seven, 七, 3 million, 3万), roots, powers, decimal commas.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from tasks.final_answer import behind_hashes, in_the_box
from tasks.task import Completion, Prompt, not_the_right, only

LONGEST = 1000  # characters of a number, which is no number of a question if it has more
LARGEST_EXPONENT = 400
CURRENCIES = "$€£¥₹₽₩"
SIGNS = "+-"
# Full-width ASCII and the minus sign become ASCII, a character each; for the comma see _plain.
TABLE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F) if code != 0xFF0C}
TABLE |= {ord(minus): "-" for minus in "−﹣"} | {ord("￥"): "¥"}
WIDE_COMMA = re.compile("(?<=[０-９])，(?=[０-９]{3})")
PART = r"\{\s{0,9}([^{}\s]{1,99})\s{0,9}\}"
FRAC = re.compile(rf"(\d?)\\[dt]?frac(?:{PART}{PART}|(\d)(\d))")
RUN = re.compile(r"(?:\d[\d,]*(?:\.\d+)?|(?<!\d)\.\d+)(?:[eE][+-]?\d+)?")
LATEX = {"{,}": ",", "\\!": "", "\\,": "", "\\;": " ", "\\ ": " ", "\\$": "$", "\\%": "%",
         "^{\\circ}": "°", "^\\circ": "°"}  # fmt: skip
WORDS = re.compile(r"\\(?:text|mathrm|mbox|textbf)\s?\{[^{}]*\}")


class Number(NamedTuple):
    """A number as it is said. A hundredth is meant, or is not, where there is a per cent sign."""

    value: Fraction
    is_percent: bool = False

    def equals(self, other: Number) -> bool:
        """Whether both are one number: 20% is 20%, 20 and 0.2."""
        if self.value == other.value:
            return True
        if self.is_percent == other.is_percent:
            return False
        percent, plain = (self, other) if self.is_percent else (other, self)
        return percent.value == 100 * plain.value


def number(completion: Completion) -> float:
    """1 if the answer's number is the right one, else 0."""
    right = right_number(completion.prompt)
    said = number_of(completion.text)
    return float(said is not None and said.equals(right))


def right_number(prompt: Prompt) -> Number:
    """The number that is the right answer; ValueError if it is none."""
    answer = only(prompt.answer)
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    found = number_of(answer) if isinstance(answer, str) else None
    if found is None:
        raise not_the_right("a number", prompt.answer)
    return found


def number_of(text: str) -> Number | None:
    r"""The number that a text gives as its answer; None without one.

    A box with more than a number in it (5\sqrt{2}, (3, 4), x^2) gives none.
    """
    text = _plain(text)
    boxed = in_the_box(text)
    if boxed is not None:
        return _only_number(boxed)
    line = behind_hashes(text)
    if line and (line[0] in SIGNS or line[0] in CURRENCIES or line[0].isdecimal()):
        first = None
        for first in numbers_in(line):  # noqa: B007 (from the last to the first)
            pass
        return first
    return next(numbers_in(text), None)


def all_numbers(text: str) -> list[Number]:
    """Every number that a text says."""
    return list(numbers_in(_plain(text)))


def number_alone(text: str) -> Number | None:
    """The number that a text is, with its currency or per cent sign; None if it is more."""
    found = all_numbers(text) if len(text) <= LONGEST else []
    is_more = len(found) != 1 or any(character.isalpha() for character in text)
    return None if is_more else found[0]


def _plain(text: str) -> str:
    r"""A text in which numbers are written in ASCII: no full width, no \frac, \$, \% and {,}."""
    text = WIDE_COMMA.sub(",", text).translate(TABLE)
    if "\\" in text or "{,}" in text:
        text = FRAC.sub(_slashed, text)
        for latex, meant in LATEX.items():
            text = text.replace(latex, meant)
    return text


def _slashed(frac: re.Match) -> str:
    whole, top, bottom, short_top, short_bottom = frac.groups()
    return f"{whole}{' ' * bool(whole)}{top or short_top}/{bottom or short_bottom}"


def _only_number(text: str) -> Number | None:
    """The number in a box, if it has one and nothing that makes another value of it."""
    text = WORDS.sub("", text)
    if "\\" in text or "^" in text or len(text) > LONGEST:
        return None
    found = list(numbers_in(text))
    return found[0] if len(found) == 1 else None


def numbers_in(text: str) -> Iterator[Number]:
    """The numbers of a plain text, from the last to the first.

    Digits behind letters (CO2, x1) are a part of a name; beside ^ they have no value of their own.
    """
    runs = list(RUN.finditer(text))
    while runs:
        run = runs.pop()
        begin, end = run.span()
        value = _value(run[0])
        if value is not None and runs and _is_slash(text, runs[-1], begin):  # 3/4
            is_date = len(runs) > 1 and _is_slash(text, runs[-2], runs[-1].start())
            if not is_date:
                value, begin = _divided(_value(runs[-1][0]), value), runs.pop().start()
                is_mixed = runs and text[runs[-1].end() : begin] == " "  # 1 3/4
                whole = _value(runs[-1][0]) if is_mixed and value and value < 1 else None
                if whole is not None and whole.denominator == 1:
                    value, begin = whole + value, runs.pop().start()
        before, behind = text[begin - 1 : begin], text[end : end + 2].lstrip(" ")[:1]
        is_in_a_name = (before.isascii() and before.isalpha()) or before == "_"
        is_power = before == "^" or text[begin - 2 : begin] == "^{" or text[end : end + 1] == "^"
        if value is not None and not is_in_a_name and not is_power:
            yield Number(-value if _is_negative(text, begin) else value, behind == "%")


def _divided(top: Fraction | None, bottom: Fraction) -> Fraction | None:
    return None if top is None or not bottom else top / bottom


def _is_slash(text: str, run: re.Match, end: int) -> bool:
    """Whether nothing but a slash is between a run and a place."""
    return end - run.end() < 9 and text[run.end() : end].strip(" ") == "/"


def _value(run: str) -> Fraction | None:
    """The value of digits with commas, a point and an exponent; None if it is out of bounds."""
    if len(run) > LONGEST:
        return None
    whole, e, exponent = run.replace("E", "e").partition("e")
    if e and (len(exponent) > 5 or abs(int(exponent)) > LARGEST_EXPONENT):
        return None
    whole, _, decimals = whole.partition(".")
    groups = whole.rstrip(",").split(",")
    are_thousands = len(groups[0]) <= 3 and all(len(group) == 3 for group in groups[1:])
    whole = "".join(groups) if are_thousands else groups[-1]  # 3,4,5 is a list: its last one
    return Fraction(f"{whole or '0'}.{decimals or '0'}e{exponent or '0'}")


def _is_negative(text: str, begin: int) -> bool:
    """Whether a minus sign stands before a number that is no operator: not that of 10-5."""
    place = begin - 1
    if place >= 0 and text[place] in CURRENCIES:
        place -= 1
    if place < 0 or text[place] != "-":
        return False
    before = text[place - 1] if place else " "
    return not ((before.isascii() and before.isalnum()) or before in ")]}%-")
