"""Messages as people write them in → messages in the one checked form, which is the trained form.

    {"role": "user", "content": text or text parts}     OpenAI's form: "developer" is system,
                                                        "function_call" an older "tool_calls"
    {"from": "human", "value": text}                    ShareGPT's: gpt, observation, function_call
    {"human": text, "assistant": text}                  two messages in one

What comes out: {"role": system, user, assistant or tool, "content": str}, and for an assistant
"reasoning_content"?: str, "tool_calls"?: [{"name", "arguments": an object}], "weight"?: 0.
Blank lines around a text are removed, nothing else is: what is checked here (emptiness, order,
equality) is what is encoded.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable

from dataset.line_readers import RepeatedKey, decode_json
from dataset.records import Remarks, did_you_mean, is_utf8, kind_of, names_in, says_something
from model.json_file import shown

# What may stand before a message of each role; None is the beginning.
MAY_FOLLOW = {
    "system": (None,),
    "user": (None, "system", "assistant"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant",
    "bard": "assistant", "function_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip
SHAREGPT = {"system": "system", "human": "user", "gpt": "assistant"}  # its usual names
THINK_BLOCK = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)
BLANK_LINES = re.compile(r"(?:[^\S\r\n]*[\r\n]+)+")
DEEPEST_JSON = 50  # lists and objects inside each other, in tools and arguments


class BadConversation(ValueError):
    """What was expected of a record, and what came."""

    def __init__(self, expected: str, got: str):
        super().__init__(f"expected {expected}, got {got}")
        self.expected, self.got = expected, got


class Fields:
    """The members of an object, which knows those that were asked for: the others go unused."""

    def __init__(self, values: dict, unread: Iterable[str] = ()):
        self.values, self.unread, self._used = values, unread, set()

    def get(self, name: str) -> object:
        """A member's value, None without one; it counts as used."""
        self._used.add(name)
        return self.values.get(name)

    def given(self, names: Iterable[str]) -> list[str]:
        """Those of the names whose members say something."""
        values = self.values
        return [name for name in names if name in values and says_something(values[name])]

    def one_of(self, names: Iterable[str]) -> tuple[str, object]:
        """(name, value) of the one that is given, ("", None) without any.

        BadConversation if several are given and differ.
        """
        given = self.given(names)
        if not given:
            return "", None
        values = [self.get(name) for name in given]
        if any(value != values[0] for value in values[1:]):
            raise BadConversation(f"one of {given[0]} and {given[1]}", "both, and they differ")
        return given[0], values[0]

    def count_unused(self, remarks: Remarks, where: str = "") -> None:
        """Count what nobody asked for in `remarks`, its names behind `where`."""
        for name, value in self.values.items():
            if name not in self._used and says_something(value):
                remarks.count_not_used(where + str(name))
        for name in self.unread:
            remarks.count_not_used(where + name)


def check_messages(
    messages: object, remarks: Remarks | None = None, name: str = "messages", in_turn: bool = True
) -> tuple[list[dict], list | None]:
    """Messages in the checked form, and the tools found on the system message.

    name     the field they are in, for errors and remarks
    in_turn  whether roles have to come in the order that data is trained on

    Raises BadConversation.
    """
    if (plain := plain_messages(messages)) is not None:
        return plain, None
    remarks = Remarks() if remarks is None else remarks
    given, messages = messages, json_value(messages, name)
    if not isinstance(messages, list):
        got = "an empty text" if isinstance(given, str) and messages is None else kind_of(messages)
        raise BadConversation(f"a list of messages in {name}", got)
    if not messages:
        raise BadConversation(f"a list with at least one message in {name}", "an empty list")
    checked: list[dict] = []
    tools, before = None, None
    for number, message in enumerate(_apart(messages), start=1):
        where = f"message {number}"
        if not isinstance(message, dict):
            raise BadConversation(f"an object for {where}", kind_of(message))
        fields = Fields(message)
        new = _message(fields, where, remarks, name)
        role = new["role"]
        if role == "system":
            own_tools = check_tools(fields.get("tools"))
            if not new["content"].strip() and not own_tools:
                continue  # it says nothing
            tools = tools or own_tools
        fields.count_unused(remarks, f"{name}[].")
        if in_turn and before not in MAY_FOLLOW[role]:
            after = f"after {before!r}" if before else "at the beginning"
            raise BadConversation("system first, then user and assistant in turn (tool after the "
                                  "assistant)", f"{role!r} {after} ({where})")  # fmt: skip
        before = role
        if role != "system" or new["content"].strip():
            checked.append(new)
    if not checked:
        raise BadConversation(f"a list with at least one message in {name}", "nothing but blanks")
    return checked, tools


