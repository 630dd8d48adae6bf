"""Conversations as the turns of Qwen3's format: in pieces first, their token ids later.

A piece is a text, or tokens that are known. Where a turn begins, what of it is generated and which
sequences train the answers of a conversation is decided by the pieces alone, so that the texts of
many conversations can be encoded together, equal ones once. dataset/chat.py tells the rules.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from dataset.tokenizer import Tokenizer

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
THINK, END_THINK = "<think>", "</think>"
CALL, END_CALL = "<tool_call>", "</tool_call>"
RESPONSE, END_RESPONSE = "<tool_response>", "</tool_response>"

# Qwen3's words, letter for letter, since imported models were trained on them.
TOOLS_HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
TOOLS_TAIL = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)

TRAINED, MAY_END = 1, 2  # bits of a mask
# Pieces of all sequences of a conversation together. Where every answer has a sequence of its own,
# with all turns before it, they grow with the square of the turns: this is about 2,000 turns.
MOST_PIECES = 1 << 22
TEXTS_TOGETHER = 64  # encoded in one call: more would not stay in the processor's caches

# A piece is a text, not empty, or a tuple of tokens: names of control tokens, or ids. No two texts
# stand side by side inside a turn's part: they would be encoded as one.
Piece = str | tuple[str | int, ...]
CLOSING: list[Piece] = ["\n"]  # of an answer's turn
ANSWER_OPENING: list[Piece] = [(IM_START,), "assistant\n"]
NO_THOUGHTS: list[Piece] = [(THINK,), "\n\n", (END_THINK,), "\n\n"]


class Turn(NamedTuple):
    """A message's pieces. Of an answer only `generated` is said by the model."""

    opening: list[Piece]
    generated: list[Piece] | tuple = ()
    as_history: list[Piece] | tuple = ()  # `generated`, once a later turn follows
    is_answer: bool = False
    is_question: bool = False
    keeps_thoughts: bool = True  # until the next question, what is generated stays as it is
    weight: int = 1


class InPieces(NamedTuple):
    """A sequence before it is encoded.

    pieces  what it is made of
    mask    of each piece: 1 if it is trained on
    ends    so many pieces go to the end of each trained answer: there it may be cut
    """

    pieces: list[Piece]
    mask: list[int]
    ends: list[int]


class Walk:
    """Goes through the turns of a conversation and collects the sequences that train its answers.

    pieces, mask  the conversation so far, as the template renders it if it ends here
    """

    def __init__(self, thinks: bool):
        self.thinks = thinks
        self.pieces: list[Piece] = []
        self.mask: list[int] = []
        self.sequences: list[InPieces] = []
        self._ends: list[int] = []  # of the answers in `pieces` that are in no sequence yet
        self._later: list[Piece] = []  # `pieces` as they will be after the next question …
        self._settled = 0  # … up to here they are so already
        self._num_pieces = 0  # of all sequences together
        self._last: tuple[int, Turn] | None = None  # the answer before this turn, where it begins

    def add(self, turn: Turn):
        if self.thinks:
            if self._last and not self._last[1].keeps_thoughts:
                begin, answer = self._last
                self.close()  # the block was there only while nothing followed
                self.pieces[begin:] = [*answer.as_history, *CLOSING]
                self._unmask()
            if turn.is_question:
                self.close()
                self.pieces[self._settled :] = self._later[self._settled :]
                self._unmask()
                self._settled = len(self.pieces)
            self._last = None
            self._later += turn.opening
        self.pieces += turn.opening
        self.mask += [0] * len(turn.opening)
        if not turn.is_answer:
            return
        if self.thinks:
            self._last = len(self.pieces), turn
            self._later += [*turn.as_history, *CLOSING]
        self.pieces += turn.generated
        self.pieces += CLOSING
        self.mask += [turn.weight] * len(turn.generated)
        self.mask.append(0)
        if turn.weight:
            self._ends.append(len(self.pieces))

    def _unmask(self):
        """Nothing since the last question stands any more as it was generated."""
        self.mask[self._settled :] = [0] * (len(self.pieces) - self._settled)

    def close(self):
        """Make a sequence of the answers that are in none yet; not beyond MOST_PIECES."""
        if self._ends:
            end = self._ends[-1]
            self._num_pieces += end
            if self._num_pieces <= MOST_PIECES or not self.sequences:
                self.sequences.append(InPieces(self.pieces[:end], self.mask[:end], self._ends))
            self._ends = []


def walked(messages: list[dict], tools: list | None, thinks: bool) -> Walk:
    """A walk through all turns of a conversation."""
    walk = Walk(thinks)
    for turn in turns_of(messages, tools, thinks):
        walk.add(turn)
    return walk


def training_in_pieces(messages: list[dict], tools: list | None, thinks: bool) -> list[InPieces]:
    """The sequences that train every answer of a conversation once."""
    walk = walked(messages, tools, thinks)
    walk.close()
    return walk.sequences


def answer_in_pieces(
    prompt: list[dict], answer: list[dict], tools: list | None, thinks: bool
) -> InPieces | None:
    """A prompt and an answer that may not be cut; None if it does not stand behind its prompt."""
    before = walked(prompt, tools, thinks).pieces + ANSWER_OPENING
    walk, n = walked(prompt + answer, tools, thinks), len(before)
    if walk.pieces[:n] != before:
        return None
    # earlier answers are a part of the prompt
    return InPieces(walk.pieces, [0] * n + walk.mask[n:], [len(walk.pieces)])


