"""`KTODataset`: judged answers, each beside the answer to another prompt, packed into rows.

T  tokens in a row        P  most records in a row

The k-th record of a row (from 0) is two documents: 2k + 1 is its prompt with its own answer, 2k + 2
the same prompt with the answer of an earlier record, from which the KL term is estimated. Only
answers are masked in.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from dataset.best_fit import best_fit
from dataset.chat_turns import TRAINED
from dataset.encoded import ALL, Encoded, NoRecords, Part
from dataset.left_out import left_out_warning
from dataset.packed_rows import cached_rows, items_of, row_sizes, two_documents_each


class KTODataset(Dataset):
    """Rows of records: X, Y int64 [T], loss_mask float32 [T], document_ids int64 [T], records [P].

    encoded    the judged answers; one is left out if it does not fit a row together with its prompt
               and one more token (of the other answer): cut short it would not be what was judged
    part       which of them; with val_fraction by the hash of their prompt
    cache_dir  where the rows are kept, once they are known; None: in memory

    `records` holds the numbers of the row's records, -1 where there are fewer than P. Item -1 is a
    filler. Raises NoRecords if there is no record at all, ValueError for one without another to
    compare it with.

    total              records in all rows together
    labels             bool [total] on the CPU: whether the answer is desirable
    pairs_per_row      P: a record is a pair of documents
    documents_per_row  no row has more, the filled up end counted
    fingerprint        SHA-256 over everything the rows are made from
    """

    def __init__(
        self,
        encoded: Encoded,
        max_seq_len: int,
        part: Part = ALL,
        cache_dir: str | Path | None = None,
    ) -> None:
        self.encoded, self.max_seq_len = encoded, max_seq_len

        def make() -> tuple[dict, dict]:
            return _rows(encoded, max_seq_len, part)

        options = {"max_seq_len": max_seq_len, "part": part}
        self._arrays, self.facts = cached_rows("judged", encoded, options, make, cache_dir)
        self.labels = torch.tensor(self._arrays["labels"], dtype=torch.bool)
        self.total = len(self.labels)
        self.pairs_per_row: int = self.facts["pairs_per_row"]
        self.documents_per_row = 2 * self.pairs_per_row + 1
        self.fingerprint: str = self.facts["fingerprint"]

    def __len__(self) -> int:
        return len(self._arrays["row_ends"])

    @property
    def others(self) -> np.ndarray:
        """int64 [total]: whose answer stands behind the prompt the second time, cut to fit."""
        return self._arrays["others"]

    @property
    def prompts(self) -> np.ndarray:
        """uint32 [total]: how many tokens each prompt has."""
        return self._arrays["prompts"]

    def __getitem__(self, i: int) -> tuple[torch.Tensor, ...]:
        records = self._records(i).tolist() if i >= 0 else []
        return two_documents_each(
            records, self.documents, self.pairs_per_row, self.max_seq_len, self.encoded.eos_id
        )

    def documents(self, record: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids, mask) of a record's prompt with its own answer, and with another record's."""
        ids, mask = self.sequence(record)
        other = int(self.others[record])
        other_ids, other_mask = self.sequence(other)
        prompt, other_prompt = int(self.prompts[record]), int(self.prompts[other])
        room = self.max_seq_len - (len(ids) - 1) + 1  # tokens
        mixed = (
            np.concatenate([mine[:prompt], others[other_prompt:]])[:room]
            for mine, others in ((ids, other_ids), (mask, other_mask))
        )
        return [(ids, mask), tuple(mixed)]

    def sequence(self, record: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, mask) of a record: its prompt and its answer, which is masked in."""
        ids, mask = self.encoded.sequence(int(self._arrays["records"][record]))
        return ids, mask & TRAINED

    def source(self, record: int) -> tuple[str, int]:
        """(path, line) of a record."""
        return self.encoded.source(int(self._arrays["records"][record]))

    def _records(self, row: int) -> np.ndarray:
        return self._arrays["packed"][items_of(self._arrays, row)]

    def num_records(self, rows: np.ndarray) -> np.ndarray:
        """int64 [len(rows)]: the number of records in each row, 0 for row -1."""
        return row_sizes(self._arrays, rows)

    def place(self, row: int) -> str:
        """Where a row comes from: "a.jsonl:17 …", the file and line of its first record."""
        records = self._records(row)
        path, line = self.source(int(records[0]))
        return f"{path}:{line}" + (" …" if len(records) > 1 else "")

    def summary(self) -> str:
        """For a person: how many, how well packed, what was left out (a line more if much)."""
        facts, good = self.facts, int(self.labels.sum())
        used = facts["num_tokens"] / (len(self) * self.max_seq_len)
        return (
            f"{good:,} desirable and {self.total - good:,} undesirable answers in "
            f"{len(self):,} rows, {used:.1%} of the positions used; "
            f"{facts['num_too_long']:,} left out as too long; {facts['oddities']}"
            + (f"\n{facts['warning']}" if facts["warning"] else "")
        )


def _rows(encoded: Encoded, max_seq_len: int, part: Part) -> tuple[dict, dict]:
    """The arrays of a KTODataset, and facts about them.

    row_ends  int64 [rows]: where the records of each row end
    packed    int64 [total]: the numbers of the records, row after row
    records   int64 [total]: which record of `encoded` number i is
    labels, prompts, others  see KTODataset
    """
    lengths = encoded.lengths()
    prompts = encoded.prompt_lengths(np.arange(len(lengths)))
    needed = lengths - 1 + prompts
    fits = needed <= max_seq_len
    records = np.flatnonzero(fits)
    if len(records) == 0:
        raise NoRecords(
            f"no judged answer fits --max_seq_len {max_seq_len} ({len(needed)} are too long; the "
            f"longest takes {needed.max(initial=0)} with its prompt twice)"
        )
    records = records[part.has(encoded.contents("ids", records, prompts[records]))]
    if len(records) == 0:
        raise NoRecords("no judged answer is held out")
    num_tokens, prompts, labels = lengths[records], prompts[records], encoded.labels()[records]
    others = _others(encoded, records, prompts)
    answers = (num_tokens - prompts)[others]
    positions = np.minimum(num_tokens - 1 + prompts + answers - 1, max_seq_len)
    packed, row_ends = best_fit(positions, max_seq_len)
    digest = hashlib.sha256(encoded.tokenizer_fingerprint.encode() + f"{max_seq_len}".encode())
    digest.update(labels.tobytes() + others.tobytes())
    contents = (encoded.contents(name, records, num_tokens) for name in ("ids", "masks"))
    for length, ids, mask in zip(num_tokens.tolist(), *contents):
        digest.update(length.to_bytes(8, "little") + ids + mask)
    arrays = {
        "row_ends": row_ends,
        "packed": packed,
        "records": records,
        "labels": labels.astype(np.uint8),
        "prompts": prompts.astype(np.uint32),
        "others": others,
    }
    facts = {
        "num_tokens": int(positions.sum()),
        "pairs_per_row": int(np.diff(row_ends, prepend=0).max()),
        "num_too_long": int((~fits).sum()),
        "oddities": encoded.oddities(),
        "warning": left_out_warning("judged answers", needed, needed * fits, max_seq_len),
        "fingerprint": digest.hexdigest(),
    }
    return arrays, facts


def _others(encoded: Encoded, records: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """`mismatched` of some records, whose prompts have so many tokens."""
    numbers = np.empty((2, len(records)), np.uint64)
    whole = encoded.lengths()[records]
    for i, ids in enumerate(encoded.contents("ids", records, whole)):
        at = 4 * int(prompts[i])  # bytes
        numbers[:, i] = _number(ids[:at]), _number(ids[at:])
    others = mismatched(*numbers)
    if (others < 0).any():
        path, line = encoded.source(int(records[np.argmin(others)]))
        raise ValueError(
            f"{path}:{line}: no other record of this part of the data has another prompt and "
            "another answer: the KL term needs one"
        )
    return others


def _number(ids: memoryview) -> int:
    """64 bits, equal for equal ids."""
    return int.from_bytes(hashlib.blake2b(ids, digest_size=8).digest(), "little")


def mismatched(prompts: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """int64 [n]: for every record the nearest one before it with another prompt and another answer.

    prompts, answers: [n] numbers, equal for equal ones. The last record stands before the first.
    -1 where there is none. Of runs of equal ones no more than one is looked at.
    """
    n = len(prompts)
    before = [_before_run(values) for values in (prompts, answers)]
    found = np.arange(n) - 1  # below 0: counted from the end
    todo = np.arange(n)
    while len(todo):
        is_far = found[todo] <= todo - n  # all others have been looked at
        found[todo[is_far]] = -n - 1
        todo = todo[~is_far]
        at = found[todo] % n
        same_prompt, same_answer = prompts[at] == prompts[todo], answers[at] == answers[todo]
        next_at = np.where(same_prompt, before[0][at], np.where(same_answer, before[1][at], at))
        found[todo] += next_at - at
        todo = todo[same_prompt | same_answer]
    return np.where(found < -n, -1, found % n)


def _before_run(values: np.ndarray) -> np.ndarray:
    """int64 [n]: of every value the nearest place before it with another one; below 0 from the end.

    As far as n before it where all are equal.
    """
    n = len(values)
    begins = np.flatnonzero(values != np.roll(values, 1))
    if len(begins) == 0:
        return np.arange(n) - n
    run = np.searchsorted(begins, np.arange(n), side="right") - 1  # -1: it began at the end
    return begins[run] - 1 - n * (run < 0)