def plain_messages(messages: object) -> list[dict] | None:
    """Messages with nothing to mend or to refuse, in the checked form; None for all others.

    Most are of this kind, and to look at them takes a tenth of the time: a role and a text each,
    without blank lines around it, user and assistant in turn, a system message before them or none.
    """
    if type(messages) is not list:
        return None
    plain: list[dict] = []
    expected = "user"
    for message in messages:
        if type(message) is not dict or len(message) != 2:
            return None
        role, text = message.get("role"), message.get("content")
        if text is None:
            name, text = message.get("from"), message.get("value")
            role = SHAREGPT.get(name) if type(name) is str else None
        if role != expected:
            if role != "system" or plain:
                return None
        elif role == "user":
            expected = "assistant"
        else:
            expected = "user"
            if type(text) is str and text.lstrip().startswith("<think>"):
                return None
        if type(text) is not str or not text or not is_utf8(text):
            return None
        if (text[0].isspace() or text[-1].isspace()) and normal_content(text) != text:
            return None
        plain.append({"role": role, "content": text})
    return plain or None


def _apart(messages: list) -> Iterable[object]:
    """The messages, those that hold a question and its answer as two."""
    for message in messages:
        is_both = isinstance(message, dict) and {"human", "assistant"} <= message.keys()
        if is_both and not {"role", "from", "content", "value"} & message.keys():
            rest = {k: v for k, v in message.items() if k not in ("human", "assistant")}
            yield rest | {"role": "user", "content": message["human"]}
            yield {"role": "assistant", "content": message["assistant"]}
        else:
            yield message


def _message(fields: Fields, where: str, remarks: Remarks, name: str) -> dict:
    """One message in the checked form; blank contents of a system message included."""
    key = "role" if "role" in fields.values else "from"
    given = fields.get(key)
    role = ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        if key not in fields.values:
            raise BadConversation(f"a role in {where}", names_in(fields.values))
        got = shown(repr(given), 60) + did_you_mean(given, ROLES)
        raise BadConversation(f"a role of {', '.join(MAY_FOLLOW)} in {where}", got)

    content = _content(fields, where, remarks, name)
    checked = {"role": role, "content": ""}
    if role == "assistant":
        if given == "function_call":
            calls, content = json_value(content, f"the function call of {where}"), ""
            calls = calls if isinstance(calls, list) else [calls]
        else:
            calls = _calls_of(fields, where)
        weight = _weight(fields, where)
        reasoning = check_text(fields.one_of(("reasoning_content", "reasoning", "thinking"))[1],
                               f"the reasoning of {where}")  # fmt: skip
        if isinstance(content, str) and (block := THINK_BLOCK.match(content)):
            content = content[block.end() :]
            inner = normal_content(block[1])
            if inner.strip() and reasoning.strip() and inner != reasoning:
                raise BadConversation(f"one reasoning in {where}", "another in its <think> block")
            reasoning = inner if inner.strip() else reasoning
            remarks.read_as["leading <think> blocks read as reasoning_content"] += 1
        if reasoning.strip():
            checked["reasoning_content"] = reasoning
        if calls:
            checked["tool_calls"] = [_call(call, where, remarks, name) for call in calls]
        if weight == 0:
            checked["weight"] = 0
    may_be_empty = role in ("system", "tool") or "tool_calls" in checked
    content = "" if content is None and may_be_empty else content
    checked["content"] = check_text(content, f"the content of {where}", allow_null=False)
    if not may_be_empty and not checked["content"].strip():
        raise BadConversation(f"some content in {where} ({role})", "an empty text")
    return checked


def _content(fields: Fields, where: str, remarks: Remarks, name: str) -> object:
    """The content of a message, its text parts joined."""
    key, content = fields.one_of(("content", "value"))
    if not key:
        key = next((key for key in ("content", "value") if key in fields.values), "")
        content = fields.get(key) if key else None
        if not key and not {"tool_calls", "function_call"} & fields.values.keys():
            close = [did_you_mean(other, ("content", "value")) for other in fields.values]
            if any(close):
                got = names_in(fields.values) + next(filter(None, close))
                raise BadConversation(f"text as the content of {where}", got)
    if isinstance(content, list) and content:
        return join_parts(content, f"the content of {where}", remarks, f"{name}[].{key}")
    return content


def join_parts(parts: list, what: str, remarks: Remarks, name: str) -> str:
    """The text of OpenAI's content parts, joined; BadConversation if one is not text."""
    texts = []
    for part in parts:
        if not isinstance(part, dict):
            raise BadConversation(f"text, or a list of text parts, as {what}",
                                  f"a list with {kind_of(part)}")  # fmt: skip
        fields = Fields(part)
        if fields.get("type") != "text" or not isinstance(fields.get("text"), str):
            got = f"one of type {shown(repr(part.get('type')), 40)}"
            got = "one without text" if part.get("type") == "text" else got
            raise BadConversation(f'parts of the type "text" in {what}', got)
        texts.append(part["text"])
        fields.count_unused(remarks, f"{name}[].")
    return "".join(texts)


def check_text(value: object, what: str, allow_null: bool = True) -> str:
    """A text as `normal_content` has it; "" for null where that is allowed."""
    if value is None and allow_null:
        return ""
    if not isinstance(value, str):
        raise BadConversation(f"text as {what}", kind_of(value))
    if not is_utf8(value):
        raise BadConversation(f"text that UTF-8 can write as {what}", "a lone surrogate")
    return normal_content(value)


