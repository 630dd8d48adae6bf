"""`SFTDataset`: whole conversations packed into rows, the assistant's words as targets.

T  tokens in a row

A conversation of n tokens takes n - 1 positions: X is its tokens but the last, Y its tokens but the
first. Rows are filled by best fit; `document_ids` tells the conversations of a row apart, so that
attention stays inside each and positions restart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from torch.utils.data import Dataset

from dataset.chat import encode_conversation
from dataset.conversations import Conversation
from dataset.packing import best_fit
from dataset.tokenizer import Tokenizer


class EncodedConversations:
    """Token ids and masks of many conversations, in two flat arrays.

    Conversations longer than max_seq_len + 1 tokens keep their leading turns up to the last answer
    that fits and count in `num_cut`; those whose first answer does not fit are left out and count
    in `num_too_long`.
    """

    def __init__(
        self, conversations: Iterable[Conversation], tokenizer: Tokenizer, max_seq_len: int
    ) -> None:
        self.eos_id = tokenizer.eos_id
        self.tokenizer_fingerprint = tokenizer.fingerprint
        self.num_cut = self.num_too_long = 0
        self.sources: list[tuple[str, int]] = []  # file and line of every conversation kept
        ids: list[np.ndarray] = []
        masks: list[np.ndarray] = []
        for conversation in conversations:
            encoded = _cut_to_fit(conversation, tokenizer, max_seq_len + 1)
            if encoded is None:
                self.num_too_long += 1
                continue
            tokens, mask, was_cut = encoded
            self.num_cut += was_cut
            ids.append(np.array(tokens, np.int32))
            masks.append(np.array(mask, np.uint8))
            self.sources.append((conversation.path, conversation.line))
        self.ends = np.cumsum([len(x) for x in ids], dtype=np.int64)
        self.ids = np.concatenate(ids) if ids else np.zeros(0, np.int32)
        self.masks = np.concatenate(masks) if masks else np.zeros(0, np.uint8)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        start, end = (self.ends[i - 1] if i else 0), self.ends[i]
        return self.ids[start:end], self.masks[start:end]

    @property
    def lengths(self) -> np.ndarray:
        """int64 [conversations]: tokens of each."""
        return np.diff(self.ends, prepend=0)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over ids and masks, hexadecimal."""
        digest = hashlib.sha256(self.tokenizer_fingerprint.encode())
        for array in (self.ends, self.ids, self.masks):
            digest.update(array.tobytes())
        return digest.hexdigest()


def _cut_to_fit(conversation: Conversation, tokenizer: Tokenizer, limit: int):
    """(ids, mask, was_cut) of the leading turns, up to an answer, that have at most `limit` tokens.

    None if not even the first answer fits: half an answer would teach the model to stop there, or
    never to stop.
    """
    messages = conversation.messages
    for count in range(len(messages), 0, -1):
        if messages[count - 1]["role"] == "assistant":
            ids, mask = encode_conversation(tokenizer, messages[:count], conversation.tools)
            if len(ids) <= limit:
                return ids, mask, count < len(messages)
    return None


class SFTDataset(Dataset):
    """Rows of conversations: (X int64 [T], Y int64 [T], loss_mask float32 [T], document_ids [T]).

    packing=False gives every conversation a row of its own, for comparison. `repeats` says how
    often each conversation is taken per epoch (weights of files); None is once. Positions after the
    last conversation hold eos, are masked, and are a document of their own. Item -1 is a filler.
    Raises ValueError if there is no conversation at all.
    """

    def __init__(
        self,
        encoded: EncodedConversations,
        max_seq_len: int,
        packing: bool = True,
        repeats: np.ndarray | None = None,
    ) -> None:
        if len(encoded) == 0:
            raise ValueError(
                f"no conversation fits --max_seq_len {max_seq_len} "
                f"({encoded.num_too_long} are too long)"
            )
        self.encoded, self.max_seq_len = encoded, max_seq_len
        self.packing = packing
        items = np.arange(len(encoded))
        if repeats is not None:
            items = np.repeat(items, repeats)
        lengths = encoded.lengths[items] - 1
        bins = best_fit(lengths, max_seq_len) if packing else [[i] for i in range(len(items))]
        self.rows = [items[row] for row in bins]
        # targets per conversation: the first token of a conversation is nobody's target
        starts = np.concatenate(([0], encoded.ends[:-1]))
        supervised = np.add.reduceat(encoded.masks, starts, dtype=np.int64)
        per_row = [supervised[row].sum() for row in self.rows]
        self._row_targets = np.array([*per_row, 0], np.int64)  # the last one is row -1's
        self.num_tokens = int(lengths.sum())  # positions that hold real tokens, per epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, ...]:
        T = self.max_seq_len
        X = np.full(T, self.encoded.eos_id, np.int64)
        Y = np.full(T, self.encoded.eos_id, np.int64)
        loss_mask = np.zeros(T, np.float32)
        document_ids = np.zeros(T, np.int64)
        position = 0
        for number, conversation in enumerate(self.rows[i] if i >= 0 else (), start=1):
            ids, mask = self.encoded[conversation]
            end = position + len(ids) - 1
            X[position:end], Y[position:end] = ids[:-1], ids[1:]
            loss_mask[position:end] = mask[1:]
            document_ids[position:end] = number
            position = end
        return tuple(map(torch.from_numpy, (X, Y, loss_mask, document_ids)))

    def loss_tokens(self, rows: np.ndarray) -> np.ndarray:
        """int64 [len(rows)]: the number of targets that count in each row, 0 for row -1."""
        return self._row_targets[np.asarray(rows, np.int64)]

    @property
    def efficiency(self) -> float:
        """Share of the rows' positions that hold real tokens."""
        return self.num_tokens / (len(self) * self.max_seq_len)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything the rows are made from."""
        digest = hashlib.sha256(self.encoded.fingerprint.encode())
        digest.update(f"{self.max_seq_len} {self.packing}".encode())
        digest.update(np.concatenate(self.rows).tobytes())
        return digest.hexdigest()
