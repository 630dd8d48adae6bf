"""Answers in JSON, and when two JSON values are equal."""

from __future__ import annotations

from model.json_file import parse_json
from tasks.task import Completion, Prompt, not_the_right

FENCE = "```"
MISSING = object()


def json_equal(completion: Completion) -> float:
    """1 if the answer is JSON, alone or in a ``` block, equal to the right value, else 0."""
    right = right_value(completion.prompt)
    try:
        return float(are_equal(json_in(completion.text), right))
    except RecursionError:
        return 0.0


def right_value(prompt: Prompt) -> object:
    """The right JSON value; of a text that is no JSON, the text. ValueError without an answer."""
    answer = prompt.answer
    if answer is None:
        raise not_the_right("JSON", answer)
    parsed = json_in(answer) if isinstance(answer, str) else answer
    return answer if parsed is MISSING else parsed


def json_in(text: str) -> object:
    """The JSON value that a text is, or that its last ``` block holds; MISSING if there is none.

    A key twice, NaN and numbers that no float holds are no JSON.
    """
    try:
        return parse_json(_last_block(text).encode("utf-8"))
    except (ValueError, RecursionError):
        return MISSING


def _last_block(text: str) -> str:
    """What the last block between lines of ``` holds; the text itself without one."""
    found, block = text, None
    for line in text.split("\n"):
        if not line.lstrip().startswith(FENCE):
            if block is not None:
                block.append(line)
        elif block is None:
            block = []
        else:
            found, block = "\n".join(block), None
    return found


def are_equal(a: object, b: object) -> bool:
    """Whether two JSON values are equal: 1 is 1.0 but not true, objects have no order."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(are_equal(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(are_equal, a, b))
    return a == b
