"""The one owner of the chat format: messages → (token ids, loss mask), built together.

The format is Qwen3's. A turn is `<|im_start|>role\n … <|im_end|>\n`; what tools answer stands in a
user's turn between <tool_response> tags. There are two templates of it (model/tokenizer/):

    chat_template.jinja         of models that were taught to think. What is generated begins with
                                a think block, an empty one where there is nothing to think; answers
                                to earlier questions have lost theirs (Qwen3's own template)
    no_thinking_template.jinja  of all others: no think blocks (that of Qwen3-Instruct-2507)

A folder with another template is spoken to through that one (dataset/chat_template.py). Whatever
the template, one rule: an answer is trained on exactly the ids that stand before it when it is
generated. Where later turns change how an answer looks, a conversation is several sequences.

Control tokens are placed by id and message contents are encoded as plain text, so that nothing a
message says becomes a control token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from dataset import chat_template
from dataset.messages import normal_content
from dataset.tokenizer import Tokenizer

TEMPLATES = Path(__file__).parent.parent / "model" / "tokenizer"
THINKING = (TEMPLATES / "chat_template.jinja").read_text(encoding="utf-8")
NO_THINKING = (TEMPLATES / "no_thinking_template.jinja").read_text(encoding="utf-8")

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


class Sequence(NamedTuple):
    """Token ids and loss mask, equally long: 1 on what is generated, the end of the turn too."""

    ids: list[int]
    mask: list[int]


class TrainingSequences(NamedTuple):
    """What a conversation is trained on, see `training_sequences`."""

    sequences: list[Sequence]
    num_left_out: int  # answers that did not fit
    longest: int  # tokens of the longest sequence that trains something, without a limit


def encode_conversation(
    tokenizer: Tokenizer,
    messages: list[dict],
    tools: list | None = None,
    add_generation_prompt: bool = False,
    enable_thinking: bool = False,
) -> Sequence:
    """Ids and loss mask of a conversation, as the tokenizer's chat template renders it.

    messages               in the checked form of dataset/conversations.py: {"role", "content",
                           "reasoning_content"?, "tool_calls"?, "weight"?} each
    tools                  function descriptions for the system turn
    add_generation_prompt  end with the opening of an assistant turn, for inference
    enable_thinking        … and let a model that was taught to think do so

    The mask is 1 on the answers that stand here as they are generated: on all of them, or on the
    last one with a template that changes earlier ones. Raises ValueError for what the template has
    no place for.
    """
    thinks = _thinks(tokenizer, messages)
    if thinks is None:
        ids, mask = chat_template.encode(
            tokenizer, messages, tools, add_generation_prompt, enable_thinking
        )
        return Sequence(ids, mask)
    walk = _Walk(thinks, limit=0)  # no sequences: the whole is wanted
    for turn in _turns(tokenizer, messages, tools, thinks):
        walk.add(turn)
    if not add_generation_prompt:
        return Sequence(walk.ids, walk.mask)
    opening = [(IM_START,), "assistant\n"]
    if thinks and not enable_thinking:
        opening += [(THINK,), "\n\n", (END_THINK,), "\n\n"]
    ids = walk.ids + _encode(tokenizer, [opening])[0]
    return Sequence(ids, [0] * len(ids))


def training_sequences(
    tokenizer: Tokenizer, messages: list[dict], tools: list | None = None, limit: int | None = None
) -> TrainingSequences:
    """The sequences, of at most `limit` tokens, that train every answer of a conversation once.

    With a template that never changes earlier turns it is one, up to the last answer that fits:
    half an answer would teach the model to stop there, or never to stop. An answer of weight 0 is
    read but not trained on. Raises ValueError for what the template has no place for.
    """
    limit = 1 << 62 if limit is None else limit
    thinks = _thinks(tokenizer, messages)
    if thinks is None:
        sequences, left_out, longest = chat_template.answers(tokenizer, messages, tools, limit)
        return TrainingSequences([Sequence(*s) for s in sequences], left_out, longest)
    walk = _Walk(thinks, limit)
    for turn in _turns(tokenizer, messages, tools, thinks):
        walk.add(turn)
    walk.close()
    return TrainingSequences(walk.sequences, walk.num_left_out, walk.longest)


def choose_template(tokenizer: Tokenizer, records: Iterable) -> None:
    """Give a tokenizer the chat template of the model that is fine-tuned on some records.

    The one it has, if it has one; but a model that is now taught to think gets the one that can
    say so. records: Conversations or Pairs, read up to the first one that has_reasoning.
    """
    if tokenizer.chat_template in (None, NO_THINKING):
        thinks = any(record.has_reasoning for record in records)
        tokenizer.chat_template = THINKING if thinks else NO_THINKING


def can_think(tokenizer: Tokenizer) -> bool:
    """Whether the chat template has a switch for thinking."""
    return "enable_thinking" in (tokenizer.chat_template or "")


def stop_ids(tokenizer: Tokenizer) -> list[int]:
    """The ids at which generation stops: a turn's end where there is a chat template, a text's."""
    if tokenizer.chat_template is None:
        return [tokenizer.eos_id]
    if _thinks(tokenizer) is None:
        end = chat_template.end_of_turn(tokenizer)
    else:
        end = tokenizer.control_id(IM_END)
    return list(dict.fromkeys((end, tokenizer.eos_id)))


def parse_answer(tokenizer: Tokenizer, ids: list[int]) -> dict:
    """The assistant's message that some generated ids are: encoded again, it has these ids.

    ids: what follows the opening of the turn, with or without the token that ends it. What is no
    well-formed think block or tool call stays part of the content.
    """
    names = {id: name for name, id in tokenizer.control_tokens.items()}
    ends = stop_ids(tokenizer)
    ids = list(ids)
    while ids and ids[-1] in ends:
        ids.pop()
    message = {"role": "assistant", "content": ""}
    kinds = [names.get(id) for id in ids]
    if kinds[:1] == [THINK] and END_THINK in kinds:
        end = kinds.index(END_THINK)
        reasoning = normal_content(tokenizer.decode(ids[1:end]))
        if reasoning.strip():
            message["reasoning_content"] = reasoning
        ids, kinds = ids[end + 1 :], kinds[end + 1 :]
    calls, rest = [], len(ids)
    if CALL in kinds:
        rest = kinds.index(CALL)
        calls = _parse_calls(tokenizer, ids[rest:], kinds[rest:])
        rest = len(ids) if calls is None else rest
    message["content"] = normal_content(tokenizer.decode(ids[:rest]))
    if calls:
        message["tool_calls"] = calls
    return message


def said_aloud(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The text of a generated answer without its think block."""
    end = tokenizer.control_tokens.get(END_THINK)
    if ids and ids[0] == tokenizer.control_tokens.get(THINK) and end in ids:
        ids = ids[ids.index(end) + 1 :]
    return tokenizer.decode(ids).strip()


