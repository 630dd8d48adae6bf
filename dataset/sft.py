"""`SFTDataset`: whole conversations packed into rows, the assistant's words as targets.

T  tokens in a row

A sequence of n tokens (a conversation, or a part of one) takes n - 1 positions: X is its tokens
but the last, Y its tokens but the first. Rows are filled by best fit; `document_ids` tells the
sequences of a row apart, so that attention stays inside each and positions restart.
"""

from __future__ import annotations

import copy
import hashlib
import math
from array import array
from collections.abc import Iterable

import numpy as np
import torch
from torch.utils.data import Dataset

from dataset.chat import cut, training_sequences
from dataset.chat_turns import MAY_END, TRAINED
from dataset.conversations import Conversation
from dataset.left_out import left_out_warning
from dataset.oddities import Oddities
from dataset.packing import best_fit, held_out_items
from dataset.tokenizer import Tokenizer


class EncodedConversations:
    """Token ids and masks of the sequences that train some conversations, in two flat arrays.

    A conversation is one sequence, or several where the chat template changes earlier turns
    (`chat.training_sequences`). Answers that do not fit max_seq_len + 1 tokens are left out:
    conversations that lose some of them count in `num_cut`, all of them in `num_too_long`.
    `oddities` holds the counts over all conversations that came, also in both parts after `split`.

    All of it is held in memory: 5 bytes a token (id and mask) and 110 a sequence; while it is
    joined or split twice that for tokens and 350 for a sequence.
    """

    def __init__(
        self, conversations: Iterable[Conversation], tokenizer: Tokenizer, max_seq_len: int
    ) -> None:
        self.eos_id = tokenizer.eos_id
        self.tokenizer_fingerprint = tokenizer.fingerprint
        self.num_cut = self.num_too_long = 0
        self.oddities = Oddities(tokenizer.control_tokens)
        self.sources: list[tuple[str, int]] = []  # file and line of every sequence kept
        self.needed = array("I")  # [conversations that came] positions that each takes whole
        self.kept = array("I")  # … positions that it has
        conversation_of: list[int] = []
        ids: list[np.ndarray] = []
        masks: list[np.ndarray] = []
        for number, conversation in enumerate(conversations):
            self.oddities.add(conversation.as_text())
            try:
                whole = training_sequences(tokenizer, conversation.messages, conversation.tools)
            except ValueError as error:  # the template cannot say it
                raise ValueError(f"{conversation.path}:{conversation.line}: {error}") from None
            sequences = [s for s in (cut(s, max_seq_len + 1) for s in whole) if s]
            self.needed.append(max(len(s.ids) for s in whole) - 1)
            self.kept.append(max((len(s.ids) - 1 for s in sequences), default=0))
            if _num_answers(sequences) < _num_answers(whole):
                self.num_cut += bool(sequences)
                self.num_too_long += not sequences
            for sequence in sequences:
                ids.append(np.array(sequence.ids, np.int32))
                masks.append(np.array(sequence.mask, np.uint8) & TRAINED)
                self.sources.append((conversation.path, conversation.line))
                conversation_of.append(number)
        self.conversation_of = np.array(conversation_of, np.int64)  # of every sequence
        self._join(ids, masks)

    def split(self, val_fraction: float) -> tuple[EncodedConversations, EncodedConversations]:
        """(training, held out): out go those with the smallest hashes, as `held_out_items` says.

        All sequences of a conversation go to one side.
        """
        last = np.flatnonzero(np.diff(self.conversation_of, append=-1))  # holds all its turns
        is_val = held_out_items([self[i][0].tobytes() for i in last], val_fraction)
        is_val = np.repeat(is_val, np.diff(last, prepend=-1))
        return self._subset(np.flatnonzero(~is_val)), self._subset(np.flatnonzero(is_val))

    def _subset(self, indices: np.ndarray) -> EncodedConversations:
        part = copy.copy(self)
        chosen = [self[i] for i in indices]
        part._join([ids for ids, _ in chosen], [mask for _, mask in chosen])
        part.sources = [self.sources[i] for i in indices]
        part.conversation_of = self.conversation_of[indices]
        return part

    def _join(self, ids: list[np.ndarray], masks: list[np.ndarray]) -> None:
        self.ends = np.cumsum([len(x) for x in ids], dtype=np.int64)
        self.ids = np.concatenate(ids) if ids else np.zeros(0, np.int32)
        self.masks = np.concatenate(masks) if masks else np.zeros(0, np.uint8)

    def __len__(self) -> int:
        """The number of sequences."""
        return len(self.ends)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        start, end = (self.ends[i - 1] if i else 0), self.ends[i]
        return self.ids[start:end], self.masks[start:end]

    @property
    def num_conversations(self) -> int:
        return len(np.unique(self.conversation_of))

    @property
    def lengths(self) -> np.ndarray:
        """int64 [sequences]: tokens of each."""
        return np.diff(self.ends, prepend=0)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over ids and masks, hexadecimal."""
        digest = hashlib.sha256(self.tokenizer_fingerprint.encode())
        for part in (self.ends, self.ids, self.masks):
            digest.update(part.tobytes())
        return digest.hexdigest()


def _num_answers(sequences: list) -> int:
    return sum(bool(m & MAY_END) for s in sequences for m in s.mask)


def repeats_by_weight(encoded: EncodedConversations, weights: dict[str, float]) -> np.ndarray:
    """int64 [sequences]: how often each is taken per epoch, from the weight of its file.

    Weight 2 takes every conversation twice, 0.5 every second one, 1.5 them all and every second
    one once more.
    """
    seen: dict[str, int] = {}
    repeats = np.ones(len(encoded), np.int64)
    for i, (path, _) in enumerate(encoded.sources):
        is_new = i == 0 or encoded.conversation_of[i] != encoded.conversation_of[i - 1]
        seen[path] = number = seen.get(path, 0) + is_new
        weight = weights[path]
        repeats[i] = math.floor(number * weight) - math.floor((number - 1) * weight)
    return repeats


class SFTDataset(Dataset):
    """Rows of conversations: (X int64 [T], Y int64 [T], loss_mask float32 [T], document_ids [T]).

    packing=False gives every conversation a row of its own, for comparison. `repeats` says how
    often each conversation is taken per epoch (weights of files); None is once. Positions after the
    last conversation hold eos, are masked, and are a document of their own. Item -1 is a filler.
    Raises ValueError if there is no conversation at all.

    num_tokens         positions that hold real tokens, per epoch
    documents_per_row  no row has more, the filled up end counted
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
        if len(items) == 0:
            raise ValueError("--data_weights: no conversation is left")
        lengths = encoded.lengths[items] - 1
        bins = best_fit(lengths, max_seq_len) if packing else [[i] for i in range(len(items))]
        self.rows = [items[row] for row in bins]
        # targets per conversation: the first token of a conversation is nobody's target
        starts = np.concatenate(([0], encoded.ends[:-1]))
        supervised = np.add.reduceat(encoded.masks, starts, dtype=np.int64)
        per_row = [supervised[row].sum() for row in self.rows]
        self._row_targets = np.array([*per_row, 0], np.int64)  # the last one is row -1's
        self.num_tokens = int(lengths.sum())
        self.documents_per_row = max(map(len, self.rows)) + 1

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, ...]:
        T = self.max_seq_len
        X = np.full(T, self.encoded.eos_id, np.int64)
        Y = np.full(T, self.encoded.eos_id, np.int64)
        loss_mask = np.zeros(T, np.float32)
        document_ids = np.zeros(T, np.int64)
        position = 0
        for number, sequence in enumerate(self.rows[i] if i >= 0 else (), start=1):
            ids, mask = self.encoded[sequence]
            end = position + len(ids) - 1
            X[position:end], Y[position:end] = ids[:-1], ids[1:]
            loss_mask[position:end] = mask[1:]
            document_ids[position:end] = number
            position = end
        return tuple(map(torch.from_numpy, (X, Y, loss_mask, document_ids)))

    def loss_tokens(self, rows: np.ndarray) -> np.ndarray:
        """int64 [len(rows)]: the number of targets that count in each row, 0 for row -1."""
        return self._row_targets[np.asarray(rows, np.int64)]

    def place(self, row: int) -> str:
        """Where a row comes from: "a.jsonl:17 …", the file and line of its first conversation."""
        path, line = self.encoded.sources[self.rows[row][0]]
        return f"{path}:{line}" + (" …" if len(self.rows[row]) > 1 else "")

    @property
    def efficiency(self) -> float:
        """Share of the rows' positions that hold real tokens."""
        return self.num_tokens / (len(self) * self.max_seq_len)

    def summary(self) -> str:
        """For a person: how many, how well packed, what was cut; a second line if that is much."""
        encoded = self.encoded
        warning = left_out_warning("conversations", encoded.needed, encoded.kept, self.max_seq_len)
        return (
            f"{encoded.num_conversations:,} conversations in {len(self):,} rows, "
            f"{self.efficiency:.1%} of the positions used; {encoded.num_cut:,} cut, "
            f"{encoded.num_too_long:,} left out as too long; {encoded.oddities}"
        ) + (f"\n{warning}" if warning else "")

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything the rows are made from."""
        digest = hashlib.sha256(self.encoded.fingerprint.encode())
        digest.update(f"{self.max_seq_len} {self.packing}".encode())
        digest.update(np.concatenate(self.rows).tobytes())
        return digest.hexdigest()
