"""`PretrainDataset`: rows of raw text for next-token training."""

import hashlib
import json

import numpy as np
import torch
from torch.utils.data import Dataset

from dataset.packing import Rows, TokenStream


class PretrainDataset(Dataset):
    """The rows of a stream of documents.

    Item i is (X, Y, loss_mask), each [T]: int64 tokens, the int64 token after each, and float32 1
    where that target counts. Every token of the stream counts in exactly one row; where rows begin,
    `packing.Rows` says. Item -1 is a filler whose mask is all zero (`UpdateSampler` completes an
    epoch's last update with it).

    documents_first  for training: some rows begin with documents, as prompts do
    going_on_from    the fingerprint that a checkpoint to go on from has: a run that began before
                     there was documents_first keeps the rows it has had

    Raises ValueError for a max_seq_len below 1.
    """

    documents_per_row = None  # attention goes through a row, whatever documents it has

    def __init__(
        self,
        stream: TokenStream,
        max_seq_len: int,
        documents_first: bool = False,
        going_on_from: str | None = None,
    ) -> None:
        if max_seq_len < 1:
            raise ValueError(f"--max_seq_len: expected at least 1 token, got {max_seq_len}")
        self.stream = stream
        self.max_seq_len = max_seq_len
        self.eos = stream.eos_id
        self.num_tokens = stream.num_tokens  # targets in one epoch
        self.rows = Rows(stream, max_seq_len, documents_first=False)
        if documents_first and (going_on_from is None or going_on_from != self.fingerprint):
            self.rows = Rows(stream, max_seq_len)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if not -1 <= i < len(self):
            raise IndexError(f"expected a row from -1 to {len(self) - 1}, got {i}")
        return tuple(map(torch.from_numpy, self.rows.read(i)))

    def __getitems__(self, indices: list[int]) -> list[tuple[torch.Tensor, ...]]:
        """The items of a whole batch in one call, as PyTorch's loader asks for them."""
        return [self[i] for i in indices]

    def loss_tokens(self, rows: np.ndarray) -> np.ndarray:
        """int64 [len(rows)]: the number of targets that count in each row, 0 for row -1."""
        return self.rows.loss_tokens(rows)

    def place(self, row: int) -> str:
        """Where a row comes from: "a.jsonl document 17", the one its first token is in."""
        return self.stream.place(int(self.rows.places(np.array([row]))[0][0]))

    def summary(self) -> str:
        """For a person: how much there is to learn from."""
        return f"{self.num_tokens:,} training tokens in {len(self):,} rows"

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything the rows are made from: data, tokenizer, split and length."""
        made_from = {
            "data_sha256": [file.data_sha256 for file in self.stream.files],
            "tokenizer": self.stream.files[0].tokenizer_fingerprint,
            "file_tokens": [file.num_tokens for file in self.stream.files],
            "spans": hashlib.sha256(self.stream.spans.astype("<i8").tobytes()).hexdigest(),
            "max_seq_len": self.max_seq_len,
        }
        if self.rows.documents_first:
            made_from["rows_in_block"] = self.rows.per_block
        fields = [file.meta["text_field"] for file in self.stream.files]
        if any(name != "text" for name in fields):  # runs from before have no other field
            made_from["text_fields"] = fields
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
