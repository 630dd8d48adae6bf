"""Numbers that are exact as long as they can be, and what the calculator does with them.

A number is a fraction, so 0.1 + 0.2 is 0.3 and 1 / 3 * 3 is 1. What has no exact result, such as
the square root of 2, and fractions of more than MOST_BITS are doubles from there on. Whatever is
asked for takes no more than some milliseconds: a result too large is refused before it is there.
Raises ValueError with what was expected, ZeroDivisionError and OverflowError.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Context, Decimal
from fractions import Fraction

MOST_BITS = 3400  # of an exact number's numerator and denominator: about 1,000 digits
MOST_DECIMALS = 30  # of an exact result; what needs more is rounded
DIGITS = 15  # significant ones, of rounded results

TOO_LARGE = "the result is too large (more than 1,000 digits, or 1.8e308 if it is not exact)"
TOO_SMALL = "the result is too small (nearer to 0 than 5e-324)"

Number = Fraction | float


def as_text(value: Number) -> str:
    """A number as people and JSON write it: exact if it can be, or else to DIGITS digits."""
    if isinstance(value, float):
        return _rounded(Decimal(_finite(value)))
    if value.denominator == 1:
        return str(value.numerator)
    decimals = _decimals(value.denominator)
    if decimals is None:
        exact = Context(prec=DIGITS + 5)
        top, bottom = exact.create_decimal(value.numerator), exact.create_decimal(value.denominator)
        return _rounded(exact.divide(top, bottom))
    digits = str(abs(value.numerator) * 10**decimals // value.denominator).zfill(decimals + 1)
    sign = "-" if value < 0 else ""
    return f"{sign}{digits[:-decimals]}.{digits[-decimals:]}"


def _decimals(denominator: int) -> int | None:
    """How many decimals a fraction has in lowest terms, or None if more than MOST_DECIMALS."""
    for decimals in range(1, MOST_DECIMALS + 1):
        if 10**decimals % denominator == 0:
            return decimals
    return None


def _rounded(value: Decimal) -> str:
    """A number to DIGITS digits, without zeros at the end."""
    value = Context(prec=DIGITS).create_decimal(value).normalize()
    if not value:
        return "0"
    return f"{value:f}" if -7 <= value.adjusted() < 21 else f"{value:e}"


def is_small(value: Fraction) -> bool:
    """Whether an exact number is of no more than MOST_BITS."""
    return _bits(value) <= MOST_BITS


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def checked(value: Number | int) -> Number:
    """A result; as a double if it is a fraction of too many digits."""
    if isinstance(value, float):
        return _finite(value)
    value = Fraction(value)
    return value if is_small(value) else _double(value)


def _double(value: Number) -> float:
    """A number as a double; OverflowError or ValueError if it is none, though it is a number."""
    double = _finite(float(value))
    if value and not double:
        raise ValueError(TOO_SMALL)
    return double


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise OverflowError
    return value


def calculated(operator: str, a: Number, b: Number) -> Number:
    """a operator b, exact if both are and the result can be."""
    if operator == "**":
        return _to_the_power(a, b)
    if isinstance(a, float) or isinstance(b, float):
        a, b = _double(a), _double(b)
    value = OPERATORS[operator](a, b)
    if isinstance(value, float) and not value and a and b and operator in "*/":
        raise ValueError(TOO_SMALL)
    return checked(value)


def _to_the_power(a: Number, b: Number) -> Number:
    if a == 0 and b < 0:
        raise ZeroDivisionError
    is_whole = isinstance(a, Fraction) and isinstance(b, Fraction) and b.denominator == 1
    if is_whole and (abs(a) in (0, 1) or _bits(a) * abs(b.numerator) <= 2 * MOST_BITS):
        return checked(a**b.numerator)
    if a < 0 and b % 1:
        raise ValueError("a negative number to a power that is no whole number has no real value")
    if isinstance(a, Fraction) and 0.5 < abs(a) < 2:
        size = math.exp(_double(b) * _logarithm(abs(a)))
    else:
        size = math.pow(_double(abs(a)), _double(b))
    if a and not size:
        raise ValueError(TOO_SMALL)
    return _finite(-size if a < 0 and b % 2 else size)


def _root(value: Number) -> Number:
    if value < 0:
        raise ValueError("the square root of a negative number has no real value")
    if isinstance(value, Fraction):
        top, bottom = math.isqrt(value.numerator), math.isqrt(value.denominator)
        if Fraction(top, bottom) ** 2 == value:
            return Fraction(top, bottom)
    return math.sqrt(_double(value))


def _logarithm(value: Number) -> float:
    if value <= 0:
        raise ValueError("only numbers above 0 have a logarithm")
    if 0.5 < value < 2:
        return math.log1p(value - 1)  # the difference is exact, a double near 1 is not
    if isinstance(value, Fraction) and not 1e-300 < value < 1e300:
        return math.log(value.numerator) - math.log(value.denominator)
    return math.log(value)


def _logarithm_to_base(value: Number, base: Number | None = None) -> Number:
    if base is None:  # school says 10, programs say e
        raise ValueError("expected a base: write log(x, 10), log10(x), or ln(x) for base e")
    if base == 1:
        raise ValueError("there is no logarithm to the base 1")
    found = _logarithm(value) / _logarithm(base)
    if isinstance(value, Fraction) and isinstance(base, Fraction):
        whole = round(_finite(found))
        if _bits(base) * abs(whole) <= 2 * MOST_BITS and base**whole == value:
            return Fraction(whole)
    return found


def _exponential(value: Number) -> float:
    result = math.exp(_double(value))
    if not result:
        raise ValueError(TOO_SMALL)
    return result


def _wave(function: Callable[[float], float], value: Number) -> float:
    """sin or cos, in radians. Behind 1e15 two doubles are too far apart to say anything."""
    if abs(value) > 1e15:
        raise ValueError("expected an angle of at most 1e15 radians")
    result = function(_double(value))
    return round(result, DIGITS) if abs(value) > 1 else result  # the sine of a double near pi is 0


def _tangent(value: Number) -> float:
    cosine = _wave(math.cos, value)
    if not cosine:
        raise ValueError("the tangent of this angle has no value")
    return _wave(math.sin, value) / cosine


def _round(value: Number, decimals: Number = Fraction(0)) -> Number:
    if not isinstance(decimals, Fraction) or decimals.denominator > 1 or abs(decimals) > 1000:
        raise ValueError("expected a whole number of decimals from -1000 to 1000")
    return round(value, int(decimals))


def _factorial(value: Number) -> int:
    most = 450  # it has 1,001 digits
    if value % 1 or not 0 <= value <= most:
        raise ValueError(f"expected a whole number from 0 to {most} for a factorial")
    return math.factorial(int(value))


OPERATORS: dict[str, Callable] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
}
CONSTANTS = {"pi": math.pi, "e": math.e}
# name: (function, least and most values)
FUNCTIONS: dict[str, tuple[Callable, int, float]] = {
    "sqrt": (_root, 1, 1),
    "abs": (abs, 1, 1),
    "round": (_round, 1, 2),
    "min": (lambda *values: min(values), 1, math.inf),
    "max": (lambda *values: max(values), 1, math.inf),
    "log": (_logarithm_to_base, 1, 2),
    "log10": (lambda value: _logarithm_to_base(value, Fraction(10)), 1, 1),
    "log2": (lambda value: _logarithm_to_base(value, Fraction(2)), 1, 1),
    "ln": (_logarithm, 1, 1),
    "exp": (_exponential, 1, 1),
    "sin": (lambda value: _wave(math.sin, value), 1, 1),
    "cos": (lambda value: _wave(math.cos, value), 1, 1),
    "tan": (_tangent, 1, 1),
    "floor": (math.floor, 1, 1),
    "ceil": (math.ceil, 1, 1),
    "factorial": (_factorial, 1, 1),
}
