r"""Where a text says that its answer is: in \boxed{…}, or behind ####.

Every function takes time in proportion to the text's length.
"""

from __future__ import annotations

BOX = "\\boxed{"
HASHES = "####"


def in_the_box(text: str) -> str | None:
    r"""What is in the last \boxed{…}; None without one, or if it is not closed."""
    begin = text.rfind(BOX)
    if begin < 0:
        return None
    begin += len(BOX)
    depth = 1
    for place in range(begin, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if not depth:
            return text[begin:place]
    return None


def behind_hashes(text: str) -> str | None:
    """What is on the line behind the last ####, or on the next that is not blank; None without."""
    _, found, rest = text.rpartition(HASHES)
    return next(iter(rest.strip().splitlines()), "") if found else None
