"""Records of data files as token ids and masks, in flat arrays: in memory, or mapped from a cache.

A record is one sequence or several: a conversation has as many as its template needs to train every
answer (dataset/chat.py), a pair has its chosen and its rejected side. Sequences are whole, whatever
the length of a row; masks say where they may be cut.

S  sequences of a file      R  records of a file      N  tokens of a file
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from dataset.chat_turns import MAY_END, TRAINED
from dataset.oddities import count_repeats, described
from dataset.packing import held_out_items

HELD_OUT = "held out"
TOGETHER = 1 << 22  # tokens looked at in one go: bounds memory, not results
SEQUENCES_TOGETHER = 1 << 20  # the same, of sequences

# Name -> dtype of the arrays of a file; ids are uint16, or uint32 for large vocabularies.
ARRAYS = {
    "ids": None,  # [N]
    "masks": "<u1",  # [N] TRAINED, MAY_END
    "ends": "<i8",  # [S] where each sequence ends in ids
    "record_ends": "<i8",  # [R] where each record ends among the sequences
    "lines": "<u4",  # [R] line of each record in its file
    "hashes": "<u8",  # [R] of each record's content: equal ones are equal
    "labels": "<u1",  # [R] of judged answers: 1 if desirable
    "control_strings": "<i8",  # [chunks of the file] records whose text holds some, to be added up
}


class NoRecords(ValueError):
    """No record of some data is left: none fits a row, or none is held out."""


@dataclass(frozen=True)
class EncodedFile:
    """The records of one file.

    arrays  those of ARRAYS, by name
    path    of the data, for messages
    key     of the cache folder it is mapped from; "" for what is in memory
    """

    arrays: Mapping[str, np.ndarray]
    path: str
    key: str

    @property
    def num_sequences(self) -> int:
        return len(self.arrays["ends"])

    @property
    def num_records(self) -> int:
        return len(self.arrays["record_ends"])


class Encoded:
    """The records of several files, and their sequences, numbered through from 0.

    Cheap to send to a loader process where the files are mapped. Arrays over all of it take 8
    bytes a sequence and are made anew at each call.
    """

    def __init__(self, files: Sequence[EncodedFile], eos_id: int, tokenizer_fingerprint: str):
        self.files, self.eos_id = tuple(files), eos_id
        self.tokenizer_fingerprint = tokenizer_fingerprint
        counts = [(file.num_sequences, file.num_records) for file in self.files]
        # where the sequences, and the records, of each file begin; the last entry is their number
        self.first_sequences, self.first_records = np.cumsum([(0, 0), *counts], axis=0).T

    @property
    def num_sequences(self) -> int:
        return int(self.first_sequences[-1])

    @property
    def num_records(self) -> int:
        return int(self.first_records[-1])

    def sequence(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, mask) of a whole sequence: the mask uint8, with the bits TRAINED and MAY_END."""
        number = int(np.searchsorted(self.first_sequences, i, side="right")) - 1
        arrays, i = self.files[number].arrays, i - int(self.first_sequences[number])
        start, end = int(arrays["ends"][i - 1]) if i else 0, int(arrays["ends"][i])
        return arrays["ids"][start:end], arrays["masks"][start:end]

    def source(self, record: int) -> tuple[str, int]:
        """(path, line) of a record."""
        number = int(np.searchsorted(self.first_records, record, side="right")) - 1
        line = self.files[number].arrays["lines"][record - int(self.first_records[number])]
        return self.files[number].path, int(line)

    def lengths(self) -> np.ndarray:
        """int64 [all S]: tokens of every sequence."""
        return np.concatenate([np.diff(file.arrays["ends"], prepend=0) for file in self.files])

    def ends_of_records(self) -> np.ndarray:
        """int64 [all R]: where each record ends among the sequences."""
        starts = self.first_sequences.tolist()
        return np.concatenate([f.arrays["record_ends"] + s for f, s in zip(self.files, starts)])

    def labels(self) -> np.ndarray:
        """bool [all R]: whether each judged answer is desirable."""
        return np.concatenate([file.arrays["labels"] for file in self.files]).astype(bool)

    def cut_lengths(self, limit: int) -> np.ndarray:
        """int64 [all S]: tokens of every sequence, cut where it may be to have at most `limit`.

        0 where not even its first answer fits.
        """
        kept = self.lengths()
        for i in np.flatnonzero(kept > limit).tolist():
            cuts = np.flatnonzero(self.sequence(i)[1][:limit] & MAY_END)
            kept[i] = cuts[-1] + 1 if len(cuts) else 0
        return kept

    def contents(self, name: str, sequences: np.ndarray, kept: np.ndarray) -> Iterator[memoryview]:
        """The bytes of some sequences in ascending order, up to `kept` tokens of each.

        name: "ids", as little-endian int32, or "masks", as uint8 with TRAINED alone.
        """
        for values, starts, ends in self._together(name, sequences, kept):
            values = values.astype("<i4") if name == "ids" else values & np.uint8(TRAINED)
            width, data = values.dtype.itemsize, memoryview(values).cast("B")
            for start, end in zip((starts * width).tolist(), (ends * width).tolist()):
                yield data[start:end]

    def num_trained(self, sequences: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """int64 [sequences]: the targets in up to `kept` tokens of each, in ascending order."""
        parts = [np.zeros(0, np.int64)]
        for masks, starts, ends in self._together("masks", sequences, kept):
            before = np.concatenate([[0], np.cumsum(masks & TRAINED, dtype=np.int64)])
            parts.append(before[ends] - before[starts])
        return np.concatenate(parts)

    def prompt_lengths(self, sequences: np.ndarray) -> np.ndarray:
        """int64 [sequences]: the tokens before the first target of each, in ascending order."""
        whole = self.lengths()[sequences]
        masks = self.contents("masks", sequences, whole)
        return np.array([bytes(mask).index(1) for mask in masks], np.int64)

    def _together(self, name: str, sequences: np.ndarray, kept: np.ndarray) -> Iterator[tuple]:
        """(values, starts, ends): a stretch of an array, and where in it sequences lie."""
        for number, file in enumerate(self.files):
            first, last = np.searchsorted(sequences, self.first_sequences[number : number + 2])
            all_ends = file.arrays["ends"]
            for at in range(first, last, SEQUENCES_TOGETHER):
                some = slice(at, min(at + SEQUENCES_TOGETHER, last))
                mine = sequences[some] - self.first_sequences[number]
                starts = np.where(mine > 0, all_ends[np.maximum(mine, 1) - 1], 0)
                ends = starts + kept[some]
                breaks = np.flatnonzero(np.diff(starts // TOGETHER, prepend=-1, append=-1))
                for begin, end in pairwise(breaks.tolist()):
                    low, high = int(starts[begin]), int(ends[begin:end].max())
                    values = file.arrays[name][low:high]
                    yield values, starts[begin:end] - low, ends[begin:end] - low

    def oddities(self) -> str:
        """What is legal in the data but seldom meant, in words."""
        hashes, odd = (
            np.concatenate([file.arrays[name] for file in self.files])
            for name in ("hashes", "control_strings")
        )
        return described(count_repeats(hashes), int(odd.sum()))


class Part(NamedTuple):
    """Which records of some data: those that are held out, those that are not, or all."""

    side: str = "all"  # "train", HELD_OUT
    val_fraction: float = 0.0

    def has(self, contents: Iterator[bytes]) -> np.ndarray:
        """bool [records]: whether each is in this part, by its content (`held_out_items`)."""
        held_out = held_out_items(contents, self.val_fraction)
        return held_out if self.side == HELD_OUT else ~held_out


ALL = Part()
