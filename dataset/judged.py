"""Records → judged answers: a conversation whose last answer was found good, or bad.

    {"conversations": [messages], "label": true}            or under "messages", …
    {"prompt": …, "completion": …, "label": false}          text or messages, as for fine-tuning

All that dataset/conversations.py reads, with a label. The answer is what follows the last message
of a user; what is before it is the prompt. docs/data.md has a table.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dataset.conversations import FIELDS as OF_CONVERSATIONS
from dataset.conversations import converted, to_conversation
from dataset.messages import BadConversation
from dataset.readers import Paths, read_records
from dataset.records import Problems, Remarks, did_you_mean, kind_of, names_in
from model.json_file import shown

LABEL = "label"
FIELDS = (*OF_CONVERSATIONS, LABEL)


@dataclass(frozen=True)
class Judged:
    """A prompt, an answer to it (both lists of messages), whether it is good, and its place."""

    prompt: list[dict]
    answer: list[dict]
    tools: list | None
    label: bool
    path: str
    line: int

    @property
    def has_reasoning(self) -> bool:
        """Whether any answer comes with its reasoning."""
        return any(message.get("reasoning_content") for message in self.prompt + self.answer)

    def as_text(self) -> str:
        """All it says, as JSON: equal for records that are the same, however written."""
        parts = [self.prompt, self.answer, self.tools, self.label]
        return json.dumps(parts, ensure_ascii=False, sort_keys=True)


def read_judged(
    paths: Paths, on_bad_record: str = "stop", flag: str = "--data_path",
    problems: Problems | None = None,
) -> Iterator[Judged]:  # fmt: skip
    """Yield the judged answers of one or several files; raises what `readers.read_records` raises.

    A bad record is one that is no conversation (`conversations.read_conversations`) or whose label
    is not true or false. What good records say that nothing reads is counted in
    `problems.remarks`.
    """
    problems = Problems() if problems is None else problems
    records = read_records(paths, on_bad_record, problems, flag=flag, wanted=FIELDS)
    return (
        Judged(*parts, record.path, record.line)
        for record, parts in converted(records, to_judged, problems)
    )


def to_judged(
    fields: dict, remarks: Remarks | None = None, unread: Iterable[str] = ()
) -> tuple[list[dict], list[dict], list | None, bool]:
    """(prompt, answer, tools, label) of one record; BadConversation if it is none."""
    if LABEL not in fields:
        names = [*fields, *unread]
        close = [did_you_mean(name, [LABEL]) for name in names if name not in FIELDS]
        raise BadConversation(f'a field "{LABEL}"', names_in(names) + next(filter(None, close), ""))
    others = {name: value for name, value in fields.items() if name != LABEL}
    messages, tools = to_conversation(others, remarks, unread)
    last = max(i for i, message in enumerate(messages) if message["role"] == "user")
    prompt, answer = messages[: last + 1], messages[last + 1 :]
    if any(message.get("weight") == 0 for message in answer):
        raise BadConversation("an answer that counts behind the label", 'one of "weight": 0')
    for message in prompt:  # no answer in it is learned, whatever it weighs
        message.pop("weight", None)
    return prompt, answer, tools, _label(fields[LABEL])


def _label(value: object) -> bool:
    """Whether the answer is good. Numbers are refused: a 1 may be the worst of five stars."""
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):  # csv has nothing but text
        return value == "true"
    is_short = isinstance(value, str | int | float)
    got = shown(repr(value), 40) if is_short else kind_of(value)
    raise BadConversation(f"true or false as the {LABEL}", got)
