"""`KTODataset`: judged answers, each beside the answer to another prompt, packed into rows.

T  tokens in a row        P  most records in a row

The k-th record of a row (from 0) is two documents: 2k + 1 is its prompt with its own answer, 2k + 2
the same prompt with the answer of an earlier record, from which the KL term is estimated. Only
answers are masked in.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from torch.utils.data import Dataset

from dataset.chat import encode_answer
from dataset.judged import Judged
from dataset.left_out import left_out_warning
from dataset.oddities import Oddities
from dataset.packing import best_fit, held_out_items
from dataset.tokenizer import Tokenizer


class EncodedJudged:
    """Token ids and masks of many judged answers, behind their prompts.

    A record is left out, and counts in `num_too_long`, if it does not fit a row together with its
    prompt and one more token (of the other answer): an answer cut short would not be the one that
    was judged. `oddities`, `warning` and `num_too_long` are those of all records that came, also in
    both parts after `split`.

    labels   bool [records]: whether the answer is desirable
    lengths  int64 [records]: tokens of each
    prompts  int64 [records]: … of which so many are the prompt's
    """

    def __init__(self, records: Iterable[Judged], tokenizer: Tokenizer, max_seq_len: int) -> None:
        self.eos_id = tokenizer.eos_id
        self.tokenizer_fingerprint = tokenizer.fingerprint
        self.oddities = Oddities(tokenizer.control_tokens)
        self._sequences: list[tuple[np.ndarray, np.ndarray]] = []
        self._sources: list[tuple[str, int]] = []
        labels, prompts, needed = [], [], []
        for record in records:
            self.oddities.add(record.as_text())
            try:
                sequence = encode_answer(tokenizer, record.prompt, record.answer, record.tools)
            except ValueError as error:  # the template cannot say it
                raise ValueError(f"{record.path}:{record.line}: {error}") from None
            ids, mask = np.array(sequence.ids, np.int32), np.array(sequence.mask, np.uint8)
            prompt = int(mask.argmax())
            needed.append(len(ids) - 1 + prompt)
            if needed[-1] <= max_seq_len:
                self._sequences.append((ids, mask))
                self._sources.append((record.path, record.line))
                labels.append(record.label)
                prompts.append(prompt)
        needed = np.array(needed, np.int64)
        self.num_too_long = int((needed > max_seq_len).sum())
        self.longest = int(needed.max(initial=0))
        kept = np.where(needed > max_seq_len, 0, needed)
        self.warning = left_out_warning("judged answers", needed, kept, max_seq_len)
        self.labels, self.prompts = np.array(labels, bool), np.array(prompts, np.int64)

    def __len__(self) -> int:
        return len(self._sequences)

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(ids) for ids, _ in self._sequences], np.int64)

    def sequence(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32, mask uint8) of a record: its prompt and its answer, which is masked in."""
        return self._sequences[i]

    def source(self, i: int) -> tuple[str, int]:
        """(path, line) of a record."""
        return self._sources[i]

    def split(self, val_fraction: float) -> tuple[EncodedJudged, EncodedJudged]:
        """(training, held out): out go the records with the smallest hashes of their prompts."""
        prompts = [ids[:n].tobytes() for (ids, _), n in zip(self._sequences, self.prompts)]
        is_val = held_out_items(prompts, val_fraction)
        return self._part(np.flatnonzero(~is_val)), self._part(np.flatnonzero(is_val))

    def _part(self, chosen: np.ndarray) -> EncodedJudged:
        part = copy.copy(self)
        part._sequences = [self._sequences[i] for i in chosen]
        part._sources = [self._sources[i] for i in chosen]
        part.labels, part.prompts = self.labels[chosen], self.prompts[chosen]
        return part


