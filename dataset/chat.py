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
from pathlib import Path
from typing import NamedTuple

from dataset import chat_template
from dataset.chat_turns import (
    ANSWER_OPENING,
    CALL,
    CLOSING,
    END_CALL,
    END_THINK,
    IM_END,
    NO_THOUGHTS,
    THINK,
    InPieces,
    answer_in_pieces,
    encode_sequences,
    training_in_pieces,
    turns_of,
    walked,
)
from dataset.messages import normal_content
from dataset.tokenizer import Tokenizer, load_tokenizer
from model.json_file import read_json

TEMPLATES = Path(__file__).parent.parent / "model" / "tokenizer"
THINKING = (TEMPLATES / "chat_template.jinja").read_text(encoding="utf-8")
NO_THINKING = (TEMPLATES / "no_thinking_template.jinja").read_text(encoding="utf-8")


class Sequence(NamedTuple):
    """Token ids and loss mask, equally long: 1 on what is generated, the end of the turn too.

    In the mask of `training_sequences` bit 1 (MAY_END) stands where it may be cut as well.
    """

    ids: list[int]
    mask: list[int]


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
    thinks = thinks_in(tokenizer, messages)
    if thinks is None:
        ids, mask = chat_template.encode(
            tokenizer, messages, tools, add_generation_prompt, enable_thinking
        )
        return Sequence(ids, mask)
    walk = walked(messages, tools, thinks)
    pieces, mask = walk.pieces, walk.mask
    if add_generation_prompt:
        pieces += ANSWER_OPENING + NO_THOUGHTS * (thinks and not enable_thinking)
        mask = [0] * len(pieces)
    ids, masks, _ = encode_sequences(tokenizer, [InPieces(pieces, mask, [])])
    return Sequence(ids.tolist(), masks.tolist())


def training_sequences(
    tokenizer: Tokenizer, messages: list[dict], tools: list | None = None
) -> list[Sequence]:
    """The sequences that train every answer of a conversation once, each up to its last one.

    With a template that never changes earlier turns it is one. An answer of weight 0 is read but
    not trained on. Raises ValueError for what the template has no place for.
    """
    ids, masks, lengths = encode_sequences(tokenizer, training_pieces(tokenizer, messages, tools))
    ends = lengths.cumsum().tolist()
    return [
        Sequence(ids[begin:end].tolist(), masks[begin:end].tolist())
        for begin, end in zip([0, *ends], ends)
    ]


def training_pieces(
    tokenizer: Tokenizer, messages: list[dict], tools: list | None
) -> list[InPieces]:
    """`training_sequences` before they are encoded."""
    thinks = thinks_in(tokenizer, messages)
    if thinks is None:
        return chat_template.answers(tokenizer, messages, tools)
    return training_in_pieces(messages, tools, thinks)


def answer_pieces(
    tokenizer: Tokenizer, prompt: list[dict], answer: list[dict], tools: list | None
) -> InPieces:
    """A prompt and the answer to it, messages that are judged as a whole, before it is encoded.

    Only the answer is masked in, and it may not be cut. Raises ValueError for what the template has
    no place for, and where it shows the answer otherwise than behind the prompt.
    """
    thinks = thinks_in(tokenizer, prompt + answer)
    if thinks is not None:
        found = answer_in_pieces(prompt, answer, tools, thinks)
    else:
        found = chat_template.answer(tokenizer, prompt, answer, tools)
    if found is None:
        raise ValueError("the chat template shows the answer otherwise than behind its prompt")
    return found


def after_tools(
    tokenizer: Tokenizer, messages: list[dict], tools: list | None, enable_thinking: bool = False
) -> list[int]:
    """The ids between an answer's last token and where the model speaks again: what tools answered.

    messages: they end with the answer and with one or several of the role "tool". Raises ValueError
    where the template has no place for that, or shows the answer otherwise from then on.
    """
    thinks = thinks_in(tokenizer, messages)
    if thinks is None:
        return chat_template.after_tools(tokenizer, messages, tools, enable_thinking)
    first = max(i for i, message in enumerate(messages) if message["role"] != "tool") + 1
    turns = turns_of(messages[first:], None, thinks)
    pieces = [*CLOSING, *(piece for turn in turns for piece in turn.opening), *ANSWER_OPENING]
    pieces += NO_THOUGHTS * (thinks and not enable_thinking)
    ids, _, _ = encode_sequences(tokenizer, [InPieces(pieces, [0] * len(pieces), [])])
    return ids.tolist()


def chat_tokenizer(folder: Path) -> Tokenizer:
    """`load_tokenizer`; where there is no chat template, a base model's, it gets NO_THINKING."""
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = tokenizer.chat_template or NO_THINKING
    return tokenizer


def can_think(tokenizer: Tokenizer) -> bool:
    """Whether the chat template has a switch for thinking."""
    return "enable_thinking" in (tokenizer.chat_template or "")


def stop_ids(tokenizer: Tokenizer) -> list[int]:
    """The ids at which generation stops: a turn's end where there is a chat template, a text's."""
    if tokenizer.chat_template is None:
        return [tokenizer.eos_id]
    if thinks_in(tokenizer) is None:
        end = chat_template.end_of_turn(tokenizer)
    else:
        end = tokenizer.control_id(IM_END)
    return list(dict.fromkeys((end, tokenizer.eos_id)))


def end_ids(tokenizer: Tokenizer, folder: Path) -> set[int]:
    """The ids at which a folder's model stops: `stop_ids`, and generation_config.json's."""
    file = folder / "generation_config.json"
    named = read_json(file).get("eos_token_id", []) if file.is_file() else []
    return {*stop_ids(tokenizer), *(named if isinstance(named, list) else [named])}


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
            json.dumps(call, ensure_ascii=False).encode("utf-8")  # no lone surrogates
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        if not isinstance(call["name"], str):
            return None
        ids, kinds = ids[end + 1 :], kinds[end + 1 :]
        while kinds and kinds[0] is None and tokenizer.decode(ids[:1]).isspace():
            ids, kinds = ids[1:], kinds[1:]
    return calls


def thinks_in(tokenizer: Tokenizer, messages: list[dict] = ()) -> bool | None:
    """Whether the template is the one of ours that thinks; None if it is not ours at all.

    Where there is none yet, messages are encoded as a model tuned on them alone would have them.
    """
    if tokenizer.chat_template is None:
        return any(message.get("reasoning_content") for message in messages)
    return {THINKING: True, NO_THINKING: False}.get(tokenizer.chat_template)
