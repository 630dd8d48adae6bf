"""Conversations that change their subject and their language, and the held-out ones.

Every turn can be understood by itself. What is taught is that the last question decides what is
said and in which language, whatever came before it.
"""

import random
from typing import NamedTuple

from dataset.demo_text import identity
from dataset.demo_text.choosing import below, chance, make_rng, pick, pick_several, shares
from dataset.demo_text.questions import QuestionDecks, Turn, all_held_out

LANGUAGES = ("en", "zh")
CONVERSATIONS = 580
# Held-out conversations of each language by the skill that the last question asks for.
HELD_OUT = {
    "identity": 12, "facts": 16, "order": 4, "opposites": 4, "arithmetic": 6, "comparison": 3,
    "counting": 3,
}  # fmt: skip
# What a turn of training may be about, and how often.
SUBJECTS = shares(me=2, fact=4, sum=5, comparison=2, count=2, greeting=1)
TURN_LANGUAGES = shares(en=3, zh=2)
TURNS = (2, 2, 2, 2, 3, 3, 3, 4, 4)
# The subject of a held-out question by its skill; the others are facts.
SUBJECT_OF = {
    "identity": "me", "arithmetic": "sum", "comparison": "comparison", "counting": "count",
}  # fmt: skip


class MultiTurnQuestion(NamedTuple):
    """One line of the file of held-out conversations; `conversations` are the earlier turns."""

    conversations: list[dict]
    question: str
    answer: str
    skill: str
    lang: str


def _turn(subject: str, rng: random.Random, decks: QuestionDecks) -> Turn:
    if subject == "greeting":
        return pick(rng, identity.GREETINGS[decks.lang])
    deal = {
        "me": decks.about_me,
        "fact": decks.fact,
        "sum": decks.sum,
        "comparison": decks.comparison,
        "count": decks.count,
    }
    return deal[subject]()


def _as_messages(turns: list[Turn]) -> list[dict]:
    return [
        {"role": role, "content": content}
        for turn in turns
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]


def make_decks(rng: random.Random) -> dict[str, QuestionDecks]:
    """Training questions in both languages."""
    return {lang: QuestionDecks(rng, lang) for lang in LANGUAGES}


def changing_turns(
    rng: random.Random, decks: dict[str, QuestionDecks], count: int, before: str | None = None
) -> list[Turn]:
    """`count` turns: each changes the subject, and nearly every other one the language.

    before: the subject of a turn that will stand behind them; the last of them has another.
    """
    turns: list[Turn] = []
    for _ in range(count):
        before = pick(rng, [s for s in SUBJECTS if s != before])
        turns.insert(0, _turn(before, rng, decks[pick(rng, TURN_LANGUAGES)]))
    return turns


def changing_conversations(seed: int) -> list[list[dict]]:
    """Return the conversations of `sft.jsonl` that change subject and language.

    Two to four turns, behind which one in five has thanks or a farewell.
    """
    rng = make_rng(seed, "conversations that change")
    decks = make_decks(rng)
    result = []
    for _ in range(CONVERSATIONS):
        turns = changing_turns(rng, decks, pick(rng, TURNS))
        if chance(rng, 0.2):
            turns.append(pick(rng, identity.FAREWELLS[pick(rng, TURN_LANGUAGES)]))
        result.append(_as_messages(turns))
    return result


def multi_turn_questions(seed: int) -> list[MultiTurnQuestion]:
    """Return held-out questions, each after one to three turns on other subjects.

    The question itself is in no training file, so the conversation is not either.
    """
    rng = make_rng(seed, "held-out conversations")
    decks = make_decks(rng)
    result = []
    for lang in LANGUAGES:
        known = all_held_out(lang)
        for skill, count in HELD_OUT.items():
            for question in pick_several(rng, [q for q in known if q.skill == skill], count):
                subject = SUBJECT_OF.get(skill, "fact")
                turns = changing_turns(rng, decks, 1 + below(rng, 3), before=subject)
                result.append(MultiTurnQuestion(_as_messages(turns), *question))
    return result
