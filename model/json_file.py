"""Reads JSON files that may come from anyone: bounded, strict, and named in every error."""

import json
import math
from pathlib import Path

# The index of a model of 671 billion parameters has 9 MB. Parsed, JSON takes up to 25 times its
# size ("[],[],…"), so this bounds memory as well.
LARGEST_JSON = 16 << 20  # bytes


def read_json(path: str | Path, most_bytes: int = LARGEST_JSON) -> dict:
    """The JSON object in a file. ValueError with the path, in one line, if there is none.

    Stricter than Python's own reader: no key twice in an object (readers differ in which they
    believe), no NaN and no number beyond a float's range.
    """
    path = Path(path)
    try:
        content = parse_json(read_bytes(path, most_bytes))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; expected a model folder there") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON ({shown(error)})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def parse_json(data: bytes) -> object:
    """The JSON value of some UTF-8 bytes; ValueError or RecursionError if it is none."""
    return json.loads(
        data.decode("utf-8"), object_pairs_hook=_object, parse_float=_float, parse_constant=_float
    )


def read_bytes(path: Path, most_bytes: int) -> bytes:
    """The content of an ordinary file; ValueError if it is something else or larger.

    A link is followed, a pipe or device is not read: it might never end. Raises OSError as open
    does.
    """
    if path.exists() and not path.is_file():
        raise ValueError("expected a file, got a folder, pipe or device")
    with open(path, "rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"larger than {most_bytes:,} bytes")
    return data


def shown(text: object, most: int = 200) -> str:
    """Something from a file for an error message: one short line, no control characters."""
    text = "".join(c if c.isprintable() else " " for c in str(text)[: most + 1])
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most] + "…"


def _object(pairs: list[tuple[str, object]]) -> dict:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shown(double, 40)!r} twice in one object")
    return content


def _float(text: str) -> float:
    """A number with a fraction or exponent, or one of the words NaN, Infinity and -Infinity."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{shown(text, 40)} is not a number that a float holds")
    return number
