"""`DPODataset`: pairs of answers to one prompt, both packed whole into the same row.

T  tokens in a row        P  most pairs in a row

The k-th pair of a row (from 0) is two documents: 2k + 1 is the chosen one, 2k + 2 the rejected one.
Both begin with the prompt's ids, exactly the same; only the answer is masked in.
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


class DPODataset(Dataset):
    """Rows of pairs: X, Y int64 [T], loss_mask float32 [T], document_ids int64 [T], pairs [P].

    encoded    the pairs; one whose two conversations do not fit a row together is left out: an
               answer cut short would not be the one that was judged
    part       which of the pairs; with val_fraction by the hash of their prompt
    cache_dir  where the rows are kept, once they are known; None: in memory
    scored     for a reward model: rows hold the last token of each conversation, too, and the mask
               is 1 on it alone; Y is X

    `pairs` holds the numbers of the row's pairs, -1 where there are fewer than P. Item -1 is a
    filler. Raises NoRecords if there is no pair at all.

    total              pairs in all rows together
    answer_lengths     float32 [total, 2] on the CPU: targets of the chosen and rejected answers
    pairs_per_row      P
    documents_per_row  no row has more, the filled up end counted
    fingerprint        SHA-256 over everything the rows are made from
    """

    def __init__(
        self,
        encoded: Encoded,
        max_seq_len: int,
        part: Part = ALL,
        cache_dir: str | Path | None = None,
        scored: bool = False,
    ) -> None:
        self.encoded, self.max_seq_len, self.scored = encoded, max_seq_len, scored

        def make() -> tuple[dict, dict]:
            return _rows(encoded, max_seq_len, part, scored)

        options = {"max_seq_len": max_seq_len, "part": part} | ({"scored": True} if scored else {})
        self._arrays, self.facts = cached_rows("pairs", encoded, options, make, cache_dir)
        self.total = len(self._arrays["records"])
        self.answer_lengths = torch.tensor(self._arrays["answer_lengths"]).view(-1, 2)
        self.pairs_per_row: int = self.facts["pairs_per_row"]
        self.documents_per_row = 2 * self.pairs_per_row + 1
        self.fingerprint: str = self.facts["fingerprint"]

    def __len__(self) -> int:
        return len(self._arrays["row_ends"])

    def sides(self, pair: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids, mask) of the prompt with the chosen answer, and with the rejected one."""
        record = int(self._arrays["records"][pair])
        both = (self.encoded.sequence(i) for i in (2 * record, 2 * record + 1))
        return [(ids, mask & TRAINED) for ids, mask in both]

    def __getitem__(self, i: int) -> tuple[torch.Tensor, ...]:
        pairs = self._pairs(i).tolist() if i >= 0 else []
        return two_documents_each(
            pairs, self.sides, self.pairs_per_row, self.max_seq_len, self.encoded.eos_id,
            self.scored,
        )  # fmt: skip

    def _pairs(self, row: int) -> np.ndarray:
        return self._arrays["pairs"][items_of(self._arrays, row)]

    def num_pairs(self, rows: np.ndarray) -> np.ndarray:
        """int64 [len(rows)]: the number of pairs in each row, 0 for row -1."""
        return row_sizes(self._arrays, rows)

    def place(self, row: int) -> str:
        """Where a row comes from: "a.jsonl:17 …", the file and line of its first pair."""
        pairs = self._pairs(row)
        path, line = self.encoded.source(int(self._arrays["records"][pairs[0]]))
        return f"{path}:{line}" + (" …" if len(pairs) > 1 else "")

    def summary(self) -> str:
        """For a person: how many, how well packed, what was left out (a line more if much)."""
        facts, used = self.facts, self.facts["num_tokens"] / (len(self) * self.max_seq_len)
        return (
            f"{self.total:,} pairs in {len(self):,} rows, {used:.1%} of the positions used; "
            f"{facts['num_too_long']:,} left out as too long; {facts['oddities']}"
            + (f"\n{facts['warning']}" if facts["warning"] else "")
        )


def _rows(encoded: Encoded, max_seq_len: int, part: Part, scored: bool) -> tuple[dict, dict]:
    """The arrays of a DPODataset, and facts about them.

    row_ends        int64 [rows]: where the pairs of each row end
    pairs           int64 [pairs]: their numbers, row after row
    records         int64 [pairs]: the record that pair number i is
    answer_lengths  float32 [2 pairs]: targets of the chosen and rejected answer of each
    """
    lengths = encoded.lengths()
    needed = lengths.reshape(-1, 2).sum(1) - (0 if scored else 2)
    fits = needed <= max_seq_len
    records = np.flatnonzero(fits)
    if len(records) == 0:
        raise NoRecords(
            f"no pair fits --max_seq_len {max_seq_len} ({len(needed)} are too long; the longest "
            f"takes {needed.max(initial=0)})"
        )
    prompts = encoded.prompt_lengths(2 * records)
    records = records[part.has(encoded.contents("ids", 2 * records, prompts))]
    if len(records) == 0:
        raise NoRecords("no pair is held out")
    pairs, row_ends = best_fit(needed[records], max_seq_len)
    sequences = np.stack([2 * records, 2 * records + 1], 1).ravel()
    digest = hashlib.sha256(encoded.tokenizer_fingerprint.encode() + f"{max_seq_len}".encode())
    digest.update(b"scored" if scored else b"")
    kept = lengths[sequences]
    contents = (encoded.contents(name, sequences, kept) for name in ("ids", "masks"))
    for length, ids, mask in zip(kept.tolist(), *contents):
        digest.update(length.to_bytes(8, "little") + ids + mask)
    arrays = {
        "row_ends": row_ends,
        "pairs": pairs,
        "records": records,
        "answer_lengths": encoded.num_trained(sequences, kept).astype(np.float32),
    }
    facts = {
        "num_tokens": int(needed[records].sum()),
        "pairs_per_row": int(np.diff(row_ends, prepend=0).max()),
        "num_too_long": int((~fits).sum()),
        "oddities": encoded.oddities(),
        "warning": left_out_warning("pairs", needed, needed * fits, max_seq_len),
        "fingerprint": digest.hexdigest(),
    }
    return arrays, facts
