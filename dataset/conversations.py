"""Records → conversations: four formats in, one checked form out.

    {"conversations": [{"role", "content", ...}]}       or the same under "messages"
    {"conversations": [{"from": "human", "value": …}]}  ShareGPT
    {"instruction": …, "input"?: …, "output": …}        Alpaca

`tools` (beside the messages or on the system message) and `tool_calls` may be JSON strings or
values. What comes out is `{"role", "content", "reasoning_content"?, "tool_calls"?}` per message,
`tool_calls` being a list of {"name", "arguments"}.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from dataset.readers import Paths, Problems, Record, is_utf8, kind_of, read_records

SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant",
    "assistant": "assistant", "system": "system", "tool": "tool", "observation": "tool",
    "function_response": "tool",
}  # fmt: skip

# What may stand before a message of each role; None is the beginning.
MAY_FOLLOW = {
    "system": (None,),
    "user": (None, "system", "assistant"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


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


class BadConversation(ValueError):
    """What was expected of a record, and what came."""

    def __init__(self, expected: str, got: str):
        super().__init__(f"expected {expected}, got {got}")
        self.expected, self.got = expected, got


def read_conversations(
    paths: Paths,
    on_bad_record: str = "stop",
    problems: Problems | None = None,
    flag: str = "--data_path",
) -> Iterator[Conversation]:
    """Yield the conversations of one or several files; raises what `readers.read_records` raises.

    A record that is no conversation is a bad record: file and line, what was expected, what came.
    """
    problems = Problems() if problems is None else problems
    return _conversations_of(read_records(paths, on_bad_record, problems, flag=flag), problems)


def _conversations_of(records: Iterator[Record], problems: Problems) -> Iterator[Conversation]:
    for record in records:
        try:
            messages, tools = to_conversation(record.fields)
        except BadConversation as bad:
            problems.add(record.path, record.line, bad.expected, bad.got)
        else:
            yield Conversation(messages, tools, record.path, record.line)


def to_conversation(fields: dict) -> tuple[list[dict], list | None]:
    """(messages, tools) of one record that ends with an answer; BadConversation otherwise."""
    messages, tools = _messages_and_tools(fields)
    checked, beside_system = check_messages(messages)
    if checked[-1]["role"] != "assistant":
        raise BadConversation("an assistant message at the end", f"role {checked[-1]['role']!r}")
    return checked, _tools(tools) or beside_system


def check_messages(messages: object) -> tuple[list[dict], list | None]:
    """Messages in the checked form, and the tools found on the system message."""
    if not isinstance(messages, list) or not messages:
        raise BadConversation("a list of messages", kind_of(messages))
    checked: list[dict] = []
    tools, before = None, None
    for number, message in enumerate(messages, start=1):
        new = _message(message, f"message {number}")
        role = new["role"]
        if before not in MAY_FOLLOW[role]:
            after = f"after {before!r}" if before else "at the beginning"
            raise BadConversation("system first, then user and assistant in turn (tool after the "
                                  "assistant)", f"{role!r} {after} (message {number})")  # fmt: skip
        if role == "system":
            tools = _tools(message.get("tools"))
        checked.append(new)
        before = role
    return checked, tools


def _messages_and_tools(fields: dict) -> tuple[object, object]:
    for key in ("conversations", "messages"):
        if key in fields:
            return fields[key], fields.get("tools")
    if "instruction" in fields and "output" in fields:
        parts = [fields["instruction"], fields.get("input") or ""]
        if not all(isinstance(part, str) for part in parts):
            raise BadConversation("text in instruction and input", kind_of(fields["instruction"]))
        messages = [
            {"role": "user", "content": "\n".join(part for part in parts if part)},
            {"role": "assistant", "content": fields["output"]},
        ]
        if fields.get("system"):
            messages.insert(0, {"role": "system", "content": fields["system"]})
        return messages, None
    names = ", ".join(map(repr, list(fields)[:5])) or "none"
    raise BadConversation(
        'a field "conversations" or "messages", or "instruction" and "output"',
        f"the fields {names}",
    )


def _message(message: object, where: str) -> dict:
    if not isinstance(message, dict):
        raise BadConversation(f"an object for {where}", kind_of(message))
    if "from" in message and "role" not in message:  # ShareGPT
        role = SHAREGPT_ROLES.get(str(message["from"]))
        message = message | {"role": role or message["from"], "content": message.get("value")}
    role = message.get("role")
    if not isinstance(role, str) or role not in MAY_FOLLOW:
        raise BadConversation(f"a role of {', '.join(MAY_FOLLOW)} in {where}", repr(role)[:60])
    calls = _json(message.get("tool_calls"), f"tool_calls of {where}")
    content = message.get("content")
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        raise BadConversation(f"text as the content of {where}", kind_of(content))
    checked = {"role": role, "content": content}
    reasoning = message.get("reasoning_content")
    if reasoning is not None and not isinstance(reasoning, str):
        raise BadConversation(f"text as the reasoning_content of {where}", kind_of(reasoning))
    if role == "assistant":
        if reasoning and reasoning.strip():
            checked["reasoning_content"] = reasoning
        if calls:
            if not isinstance(calls, list):
                raise BadConversation(f"a list as tool_calls of {where}", kind_of(calls))
            checked["tool_calls"] = [_call(call, where) for call in calls]
    if role != "system" and not content.strip() and "tool_calls" not in checked:
        raise BadConversation(f"some content in {where} ({role})", "an empty text")
    for text in (content, reasoning or ""):
        if not is_utf8(text):
            raise BadConversation(f"text that UTF-8 can write in {where}", "a lone surrogate")
    return checked


def _call(call: object, where: str) -> dict:
    call = call.get("function", call) if isinstance(call, dict) else call
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise BadConversation(f'tool_calls with a "name" in {where}', kind_of(call))
    arguments = _json(call.get("arguments", {}), f"arguments of the call in {where}")
    return {"name": call["name"], "arguments": {} if arguments is None else arguments}


def _tools(tools: object) -> list | None:
    tools = _json(tools, "tools")
    if tools is not None and not isinstance(tools, list):
        raise BadConversation("a list as tools", kind_of(tools))
    return tools or None


def _json(value: object, what: str) -> object:
    """A value that may be given as JSON text; an empty text is None."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        raise BadConversation(f"JSON as {what}", repr(value[:40])) from None
    # an escape inside this text is seen here for the first time
    if "\\u" in value and not is_utf8(json.dumps(parsed, ensure_ascii=False)):
        raise BadConversation(f"text that UTF-8 can write as {what}", "a lone surrogate")
    return parsed
