"""Records → prompts: what a model is asked, and the right answer.

    {"question": …, "answer": …}                       also problem, prompt, …; solution, gt, …
    {"question": …, "choices": [...], "answer": "B"}   multiple choice: a letter, an index, a text;
                                                       the choices also in columns A, B, …
    {"conversations": [messages], "gt": [...]}         the answer beside the messages, or the last
                                                       message: one of the assistant, empty or not
    {"chosen": [...], "rejected": [...]}               the prompt of a pair

docs/tasks.md has a table. What no prompt can be made of is a bad record.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from functools import partial

from dataset.chat import encode_conversation
from dataset.conversations import (
    ANSWERS,
    FIELDS,
    MESSAGES,
    PLACEHOLDERS,
    QUESTIONS,
    as_messages,
    beside_tools,
    converted,
    first_named,
    question,
    role_of,
    with_system,
    without_text,
)
from dataset.messages import BadConversation, Fields, check_messages, json_value, same_tools
from dataset.pairs import to_pair
from dataset.readers import Paths, read_records
from dataset.records import (
    Problems,
    Remarks,
    did_you_mean,
    kind_of,
    names_in,
    says_something,
)
from dataset.tokenizer import Tokenizer
from model.json_file import shown
from tasks.multiple_choice import LETTERS, with_choices
from tasks.task import Prompt, only
from tasks.tool_calls import as_calls

ASKED = (*QUESTIONS, "problem")
CHOICES = ("choices", "options")
# the first of them that says something is the right answer; a solution may be a worked one
RIGHT = ("gt", "ground_truth", "reward_model", "answerKey", "answer", "solution", *ANSWERS)
NAMES = tuple(dict.fromkeys((*FIELDS, *ASKED, *CHOICES, *RIGHT, "chosen", "rejected")))
KNOWN = (*NAMES, *LETTERS)
# Text that is meant as JSON. A list of numbers may be text, too, such as an interval, but not in gt
JSON_START = re.compile(r'\s*(\[\s*["{]|\{\s*")')


def read_prompts(
    paths: Paths, tokenizer: Tokenizer, flag: str = "--data_path", on_bad_record: str = "stop",
    problems: Problems | None = None, chat: bool = True, enable_thinking: bool = False,
    right: Callable[[Prompt], object] | None = None, tools: list | None = None,
) -> list[Prompt]:  # fmt: skip
    """The prompts of one or several files.

    chat             encoded by the chat template; else, for a base model, as lines of text
    enable_thinking  … and let a model that was taught to think do so
    right            finds the right answer in a prompt, that of a checker: a record in which it
                     raises ValueError is a bad one; None: there need not be any
    tools            descriptions of functions, for records that describe none

    Raises what `readers.read_records` raises. What good records say that nothing reads is counted
    in `problems.remarks`.
    """
    problems = Problems() if problems is None else problems
    records = read_records(paths, on_bad_record, problems, flag=flag, wanted=KNOWN)
    convert = partial(to_prompt, tokenizer, chat, enable_thinking, right, tools)
    return [prompt for _, prompt in converted(records, convert, problems)]


def to_prompt(
    tokenizer: Tokenizer, chat: bool, enable_thinking: bool, right: Callable | None,
    offered: list | None, fields: dict, remarks: Remarks | None = None, unread: Iterable[str] = (),
) -> Prompt:  # fmt: skip
    """The prompt of one record; BadConversation if it is none."""
    messages, tools, answer, calls = to_question(fields, remarks, unread)
    if chat:
        tools = tools or offered
        try:
            ids, _ = encode_conversation(tokenizer, messages, tools, True, enable_thinking)
        except ValueError as error:
            raise BadConversation("what the chat template can show", shown(error)) from None
    else:
        ids = tokenizer.encode_text("".join(message["content"] + "\n" for message in messages))
    text = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
    prompt = Prompt(text, ids, answer, messages, tools, calls)
    try:
        if right is not None:
            right(prompt)
    except ValueError as error:
        what, _, got = str(error).removeprefix("expected ").partition(", got ")
        names = names_in([*fields, *unread])
        raise BadConversation(what, names if got == "none" else got) from None
    return prompt


def to_question(
    fields: dict, remarks: Remarks | None = None, unread: Iterable[str] = ()
) -> tuple[list[dict], list | None, object, list[dict] | None]:
    """(messages, tools, right answer or None, right calls or None) of one record."""
    remarks = Remarks() if remarks is None else remarks
    if says_something(fields.get("chosen")) and says_something(fields.get("rejected")):
        prompt, _, _, tools = to_pair(fields, remarks, unread)
        return prompt, tools, None, None
    record = Fields(fields, unread)
    name, messages = _messages(record, remarks)
    answer = _right_answer(record, remarks)
    if choices := _choices(record):
        answer = _ask_with_choices(messages, choices, only(answer))
    elif isinstance(answer, list) and all(role_of(item) for item in answer):  # "completion"
        messages, answer = [*messages, *answer], None
    elif isinstance(answer, bool | int | float):
        answer = json.dumps(answer)
    messages = _without_placeholder(messages)
    checked, own_tools = check_messages(messages, remarks, name)
    checked = with_system(record, checked, remarks)
    tools = same_tools(own_tools, beside_tools(record))
    for message in checked:  # no answer in a prompt is learned, whatever it weighs
        message.pop("weight", None)
    calls = None if answer is None else as_calls(answer)
    if checked[-1]["role"] == "assistant":
        last = max((i for i, m in enumerate(checked) if m["role"] == "user"), default=-1)
        checked, behind = checked[: last + 1], checked[last + 1 :]
        if last < 0:
            raise BadConversation("a message of the user", "none")
        if answer is None:
            answer = behind[-1]["content"] or None
        elif behind[-1]["content"].strip() not in ("", answer):
            remarks.count_not_used(f"the last answer in {name}")
        if calls is None and (tools or any("tool_calls" in message for message in behind)):
            calls = [call for message in behind for call in message.get("tool_calls", [])]
        if answer is None and calls:
            answer = calls if len(calls) > 1 else calls[0]
    if checked[-1]["role"] == "system":
        raise BadConversation("a message of the user", "a system message alone")
    record.count_unused(remarks)
    return checked, tools, answer, calls


def _messages(record: Fields, remarks: Remarks) -> tuple[str, list]:
    """(the field's name, messages that are not yet checked) of what a record asks."""
    name = first_named(record, MESSAGES)
    if not record.given([name]):
        found = question(record, remarks, ASKED)
        if found is None:
            names = [*record.values, *record.unread]
            close = [did_you_mean(x, NAMES) for x in names if x not in NAMES]
            got = names_in(names) + next(filter(None, close), "")
            what = 'a field "conversations" or "messages", or a question'
            raise BadConversation(what, without_text(record, got, ASKED))
        return "messages", found
    messages = json_value(record.get(name), name)
    if not isinstance(messages, list):
        raise BadConversation(f"a list of messages in {name}", kind_of(messages))
    asked = next(iter(record.given(("question", "problem"))), "")
    text = record.get(asked) if asked else None
    if not isinstance(text, str) or _asks(messages, text):
        return name, messages
    return name, [*messages, {"role": "user", "content": text}]  # behind the turns before it


def _asks(messages: list, text: str) -> bool:
    """Whether the last message of a user is this text."""
    asked = [message for message in messages if role_of(message) == "user"]
    said = asked[-1].get("content", asked[-1].get("value")) if asked else None
    return isinstance(said, str) and said.strip() == text.strip()


def _right_answer(record: Fields, remarks: Remarks) -> object:
    """What a record has as its right answer; None without any."""
    for name in record.given(RIGHT):
        if name == "reward_model" and _ground_truth(record.values[name]) is None:
            continue  # the name of a model, for example
        value = record.get(name)
        if name == "reward_model":
            value = _from_json(_ground_truth(value), "ground_truth")
        elif name in ("gt", "ground_truth"):
            value = _from_json(value, name)
        elif name in ANSWERS:
            value = as_messages(value, name, remarks)
            value = [value] if role_of(value) else value
        if isinstance(value, str):
            none = PLACEHOLDERS if name in ANSWERS else ("",)
            value = None if value.strip() in none else value
        if value is not None:
            return value
    return None


def _ground_truth(reward_model: object) -> object:
    """The right answer in verl's form, an object or its JSON text; None in anything else."""
    if isinstance(reward_model, str) and reward_model.lstrip().startswith("{"):
        reward_model = json_value(reward_model, "reward_model")
    value = reward_model.get("ground_truth") if isinstance(reward_model, dict) else None
    return value if says_something(value) else None


def _from_json(value: object, name: str) -> object:
    """A list or an object that is given as JSON text, as csv needs it; anything else as it is."""
    if not isinstance(value, str):
        return value
    if JSON_START.match(value):
        return json_value(value, name)
    if name == "gt" and value.lstrip().startswith("["):
        try:
            return json_value(value, name) or None
        except BadConversation:  # [0, 1)
            pass
    return value


def _choices(record: Fields) -> object:
    """A record's choices, None without any: in one field, or in columns A, B and so on."""
    if named := record.given(CHOICES):
        return json_value(record.get(named[0]), named[0])
    columns = record.given(LETTERS)
    last = next((i for i, letter in enumerate(LETTERS) if letter not in columns), len(LETTERS))
    return {letter: record.get(letter) for letter in LETTERS[:last]} if last > 1 else None


def _ask_with_choices(messages: list, choices: object, answer: object) -> str | None:
    """Put the choices behind the question in the last message; the letter of the right one."""
    last = messages[-1] if messages else None
    if role_of(last) != "user":
        raise BadConversation("a question before the choices", "no message of the user at the end")
    key = "content" if "content" in last else "value"
    if not isinstance(last.get(key), str):
        raise BadConversation("a question as text before the choices", "something else")
    text, right = with_choices(last[key], choices, answer)
    messages[-1] = last | {key: text}
    return right


def _without_placeholder(messages: list) -> list:
    """Messages without a last one that only stands for the answer that a model will make."""
    last = messages[-1] if messages else None
    if role_of(last) != "assistant":
        return messages
    if says_something(last.get("tool_calls")) or says_something(last.get("function_call")):
        return messages
    content = last.get("content", last.get("value"))
    content = "" if content is None else content
    is_placeholder = isinstance(content, str) and content.strip() in PLACEHOLDERS
    return messages[:-1] if is_placeholder else messages
