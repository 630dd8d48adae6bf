"""The parts of a JSON schema that hold no others: strings, numbers, and values that it lists.

serving/json_schema.py says what is done with them. `where` is a place in the schema, for messages.
"""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Callable
from decimal import Decimal

MOST_LENGTH = 100_000  # characters of a string
LONGEST_MINIMUM = 1000
LONGEST_PATTERN = 256
LARGEST_FACTOR = 1000  # of multipleOf; a larger one takes a state for every remainder
DIGITS = 15  # of a number that every reader of JSON reads exactly
LARGEST_NUMBER = 10**DIGITS - 1
DEEPEST_VALUE = 32  # levels

FORMATS = {
    "date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri",
}  # fmt: skip
# What regular expressions mean alike in JavaScript, whose the standard asks for, Python and Rust:
# one part of them at a time.
IN_CLASS = r"(?:\\[nrt]|\\[^\w\s]|[^\\\[\]&~^-]|&(?!&)|~(?!~))"
PART = re.compile(
    rf"""\( (?: \?: | (?!\?) ) | [|^$]
       | (?: \\[dwsSnrt] | \\[^\w\s] | [^\\\[\](){{}}*+?|^$] | \)
           | \[\^? -? (?: {IN_CLASS}-{IN_CLASS} | {IN_CLASS} )+ -? \]
           | \[ -? (?: \\[dws] | {IN_CLASS}-{IN_CLASS} | {IN_CLASS} )+ -? \] )
         (?: (?: [*+?] | \{{\d{{1,3}}(?:,\d{{0,3}})?\}} ) \?? )?""",
    re.VERBOSE,
)
# JSON writes them with an escape that is not used here, or nobody can
CONTROL = re.compile("[\x00-\x07\x0b\x0e-\x1f\x7f\ud800-\udfff]")


class BadSchema(ValueError):
    """What of a schema cannot be done, in one line."""


def string_schema(given: dict, where: str) -> dict:
    found = {"type": "string"}
    least, most = whole(given, "minLength", where) or 0, whole(given, "maxLength", where)
    if least > LONGEST_MINIMUM:
        raise BadSchema(f"{where}: minLength is supported up to {LONGEST_MINIMUM}, got {least}")
    if most is not None and least > most:
        raise BadSchema(f"{where}: minLength is above maxLength")
    if least:
        found["minLength"] = least
    if most is not None and most < MOST_LENGTH:
        found["maxLength"] = most
    pattern, name = given.get("pattern"), given.get("format")
    if pattern is not None and name is not None:
        raise BadSchema(f"{where}: pattern and format are not supported together")
    if name is not None:
        if not isinstance(name, str) or name not in FORMATS:
            raise BadSchema(f"{where}: the format {short(name)} is not supported here, only "
                            + ", ".join(sorted(FORMATS)))  # fmt: skip
        found["format"] = name
    if pattern is not None:
        _check_pattern(pattern, where)
        found["pattern"] = pattern
    return found


def _check_pattern(pattern: object, where: str):
    if not isinstance(pattern, str) or len(pattern) > LONGEST_PATTERN:
        raise BadSchema(f"{where}: a pattern has at most {LONGEST_PATTERN} characters here")
    place = 0
    while place < len(pattern):
        part = PART.match(pattern, place)
        if part is None or CONTROL.search(part[0]):
            raise BadSchema(
                f"{where}: the pattern {short(pattern)} is not supported from character "
                f"{place + 1} on; what is: characters, [classes], \\d \\w \\s \\S, groups (…) and "
                "(?:…), | ^ $ and * + ? {m,n}"
            )
        place = part.end()


def number_schema(given: dict, integer: bool, where: str = "") -> dict:
    """A number between bounds that it may reach, of few digits. None needs an exponent."""
    low, high = -LARGEST_NUMBER, LARGEST_NUMBER
    factor = given.get("multipleOf")
    if factor is not None:
        if type(factor) is not int or not 1 <= factor <= LARGEST_FACTOR:
            raise BadSchema(f"{where}: multipleOf is supported for whole numbers up to "
                            f"{LARGEST_FACTOR}, got {short(factor)}")  # fmt: skip
        integer = True  # all multiples are
    bounds = (
        ("minimum", True, math.ceil, 0),
        ("exclusiveMinimum", True, math.floor, 1),
        ("maximum", False, math.floor, 0),
        ("exclusiveMaximum", False, math.ceil, -1),
    )
    for key, is_low, rounded, step in bounds:
        if key not in given:
            continue
        bound = given[key]
        if not is_of(bound, ["number"]):
            raise BadSchema(f"{where}: expected a number as {key}, got {short(bound)}")
        exact = Decimal(repr(bound))
        unit = Decimal(1) if integer else Decimal(10) ** max(exact.adjusted() - DIGITS + 1, -DIGITS)
        inside = (rounded(exact / unit) + step) * unit
        bound = int(inside) if integer else float(inside)
        low, high = (max(low, bound), high) if is_low else (low, min(high, bound))
    if low > high or (factor and high // factor * factor < low):
        raise BadSchema(f"{where}: no number of at most 15 digits is between its bounds")
    kind = "integer" if integer else "number"
    found = {"type": kind, "minimum": low, "maximum": high}
    return found | ({"multipleOf": factor} if factor else {})


def is_of(value: object, kinds: list[str]) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    tests: dict[str, Callable[[], bool]] = {
        "string": lambda: isinstance(value, str),
        "number": lambda: is_number,
        "integer": lambda: is_number and value == int(value),
        "array": lambda: isinstance(value, list),
        "object": lambda: isinstance(value, dict),
        "boolean": lambda: isinstance(value, bool),
        "null": lambda: value is None,
    }
    return any(tests[kind]() for kind in kinds)


def is_same(a: object, b: object) -> bool:
    """Whether two values are the same JSON: 1 is not true."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def check_values(values: list, where: str):
    """BadSchema unless everything in these values can be written, and read as what it is."""
    waiting = deque((value, 0) for value in values)
    while waiting:
        value, depth = waiting.popleft()
        if isinstance(value, str) and CONTROL.search(value):
            raise BadSchema(f"{where}: control characters are not supported, got {short(value)}")
        if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
            raise BadSchema(f"{where}: numbers have at most 15 digits here, got {short(value)}")
        if isinstance(value, float) and not re.fullmatch(r"-?(?=.{2,16}$)\d+\.\d+", repr(value)):
            raise BadSchema(f"{where}: numbers have at most 15 digits and no exponents here, got "
                            f"{short(value)}")  # fmt: skip
        if isinstance(value, dict | list):
            if depth > DEEPEST_VALUE:
                raise BadSchema(f"{where}: expected at most {DEEPEST_VALUE} levels of values")
            inner = [*value, *value.values()] if isinstance(value, dict) else value
            waiting.extend((one, depth + 1) for one in inner)


def as_list(value: object, where: str, key: str) -> list:
    if not isinstance(value, list):
        raise BadSchema(f"{where}: expected a list as {key}, got {short(value)}")
    return value


def whole(given: dict, key: str, where: str) -> int | None:
    value = given.get(key)
    if value is not None and (type(value) is not int or value < 0):
        raise BadSchema(f"{where}: expected a number from 0 on as {key}, got {short(value)}")
    return value


def short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:60] + "…"
