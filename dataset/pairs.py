"""Records → pairs: a prompt and two different answers to it, the better one first.

    {"chosen": [messages], "rejected": [messages]}       two whole conversations
    {"prompt": …, "chosen": …, "rejected": …}            answers: text, one message, or messages

The prompt, text or messages, may also be "question", "query", "instruction" (with "input" and
"history") or "conversations"; `system` and `tools` beside it belong to it. Texts of the form
"Human: … Assistant: …" are turns. docs/data.md has a table.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dataset.conversations import (
    MESSAGES,
    QUESTIONS,
    SYSTEM,
    TOOLS,
    as_messages,
    beside_tools,
    converted,
    question,
    role_of,
    with_system,
    without_text,
)
from dataset.messages import BadConversation, Fields, check_messages, same_tools
from dataset.readers import Paths, read_records
from dataset.records import Problems, Remarks, did_you_mean, kind_of, names_in

SIDES = ("chosen", "rejected")
PROMPTS = (*QUESTIONS, *MESSAGES)
FIELDS = (*SIDES, *PROMPTS, "input", *SYSTEM, *TOOLS, "history")


@dataclass(frozen=True)
class Pair:
    """A prompt, two different answers to it (each a list of messages), and where they came from."""

    prompt: list[dict]
    chosen: list[dict]
    rejected: list[dict]
    tools: list | None
    path: str
    line: int

    @property
    def has_reasoning(self) -> bool:
        """Whether any answer comes with its reasoning."""
        messages = self.prompt + self.chosen + self.rejected
        return any(message.get("reasoning_content") for message in messages)

    def as_text(self) -> str:
        """All it says, as JSON: equal for pairs that are the same, however written."""
        parts = [self.prompt, self.chosen, self.rejected, self.tools]
        return json.dumps(parts, ensure_ascii=False, sort_keys=True)


def read_pairs(
    paths: Paths, on_bad_record: str = "stop", flag: str = "--data_path",
    problems: Problems | None = None,
) -> Iterator[Pair]:  # fmt: skip
    """Yield the pairs of one or several files; raises what `readers.read_records` raises.

    A bad record is one without both answers, with two prompts, or whose answers are equal or empty.
    What good records say that nothing reads is counted in `problems.remarks`.
    """
    problems = Problems() if problems is None else problems
    records = read_records(paths, on_bad_record, problems, flag=flag, wanted=FIELDS)
    return (
        Pair(*parts, record.path, record.line)
        for record, parts in converted(records, to_pair, problems)
    )


def to_pair(
    fields: dict, remarks: Remarks | None = None, unread: Iterable[str] = ()
) -> tuple[list[dict], list[dict], list[dict], list | None]:
    """(prompt, chosen, rejected, tools) of one record; BadConversation if it is no pair."""
    record = Fields(fields, unread)
    remarks = Remarks() if remarks is None else remarks
    for name in SIDES:
        if name not in fields:
            names = [*fields, *unread]
            close = [did_you_mean(other, SIDES) for other in names if other not in FIELDS]
            got = names_in(names) + next(filter(None, close), "")
            raise BadConversation('the fields "chosen" and "rejected"', got)
    answers = [_messages_of(record.get(name), name, remarks) for name in SIDES]
    are_whole = all(map(_is_whole, answers))
    # beside whole conversations "messages" is most likely one of them once more: it goes unused
    prompt = question(record, remarks, QUESTIONS if are_whole else PROMPTS)
    sides, tools = [], []
    for name, answer in zip(SIDES, answers, strict=True):
        try:
            side, own_tools = _side(prompt, answer, name, record, remarks)
        except BadConversation as bad:
            raise BadConversation(f"in {name}: {bad.expected}", bad.got) from None
        if side[-1]["role"] != "assistant":
            raise BadConversation(f"an answer at the end of {name}", repr(side[-1]["role"]))
        sides.append(side)
        tools.append(own_tools)
    chosen, rejected = sides
    if chosen == rejected:
        raise BadConversation("two answers that differ", "the same answer twice")
    shared = _shared(chosen, rejected)
    if prompt and are_whole:
        _check_prompt(prompt, chosen[:shared])
    tools = same_tools(*tools, beside_tools(record))
    record.count_unused(remarks)
    return chosen[:shared], chosen[shared:], rejected[shared:], tools


def _messages_of(answer: object, name: str, remarks: Remarks) -> list:
    """One side's messages, not yet checked."""
    answer = as_messages(answer, name, remarks)
    if isinstance(answer, str):
        return [{"role": "assistant", "content": answer}]
    if isinstance(answer, dict) and answer:
        return [answer]
    if isinstance(answer, list) and answer:
        return answer
    raise BadConversation(f"text or messages as the {name}", kind_of(answer))


def _is_whole(messages: list) -> bool:
    """Whether one side begins with its prompt."""
    return role_of(messages[0]) in ("system", "user")


def _side(
    prompt: list | None, answer: list, name: str, record: Fields, remarks: Remarks
) -> tuple[list[dict], list | None]:
    """One side as a whole checked conversation, and the tools on its system message."""
    if not _is_whole(answer):
        if prompt is None:
            names = [*record.values, *record.unread]
            close = [did_you_mean(x, PROMPTS) for x in names if x not in FIELDS]
            got = without_text(record, names_in(names) + next(filter(None, close), ""), PROMPTS)
            raise BadConversation("a prompt, in a field of its own or before the answer", got)
        answer = prompt + answer
    checked, tools = check_messages(answer, remarks, name)
    for message in checked:  # an answer counts whole: which is better was judged whole
        if message.pop("weight", None) is not None:
            remarks.count_not_used(f"{name}[].weight")
    return with_system(record, checked, remarks), tools


def _shared(chosen: list[dict], rejected: list[dict]) -> int:
    """How many messages both begin with; BadConversation if what follows is not two answers."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    for name, messages in zip(SIDES, (chosen, rejected), strict=True):
        if shared == len(messages):
            raise BadConversation(f"an answer of its own in {name}", "the other's beginning")
        if messages[shared]["role"] != "assistant":
            got = f"message {shared + 1} ({messages[shared]['role']}) differs"
            raise BadConversation("the same prompt in chosen and rejected", got)
    return shared


def _check_prompt(prompt: list, shared: list[dict]) -> None:
    """BadConversation if a prompt beside whole conversations is not the one they begin with."""
    checked, _ = check_messages(prompt, name="the prompt")
    without_system = [message for message in shared if message["role"] != "system"]
    alone = [message for message in checked if message["role"] != "system"]
    # the whole prompt, or the one text that is its first or its last question
    if alone and alone not in (without_system[: len(alone)], without_system[-1:]):
        raise BadConversation("the prompt that chosen and rejected begin with", "another prompt")
