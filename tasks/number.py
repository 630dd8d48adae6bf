r"""Numbers in texts: `1,200` is `1200.0`, `$1,200` and `１，２００`; 0.75 is 3/4 and \frac{3}{4}.

Which of a text's numbers is its answer: the one in the last \boxed{…}, or behind ####, or the last.
Values are exact fractions, nothing is evaluated, and all takes time in proportion to the length.
What is not read: numbers in words (seven, 七, 3 million, 3万), roots, powers, decimal commas. In a
box, and behind ####, spaces may stand between thousands and behind a sign: `10 000`, `- 5`.
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
# an en dash is a sign where nothing is before it: not in 3–5
DASH = re.compile(rf"(?<![^\s(\[{{=:])[‐-–](?=[\d.{CURRENCIES}])")
SPACES = " \t\u00a0\u2009\u202f"
APART = re.compile(rf"(?<==)([{SPACES}]{{0,9}}[-+–])[{SPACES}]{{1,9}}(?=[\d.{CURRENCIES}])")
APART_AT_LAST = re.compile(rf"(?<![^\s(\[{{=:])([-+–])[{SPACES}]{{1,9}}(?=[\d.{CURRENCIES}])")
# 1'000, 1_000, 1.000.000, and thin spaces; a point alone is the decimal point
MARKED = re.compile(
    "(?<![\\w.,'’])\\d{1,3}(?:(?:['’]\\d{3})+|(?:_\\d{3})+|(?:\\.\\d{3}){2,}"
    "|(?:[\u2009\u202f]\\d{3})+)(?!\\d|['’_.]\\d)"
)
HAS_ZEROS = re.compile(rf"[{SPACES}]0")
SPACED = re.compile(rf"(?<![\d.,/])(?<!\d[{SPACES}])\d{{1,3}}(?:[{SPACES}]\d{{3}})+(?! ?[\d/])")
WORDS = re.compile(
    r"\\(?:text|mathrm|mbox|textbf|mathbf|textrm|textit|mathit|mathsf)\s?\{([^{}]*)\}"
    r"((?:\s?\^(?:\{\d\}|\d))?)"
)
# What may stand beside the number in a box: signs that change nothing, and words, if they are units
BESIDE = set(" \t\n\r.,:;()[]{}°%~≈\"'“”‘’。、\u00a0\u2009\u202f" + CURRENCIES)
SHORT_UNITS = {"m", "g", "s", "km", "cm", "mm", "kg", "mg", "ml", "mL", "lb", "oz", "ft", "in",
               "mi", "hr", "am", "pm", "mph", "st", "nd", "rd", "th"}  # fmt: skip
NO_UNITS = {"log", "sqrt", "root", "sin", "cos", "tan", "exp", "mod"}
MAGNITUDES = re.compile(
    r"(?i:hundred|thousand|million|billion|trillion|dozen)|[十万萬亿億半]|百(?!分)|千(?![克米瓦卡])"
)


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

    A box with more than a number in it (5\sqrt{2}, (3, 4), x^2, 5x, 5!) gives none.
    """
    text = _plain(text)
    boxed = in_the_box(text)
    if boxed is not None:
        return _only_number(boxed)
    line = _at_last(behind_hashes(text) or "")
    if line and (line[0] in SIGNS or line[0] in CURRENCIES or line[0].isdecimal()):
        first = None
        for first in numbers_in(line):  # noqa: B007 (from the last to the first)
            pass
        return first
    return _number_alone(text) or next(numbers_in(text), None)


def all_numbers(text: str) -> list[Number]:
    """Every number that a text says; of `3 100`, all three that it may be."""
    text = _plain(text)
    joined = SPACED.sub(_digits, text)
    found = [*numbers_in(text), *(numbers_in(joined) if joined != text else ())]
    return [number for number in found if number is not None]


def number_alone(text: str) -> Number | None:
    """The number that a text is, with its currency or per cent sign; None if it is more."""
    return None if any(map(str.isalpha, text)) else _number_alone(_plain(text))


