"""A calculator that a model may call: it reads arithmetic, and nothing but arithmetic.

    expression = term {("+" | "-") term}
    term       = signed {("*" | "/" | "//" | "%") signed}
    signed     = {"+" | "-"} power
    power      = percent [("**" | "^") signed]          2 ** 3 ** 2 is 2 ** 9, -2 ** 2 is -4
    percent    = atom {"%"}                             a hundredth: 200 * 10% is 20
    atom       = number | name | name "(" expression {"," expression} ")" | "(" expression ")"

% is the remainder where a number, name or bracket follows, else a hundredth: 10 % 3 is 1, and
100% - 30% is 0.7. Commas stand between thousands (1,200), inside a function between its values.
Everything is bounded: the length, the depth, and in arithmetic.py the size of every number.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

from model.json_file import shown
from tools.arithmetic import (
    CONSTANTS,
    FUNCTIONS,
    TOO_LARGE,
    Number,
    as_text,
    calculated,
    checked,
    is_small,
)

MOST_CHARACTERS = 1000  # of an expression
MOST_DEPTH = 50  # of brackets, signs and powers in one another

# Other ways to write the operators; full-width characters and other scripts' digits are found by
# rule. Superscripts and fractions such as ½ are not: 3² must not become 32.
SAME = {
    **dict.fromkeys("×✕✖⋅∙·∗", "*"),
    **dict.fromkeys("÷∕⁄", "/"),
    **dict.fromkeys("−–—﹣", "-"),
    **{"﹢": "+", "π": "pi", "（": "(", "）": ")", "，": ",", "％": "%"},
}
GROUPED = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9_])(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?")
NUMBER = re.compile(r"(?:[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OPERATOR = re.compile(r"\*\*|//|[-+*/%^(),]")
END = "the end"


def calculator(expression: str) -> str:
    """Calculate an expression, such as 12 + 30.

    expression: + - * / // % ** ( ) and functions such as sqrt(2), round(1.25, 1), log(8, 2)
    """
    return f'{{"result": {calculate(expression)}}}'


def calculate(expression: str) -> str:
    """The value of an expression as text: a JSON number.

    Exact for whole numbers and decimal fractions, else rounded to 15 digits. Raises ValueError, one
    line that says what was expected, for what is no expression, has no value or is too large.
    """
    return as_text(value_of(expression))


def value_of(expression: str) -> Number:
    """The value of an expression before it is rounded; ValueError as `calculate`."""
    if not isinstance(expression, str):
        raise ValueError(f"expected an expression as text, got {type(expression).__name__}")
    if len(expression) > MOST_CHARACTERS:
        raise ValueError(
            f"expected at most {MOST_CHARACTERS:,} characters, got {len(expression):,}"
        )
    tokens = _tokens("".join(map(_plain, expression)))
    if len(tokens) == 1:
        raise ValueError("expected an expression such as 12 + 30, got none")
    try:
        parser = _Parser(tokens)
        value = parser.expression()
        parser.expect_end()
        return value
    except ZeroDivisionError:
        raise ValueError("division by zero") from None
    except OverflowError:
        raise ValueError(TOO_LARGE) from None


class _Token(NamedTuple):
    kind: str  # "number", "name", an operator or END
    text: str
    place: int  # of its first character, from 1 on

    def __str__(self) -> str:
        return END if self.kind == END else f"{shown(self.text, 20)!r} at character {self.place}"


def _plain(character: str) -> str:
    """A character as the tokenizer knows it: ASCII where it means the same."""
    if character.isascii():
        return character
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    if "！" <= character <= "～":  # full width
        character = chr(ord(character) - 0xFEE0)
    return " " if character.isspace() else SAME.get(character, character)


def _tokens(text: str) -> list[_Token]:
    """What an expression consists of, END at last; ValueError for what it cannot hold."""
    tokens: list[_Token] = []
    calls: list[bool] = []  # of every open bracket: whether it holds a function's values
    place = 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        in_call = bool(calls) and calls[-1]
        number = (not in_call and GROUPED.match(text, place)) or NUMBER.match(text, place)
        found = number or NAME.match(text, place) or OPERATOR.match(text, place)
        if not found:
            odd = shown(text[place], 20).strip() or f"U+{ord(text[place]):04X}"
            raise ValueError(f"expected numbers, + - * / and brackets, got {odd!r} at character "
                             f"{place + 1}")  # fmt: skip
        kind = "number" if number else "name" if found.re is NAME else found[0]
        if kind == "(":
            calls.append(bool(tokens) and tokens[-1].kind == "name")
        elif kind == ")" and calls:
            calls.pop()
        tokens.append(_Token(kind, found[0], place + 1))
        place = found.end()
    return [*tokens, _Token(END, "", len(text) + 1)]


class _Parser:
    """Reads tokens and calculates as it goes; a method for each rule above."""

    def __init__(self, tokens: list[_Token]):
        self._tokens = tokens
        self._at = 0
        self._depth = 0

    def expression(self) -> Number:
        value = self._term()
        while operator := self._next("+", "-"):
            value = calculated(operator.kind, value, self._term())
        return value

    def expect_end(self) -> None:
        token = self._tokens[self._at]
        if token.kind == ",":
            raise ValueError(f"a comma may stand between thousands (1,200) or between the values "
                             f"of a function, got {token}")  # fmt: skip
        if token.kind in ("number", "name", "("):
            raise ValueError(f"expected an operator such as * before {token}")
        if token.kind != END:
            raise ValueError(f"expected an operator or the end, got {token}")

    def _term(self) -> Number:
        value = self._signed()
        while operator := self._next("*", "/", "//", "%"):
            value = calculated(operator.kind, value, self._signed())
        return value

    def _signed(self) -> Number:
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise ValueError(f"expected at most {MOST_DEPTH} brackets and powers in one another")
        is_negative = False
        while sign := self._next("+", "-"):
            is_negative ^= sign.kind == "-"
        value = self._power()
        self._depth -= 1
        return -value if is_negative else value

    def _power(self) -> Number:
        base = self._percent()
        return calculated("**", base, self._signed()) if self._next("**", "^") else base

    def _percent(self) -> Number:
        value = self._atom()
        while self._tokens[self._at].kind == "%":
            if self._tokens[self._at + 1].kind in ("number", "name", "("):
                break  # a remainder
            self._at += 1
            value = calculated("/", value, Fraction(100))
        return value

    def _atom(self) -> Number:
        token = self._tokens[self._at]
        self._at += 1
        if token.kind == "number":
            return _number(token)
        if token.kind == "name":
            return self._named(token)
        if token.kind == "(":
            value = self.expression()
            self._close(token)
            return value
        raise ValueError(f"expected a number, a function or a bracket, got {token}")

    def _named(self, token: _Token) -> Number:
        name = token.text.lower()
        if name in CONSTANTS:
            return CONSTANTS[name]
        if name not in FUNCTIONS:
            raise ValueError(f"unknown name {token}; expected {', '.join([*FUNCTIONS, 'pi'])} or e")
        bracket = self._next("(")
        if not bracket:
            raise ValueError(f"expected a bracket behind {token}")
        values = [self.expression()]
        while self._next(","):
            values.append(self.expression())
        self._close(bracket)
        function, least, most = FUNCTIONS[name]
        if not least <= len(values) <= most:
            wanted = {(1, 1): "1 value", (1, 2): "1 or 2 values"}[least, most]
            raise ValueError(f"{name} takes {wanted}, got {len(values)} (inside a function, commas "
                             "stand between its values)")  # fmt: skip
        return checked(function(*values))

    def _close(self, bracket: _Token) -> None:
        token = self._tokens[self._at]
        if not self._next(")"):
            raise ValueError(f"expected ) for the bracket at character {bracket.place}, got "
                             f"{token}")  # fmt: skip

    def _next(self, *kinds: str) -> _Token | None:
        """The next token, behind which reading goes on, if it is of these kinds."""
        token = self._tokens[self._at]
        if token.kind not in kinds:
            return None
        self._at += 1
        return token


def _number(token: _Token) -> Fraction:
    digits, _, exponent = token.text.lower().replace(",", "").replace("_", "").partition("e")
    if abs(int(exponent or 0)) > MOST_CHARACTERS:
        raise ValueError(f"expected an exponent of at most {MOST_CHARACTERS:,}, got {token}")
    whole, _, decimals = digits.partition(".")
    value = Fraction(int(whole + decimals or 0)) * Fraction(10) ** (
        int(exponent or 0) - len(decimals)
    )
    if not is_small(value):
        raise ValueError(f"expected a number of at most 1,000 digits, got {token}")
    return value