class KTODataset(Dataset):
    """Rows of records: X, Y int64 [T], loss_mask float32 [T], document_ids int64 [T], records [P].

    `records` holds the numbers of the row's records, -1 where there are fewer than P. Item -1 is a
    filler. Raises ValueError if there is no record at all, or none to compare one with.

    others             int64 [records]: whose answer stands behind the prompt the second time; it
                       is cut where the row would be too short for it
    labels             bool [records] on the CPU: whether the answer is desirable
    pairs_per_row      P: a record is a pair of documents
    documents_per_row  no row has more, the filled up end counted
    """

    def __init__(self, encoded: EncodedJudged, max_seq_len: int) -> None:
        if len(encoded) == 0:
            raise ValueError(
                f"no judged answer fits --max_seq_len {max_seq_len} ({encoded.num_too_long} are "
                f"too long; the longest takes {encoded.longest} with its prompt twice)"
            )
        self.encoded, self.max_seq_len = encoded, max_seq_len
        self.labels = torch.from_numpy(encoded.labels)
        self.others = _others(encoded)
        lengths, prompts = encoded.lengths, encoded.prompts
        answers = (lengths - prompts)[self.others]
        positions = np.minimum(lengths - 1 + prompts + answers - 1, max_seq_len)
        self.rows = best_fit(positions, max_seq_len)
        self.pairs_per_row = max(map(len, self.rows))
        self.documents_per_row = 2 * self.pairs_per_row + 1
        self.num_tokens = int(positions.sum())
        self._row_records = np.array([*map(len, self.rows), 0], np.int64)  # the last one: row -1

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, ...]:
        T = self.max_seq_len
        X = np.full(T, self.encoded.eos_id, np.int64)
        Y = np.full(T, self.encoded.eos_id, np.int64)
        loss_mask = np.zeros(T, np.float32)
        document_ids = np.zeros(T, np.int64)
        records = np.full(self.pairs_per_row, -1, np.int64)
        position = 0
        for k, record in enumerate(self.rows[i] if i >= 0 else ()):
            records[k] = record
            for side, (ids, mask) in enumerate(self.documents(record)):
                end = position + len(ids) - 1
                X[position:end], Y[position:end] = ids[:-1], ids[1:]
                loss_mask[position:end] = mask[1:]
                document_ids[position:end] = 2 * k + 1 + side
                position = end
        return tuple(map(torch.from_numpy, (X, Y, loss_mask, document_ids, records)))

    def documents(self, record: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids, mask) of a record's prompt with its own answer, and with another record's."""
        ids, mask = self.encoded.sequence(record)
        other_ids, other_mask = self.encoded.sequence(self.others[record])
        prompt, other_prompt = self.encoded.prompts[[record, self.others[record]]]
        room = self.max_seq_len - (len(ids) - 1) + 1  # tokens
        mixed = (
            np.concatenate([mine[:prompt], others[other_prompt:]])[:room]
            for mine, others in ((ids, other_ids), (mask, other_mask))
        )
        return [(ids, mask), tuple(mixed)]

    def num_records(self, rows: np.ndarray) -> np.ndarray:
        """int64 [len(rows)]: the number of records in each row, 0 for row -1."""
        return self._row_records[np.asarray(rows, np.int64)]

    def place(self, row: int) -> str:
        """Where a row comes from: "a.jsonl:17 …", the file and line of its first record."""
        path, line = self.encoded.source(self.rows[row][0])
        return f"{path}:{line}" + (" …" if len(self.rows[row]) > 1 else "")

    def summary(self) -> str:
        """For a person: how many, how well packed, what was left out (a line more if much)."""
        encoded = self.encoded
        good, used = int(encoded.labels.sum()), self.num_tokens / (len(self) * self.max_seq_len)
        return (
            f"{good:,} desirable and {len(encoded) - good:,} undesirable answers in "
            f"{len(self):,} rows, {used:.1%} of the positions used; "
            f"{encoded.num_too_long:,} left out as too long; {encoded.oddities}"
            + (f"\n{encoded.warning}" if encoded.warning else "")
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything the rows are made from."""
        digest = hashlib.sha256(self.encoded.tokenizer_fingerprint.encode())
        digest.update(f"{self.max_seq_len}".encode())
        digest.update(self.encoded.labels.tobytes() + self.others.tobytes())
        for ids, mask in map(self.encoded.sequence, range(len(self.encoded))):
            digest.update(len(ids).to_bytes(8, "little") + ids.tobytes() + mask.tobytes())
        return digest.hexdigest()


def _others(encoded: EncodedJudged) -> np.ndarray:
    """`mismatched` of some records."""
    prompts, answers = (np.empty(len(encoded), np.uint64) for _ in range(2))
    for i, prompt in enumerate(encoded.prompts.tolist()):
        ids, _ = encoded.sequence(i)
        prompts[i], answers[i] = _number(ids[:prompt]), _number(ids[prompt:])
    others = mismatched(prompts, answers)
    if (others < 0).any():
        path, line = encoded.source(int(np.argmin(others)))
        raise ValueError(
            f"{path}:{line}: no other record of this part of the data has another prompt and "
            "another answer: the KL term needs one"
        )
    return others


def _number(ids: np.ndarray) -> int:
    """64 bits, equal for equal ids."""
    return int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=8).digest(), "little")


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
