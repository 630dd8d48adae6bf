"""`SFTDataset`: whole conversations packed into rows, the assistant's words as targets.

T  tokens in a row

A sequence of n tokens (a conversation, or a part of one) takes n - 1 positions: X is its tokens
but the last, Y its tokens but the first. Rows are filled by best fit; `document_ids` tells the
sequences of a row apart, so that attention stays inside each and positions restart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from dataset.best_fit import best_fit
from dataset.chat_turns import TRAINED
from dataset.encoded import ALL, Encoded, NoRecords, Part
from dataset.left_out import left_out_warning
from dataset.packed_rows import cached_rows, items_of


class SFTDataset(Dataset):
    """Rows of conversations: (X int64 [T], Y int64 [T], loss_mask float32 [T], document_ids [T]).

    encoded    the conversations, cut after an answer where they are too long
    packing    False gives every sequence a row of its own, for comparison
    part       which of the conversations
    weights    of every file: 2 takes each conversation twice an epoch, 0.5 every second one, 1.5
               them all and every second one once more; None: 1
    cache_dir  where the rows are kept, once they are known; None: in memory

    Positions after the last sequence hold eos, are masked, and are a document of their own. Item -1
    is a filler. Raises NoRecords if no conversation has an answer that fits.

    num_tokens         positions that hold real tokens, per epoch
    documents_per_row  no row has more, the filled up end counted
    fingerprint        SHA-256 over everything the rows are made from
    """

    def __init__(
        self,
        encoded: Encoded,
        max_seq_len: int,
        packing: bool = True,
        part: Part = ALL,
        weights: Sequence[float] | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        self.encoded, self.max_seq_len = encoded, max_seq_len
        options = {"max_seq_len": max_seq_len, "packing": packing, "part": part, "weights": weights}

        def make() -> tuple[dict, dict]:
            return _rows(encoded, max_seq_len, packing, part, weights)

        self._arrays, self.facts = cached_rows("conversations", encoded, options, make, cache_dir)
        self.num_tokens: int = self.facts["num_tokens"]
        self.documents_per_row: int = self.facts["documents_per_row"]
        self.fingerprint: str = self.facts["fingerprint"]

    def __len__(self) -> int:
        return len(self._arrays["row_ends"])

    @property
    def items(self) -> dict[str, np.ndarray]:
        """What the rows are filled with, row after row: "sequence" and "record", int64 [items]."""
        return {"sequence": self._arrays["sequences"], "record": self._arrays["records"]}

    def sequences(self, row: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids, mask) of the sequences in a row, as long as they are kept."""
        place = items_of(self._arrays, row)
        numbers, kept = self._arrays["sequences"][place], self._arrays["kept"][place]
        whole = (self.encoded.sequence(i) for i in numbers.tolist())
        return [(ids[:n], mask[:n] & TRAINED) for (ids, mask), n in zip(whole, kept.tolist())]

    def __getitem__(self, i: int) -> tuple[torch.Tensor, ...]:
        T = self.max_seq_len
        X = np.full(T, self.encoded.eos_id, np.int64)
        Y = np.full(T, self.encoded.eos_id, np.int64)
        loss_mask = np.zeros(T, np.float32)
        document_ids = np.zeros(T, np.int64)
        position = 0
        for number, (ids, mask) in enumerate(self.sequences(i) if i >= 0 else (), start=1):
            end = position + len(ids) - 1
            X[position:end], Y[position:end] = ids[:-1], ids[1:]
            loss_mask[position:end] = mask[1:]
            document_ids[position:end] = number
            position = end
        return tuple(map(torch.from_numpy, (X, Y, loss_mask, document_ids)))

    def loss_tokens(self, rows: np.ndarray) -> np.ndarray:
        """int64 [len(rows)]: the number of targets that count in each row, 0 for row -1."""
        rows = np.asarray(rows, np.int64)
        return np.where(rows < 0, 0, self._arrays["row_targets"][np.maximum(rows, 0)])

    def first_sequences(self, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids, mask) of the first sequences, in the order of the data."""
        numbers = self._arrays["sequences"]
        first = np.argsort(numbers, kind="stable")[:count]
        rows = np.searchsorted(self._arrays["row_ends"], first, side="right")
        place = first - np.where(rows > 0, self._arrays["row_ends"][np.maximum(rows, 1) - 1], 0)
        return [self.sequences(row)[at] for row, at in zip(rows.tolist(), place.tolist())]

    def place(self, row: int) -> str:
        """Where a row comes from: "a.jsonl:17 …", the file and line of its first conversation."""
        records = self._arrays["records"][items_of(self._arrays, row)]
        path, line = self.encoded.source(int(records[0]))
        return f"{path}:{line}" + (" …" if len(records) > 1 else "")

    @property
    def efficiency(self) -> float:
        """Share of the rows' positions that hold real tokens."""
        return self.num_tokens / (len(self) * self.max_seq_len)

    def summary(self) -> str:
        """For a person: how many, how well packed, what was cut; a second line if that is much."""
        facts = self.facts
        return (
            f"{facts['num_conversations']:,} conversations in {len(self):,} rows, "
            f"{self.efficiency:.1%} of the positions used; {facts['num_cut']:,} cut, "
            f"{facts['num_too_long']:,} left out as too long; {facts['oddities']}"
        ) + (f"\n{facts['warning']}" if facts["warning"] else "")


