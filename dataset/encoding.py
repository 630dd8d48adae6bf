"""Records → ids and masks, many at a time: what the caches of conversations, pairs and judged
answers are made of, and what a check before training finds out.

Everything here is a job for `record_chunks.work_through`: job(records, problems) → result. Jobs and
results are plain data, so that they can go to other processes and back.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
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


class ReasoningFound(ValueError):
    """A record has reasoning, and the chat template has no place for it: another one has."""


@dataclass(frozen=True)
class ConversationJob:
    """Encodes conversations for fine-tuning: each is its `chat.training_sequences`.

    Raises ValueError, with file and line, for what the chat template cannot say; ReasoningFound for
    reasoning where it is the one of ours without thoughts.
    """

    tokenizer: Tokenizer

    def __call__(self, records: Iterable[Record], problems: Problems) -> EncodedChunk:
        def in_pieces(c: Conversation) -> list[InPieces]:
            sequences = training_pieces(self.tokenizer, c.messages, c.tools)
            answers = sum(m["role"] == "assistant" and m.get("weight", 1) for m in c.messages)
            if missing := answers - sum(len(sequence.ends) for sequence in sequences):
                what = "answers left out, behind too many turns for this chat template"
                problems.remarks_of(c.path).read_as[what] += missing
            return sequences

        return _encode(self.tokenizer, _made("chat", records, problems), in_pieces)


@dataclass(frozen=True)
class PairJob:
    """Encodes pairs for DPO: the prompt with the chosen answer, and with the rejected one.

    The mask is on the answer alone, which may not be cut. Raises what ConversationJob raises.
    """

    tokenizer: Tokenizer

    def __call__(self, records: Iterable[Record], problems: Problems) -> EncodedChunk:
        def in_pieces(pair: Pair) -> list[InPieces]:
            sides = (pair.chosen, pair.rejected)
            return [answer_pieces(self.tokenizer, pair.prompt, s, pair.tools) for s in sides]

        return _encode(self.tokenizer, _made("pairs", records, problems), in_pieces)


@dataclass(frozen=True)
class JudgedJob:
    """Encodes judged answers for KTO, each behind its prompt, as PairJob does."""

    tokenizer: Tokenizer

    def __call__(self, records: Iterable[Record], problems: Problems) -> EncodedChunk:
        def in_pieces(judged: Judged) -> list[InPieces]:
            return [answer_pieces(self.tokenizer, judged.prompt, judged.answer, judged.tools)]

        return _encode(self.tokenizer, _made("judged", records, problems), in_pieces)


Made = Conversation | Pair | Judged


def _made(kind: str, records: Iterable[Record], problems: Problems) -> Iterator[Made]:
    """The good records of a kind."""
    convert, make = {
        "chat": (to_conversation, Conversation),
        "pairs": (to_pair, Pair),
        "judged": (to_judged, Judged),
    }[kind]
    for record, parts in converted(records, convert, problems):
        yield make(*parts, record.path, record.line)


def _encode(
    tokenizer: Tokenizer, records: Iterator[Made], in_pieces: Callable[[Made], list[InPieces]]
) -> EncodedChunk:
    """The chunk of some records, whose sequences are in_pieces(record), all encoded together."""
    control_strings = ControlStrings(tokenizer.control_tokens)
    lines, hashes, labels = array("I"), array("Q"), array("B")
    num_with_control_strings = 0
    sequences: list[list[InPieces]] = []
    for record in records:
        if tokenizer.chat_template == NO_THINKING and record.has_reasoning:
            why = "reasoning_content: the model's chat template has no place for it"
            raise ReasoningFound(f"{record.path}:{record.line}: {why}")
        text = record.as_text()
        lines.append(record.line)
        hashes.append(text_hash(text.encode("utf-8")))
        labels.append(getattr(record, "label", False))
        num_with_control_strings += control_strings.are_in(text)
        try:
            sequences.append(in_pieces(record))
        except ValueError as error:  # the template cannot say it
            raise ValueError(f"{record.path}:{record.line}: {error}") from None
    try:
        ids, masks, lengths = encode_sequences(tokenizer, list(chain.from_iterable(sequences)))
    except ValueError:  # it lacks a control token: seldom, so once more, to know for which record
        for line, of_record in zip(lines, sequences):
            try:
                encode_sequences(tokenizer, of_record)
            except ValueError as error:
                raise ValueError(f"{record.path}:{line}: {error}") from None
        raise
    return EncodedChunk(
        ids,
        masks,
        lengths.astype(np.uint32),
        np.array([*map(len, sequences)], np.uint32),
        np.array(lines, np.uint32),
        np.array(hashes, np.uint64),
        np.array(labels, np.uint8),
        num_with_control_strings,
    )


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

    def _texts(self, records: Iterable[Record], problems: Problems) -> Iterator[str]:
        if self.kind == "text":
            return (text for text, _ in texts_of(records, problems, self.text_field))
        return (made.as_text() for made in _made(self.kind, records, problems))
