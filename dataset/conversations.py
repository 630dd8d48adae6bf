"""Records → conversations: several formats in, one checked form out (dataset/messages.py).

    {"conversations": [messages]}                       or under "messages" or "conversation"
    {"instruction": …, "input"?: …, "output": …}        Alpaca, with "history"?: [[text, text], …]
    {"question": …, "answer": …}                        or prompt/response, prompt/completion, …

`system` or `system_prompt` beside them is the first message; `tools` beside the messages or on the
system message. All of these may be JSON text as well, as csv needs it. docs/data.md has a table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dataset.messages import (
    ROLES,
    Fields,
    check_messages,
    check_text,
    check_tools,
    join_parts,
    json_value,
    plain_messages,
    same_tools,
)
from dataset.messages import BadConversation as BadConversation
from dataset.readers import Paths, read_records
from dataset.records import Problems, Record, Remarks, did_you_mean, kind_of, names_in

MESSAGES = ("conversations", "messages", "conversation")
QUESTIONS = ("instruction", "question", "query", "prompt")  # and "input", alone or behind them
ANSWERS = ("output", "answer", "response", "completion")
SYSTEM = ("system", "system_prompt")
TOOLS = ("tools", "functions")
REASONING = ("reasoning_content", "reasoning", "thinking")
FIELDS = (
    *MESSAGES, *QUESTIONS, "input", *ANSWERS, *SYSTEM, *TOOLS, *REASONING, "history", "weight",
)  # fmt: skip
RL_FIELDS = ("gt", "ground_truth", "reward_model")  # what answers are judged by
PLACEHOLDERS = ("无", "空", "")
JSON_START = re.compile(r'\s*\[?\s*\{\s*"')
MESSAGE_START = re.compile(r'\s*\[?\s*\{\s*"(role|from)"\s*:\s*"(system|user|human|assistant|gpt)"')
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


@dataclass(frozen=True)
class Conversation:
    """Checked messages, the tools they may use (or None), and where they came from."""

    messages: list[dict]
    tools: list | None
    path: str
    line: int

    @property
    def has_reasoning(self) -> bool:
        """Whether any answer comes with its reasoning."""
        return any(message.get("reasoning_content") for message in self.messages)

    def as_text(self) -> str:
        """All it says, as JSON: equal for conversations that are the same, however written."""
        return json.dumps([self.messages, self.tools], ensure_ascii=False, sort_keys=True)


def read_conversations(
    paths: Paths,
    on_bad_record: str = "stop",
    problems: Problems | None = None,
    flag: str = "--data_path",
) -> Iterator[Conversation]:
    """Yield the conversations of one or several files; raises what `readers.read_records` raises.

    A record that is no conversation is a bad record: file and line, what was expected, what came.
    What good records say that nothing reads is counted in `problems.remarks`.
    """
    problems = Problems() if problems is None else problems
    records = read_records(paths, on_bad_record, problems, flag=flag, wanted=FIELDS)
    return (
        Conversation(*parts, record.path, record.line)
        for record, parts in converted(records, to_conversation, problems)
    )


def converted(records: Iterable[Record], convert, problems: Problems) -> Iterator[tuple]:
    """(record, convert(fields, remarks, unread)) of the good ones; the others are problems."""
    for record in records:
        remarks = Remarks()
        try:
            parts = convert(record.fields, remarks, record.unread)
        except BadConversation as bad:
            problems.add(record.path, record.line, bad.expected, bad.got)
        except RecursionError:
            problems.add(record.path, record.line, "JSON of a few levels", "deeply nested JSON")
        else:
            problems.remarks_of(record.path).add(remarks)
            yield record, parts


def to_conversation(
    fields: dict, remarks: Remarks | None = None, unread: Iterable[str] = ()
) -> tuple[list[dict], list | None]:
    """(messages, tools) of one record that ends with an answer; BadConversation otherwise."""
    if len(fields) == 1 and not unread and (plain := _plain_conversation(fields)):
        return plain, None
    record = Fields(fields, unread)
    remarks = Remarks() if remarks is None else remarks
    name = first_named(record, MESSAGES)
    has_answer = any(answer in fields for answer in ANSWERS)
    if name and (record.given([name]) or not has_answer):
        messages = json_value(record.get(name), name)
    else:
        name, messages = "messages", _question_and_answer(record, remarks)
    _refuse_placeholder(record, messages)
    checked, own_tools = check_messages(messages, remarks, name)
    checked = with_system(record, checked, remarks)
    if checked[-1]["role"] != "assistant":
        got = f"role {checked[-1]['role']!r}{made_for_rl(record)}"
        raise BadConversation("an assistant message at the end", got)
    # other numbers than 0 and 1 mean something else
    if record.values.get("weight") in (0, 1) and record.get("weight") == 0:
        raise BadConversation("a record to learn", 'one of "weight": 0')
    if all(m.get("weight") == 0 for m in checked if m["role"] == "assistant"):
        raise BadConversation("an assistant message to learn", 'only ones of "weight": 0')
    tools = same_tools(own_tools, beside_tools(record))
    record.count_unused(remarks)
    return checked, tools


def _plain_conversation(fields: dict) -> list[dict] | None:
    """The messages of a record that has nothing else, if they are plain and end with an answer."""
    ((name, given),) = fields.items()
    messages = plain_messages(given) if name in MESSAGES else None
    if messages is None or messages[-1]["role"] != "assistant":
        return None
    return messages if messages[-1]["content"].strip() not in PLACEHOLDERS else None


def first_named(record: Fields, names: Iterable[str]) -> str:
    """The first of the names that says something, else the first one there is, else ""."""
    there = [name for name in names if name in record.values]
    return next(iter([*record.given(names), *there]), "")


def with_system(record: Fields, checked: list[dict], remarks: Remarks) -> list[dict]:
    """The messages behind the system prompt that a record has beside them, if it has one."""
    name, system = record.one_of(SYSTEM)
    if isinstance(system, list):
        system = join_parts(system, name, remarks, name)
    system = check_text(system, name)
    if not system.strip():
        return checked
    if checked[0]["role"] != "system":
        return [{"role": "system", "content": system}, *checked]
    if checked[0]["content"] != system:
        raise BadConversation(f"one system prompt, in {name} or in the messages", "two that differ")
    return checked


def beside_tools(record: Fields) -> list | None:
    """The tools that a record has beside its messages."""
    return check_tools(record.one_of(TOOLS)[1])


def question(record: Fields, remarks: Remarks, names: tuple = QUESTIONS) -> list[dict] | None:
    """The messages, not yet checked, of a question given apart; None if there is none.

    Text with Alpaca's `input` behind it and its `history` before it, or whole messages.
    """
    given = record.given((*names, "input"))
    if not given:
        return None
    name, value = record.one_of(names)
    name = name or "input"
    value = as_messages(record.get(name), name, remarks)
    if name != "input" and record.given(["input"]):
        more = record.get("input")
        for part, text in ((name, value), ("input", more)):
            if not isinstance(text, str):
                raise BadConversation(f"text in {part}", kind_of(text))
        value = "\n".join((value, more))
    return _history(record) + _turns_of(value, name, "user", remarks)


def _question_and_answer(record: Fields, remarks: Remarks) -> list[dict]:
    asked = question(record, remarks)
    name, answer = record.one_of(ANSWERS)
    name = name or first_named(record, ANSWERS)
    if asked is None or not name:
        names = [*record.values, *record.unread]
        close = [did_you_mean(x, FIELDS) for x in names if x not in FIELDS]
        got = names_in(names) + next(filter(None, close), "")
        fields = '"conversations" or "messages", or a question and an answer'
        if asked is None and not name:
            raise BadConversation(f'a field {fields} such as "instruction" and "output"', got)
        if asked is None:
            raise BadConversation("a question before the answer", without_text(record, got))
        raise BadConversation(f"an answer ({', '.join(ANSWERS)})", got + made_for_rl(record))
    answer = as_messages(record.get(name), name, remarks)
    answers = _turns_of(answer, name, "assistant", remarks)
    reasoning_name, reasoning = record.one_of(REASONING)
    if reasoning_name and len(answers) == 1 and isinstance(answers[0], dict):
        answers = [answers[0] | {reasoning_name: reasoning}]
    if not record.given(["history"]):  # answers inside a prompt are given, not learned
        asked = [m if role_of(m) != "assistant" else {"weight": 0} | m for m in asked]
    return asked + answers


def role_of(message: object) -> str:
    """The role of a message that is not checked yet, "" if it has none that is known."""
    given = message.get("role", message.get("from")) if isinstance(message, dict) else None
    return ROLES.get(given, "") if isinstance(given, str) else ""


def as_messages(value: object, name: str, remarks: Remarks) -> object:
    """A value, or the messages that it holds as JSON text or in the form "Human: … Assistant: …".

    Any other text stays text.
    """
    if not isinstance(value, str):
        return value
    if JSON_START.match(value) and (messages := _messages_in_text(value, name)):
        remarks.read_as[f"texts of JSON in {name} read as messages"] += 1
        return messages
    text = value.strip("\n")
    if not text.startswith("Human:") or "\n\nAssistant:" not in text:
        return value
    remarks.read_as[f'texts "Human: … Assistant: …" in {name} read as turns'] += 1
    _, *parts = TURN.split(text)
    turns = [
        {"role": "user" if who == "Human" else "assistant", "content": said}
        for who, said in zip(parts[::2], parts[1::2])
    ]
    return turns[:-1] if not turns[-1]["content"].strip() else turns  # "Assistant:" asks for one


def _messages_in_text(text: str, name: str) -> list | dict | None:
    """The message or messages that a text is in JSON; None if it is anything else, JSON or not."""
    try:
        value = json_value(text, name)
    except BadConversation:
        if MESSAGE_START.match(text):  # meant as messages, and broken
            raise
        return None
    items = value if isinstance(value, list) else [value]
    has_text = all(role_of(m) and {"content", "value", "tool_calls"} & m.keys() for m in items)
    return value if items and has_text else None


def _turns_of(value: object, name: str, role: str, remarks: Remarks) -> list:
    """A text as one message of a role; a message, or messages, as they are."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, dict) and value:
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, dict) for item in value):
            is_part = not {"role", "from"} & value[0].keys()
            return [{"role": role, "content": value}] if is_part else value
        other = next(item for item in value if not isinstance(item, dict))
        raise BadConversation(f"text or messages as the {name}", f"a list with {kind_of(other)}")
    raise BadConversation(f"text or messages as the {name}", kind_of(value))


