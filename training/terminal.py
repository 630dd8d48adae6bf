"""What a terminal's encoding cannot show or has not understood never ends a script."""

from __future__ import annotations

import sys


def forgive_encodings():
    """From now on print() writes what stdout and stderr cannot encode as \\u escapes.

    So a log on a terminal that knows no ⟶ or 法国 (cp1252, gbk, ascii) stays whole and can be read
    back. What stdin cannot decode comes as surrogates, for `as_text` to judge.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")


def as_text(typed: str, name: str, encoding: str | None = None) -> str:
    """What was typed, read as UTF-8 where `encoding` (None: that of flags) has not understood it.

    Raises ValueError, naming it, for bytes that are no text in either.
    """
    encoding = encoding or sys.getfilesystemencoding()
    try:
        typed.encode("utf-8")
        return typed
    except UnicodeEncodeError:  # surrogates stand for bytes that were not understood
        pass
    try:
        return typed.encode(encoding, "surrogateescape").decode("utf-8")
    except UnicodeError:
        tried = " or ".join(dict.fromkeys((encoding.upper(), "UTF-8")))
        raise ValueError(f"{name}: no text in {tried}: {typed!a}") from None
