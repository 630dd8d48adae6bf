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


def held_out_questions(rng: random.Random) -> list[Question]:
    """Return the questions of `questions.jsonl`: a sample of every skill in both languages."""
    chosen: list[Question] = []
    for lang, facts, opposites, sums, pairs, counts, me in (
        ("en", 72, 20, 30, 14, 6, 6),
        ("zh", 48, 14, 14, 10, 4, 4),
    ):
        known = [
            Question(held_out_question(f), answer(f), f.relation.skill, lang)
            for f in articles.FACTS[lang]
        ]
        chosen += pick_several(rng, [q for q in known if q.skill != "opposites"], facts)
        chosen += pick_several(rng, [q for q in known if q.skill == "opposites"], opposites)
        chosen += [
            Question(
                arithmetic.held_out_question(e, lang),
                arithmetic.answer(e, lang),
                "arithmetic",
                lang,
            )
            for e in pick_several(rng, arithmetic.EQUATIONS, sums)
        ]
        chosen += [
            Question(*comparing.held_out_pair(p, lang), "comparison", lang)
            for p in pick_several(rng, comparing.PAIRS, pairs)
        ]
        chosen += [
            Question(
                comparing.count_held_out_question(c, lang),
                comparing.count_answer(c, lang),
                "counting",
                lang,
            )
            for c in pick_several(rng, comparing.COUNTS, counts)
        ]
        chosen += [
            Question(question, reply, "identity", lang)
            for question, reply in pick_several(rng, identity.held_out_pairs(lang), me)
        ]
    return chosen