def _parse_calls(tokenizer: Tokenizer, ids: list[int], kinds: list) -> list[dict] | None:
    """The calls of an answer's end, or None unless it is one well-formed call after the other."""
    calls = []
    while kinds:
        if kinds[0] != CALL or END_CALL not in kinds:
            return None
        end = kinds.index(END_CALL)
        try:
            call = json.loads(tokenizer.decode(ids[1:end]))
            calls.append({"name": call["name"], "arguments": call["arguments"]})
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        if not isinstance(call["name"], str):
            return None
        ids, kinds = ids[end + 1 :], kinds[end + 1 :]
        while kinds and kinds[0] is None and tokenizer.decode(ids[:1]).isspace():
            ids, kinds = ids[1:], kinds[1:]
    return calls


def _thinks(tokenizer: Tokenizer, messages: list[dict] = ()) -> bool | None:
    """Whether the template is the one of ours that thinks; None if it is not ours at all.

    Where there is none yet, messages are encoded as `choose_template` would have it for them alone.
    """
    if tokenizer.chat_template is None:
        return any(message.get("reasoning_content") for message in messages)
    return {THINKING: True, NO_THINKING: False}.get(tokenizer.chat_template)


# A piece is a text, or the name of a control token in a 1-tuple.
Piece = str | tuple[str]


@dataclass
class _Turn:
    """A message's ids. Of an answer only `generated` is said by the model."""

    opening: list[int]
    generated: list[int] = field(default_factory=list)
    as_history: list[int] = field(default_factory=list)  # `generated`, once a later turn follows
    closing: list[int] = field(default_factory=list)
    is_answer: bool = False
    is_question: bool = False
    keeps_thoughts: bool = True  # until the next question, what is generated stays as it is
    weight: int = 1


class _Walk:
    """Goes through the turns of a conversation and collects the sequences that train its answers.

    ids, mask  the conversation so far, as the template renders it if it ends here
    """

    def __init__(self, thinks: bool, limit: int):
        self.thinks, self.limit = thinks, limit
        self.ids: list[int] = []
        self.mask: list[int] = []
        self.sequences: list[Sequence] = []
        self.num_left_out = self.longest = 0
        self._end = 0  # of the last answer in `ids` that fits and is in no sequence yet
        self._later: list[int] = []  # `ids` as they will be after the next question …
        self._settled = 0  # … up to here they are so already
        self._last: tuple[int, _Turn] | None = None  # the answer before this turn, where it begins

    def add(self, turn: _Turn):
        if self._last and self.thinks:
            begin, answer = self._last
            if not answer.keeps_thoughts:  # the block was there only while nothing followed
                self.close()
                self.ids[begin:] = answer.as_history + answer.closing
                self._unmask()
        self._last = None
        if turn.is_question and self.thinks:
            self.close()
            self.ids[self._settled :] = self._later[self._settled :]
            self._unmask()
            self._settled = len(self.ids)
        for ids in (self.ids, self._later):
            ids += turn.opening
        self.mask += [0] * len(turn.opening)
        if not turn.is_answer:
            return
        self._last = len(self.ids), turn
        self.ids += turn.generated + turn.closing
        self.mask += [turn.weight] * len(turn.generated) + [0] * len(turn.closing)
        self._later += turn.as_history + turn.closing
        if turn.weight:
            self.longest = max(self.longest, len(self.ids))
        if len(self.ids) > self.limit:
            self.num_left_out += turn.weight
        elif turn.weight:
            self._end = len(self.ids)

    def _unmask(self):
        """Nothing since the last question stands any more as it was generated."""
        self.mask[self._settled :] = [0] * (len(self.ids) - self._settled)

    def close(self):
        """Make a sequence of the answers that are in none yet."""
        if self._end:
            self.sequences.append(Sequence(self.ids[: self._end], self.mask[: self._end]))
            self._end = 0


