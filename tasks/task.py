"""What a model is asked, and what it said: what readers, checkers and rewards share."""

from __future__ import annotations

from dataclasses import dataclass, field

from dataset.chat import parse_answer, said_aloud, stop_ids
from dataset.chat_turns import END_THINK, THINK
from dataset.tokenizer import Tokenizer
from model.json_file import shown


@dataclass(frozen=True)
class Prompt:
    """Something to ask a model.

    text      as shown to people: what the user said last
    ids       up to where the assistant begins to speak
    answer    the right answer: a text, a list of what has to be said (agent data's "gt"), a JSON
              object; None where there is none
    messages  the conversation that `ids` encode, without a generation prompt; [] if only ids are
              known
    tools     descriptions of the functions that may be called, or None
    calls     the right tool calls, {"name", "arguments"} each: [] where none is right, None if
              nothing is known of them
    """

    text: str
    ids: list[int]
    answer: object
    messages: list[dict] = field(default_factory=list)
    tools: list | None = None
    calls: list[dict] | None = None


@dataclass(frozen=True)
class Completion:
    """What a model said to a prompt. Where tools answered it, in several turns.

    text      what is said aloud in the last turn, without think block and tool calls; "" where a
              thought never ends
    raw       everything in that turn, the names of control tokens included, without the token that
              ends it
    ids       of all turns, with the stop id of each that ended by one; not what tools answered
    is_cut    whether it reached the limit of its length
    calls     the tool calls that it makes; None: those that stand in `raw` (tool_calls.calls_in)
    messages  all turns as messages, and between them what the tools answered; [] if only the text
              is known
    """

    prompt: Prompt
    text: str
    raw: str
    ids: list[int]
    is_cut: bool
    calls: list[dict] | None = None
    messages: list[dict] = field(default_factory=list)


def only(answer: object) -> object:
    """The one item of a list that has one; anything else as it is."""
    return answer[0] if isinstance(answer, list) and len(answer) == 1 else answer


def not_the_right(what: str, answer: object) -> ValueError:
    """The error of a checker whose prompt has no right answer of its kind."""
    got = "none" if answer is None else repr(shown(answer, 60))
    return ValueError(f"expected {what} as the right answer, got {got}")


def completion_of(
    tokenizer: Tokenizer, prompt: Prompt, ids: list[int], is_cut: bool = False
) -> Completion:
    """The Completion that some generated ids are, of one turn of the assistant."""
    ends = stop_ids(tokenizer)
    said = ids[:-1] if ids and ids[-1] in ends else ids
    text = said_aloud(tokenizer, said)
    controls = tokenizer.control_tokens
    if said and said[0] == controls.get(THINK) and controls.get(END_THINK) not in said:
        text = ""  # a number in it is not an answer yet
    message = parse_answer(tokenizer, said)
    calls = message.get("tool_calls", [])
    if calls:
        text = message["content"].strip()
    return Completion(prompt, text, tokenizer.decode(said), ids, is_cut, calls, [message])
