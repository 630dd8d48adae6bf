"""The documents of `pretrain.jsonl`: how many of each kind, shuffled, none of them twice."""

import random
from collections.abc import Iterator

from dataset.demo_text import (
    arithmetic,
    articles,
    comparing,
    dialogues,
    stories_en_animals,
    stories_en_friends,
    stories_en_home,
    stories_en_outdoors,
    stories_zh_animals,
    stories_zh_home,
    stories_zh_outdoors,
)
from dataset.demo_text.choosing import Deck, make_rng, pick, shuffled

PLOTS = {
    "en": stories_en_home.PLOTS
    + stories_en_friends.PLOTS
    + stories_en_outdoors.PLOTS
    + stories_en_animals.PLOTS,
    "zh": stories_zh_home.PLOTS + stories_zh_outdoors.PLOTS + stories_zh_animals.PLOTS,
}


def story(rng: random.Random, lang: str):
    """Return one story (a `Story`) of a random plot."""
    return pick(rng, PLOTS[lang])(rng)


# Each of the following yields documents of one kind without end.


def stories(rng: random.Random, lang: str) -> Iterator[str]:
    while True:
        yield story(rng, lang).text


def fact_pages(rng: random.Random, lang: str) -> Iterator[str]:
    decks = articles.FactDecks(rng, lang)
    while True:
        for form in articles.FORMS:
            yield form(rng, decks)


def number_pages(rng: random.Random, lang: str) -> Iterator[str]:
    equations = Deck(rng, arithmetic.EQUATIONS)
    to_tell = Deck(rng, [q for q in arithmetic.EQUATIONS if q.op != "×"])
    while True:
        yield arithmetic.page(rng, equations, lang)
        yield arithmetic.page(rng, equations, lang)
        yield arithmetic.lesson(rng, equations, lang)
        yield arithmetic.problems(rng, to_tell, lang)


def comparisons(rng: random.Random, lang: str) -> Iterator[str]:
    pairs = Deck(rng, comparing.PAIRS)
    while True:
        yield comparing.page(rng, pairs, lang)
        yield comparing.page(rng, pairs, lang)
        if lang == "en":
            yield comparing.quiz(rng, pairs)


def counting(rng: random.Random, lang: str) -> Iterator[str]:
    counts = Deck(rng, comparing.COUNTS)
    while True:
        yield comparing.counting(rng, counts, lang)


def everyday(rng: random.Random, lang: str) -> Iterator[str]:
    while True:
        yield dialogues.dialogue(rng, lang)


# How many documents of each kind. Stories are most of the text; the others repeat a small world of
# facts often enough (about fifty times each) for a model of five million parameters to learn it.
KINDS = (
    (stories, {"en": 4250, "zh": 1700}),
    (fact_pages, {"en": 1500, "zh": 880}),
    (number_pages, {"en": 1000, "zh": 600}),
    (comparisons, {"en": 400, "zh": 300}),
    (counting, {"en": 100, "zh": 80}),
    (everyday, {"en": 200, "zh": 150}),
)


def pretraining_texts(seed: int) -> list[str]:
    """Return the documents of `pretrain.jsonl` in their final order."""
    texts: list[str] = []
    for kind, counts in KINDS:
        for lang, count in counts.items():
            rng = make_rng(seed, f"{kind.__name__} {lang}")
            texts += _different(kind(rng, lang), count)
    return shuffled(make_rng(seed, "order of documents"), texts)


def _different(documents: Iterator[str], count: int) -> list[str]:
    """Return the first `count` different documents."""
    found: dict[str, None] = {}
    for drawn, text in enumerate(documents):
        assert drawn < 20 * count, "the templates are too few for so many different documents"
        found[text] = None
        if len(found) == count:
            break
    return list(found)
