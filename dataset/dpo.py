"""`DPODataset`: pairs of answers to one prompt, both packed whole into the same row.

T  tokens in a row        P  most pairs in a row

The k-th pair of a row (from 0) is two documents: 2k + 1 is the chosen one, 2k + 2 the rejected one.
Both begin with the prompt's ids, exactly the same; only the answer is masked in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from torch.utils.data import Dataset

from dataset.chat import encode_answer
from dataset.left_out import left_out_warning
from dataset.oddities import Oddities
from dataset.packing import best_fit, held_out_items
from dataset.pairs import Pair
from dataset.tokenizer import Tokenizer


class EncodedPairs:
    """Token ids and masks of many pairs: sequences 2i and 2i + 1 are chosen and rejected of pair i.

    A pair whose two conversations do not fit a row together is left out and counts in
    `num_too_long`: an answer cut short would not be the one that was judged. `oddities`, `lengths`
    and `num_too_long` are those of all pairs that came, also in both parts after `split`.
    """

    def __init__(self, pairs: Iterable[Pair], tokenizer: Tokenizer, max_seq_len: int) -> None:
        self.eos_id = tokenizer.eos_id
        self.tokenizer_fingerprint = tokenizer.fingerprint
        self.num_too_long = 0
        self.oddities = Oddities(tokenizer.control_tokens)
        self.lengths: list[int] = []  # positions of every pair that came, those left out too
        self.sequences: list[tuple[np.ndarray, np.ndarray]] = []
        self.sources: list[tuple[str, int]] = []  # file and line of every pair kept
        for pair in pairs:
            self.oddities.add(pair.as_text())
            try:
                sides = [
                    encode_answer(tokenizer, pair.prompt, answer, pair.tools)
                    for answer in (pair.chosen, pair.rejected)
                ]
            except ValueError as error:  # the template cannot say it
                raise ValueError(f"{pair.path}:{pair.line}: {error}") from None
            self.lengths.append(sum(len(ids) - 1 for ids, _ in sides))
            if self.lengths[-1] > max_seq_len:
                self.num_too_long += 1
                continue
            self.sequences += [
                (np.array(s.ids, np.int32), np.array(s.mask, np.uint8)) for s in sides
            ]
            self.sources.append((pair.path, pair.line))

    def __len__(self) -> int:
        return len(self.sequences) // 2

    def split(self, val_fraction: float) -> tuple[EncodedPairs, EncodedPairs]:
        """(training, held out): out go the pairs with the smallest hashes of their prompts' ids."""
        prompts = [ids[: int(mask.argmax())].tobytes() for ids, mask in self.sequences[::2]]
        is_val = held_out_items(prompts, val_fraction)
        return self._subset(np.flatnonzero(~is_val)), self._subset(np.flatnonzero(is_val))

    def _subset(self, indices: np.ndarray) -> EncodedPairs:
        part = object.__new__(EncodedPairs)
        part.__dict__ |= self.__dict__
        part.sequences = [self.sequences[j] for i in indices for j in (2 * i, 2 * i + 1)]
        part.sources = [self.sources[i] for i in indices]
        return part


class DPODataset(Dataset):
    """Rows of pairs: X, Y int64 [T], loss_mask float32 [T], document_ids int64 [T], pairs [P].

    `pairs` holds the numbers of the row's pairs, -1 where there are fewer than P. Item -1 is a
    filler. Raises ValueError if there is no pair at all.

    answer_lengths     float32 [pairs, 2]: tokens of the chosen and of the rejected answer
    documents_per_row  no row has more, the filled up end counted
    """

    def __init__(self, encoded: EncodedPairs, max_seq_len: int) -> None:
        if len(encoded) == 0:
            longest = max(encoded.lengths, default=0)
            raise ValueError(
                f"no pair fits --max_seq_len {max_seq_len} ({encoded.num_too_long} are too long; "
                f"the longest takes {longest})"
            )
        self.encoded, self.max_seq_len = encoded, max_seq_len
        lengths = np.array([len(ids) - 1 for ids, _ in encoded.sequences]).reshape(-1, 2).sum(1)
        self.rows = best_fit(lengths, max_seq_len)
        self.pairs_per_row = max(map(len, self.rows))
        self.documents_per_row = 2 * self.pairs_per_row + 1
        answers = [int(mask.sum()) for _, mask in encoded.sequences]
        self.answer_lengths = torch.tensor(answers, dtype=torch.float32).view(-1, 2)
        self._row_pairs = np.array([*map(len, self.rows), 0], np.int64)  # the last one is row -1's
        self.num_tokens = int(lengths.sum())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, ...]:
        T = self.max_seq_len
        X = np.full(T, self.encoded.eos_id, np.int64)
        Y = np.full(T, self.encoded.eos_id, np.int64)
        loss_mask = np.zeros(T, np.float32)
        document_ids = np.zeros(T, np.int64)
        pairs = np.full(self.pairs_per_row, -1, np.int64)
        position = 0
        for k, pair in enumerate(self.rows[i] if i >= 0 else ()):
            pairs[k] = pair
            for side in (0, 1):
                ids, mask = self.encoded.sequences[2 * pair + side]
                end = position + len(ids) - 1
                X[position:end], Y[position:end] = ids[:-1], ids[1:]
                loss_mask[position:end] = mask[1:]
                document_ids[position:end] = 2 * k + 1 + side
                position = end
        return tuple(map(torch.from_numpy, (X, Y, loss_mask, document_ids, pairs)))

    def num_pairs(self, rows: np.ndarray) -> np.ndarray:
        """int64 [len(rows)]: the number of pairs in each row, 0 for row -1."""
        return self._row_pairs[np.asarray(rows, np.int64)]

    def place(self, row: int) -> str:
        """Where a row comes from: "a.jsonl:17 …", the file and line of its first pair."""
        path, line = self.encoded.sources[self.rows[row][0]]
        return f"{path}:{line}" + (" …" if len(self.rows[row]) > 1 else "")

    def summary(self) -> str:
        """For a person: how many, how well packed, what was left out (a line more if much)."""
        lengths, T = np.array(self.encoded.lengths), self.max_seq_len
        warning = left_out_warning("pairs", lengths, np.where(lengths > T, 0, lengths), T)
        used = self.num_tokens / (len(self) * self.max_seq_len)
        return (
            f"{len(self.encoded):,} pairs in {len(self):,} rows, {used:.1%} of the positions used; "
            f"{self.encoded.num_too_long:,} left out as too long; {self.encoded.oddities}"
            + (f"\n{warning}" if warning else "")
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything the rows are made from."""
        digest = hashlib.sha256(self.encoded.tokenizer_fingerprint.encode())
        digest.update(f"{self.max_seq_len}".encode())
        for ids, mask in self.encoded.sequences:
            digest.update(len(ids).to_bytes(8, "little") + ids.tobytes() + mask.tobytes())
        return digest.hexdigest()
