"""Tool calls of an answer: the right functions, with the right arguments."""

from __future__ import annotations

from dataset.chat_turns import CALL, END_CALL
from model.json_file import parse_json
from tasks.json_value import are_equal
from tasks.task import Completion, Prompt, not_the_right


def tool_call(completion: Completion) -> float:
    """1 if the calls are the right ones, with equal arguments, in any order, else 0."""
    right, made = right_calls(completion.prompt), calls_of(completion)
    if made is None or len(made) != len(right):
        return 0.0
    left = list(right)
    for call in made:
        same = next((i for i, other in enumerate(left) if _are_same(call, other)), None)
        if same is None:
            return 0.0
        del left[same]
    return 1.0


def tool_name(completion: Completion) -> float:
    """1 if the functions called are the right ones, whatever their arguments, else 0."""
    right, made = right_calls(completion.prompt), calls_of(completion)
    return float(made is not None and sorted(map(_name, made)) == sorted(map(_name, right)))


def right_calls(prompt: Prompt) -> list[dict]:
    """The right calls, [] where none is right; ValueError if nothing is known of them."""
    if prompt.calls is not None:
        return prompt.calls
    calls = as_calls(prompt.answer)
    if calls is None:
        raise not_the_right("tool calls", prompt.answer)
    return calls


def as_calls(answer: object) -> list[dict] | None:
    """The calls that an answer is, {"name", "arguments"} or a list of them; None if it is none.

    It may be JSON text, as csv needs it.
    """
    if isinstance(answer, str) and answer.lstrip()[:1] in ("[", "{"):
        try:
            answer = parse_json(answer.encode("utf-8"))
        except (ValueError, RecursionError):
            return None
    calls = answer if isinstance(answer, list) else [answer]
    found = [_call(call) for call in calls]
    return found if found and None not in found else None


def calls_of(completion: Completion) -> list[dict] | None:
    """The calls that a completion makes; None if one of them is not well-formed."""
    return calls_in(completion.raw) if completion.calls is None else completion.calls


def calls_in(raw: str) -> list[dict] | None:
    """What stands in a text between <tool_call> tags; None if one of them holds no call."""
    calls = []
    for part in raw.split(CALL)[1:]:
        inner, end, _ = part.partition(END_CALL)
        try:
            call = _call(parse_json(inner.encode("utf-8"))) if end else None
        except (ValueError, RecursionError):
            return None
        if call is None:
            return None
        calls.append(call)
    return calls


def _call(value: object) -> dict | None:
    """One call as {"name", "arguments"}, from this form or OpenAI's; None if it is none."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments.encode("utf-8"))
        except (ValueError, RecursionError):
            return None
    if not isinstance(arguments, dict):
        return None
    return {"name": value["name"], "arguments": arguments}


def _name(call: dict) -> str:
    return call["name"]


def _are_same(a: dict, b: dict) -> bool:
    return a["name"] == b["name"] and are_equal(a["arguments"], b["arguments"])
