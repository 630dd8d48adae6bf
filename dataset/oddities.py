"""What is legal in data but seldom meant: records that come twice, control strings in their text.

Control strings such as <|im_end|> never become control tokens here; but where text holds them, a
chat was often written into it by mistake.
"""

import hashlib
import re
from array import array
from collections.abc import Iterable

import numpy as np

SORTED_TOGETHER = 1 << 24  # hashes, 8 bytes each: bounds memory, not results


class Oddities:
    """Counts both, record by record. Takes 8 bytes of memory a record.

    control_tokens  names of the tokenizer's control tokens
    """

    def __init__(self, control_tokens: Iterable[str]) -> None:
        self._control_strings = ControlStrings(control_tokens)
        self._hashes = array("Q")
        self.num_with_control_strings = 0

    def add(self, text: str) -> None:
        """Count one record: a text, or whatever text it is written as."""
        self._hashes.append(text_hash(text.encode("utf-8")))
        self.num_with_control_strings += self._control_strings.are_in(text)

    @property
    def num_repeats(self) -> int:
        """Records that are the same as one before."""
        return count_repeats(np.frombuffer(self._hashes, np.uint64))

    def __str__(self) -> str:
        return described(self.num_repeats, self.num_with_control_strings)


def described(num_repeats: int, num_with_control_strings: int) -> str:
    """Both counts in words, the same ones wherever they are reported."""
    return (
        f"{num_repeats:,} exact duplicates, {num_with_control_strings:,} with control strings in "
        "their text"
    )


class ControlStrings:
    """Looks for the names of control tokens in texts."""

    def __init__(self, control_tokens: Iterable[str]) -> None:
        names = [*map(re.escape, control_tokens)]
        self._search = re.compile("|".join(names) or "(?!)").search  # (?!): nothing

    def are_in(self, text: str) -> bool:
        """Whether the text holds any of them."""
        return self._search(text) is not None


def text_hash(raw_text: bytes) -> int:
    """64 bits of BLAKE2b: different texts have one hash with probability 2⁻⁶⁴ per pair."""
    return int.from_bytes(hashlib.blake2b(raw_text, digest_size=8).digest(), "little")


def count_repeats(hashes: np.ndarray) -> int:
    """How many of some uint64 hashes, in memory or memory-mapped, are equal to one before.

    The hashes are sorted in as many parts as keep memory flat; equal ones fall into one part.
    """
    parts = 1 + len(hashes) // SORTED_TOGETHER
    num_distinct = 0
    for part in range(parts):
        chosen = [
            chunk[chunk % np.uint64(parts) == part]
            for start in range(0, len(hashes), SORTED_TOGETHER)
            if len(chunk := np.asarray(hashes[start : start + SORTED_TOGETHER]))
        ]
        if chosen and len(together := np.concatenate(chosen)):
            together.sort()
            num_distinct += 1 + np.count_nonzero(together[1:] != together[:-1])
    return len(hashes) - int(num_distinct)