def without_text(record: Fields, otherwise: str, names: tuple = QUESTIONS) -> str:
    """What came in place of a question, if there is a field for it; else the words given."""
    empty = next((name for name in (*names, "input") if name in record.values), "")
    if not empty:
        return otherwise
    value = record.values[empty]
    return f"{'an empty text' if value == '' else kind_of(value)} as the {empty}"


def made_for_rl(record: Fields) -> str:
    """What to say behind an error about answers if the record has a field to judge them by."""
    names = [*record.values, *record.unread]
    judge = next((name for name in RL_FIELDS if name in names), "")
    return f': data for reinforcement learning, whose "{judge}" judges answers' if judge else ""


def _history(record: Fields) -> list[dict]:
    """Alpaca's earlier turns, pairs of question and answer, as messages."""
    history = json_value(record.get("history"), "history")
    if history is None:
        return []
    if not isinstance(history, list):
        raise BadConversation("pairs [question, answer] in history", kind_of(history))
    messages = []
    for turn in history:
        if isinstance(turn, dict):  # a message
            messages.append(turn)
        elif isinstance(turn, list) and len(turn) == 2 and all(isinstance(x, str) for x in turn):
            messages += [{"role": r, "content": x} for r, x in zip(("user", "assistant"), turn)]
        else:
            got = f"a list of {len(turn)}" if isinstance(turn, list) else kind_of(turn)
            raise BadConversation("pairs [question, answer] of text in history", got)
    return messages


def _refuse_placeholder(record: Fields, messages: object) -> None:
    """BadConversation if the last answer only stands for one that a model will make."""
    last = messages[-1] if isinstance(messages, list) and messages else None
    if not isinstance(last, dict) or last.get("tool_calls") or last.get("function_call"):
        return
    content = last.get("content", last.get("value"))
    why = made_for_rl(record)
    content = "" if content is None and why else content
    if role_of(last) != "assistant" or not isinstance(content, str):
        return
    if (content := content.strip()) in PLACEHOLDERS:
        got = f"the placeholder {content!r}" + (why or ", as in data for reinforcement learning")
        got = got if content or why else "an empty text"
        raise BadConversation("an answer to learn at the end", got)
