"""Multiple choice: how a question is written with its choices, and which letter an answer names."""

from __future__ import annotations

import re
import string

from dataset.messages import BadConversation
from dataset.records import kind_of
from model.json_file import shown
from tasks.final_answer import behind_hashes, in_the_box
from tasks.task import Completion, Prompt, not_the_right, only

LETTERS = string.ascii_uppercase
# full-width ASCII becomes ASCII
TABLE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
SAYS_SO = re.compile(  # a small letter only where it is no word: "the answer is a dog"
    r"(?:(?i:answer(?: is|:)|option(?: is|:)?|choice(?: is|:)|choose|select)"
    r"|答案(?:应该)?(?:是|为|选|:)|选择?项?)[\s:*]{0,9}"
    r"(?:[(\[]?(I(?! [a-z])|[A-HJ-Z])(?![A-Za-z'])|\(([a-z])\)"
    r"|([b-hj-z])\*{0,2}(?:[)\]:,;!?。、\n]|\.(?![A-Za-z])|$))"
)
# in quotes, it is a letter as it would be without
QUOTED = re.compile(r"(?<![A-Za-z0-9])['\"`‘“「]([A-Za-z])['\"`’”」](?![A-Za-z0-9])")
OPENING = re.compile(r"[\s*(\[]{0,9}(I(?=[).:])|[A-HJ-Z])(?:[)\]:,、*\n]|\.(?![A-Za-z])|$)")
ALONE = re.compile(r"(?<![A-Za-z0-9'])([A-Z])(?![A-Za-z0-9'])")
OWN_LETTER = re.compile(r"\s{0,9}\(?([A-Z])\s?[).:、]\s{0,9}")


def choice(completion: Completion) -> float:
    """1 if the answer names the right letter, else 0."""
    return float(letter_of(completion.text) == right_letter(completion.prompt))


def right_letter(prompt: Prompt) -> str:
    """The letter that is the right answer; ValueError if it is none."""
    answer = only(prompt.answer)
    found = letter_of(answer, may_stand_alone=False) if isinstance(answer, str) else None
    if found is None:
        raise not_the_right("a letter", prompt.answer)
    return found


def letter_of(text: str, may_stand_alone: bool = True) -> str | None:
    r"""The letter that a text gives as its answer; None without one.

    It stands in the last \boxed{…}, behind ####, behind "the answer is" or its like, at the
    beginning ("B", "(B) text", "B. text"), or, if it may, is the only capital that stands alone.
    """
    text = QUOTED.sub(_bracketed, text.translate(TABLE)).strip()
    for part in (in_the_box(text), behind_hashes(text), text):
        bare = part.strip(" \t\n.()[]*:。") if part and len(part) < 40 else ""
        if len(bare) == 1 and bare.upper() in LETTERS:
            return bare.upper()
    said = None
    for said in SAYS_SO.finditer(text):  # noqa: B007 (the last one counts)
        pass
    if said:
        return next(filter(None, said.groups())).upper()
    if opening := OPENING.match(text):
        return opening[1]
    if not may_stand_alone:
        return None
    alone = {match[1] for match in ALONE.finditer(text)}
    alone -= {"I"} if len(alone) > 1 else set()  # somebody who speaks
    return alone.pop() if len(alone) == 1 else None


def _bracketed(quoted: re.Match) -> str:
    return quoted[1] if quoted[1].isupper() else f"({quoted[1]})"


def with_choices(question: str, choices: object, answer: object) -> tuple[str, str | None]:
    """(the question with its lettered choices, the right letter or None); BadConversation.

    choices  a list of texts; {"A": text, …}; {"label": […], "text": […]}
    answer   a letter or label, a choice's text, or an index, from 0
    """
    labels, texts = _labels_and_texts(choices)
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, texts)]
    right = None if answer is None else LETTERS[_place(answer, choices, labels, texts)]
    return "\n".join([question, "", *lines]), right


def _labels_and_texts(choices: object) -> tuple[list[str], list[str]]:
    """What the choices are called, and what they say."""
    labels: object = None
    if isinstance(choices, dict):
        if {"label", "text"} <= choices.keys():
            labels, texts = choices["label"], choices["text"]
        else:
            labels, texts = list(choices), list(choices.values())
    else:
        texts = choices
    if not isinstance(texts, list) or not 2 <= len(texts) <= len(LETTERS):
        got = f"a list of {len(texts)}" if isinstance(texts, list) else kind_of(texts)
        raise BadConversation("a list of 2 to 26 choices", got)
    for text in texts:
        if not isinstance(text, str | int | float) or not str(text).strip():
            got = "an empty text" if isinstance(text, str) else kind_of(text)
            raise BadConversation("text as every choice", got)
    texts = [str(text).strip() for text in texts]
    if labels is None:
        labels = list(LETTERS[: len(texts)])
        own = [OWN_LETTER.match(text) for text in texts]  # "A) 21", "B) 22", …
        if all(match and match[1] == letter for match, letter in zip(own, labels)):
            texts = [text[match.end() :] for text, match in zip(texts, own)]
    if not isinstance(labels, list) or len(labels) != len(texts):
        raise BadConversation("a label for every choice", kind_of(labels))
    return [str(label).strip() for label in labels], texts


def _place(answer: object, choices: object, labels: list[str], texts: list[str]) -> int:
    """The place of the right choice."""
    if isinstance(answer, bool) or not isinstance(answer, str | int):
        raise BadConversation("a letter, a choice or an index as the answer", kind_of(answer))
    named = str(answer).strip()
    small = [label.translate(TABLE).lower() for label in labels]
    found = {small.index(named.lower())} if named.lower() in small else set()
    if not found and isinstance(answer, str):
        bare = named.translate(TABLE).strip("().:、").lower()
        found = {small.index(bare)} if bare in small else set()
    same = {i for i, text in enumerate(texts) if text == named}
    own = OWN_LETTER.match(named)  # "A. x", whether the choice is "A. x" or "x"
    if own and not same and own[1].lower() in small:
        place = small.index(own[1].lower())
        same = {place} if named[own.end() :] == texts[place] else set()
    index = {int(named)} if named.isdecimal() and len(named) < 3 else set()
    index = {i for i in index if i < len(texts)}
    if isinstance(answer, int):
        are_numbers = isinstance(choices, list) and not isinstance(choices[0], str)
        found = found or (same | index if are_numbers else index)
    else:
        found = found or same or index
    if len(found) != 1:
        what = "a letter, a choice or an index as the answer"
        raise BadConversation(what, f"{shown(repr(answer), 40)}, which is {len(found)} of them")
    return found.pop()