def _rows(
    encoded: Encoded, max_seq_len: int, packing: bool, part: Part, weights: Sequence | None
) -> tuple[dict, dict]:
    """The arrays of an SFTDataset, and facts about them.

    row_ends     int64 [rows]: where the items of each row end
    sequences    int64 [items]: the sequence that an item is
    kept         uint32 [items]: how many tokens of it
    records      int64 [items]: the conversation that it is of
    row_targets  int64 [rows]: targets in it
    """
    chosen, kept, record_of, facts = _chosen(encoded, max_seq_len, part)
    facts["oddities"] = encoded.oddities()
    fingerprint = _fingerprint(encoded, chosen, kept)
    targets = encoded.num_trained(chosen, kept).astype(np.uint32)
    items = np.arange(len(chosen))
    if weights is not None:
        items = np.repeat(items, _repeats(encoded, record_of, weights))
    if len(items) == 0:
        raise ValueError("--data_weights: no conversation is left")
    if packing:
        order, row_ends = best_fit(kept[items] - 1, max_seq_len)
        items = items[order]
        del order
    else:
        row_ends = np.arange(1, len(items) + 1)
    digest = hashlib.sha256(fingerprint.encode())
    digest.update(f"{max_seq_len} {packing}".encode())
    digest.update(items)
    row_starts = np.concatenate([[0], row_ends[:-1]])
    arrays = {
        "row_ends": row_ends,
        "sequences": chosen[items],
        "kept": kept[items],
        "records": record_of[items],
        "row_targets": np.add.reduceat(targets[items], row_starts, dtype=np.int64),
    }
    facts |= {
        "num_tokens": int(arrays["kept"].sum(dtype=np.int64)) - len(items),
        "documents_per_row": int(np.diff(row_ends, prepend=0).max()) + 1,
        "fingerprint": digest.hexdigest(),
    }
    return arrays, facts


def _chosen(encoded: Encoded, max_seq_len: int, part: Part) -> tuple:
    """(sequences, kept, records, facts): the sequences of a part, as in `_rows`, in order."""
    kept = encoded.cut_lengths(max_seq_len + 1).astype(np.uint32)
    ends = encoded.ends_of_records()
    # positions that the longest sequence of each record takes whole, and those that it gets
    needed, has = (
        np.maximum(np.maximum.reduceat(tokens, np.concatenate([[0], ends[:-1]])), 1) - 1
        for tokens in (encoded.lengths().astype(np.uint32), kept)
    )
    facts = {
        "num_cut": int(((has > 0) & (has < needed)).sum()),
        "num_too_long": int((has == 0).sum()),
        "warning": left_out_warning("conversations", needed, has, max_seq_len),
    }
    del needed, has
    chosen = np.flatnonzero(kept)
    if len(chosen) == 0:
        raise NoRecords(
            f"no conversation fits --max_seq_len {max_seq_len} "
            f"({facts['num_too_long']} are too long)"
        )
    kept = kept[chosen]
    record_of = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))[chosen]
    last = np.flatnonzero(np.diff(record_of, append=-1))  # that sequence holds all its turns
    is_mine = np.zeros(len(ends), bool)
    is_mine[record_of[last]] = part.has(encoded.contents("ids", chosen[last], kept[last]))
    facts["num_conversations"] = int(is_mine.sum())
    mine = np.flatnonzero(is_mine[record_of])
    if len(mine) == 0:
        raise NoRecords("no conversation is held out")
    return chosen[mine], kept[mine], record_of[mine], facts


def _fingerprint(encoded: Encoded, sequences: np.ndarray, kept: np.ndarray) -> str:
    """SHA-256 over the tokenizer and some sequences, hexadecimal."""
    digest = hashlib.sha256(encoded.tokenizer_fingerprint.encode())
    digest.update(np.cumsum(kept).tobytes())
    for name in ("ids", "masks"):
        for content in encoded.contents(name, sequences, kept):
            digest.update(content)
    return digest.hexdigest()


def _repeats(encoded: Encoded, records: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """int64 [sequences]: how often each is taken per epoch, from the weight of its file.

    records: the conversation of every sequence, in order.
    """
    file_of = np.searchsorted(encoded.first_records, records, side="right") - 1
    is_new = np.diff(records, prepend=-1) != 0
    repeats = np.zeros(len(records), np.int64)
    for file, weight in enumerate(weights):
        number = np.cumsum(is_new[file_of == file])  # of the conversation, in its file
        repeats[file_of == file] = np.floor(number * weight) - np.floor((number - 1) * weight)
    return repeats
