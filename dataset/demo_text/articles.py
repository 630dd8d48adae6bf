"""Short passages that state facts: pages about one kind of fact, about one animal, quizzes."""

import random

from dataset.demo_text import facts_en, facts_zh
from dataset.demo_text.choosing import Deck, chance, pick, pick_several
from dataset.demo_text.facts import Fact, Relation, answer, statements, training_questions
from dataset.demo_text.words_en import GROWN_UPS, children
from dataset.demo_text.words_zh import children as children_zh

FACTS = {"en": facts_en.FACTS, "zh": facts_zh.FACTS}


class FactDecks:
    """Deals the facts of one language evenly, all together or one relation at a time."""

    def __init__(self, rng: random.Random, lang: str):
        facts = FACTS[lang]
        self.lang = lang
        self.all = Deck(rng, facts)
        relations: dict[str, list[Fact]] = {}
        for fact in facts:
            relations.setdefault(fact.relation.name, []).append(fact)
        self.by_relation = {name: Deck(rng, some) for name, some in relations.items()}
        # A relation is dealt in proportion to its size, so that every fact is told equally often;
        # a small one more often, because its pages are short.
        turns = [name for name, some in relations.items() for _ in range(max(5, len(some)))]
        self.relations = Deck(rng, turns)
        subjects: dict[str, list[Fact]] = {}
        for fact in facts:
            subjects.setdefault(_plain(fact.subject), []).append(fact)
        self.subjects = Deck(rng, [some for some in subjects.values() if len(some) >= 3])


def _plain(subject: str) -> str:
    """Return the subject without its article, so that "a dog" and "dog" are one animal."""
    for article in ("a ", "an ", "the "):
        if subject.startswith(article):
            return subject[len(article) :]
    return subject


def _space(lang: str) -> str:
    return " " if lang == "en" else ""


def _two_forms(rng: random.Random, fact: Fact) -> list[str]:
    """Return one statement of the fact, or two different ones."""
    return pick_several(rng, statements(fact), 1 if chance(rng, 0.5) else 2)


def relation_page(rng: random.Random, decks: FactDecks) -> str:
    """Return a page about one kind of fact: four to six facts, some told twice."""
    deck = decks.by_relation[decks.relations.deal()]
    hand: list[Fact] = deck.deal_several(min(5, len(deck.items)))
    relation: Relation = hand[0].relation
    parts = [relation.opening]
    for fact in hand:
        parts += _two_forms(rng, fact)
    return _space(decks.lang).join(parts)


def subject_page(rng: random.Random, decks: FactDecks) -> str:
    """Return a page about one animal (or thing) that several facts are known of."""
    facts: list[Fact] = decks.subjects.deal()
    name = _plain(facts[0].subject)
    opening = (
        pick(rng, (f"This page is about the {name}.", f"What do we know about the {name}?"))
        if decks.lang == "en"
        else pick(rng, (f"我们来认识{name}。", f"你了解{name}吗？"))
    )
    parts = [opening]
    for fact in pick_several(rng, facts, len(facts)):
        parts += pick_several(rng, statements(fact), 2)
    return _space(decks.lang).join(parts)


def quiz(rng: random.Random, decks: FactDecks) -> str:
    """Return a quiz between two children in which every answer is right."""
    hand: list[Fact] = decks.all.deal_several(4)
    if decks.lang == "zh":
        asker, other = children_zh(rng, 2)
        lines = [f"{asker.name}和{other.name}在玩问答游戏。"]
        for fact in hand:
            verb = pick(rng, ("说", "回答"))
            question = pick(rng, training_questions(fact))
            asked = "问" if question.endswith("？") else "说"
            lines.append(f"{asker.name}{asked}：“{question}”{other.name}{verb}：“{answer(fact)}”")
        lines.append(pick(rng, (f"“全对！”{asker.name}说。", f"{other.name}都答对了。")))
        return "".join(lines)
    asker, other = children(rng, 2)
    lines = [
        pick(
            rng,
            (
                f"{asker.name} and {other.name} were playing a quiz.",
                f"{asker.name} had some questions for {other.name}.",
                f"On the way to school, {asker.name} asked {other.name} many questions.",
            ),
        )
    ]
    for fact in hand:
        verb = pick(rng, ("said", "answered"))
        question = pick(rng, training_questions(fact))
        asked = "asked" if question.endswith("?") else "said"
        lines.append(f'{asker.name} {asked}, "{question}" {other.name} {verb}, "{answer(fact)}"')
    lines.append(pick(rng, (f'"All right!" said {asker.name}.', f"{other.name} knew them all.")))
    return " ".join(lines)


def notes(rng: random.Random, decks: FactDecks) -> str:
    """Return what a child learned today: facts of different kinds."""
    hand: list[Fact] = decks.all.deal_several(6)
    if decks.lang == "zh":
        hero = children_zh(rng, 1)[0]
        opening = pick(
            rng,
            (
                f"{hero.name}在本子上写下了今天学到的东西。",
                f"今天{hero.name}在学校学到了很多。",
                f"{hero.name}读了一本书，{hero.ta}记住了这些话。",
            ),
        )
        return opening + "".join(pick(rng, statements(fact)) for fact in hand)
    hero = children(rng, 1)[0]
    teacher = pick(rng, GROWN_UPS)
    opening = pick(
        rng,
        (
            f"{hero.name} wrote in a notebook what {hero.he} had learned.",
            f"Today {hero.name} learned many things at school.",
            f"{hero.name} read a book with {teacher.name}. This is what it said.",
        ),
    )
    return " ".join([opening] + [pick(rng, statements(fact)) for fact in hand])


# The forms of article, in the order in which they take turns.
FORMS = (relation_page, relation_page, quiz, notes, subject_page)
