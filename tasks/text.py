"""Answers in words: exactly the right text, or one that says all the right values."""

from __future__ import annotations

from tasks.number import Number, all_numbers, number_alone
from tasks.task import Completion, Prompt, not_the_right, only


def exact(completion: Completion) -> float:
    """1 if the answer is the right text, outer white space aside, else 0."""
    return float(is_exact(completion.prompt, completion.text))


def is_exact(prompt: Prompt, said: str) -> bool:
    """Whether what is said is the right text, outer white space aside."""
    return right_text(prompt).strip() == said.strip()


def right_text(prompt: Prompt) -> str:
    """The text that is the right answer; ValueError if it is none."""
    answer = only(prompt.answer)
    if not isinstance(answer, str):
        raise not_the_right("a text", prompt.answer)
    return answer


def values(completion: Completion) -> float:
    """The share of the right values that are said: of "gt" in agent data, a list.

    A number counts however it is written; a text in upper or lower case, but not inside a word.
    Whoever says everything says what is right: add a bound on the length.
    """
    wanted = right_values(completion.prompt)
    text = completion.text.casefold()
    numbers = all_numbers(completion.text)
    return sum(_is_said(value, text, numbers) for value in wanted) / len(wanted)


def right_values(prompt: Prompt) -> list[str]:
    """The values that the right answer has to say; ValueError if there are none."""
    answer = prompt.answer if isinstance(prompt.answer, list) else [prompt.answer]
    are_values = [isinstance(x, str | int | float) and str(x).strip() for x in answer]
    if not answer or not all(are_values):
        raise not_the_right("values", prompt.answer)
    return [str(value).strip() for value in answer]


def _is_said(value: str, text: str, numbers: list[Number]) -> bool:
    number = number_alone(value)
    if number is not None:
        return any(number.equals(said) for said in numbers)
    return _has_word(text, value.casefold())


def _has_word(text: str, word: str) -> bool:
    """Whether a text has a word, or words, with no ASCII letter or digit that goes on with it."""
    begin = text.find(word)
    while begin >= 0:
        end = begin + len(word)
        before = begin > 0 and _goes_on(text[begin - 1]) and _goes_on(word[0])
        behind = end < len(text) and _goes_on(text[end]) and _goes_on(word[-1])
        if not before and not behind:
            return True
        begin = text.find(word, begin + 1)
    return False


def _goes_on(character: str) -> bool:
    return character.isascii() and character.isalnum()
