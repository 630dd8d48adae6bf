"""Comparing numbers and animals, and counting: statements, questions and answers."""

import random
from typing import NamedTuple

from dataset.demo_text.choosing import Deck, pick
from dataset.demo_text.words_en import cap, children

# From small to big, in both languages.
ANIMALS_EN = ("an ant", "a mouse", "a rabbit", "a sheep", "a horse", "an elephant", "a blue whale")
ANIMALS_ZH = ("蚂蚁", "老鼠", "兔子", "羊", "马", "大象", "蓝鲸")


class Pair(NamedTuple):
    """Two different things in the order in which they are asked: numbers, or animal indices."""

    kind: str
    first: int
    second: int


def _all_pairs(kind: str, start: int, stop: int) -> list[Pair]:
    numbers = range(start, stop)
    return [Pair(kind, a, b) for a in numbers for b in numbers if a != b]


NUMBER_PAIRS = _all_pairs("number", 1, 11)
ANIMAL_PAIRS = _all_pairs("animal", 0, len(ANIMALS_EN))
PAIRS = NUMBER_PAIRS + ANIMAL_PAIRS

# (question, True when it asks for the bigger of the two)
QUESTIONS_EN = (
    ("Which is bigger, {a} or {b}?", True),
    ("Which is smaller, {a} or {b}?", False),
    ("What is bigger, {a} or {b}?", True),
    ("What is smaller, {a} or {b}?", False),
    ("Tell me which is bigger: {a} or {b}.", True),
    ("Tell me which is smaller: {a} or {b}.", False),
)
QUESTIONS_ZH = (
    ("{a}和{b}，哪个大？", True),
    ("{a}和{b}，哪个小？", False),
    ("{a}和{b}哪个更大？", True),
    ("{a}和{b}哪个更小？", False),
    ("请告诉我{a}和{b}谁大。", True),
    ("请告诉我{a}和{b}谁小。", False),
)


def _name(kind: str, thing: int, lang: str) -> str:
    if kind == "number":
        return str(thing)
    return (ANIMALS_EN if lang == "en" else ANIMALS_ZH)[thing]


def _question(pair: Pair, lang: str, index: int) -> tuple[str, str]:
    form, bigger = (QUESTIONS_EN if lang == "en" else QUESTIONS_ZH)[index]
    a, b = _name(pair.kind, pair.first, lang), _name(pair.kind, pair.second, lang)
    high, low = (a, b) if pair.first > pair.second else (b, a)
    if lang == "en":
        reply = (
            f"{cap(high)} is bigger than {low}."
            if bigger
            else f"{cap(low)} is smaller than {high}."
        )
    else:
        reply = f"{high}比{low}大。" if bigger else f"{low}比{high}小。"
    return form.format(a=a, b=b), reply


def _held_out(pair: Pair) -> int:
    return (pair.first + 2 * pair.second) % len(QUESTIONS_EN)


def training_pairs(pair: Pair, lang: str) -> list[tuple[str, str]]:
    """Return the (question, answer) pairs that training data may contain."""
    skip = _held_out(pair)
    return [_question(pair, lang, i) for i in range(len(QUESTIONS_EN)) if i != skip]


def held_out_pair(pair: Pair, lang: str) -> tuple[str, str]:
    """Return the (question, answer) pair that no training file may contain."""
    return _question(pair, lang, _held_out(pair))


def page(rng: random.Random, deck: Deck, lang: str) -> str:
    """Return a passage of comparisons: statements in both directions."""
    hand = deck.deal_several(7)
    parts = []
    for pair in hand:
        high = _name(pair.kind, max(pair.first, pair.second), lang)
        low = _name(pair.kind, min(pair.first, pair.second), lang)
        if lang == "en":
            parts.append(
                pick(
                    rng,
                    (
                        f"{cap(high)} is bigger than {low}.",
                        f"{cap(low)} is smaller than {high}.",
                        f"{cap(high)} is bigger than {low}, so {low} is smaller than {high}.",
                    ),
                )
            )
        else:
            parts.append(
                pick(
                    rng,
                    (
                        f"{high}比{low}大。",
                        f"{low}比{high}小。",
                        f"{high}比{low}大，所以{low}比{high}小。",
                    ),
                )
            )
    if lang == "en":
        name = children(rng, 1)[0].name
        opening = pick(
            rng,
            (
                "Some things are big, and some things are small.",
                f"{name} likes to compare things.",
                "Let us compare big and small.",
            ),
        )
        return " ".join([opening] + parts)
    return pick(rng, ("我们来比一比大小。", "东西有大也有小。", "比一比，谁大谁小？")) + "".join(
        parts
    )


def quiz(rng: random.Random, deck: Deck) -> str:
    """Return an English passage of comparison questions with their answers."""
    asker, other = children(rng, 2)
    lines = [f"{asker.name} and {other.name} were comparing things."]
    for pair in deck.deal_several(4):
        question, reply = pick(rng, training_pairs(pair, "en"))
        asked = "asked" if question.endswith("?") else "said"
        lines.append(f'{asker.name} {asked}, "{question}" {other.name} said, "{reply}"')
    return " ".join(lines)


class Count(NamedTuple):
    """Counting up from one number to another, both included."""

    start: int
    stop: int


COUNTS = [Count(a, b) for a in range(1, 9) for b in range(a + 3, min(a + 8, 13))]
COUNT_FORMS = {
    "en": (
        "Count from {a} to {b}.",
        "Please count from {a} to {b}.",
        "Can you count from {a} to {b}?",
    ),
    "zh": ("从{a}数到{b}。", "请你从{a}数到{b}吧。", "你能从{a}数到{b}吗？"),
}


def count_answer(count: Count, lang: str) -> str:
    """Return "3, 4, 5, 6." or "3，4，5，6。"."""
    numbers = [str(n) for n in range(count.start, count.stop + 1)]
    return ", ".join(numbers) + "." if lang == "en" else "，".join(numbers) + "。"


def _count_question(count: Count, lang: str, index: int) -> str:
    return COUNT_FORMS[lang][index].format(a=count.start, b=count.stop)


def count_training_questions(count: Count, lang: str) -> list[str]:
    """Return the counting questions that training data may contain."""
    skip = (count.start + count.stop) % 3
    return [_count_question(count, lang, i) for i in range(3) if i != skip]


def count_held_out_question(count: Count, lang: str) -> str:
    """Return the counting question that no training file may contain."""
    return _count_question(count, lang, (count.start + count.stop) % 3)


def counting(rng: random.Random, deck: Deck, lang: str) -> str:
    """Return a passage in which children count."""
    parts = []
    for count in deck.deal_several(4):
        run = count_answer(count, lang)
        if lang == "en":
            name = children(rng, 1)[0].name
            parts.append(
                pick(
                    rng,
                    (
                        f"{name} counted from {count.start} to {count.stop}: {run}",
                        f"From {count.start} to {count.stop} the numbers are {run}",
                        f"After {count.start} comes {count.start + 1}. So we count: {run}",
                    ),
                )
            )
        else:
            parts.append(
                pick(
                    rng,
                    (
                        f"我们从{count.start}数到{count.stop}：{run}",
                        f"从{count.start}到{count.stop}的数是{run}",
                        f"{count.start}的后面是{count.start + 1}，接着数：{run}",
                    ),
                )
            )
    if lang == "en":
        return " ".join(["Let us count."] + parts)
    return "我们来数数。" + "".join(parts)