def _number_alone(text: str) -> Number | None:
    is_more = len(text) > LONGEST or any(map(str.isalpha, text))
    return None if is_more else _only_number(text)


def _plain(text: str) -> str:
    r"""A text in which numbers are written in ASCII: no full width, no \frac, \$, \% and {,}."""
    text = WIDE_COMMA.sub(",", text).translate(TABLE)
    if "\\" in text or "{,}" in text:
        text = FRAC.sub(_slashed, text)
        for latex, meant in LATEX.items():
            text = text.replace(latex, meant)
    text = DASH.sub("-", APART.sub(r"\1", text))
    text = MARKED.sub(_digits, text)
    # in running text a zero tells that 10 000 is one number; 3 100 may be two
    return SPACED.sub(
        lambda found: _digits(found) if HAS_ZEROS.search(found[0]) else found[0], text
    )


def _digits(found: re.Match) -> str:
    return "".join(filter(str.isdecimal, found[0]))


def _at_last(text: str) -> str:
    """A final answer, in which `10 000` and `- 5` are one number."""
    return SPACED.sub(_digits, DASH.sub("-", APART_AT_LAST.sub(r"\1", text)))


def _slashed(frac: re.Match) -> str:
    whole, top, bottom, short_top, short_bottom = frac.groups()
    return f"{whole}{' ' * bool(whole)}{top or short_top}/{bottom or short_bottom}"


def _only_number(text: str) -> Number | None:
    """The number in a box, if it has one and nothing that makes another value of it."""
    if len(text) > LONGEST or MAGNITUDES.search(text):
        return None
    bare = WORDS.sub("", text)
    if not any(map(str.isdecimal, bare)):  # \\text{72}
        bare = WORDS.sub(r"\1\2", text)
    if any(sign in bare for sign in ("\\", "^", "<", ">", "..")):
        return None
    sides = [_at_last(side.replace("**", " ").strip()) for side in bare.split("=")]
    places = [(side, *place) for side in sides for place in _places(side)]
    if len(places) != 1:
        return None
    side, found, begin, end = places[0]
    return found if _changes_nothing(side[:begin], side[end:]) else None


def _changes_nothing(before: str, behind: str) -> bool:
    """Whether what stands around a number leaves it what it is: brackets, a currency, units."""
    before = before.rstrip(CURRENCIES)
    before = before[:-1] if before[-1:] in ("+", "-") else before
    rest = (
        f"{before} {behind}" if behind[:1].isspace() or before[-1:].isspace() else before + behind
    )
    for word in re.findall(r"[^\W\d_]+", rest):
        is_factor = behind.startswith((word, "(" + word))  # 5xyz
        is_long = len(word) > 2 and not is_factor and word.lower() not in NO_UNITS
        if not (is_long or word in SHORT_UNITS or min(word) >= "\u2e80"):
            return False
    return all(character in BESIDE or character.isalpha() for character in rest)


def numbers_in(text: str) -> Iterator[Number | None]:
    """The numbers of a plain text, from the last to the first; None for one out of bounds.

    Digits behind letters (CO2, x1) are a part of a name; beside ^ they have no value of their own.
    """
    return (found for found, _, _ in _places(text))


def _places(text: str) -> Iterator[tuple[Number | None, int, int]]:
    """`numbers_in` with their places: (number, begin, end), a sign not included."""
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
        if not is_in_a_name and not is_power:
            value = -value if value is not None and _is_negative(text, begin) else value
            yield None if value is None else Number(value, behind == "%"), begin, end


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
    sizes = [len(group) for group in groups]
    are_thousands = sizes[0] <= 3 and set(sizes[1:]) <= {3}
    are_lakhs = sizes[0] <= 2 and set(sizes[1:-1]) == {2} and sizes[-1] == 3  # 1,20,000
    if not are_thousands and not are_lakhs:  # 3,4,5 is a list: its last one
        groups = groups[-1:]
        if len(groups[0]) > 1 and groups[0][0] == "0":  # 12,00 is none
            return None
    whole = "".join(groups)
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