def _turns(tokenizer: Tokenizer, messages: list[dict], tools: list | None, thinks: bool):
    """The messages as turns, all their texts encoded in one call."""
    made = [*_pieces(messages, tools, thinks)]
    parts = [part for _, *three in made for part in three]
    encoded = iter(_encode(tokenizer, [*parts, ["\n"]]))
    turns = []
    for message, *_ in made:
        turn = _Turn(next(encoded), next(encoded), next(encoded))
        if message and message["role"] == "assistant":
            turn.is_answer, turn.weight = True, int(message.get("weight", 1))
            turn.keeps_thoughts = bool(message.get("reasoning_content"))
        elif message and message["role"] == "user":
            turn.is_question = True
        turns.append(turn)
    newline = next(encoded)
    for turn in turns:
        if turn.is_answer:
            turn.closing = newline
    return turns


def _pieces(messages: list[dict], tools: list | None, thinks: bool):
    """(message, opening, generated, as history) of every turn; only answers have the last two."""
    messages = list(messages)
    system = messages.pop(0) if messages and messages[0]["role"] == "system" else None
    if tools:
        text = "system\n" + (system["content"] + "\n\n" if system else "") + TOOLS_HEAD
        text += "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in tools)
        head, *tail = re.split(f"({CALL}|{END_CALL})", TOOLS_TAIL)
        pieces = [(IM_START,), text + head, *((p,) if p in (CALL, END_CALL) else p for p in tail)]
        yield system, [*pieces, (IM_END,), "\n"], [], []
    elif system:
        yield system, [(IM_START,), f"system\n{system['content']}", (IM_END,), "\n"], [], []
    asked = any(message["role"] == "user" for message in messages)
    for i, message in enumerate(messages):
        role, content = message["role"], message.get("content") or ""
        if role == "assistant":
            said = [content, *_calls(message), (IM_END,)]
            thoughts = message.get("reasoning_content") or ""
            if thoughts and not thinks:
                raise ValueError("reasoning_content: the model's chat template has no place for it")
            block = [(THINK,), f"\n{thoughts}\n", (END_THINK,), "\n\n"] if thinks and asked else []
            is_history = i + 1 < len(messages) or not thinks
            yield message, [(IM_START,), "assistant\n"], [*block, *said], said * is_history
        elif role == "tool":
            before = messages[i - 1]["role"] if i else None
            after = messages[i + 1]["role"] if i + 1 < len(messages) else None
            opening = [] if before == "tool" else [(IM_START,), "user"]
            closing = [] if after == "tool" else [(IM_END,), "\n"]
            response = ["\n", (RESPONSE,), f"\n{content}\n", (END_RESPONSE,)]
            yield message, [*opening, *response, *closing], [], []
        else:
            yield message, [(IM_START,), f"{role}\n{content}", (IM_END,), "\n"], [], []


def _calls(message: dict) -> list[Piece]:
    """The tool calls of an answer, after its content."""
    pieces: list[Piece] = []
    for call in message.get("tool_calls") or []:
        call = call.get("function") or call
        arguments = call["arguments"]
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        text = f'\n{{"name": "{call["name"]}", "arguments": {arguments}}}\n'
        line_break = "\n" if pieces or message.get("content") else ""
        pieces += [line_break, (CALL,), text, (END_CALL,)]
    return pieces


def _encode(tokenizer: Tokenizer, parts: list[list[Piece]]) -> list[list[int]]:
    """The ids of lists of pieces: neighbouring texts are encoded as one, all in one call."""
    merged: list[list[Piece]] = []
    for part in parts:
        pieces: list[Piece] = []
        for piece in part:
            if isinstance(piece, str) and pieces and isinstance(pieces[-1], str):
                pieces[-1] += piece
            elif piece:
                pieces.append(piece)
        merged.append(pieces)
    texts = {piece: None for pieces in merged for piece in pieces if isinstance(piece, str)}
    ids = dict(zip(texts, tokenizer.encode_texts(list(texts))))
    return [
        [
            id
            for piece in pieces
            for id in (ids[piece] if isinstance(piece, str) else [tokenizer.control_id(piece[0])])
        ]
        for pieces in merged
    ]