def from_ids(ids: list[int], mask: list[int], ends: list[int]) -> InPieces:
    """A sequence whose ids are known; ends: so many tokens go to the end of each trained answer."""
    changes = (i for i in range(1, len(ids)) if mask[i] != mask[i - 1])
    cuts = sorted({0, *changes, *ends, len(ids)})
    pieces = [tuple(ids[begin:end]) for begin, end in itertools.pairwise(cuts)]
    return InPieces(pieces, [mask[i] for i in cuts[:-1]], [cuts.index(end) for end in ends])


def turns_of(messages: list[dict], tools: list | None, thinks: bool) -> Iterator[Turn]:
    """The turns of a conversation; ValueError for thoughts where the template has no place."""
    system = messages[0] if messages and messages[0]["role"] == "system" else None
    if tools:
        text = "system\n" + (system["content"] + "\n\n" if system else "") + TOOLS_HEAD
        text += "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in tools)
        yield Turn([(IM_START,), text + TOOLS_END[0], *TOOLS_END[1:], (IM_END,), "\n"])
    elif system:
        yield Turn([(IM_START,), f"system\n{system['content']}", (IM_END,), "\n"])
    messages = messages[1:] if system else messages
    asked = any(message["role"] == "user" for message in messages)
    for i, message in enumerate(messages):
        role, content = message["role"], message.get("content") or ""
        if role == "assistant":
            thoughts = message.get("reasoning_content") or ""
            if thoughts and not thinks:
                raise ValueError("reasoning_content: the model's chat template has no place for it")
            said = _said(content, message.get("tool_calls"))
            generated = said
            if thinks and asked:  # behind the block's line breaks the content is encoded with them
                behind, *more = said if isinstance(said[0], str) else ("", *said)
                block: list[Piece] = [(THINK,), f"\n{thoughts}\n", (END_THINK,)]
                generated = [*block, f"\n\n{behind}", *more]
            is_history = i + 1 < len(messages)
            weight = int(message.get("weight", 1))
            yield Turn(ANSWER_OPENING, generated, said * is_history, True, False,
                       bool(thoughts), weight)  # fmt: skip
        elif role == "tool":
            opening: list[Piece] = [(IM_START,), "user\n"]
            if i and messages[i - 1]["role"] == "tool":
                opening = ["\n"]
            opening += [(RESPONSE,), f"\n{content}\n", (END_RESPONSE,)]
            if i + 1 == len(messages) or messages[i + 1]["role"] != "tool":
                opening += [(IM_END,), "\n"]
            yield Turn(opening)
        else:
            opening = [(IM_START,), f"{role}\n{content}", (IM_END,), "\n"]
            yield Turn(opening, is_question=role == "user")


_HEAD, *_TAIL = re.split(f"({CALL}|{END_CALL})", TOOLS_TAIL)
TOOLS_END: list[Piece] = [
    _HEAD,
    *((piece,) if piece in (CALL, END_CALL) else piece for piece in _TAIL if piece),
]


def _said(content: str, calls: list[dict] | None) -> list[Piece]:
    """What an answer says behind its thoughts: its content, its tool calls, the end of its turn."""
    pieces: list[Piece] = [content] if content else []
    for number, call in enumerate(calls or []):
        call = call.get("function") or call
        arguments = call["arguments"]
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        if number:
            pieces.append("\n")
        elif content:
            pieces = [content + "\n"]
        text = f'\n{{"name": "{call["name"]}", "arguments": {arguments}}}\n'
        pieces += [(CALL,), text, (END_CALL,)]
    return [*pieces, (IM_END,)]


def encode_pieces(tokenizer: Tokenizer, pieces: Iterable[Piece]) -> dict[Piece, np.ndarray]:
    """The ids of every distinct piece, as `tokenizer.dtype`."""
    ids: dict[Piece, np.ndarray] = dict.fromkeys(pieces)
    texts = [piece for piece in ids if isinstance(piece, str)]
    for start in range(0, len(texts), TEXTS_TOGETHER):
        some = texts[start : start + TEXTS_TOGETHER]
        for text, encoded in zip(some, tokenizer.encode_texts(some), strict=True):
            ids[text] = np.fromiter(encoded, tokenizer.dtype, len(encoded))
    for piece in ids:
        if not isinstance(piece, str):
            known = [t if isinstance(t, int) else tokenizer.control_id(t) for t in piece]
            ids[piece] = np.array(known, tokenizer.dtype)
    return ids


def encode_sequences(
    tokenizer: Tokenizer, sequences: list[InPieces]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids `tokenizer.dtype` [tokens], masks uint8 [tokens], lengths int64 [sequences]), joined.

    A mask has the bits TRAINED, and MAY_END at the last token of every trained answer's turn.
    """
    pieces = list(itertools.chain.from_iterable(s.pieces for s in sequences))
    if not pieces:
        return np.zeros(0, tokenizer.dtype), np.zeros(0, np.uint8), np.zeros(0, np.int64)
    ids_of = encode_pieces(tokenizer, pieces)
    parts = [ids_of[piece] for piece in pieces]
    lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    mask = np.fromiter(itertools.chain.from_iterable(s.mask for s in sequences), np.uint8)
    masks = np.repeat(mask, lengths)
    token_ends = np.cumsum(lengths)  # of every piece
    piece_ends = np.cumsum([len(s.pieces) for s in sequences])
    begins = piece_ends - [len(s.pieces) for s in sequences]
    answers = [begin + end for begin, s in zip(begins.tolist(), sequences) for end in s.ends]
    masks[token_ends[np.array(answers, np.int64) - 1] - 1] |= MAY_END
    return np.concatenate(parts), masks, np.diff(token_ends[piece_ends - 1], prepend=0)
