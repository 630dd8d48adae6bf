"""Records → ids and masks, many at a time: what the caches of conversations, pairs and judged
answers are made of, and what a check before training finds out.

Everything here is a job for `record_chunks.work_through`: job(records, problems) → result. Jobs and
results are plain data, so that they can go to other processes and back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dataset import conversations, judged, pairs
from dataset.chat import NO_THINKING, answer_pieces, training_pieces
from dataset.chat_turns import InPieces, encode_sequences
from dataset.conversations import Conversation, converted, to_conversation
from dataset.judged import Judged, to_judged
from dataset.oddities import ControlStrings, text_hash
from dataset.pairs import Pair, to_pair
from dataset.readers import texts_of
from dataset.records import Problems, Record
from dataset.tokenizer import Tokenizer

WANTED = {  # the fields that are looked at, by the kind of records
    "chat": conversations.FIELDS,
    "pairs": pairs.FIELDS,
    "judged": judged.FIELDS,
}


class EncodedChunk(NamedTuple):
    """Encoded records, their sequences joined.

    ids       uint16 or uint32 [tokens]
    masks     uint8 [tokens]: bit 0: trained on; bit 1: the sequence may be cut behind this token
    lengths   uint32 [sequences]: tokens of each
    counts    uint32 [records]: sequences of each; of a pair 2, the chosen answer's first
    lines     uint32 [records]: where in its file each record is
    hashes    uint64 [records]: of all that it says (`oddities.text_hash`)
    labels    uint8 [records]: 1 for a desirable answer; 0 where there are no labels
    """

    ids: np.ndarray
    masks: np.ndarray
    lengths: np.ndarray
    counts: np.ndarray
    lines: np.ndarray
    hashes: np.ndarray
    labels: np.ndarray
    num_with_control_strings: int
    has_reasoning: bool


class ReasoningFound(ValueError):
    """A record has reasoning, and the chat template has no place for it: another one has."""


class _Encoder:
    """Collects the records of a chunk and their sequences."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self._control_strings = ControlStrings(tokenizer.control_tokens)
        self.lines: list[int] = []
        self.hashes: list[int] = []
        self.counts: list[int] = []
        self.labels: list[int] = []
        self.sequences: list[InPieces] = []
        self.num_with_control_strings = 0
        self.has_reasoning = False

    def add(self, record: Conversation | Pair | Judged, in_pieces: Callable) -> None:
        """Note a record; its sequences are in_pieces(record)."""
        place = f"{record.path}:{record.line}"
        if record.has_reasoning:
            if self.tokenizer.chat_template == NO_THINKING:
                raise ReasoningFound(
                    f"{place}: reasoning_content: the model's chat template has no place for it"
                )
            self.has_reasoning = True
        text = record.as_text()
        self.lines.append(record.line)
        self.hashes.append(text_hash(text.encode("utf-8")))
        self.num_with_control_strings += self._control_strings.are_in(text)
        try:
            sequences = in_pieces(record)
        except ValueError as error:  # the template cannot say it
            raise ValueError(f"{place}: {error}") from None
        self.counts.append(len(sequences))
        self.sequences += sequences

    def chunk(self) -> EncodedChunk:
        """All of them, encoded."""
        ids, masks, lengths = encode_sequences(self.tokenizer, self.sequences)
        return EncodedChunk(
            ids,
            masks,
            lengths.astype(np.uint32),
            np.array(self.counts, np.uint32),
            np.array(self.lines, np.uint32),
            np.array(self.hashes, np.uint64),
            np.array(self.labels or np.zeros(len(self.lines)), np.uint8),
            self.num_with_control_strings,
            self.has_reasoning,
        )


@dataclass(frozen=True)
class ConversationJob:
    """Encodes conversations for fine-tuning: each is its `chat.training_sequences`.

    Raises ValueError, with file and line, for what the chat template cannot say; ReasoningFound for
    reasoning where it is the one of ours without thoughts.
    """

    tokenizer: Tokenizer

    def __call__(self, records: Iterable[Record], problems: Problems) -> EncodedChunk:
        encoder = _Encoder(self.tokenizer)

        def in_pieces(conversation: Conversation) -> list[InPieces]:
            return training_pieces(self.tokenizer, conversation.messages, conversation.tools)

        for record, parts in converted(records, to_conversation, problems):
            encoder.add(Conversation(*parts, record.path, record.line), in_pieces)
        return encoder.chunk()


@dataclass(frozen=True)
class PairJob:
    """Encodes pairs for DPO: the prompt with the chosen answer, and with the rejected one.

    The mask is on the answer alone, which may not be cut. Raises what ConversationJob raises.
    """

    tokenizer: Tokenizer

    def __call__(self, records: Iterable[Record], problems: Problems) -> EncodedChunk:
        encoder = _Encoder(self.tokenizer)

        def in_pieces(pair: Pair) -> list[InPieces]:
            sides = (pair.chosen, pair.rejected)
            return [answer_pieces(self.tokenizer, pair.prompt, a, pair.tools) for a in sides]

        for record, parts in converted(records, to_pair, problems):
            encoder.add(Pair(*parts, record.path, record.line), in_pieces)
        return encoder.chunk()


@dataclass(frozen=True)
class JudgedJob:
    """Encodes judged answers for KTO, each behind its prompt, as PairJob does."""

    tokenizer: Tokenizer

    def __call__(self, records: Iterable[Record], problems: Problems) -> EncodedChunk:
        encoder = _Encoder(self.tokenizer)

        def in_pieces(record: Judged) -> list[InPieces]:
            return [answer_pieces(self.tokenizer, record.prompt, record.answer, record.tools)]

        for record, parts in converted(records, to_judged, problems):
            encoder.add(Judged(*parts, record.path, record.line), in_pieces)
            encoder.labels.append(int(parts[-1]))
        return encoder.chunk()


@dataclass(frozen=True)
class CheckJob:
    """Reads records as training on their kind does, and encodes nothing.

    kind            "text", "chat", "pairs" or "judged"
    control_tokens  names that are searched for in their texts

    Gives (uint64 hashes of what the good records say, how many of them hold control strings).
    """

    kind: str
    control_tokens: tuple[str, ...]
    text_field: str = "text"

    def __call__(self, records: Iterable[Record], problems: Problems) -> tuple[np.ndarray, int]:
        control_strings = ControlStrings(self.control_tokens)
        hashes, num_with_control_strings = [], 0
        for text in self._texts(records, problems):
            hashes.append(text_hash(text.encode("utf-8")))
            num_with_control_strings += control_strings.are_in(text)
        return np.array(hashes, np.uint64), num_with_control_strings

    def _texts(self, records: Iterable[Record], problems: Problems) -> Iterable[str]:
        if self.kind == "text":
            return (text for text, _ in texts_of(records, problems, self.text_field))
        convert, made = {
            "chat": (to_conversation, Conversation),
            "pairs": (to_pair, Pair),
            "judged": (to_judged, Judged),
        }[self.kind]
        return (
            made(*parts, record.path, record.line).as_text()
            for record, parts in converted(records, convert, problems)
        )
