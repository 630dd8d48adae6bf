"""Deals training questions with their answers, and collects the held-out ones."""

import random
from typing import NamedTuple

from dataset.demo_text import arithmetic, articles, comparing, identity
from dataset.demo_text.choosing import Deck, pick, pick_several
from dataset.demo_text.facts import (
    Fact,
    answer,
    follow_ups,
    held_out_question,
    training_questions,
)

Turn = tuple[str, str]  # (what the user says, what the assistant answers)


class QuestionDecks:
    """Deals questions that training data may contain, each kind evenly, in one language."""

    def __init__(self, rng: random.Random, lang: str):
        self.rng = rng
        self.lang = lang
        facts = articles.FACTS[lang]
        self.fact_deck = Deck(rng, facts)
        self.equations = Deck(rng, arithmetic.EQUATIONS)
        self.pairs = Deck(rng, comparing.PAIRS)
        self.counts = Deck(rng, comparing.COUNTS)
        self.identity = Deck(rng, identity.training_pairs(lang))
        self.same_relation: dict[str, list[Fact]] = {}
        for fact in facts:
            self.same_relation.setdefault(fact.relation.name, []).append(fact)

    def fact(self) -> Turn:
        fact: Fact = self.fact_deck.deal()
        return pick(self.rng, training_questions(fact)), answer(fact)

    def sum(self) -> Turn:
        equation = self.equations.deal()
        question = pick(self.rng, arithmetic.training_questions(equation, self.lang))
        return question, arithmetic.answer(equation, self.lang)

    def comparison(self) -> Turn:
        return pick(self.rng, comparing.training_pairs(self.pairs.deal(), self.lang))

    def count(self) -> Turn:
        count = self.counts.deal()
        question = pick(self.rng, comparing.count_training_questions(count, self.lang))
        return question, comparing.count_answer(count, self.lang)

    def about_me(self) -> Turn:
        return self.identity.deal()

    def any(self) -> Turn:
        """Return a turn of any kind, mostly facts and sums."""
        kinds = (self.fact, self.fact, self.fact, self.sum, self.sum, self.comparison)
        return pick(self.rng, kinds)()

    def fact_and_follow_ups(self, count: int) -> list[Turn]:
        """Return a question and `count` follow-ups about other facts of the same relation."""
        first: Fact = self.fact_deck.deal()
        others = [f for f in self.same_relation[first.relation.name] if f != first]
        turns = [(pick(self.rng, training_questions(first)), answer(first))]
        for fact in pick_several(self.rng, others, count):
            turns.append((pick(self.rng, follow_ups(fact)), answer(fact)))
        return turns


class Question(NamedTuple):
    """One line of a questions file."""

    question: str
    answer: str
    skill: str
    lang: str


# How many held-out questions of each kind, a kind being one or several skills.
COUNTS = {
    ("facts", "order"): {"en": 72, "zh": 48},
    ("opposites",): {"en": 20, "zh": 14},
    ("arithmetic",): {"en": 30, "zh": 14},
    ("comparison",): {"en": 14, "zh": 10},
    ("counting",): {"en": 6, "zh": 4},
    ("identity",): {"en": 6, "zh": 4},
}


def all_held_out(lang: str) -> list[Question]:
    """Return every question of a language that no training file may contain."""
    pairs = [(held_out_question(f), answer(f), f.relation.skill) for f in articles.FACTS[lang]]
    pairs += [
        (arithmetic.held_out_question(e, lang), arithmetic.answer(e, lang), "arithmetic")
        for e in arithmetic.EQUATIONS
    ]
    pairs += [(*comparing.held_out_pair(p, lang), "comparison") for p in comparing.PAIRS]
    pairs += [
        (comparing.count_held_out_question(c, lang), comparing.count_answer(c, lang), "counting")
        for c in comparing.COUNTS
    ]
    pairs += [(*pair, "identity") for pair in identity.held_out_pairs(lang)]
    return [Question(*pair, lang) for pair in pairs]


def held_out_questions(rng: random.Random) -> list[Question]:
    """Return the questions of `questions.jsonl`: a sample of every skill in both languages."""
    chosen: list[Question] = []
    for lang in ("en", "zh"):
        known = all_held_out(lang)
        for skills, counts in COUNTS.items():
            chosen += pick_several(rng, [q for q in known if q.skill in skills], counts[lang])
    return chosen