def normal_content(text: str) -> str:
    """A content as it is trained on: as it stands, without blank lines around it; blank is empty.

    A line break after the turn's opening, "assistant\n", would become one token with it, which a
    model that generates what follows the opening can never write.
    """
    if not text.strip():
        return ""
    blank = BLANK_LINES.match(text)
    return text[blank.end() if blank else 0 :].rstrip("\r\n")


def _weight(fields: Fields, where: str) -> int:
    weight = fields.get("weight")
    trained = fields.values.get("train")
    if isinstance(trained, bool):  # another name for it
        fields.get("train")
        if weight is not None and bool(weight) != trained:
            raise BadConversation(f"one of weight and train in {where}", "both, and they differ")
        return int(trained)
    if weight is None:
        return 1
    if isinstance(weight, bool) or not isinstance(weight, int | float) or weight not in (0, 1):
        got = shown(weight, 40) if isinstance(weight, int | float) else kind_of(weight)
        raise BadConversation(f"0 or 1 as the weight of {where}", got)
    return int(weight)


def _calls_of(fields: Fields, where: str) -> list | None:
    """The tool calls of an assistant's message, as they are written, or its function_call."""
    calls = json_value(fields.get("tool_calls"), f"tool_calls of {where}")
    if says_something(calls) and not isinstance(calls, list):
        raise BadConversation(f"a list as tool_calls of {where}", kind_of(calls))
    call = json_value(fields.get("function_call"), f"function_call of {where}")
    if says_something(call):
        if calls:
            raise BadConversation(f"one of tool_calls and function_call in {where}", "both")
        return [call]
    return calls


def _call(call: object, where: str, remarks: Remarks, name: str) -> dict:
    """One tool call: {"name", "arguments"}, arguments being an object."""
    if not isinstance(call, dict):
        raise BadConversation(f'tool_calls with a "name" in {where}', kind_of(call))
    place = f"{name}[].tool_calls[]."
    fields = Fields(call)
    if isinstance(call.get("function"), dict):
        fields.get("function")
        if call.get("type") == "function":
            fields.get("type")
        fields.count_unused(remarks, place)
        place += "function."
        fields = Fields(call["function"])
    called = fields.get("name")
    if not isinstance(called, str) or not called.strip():
        got = names_in(fields.values) if called is None else kind_of(called)
        raise BadConversation(f'tool_calls with a "name" in {where}', got)
    check_json(called, f"the name of a call in {where}")
    what = f"arguments of the call in {where}"
    arguments = json_value(fields.one_of(("arguments", "parameters"))[1], what)
    fields.get("arguments")
    if arguments is not None and not isinstance(arguments, dict):
        raise BadConversation(f"an object as {what}", kind_of(arguments))
    check_json(arguments, what)
    fields.count_unused(remarks, place)
    return {"name": called, "arguments": arguments or {}}


def check_tools(tools: object) -> list | None:
    """A list of descriptions of tools, given as a value or as JSON text; None without any."""
    tools = json_value(tools, "tools")
    if not says_something(tools):
        return None
    if not isinstance(tools, list):
        raise BadConversation("a list as tools", kind_of(tools))
    tools = [json_value(tool, "a tool") for tool in tools]
    for tool in tools:
        if not isinstance(tool, dict) or not tool:
            raise BadConversation("an object for every tool", kind_of(tool))
    check_json(tools, "tools")
    return tools


def same_tools(*given: list | None) -> list | None:
    """The tools that are given in several places; BadConversation if they differ."""
    found = [tools for tools in given if tools]
    if any(tools != found[0] for tools in found):
        raise BadConversation("the same tools everywhere in a record", "two lists that differ")
    return found[0] if found else None


def json_value(value: object, what: str) -> object:
    """A value that may be given as JSON text; an empty text is None."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        parsed = decode_json(value)
    except RepeatedKey as error:
        raise BadConversation(f"every key once in {what}", str(error)) from None
    except (ValueError, RecursionError):
        raise BadConversation(f"JSON as {what}", shown(repr(value[:40]))) from None
    # an escape inside this text is seen here for the first time
    if "\\u" in value and not is_utf8(json.dumps(parsed, ensure_ascii=False)):
        raise BadConversation(f"text that UTF-8 can write as {what}", "a lone surrogate")
    return parsed


def check_json(value: object, what: str, depth: int = 0) -> None:
    """BadConversation unless JSON can hold the value: no dates, bytes, NaN or lone surrogates."""
    if isinstance(value, str) and not is_utf8(value):
        raise BadConversation(f"text that UTF-8 can write as {what}", "a lone surrogate")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadConversation(f"values that JSON can hold as {what}", shown(value))
    if isinstance(value, dict | list):
        if depth >= DEEPEST_JSON:
            raise BadConversation(f"at most {DEEPEST_JSON} levels as {what}", "more")
        if isinstance(value, dict):
            for name in value:
                if not isinstance(name, str):  # a map in Arrow
                    raise BadConversation(f"text as every key in {what}", kind_of(name))
                check_json(name, what)
        for item in value.values() if isinstance(value, dict) else value:
            check_json(item, what, depth + 1)
    elif not isinstance(value, str | int | float | bool | None):
        raise BadConversation(f"values that JSON can hold as {what}", kind_of(value))
