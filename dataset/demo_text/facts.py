"""The small world of facts: its types, its sentences, and which questions are held out.

A relation ("capital") has pairs (France, Paris) and templates. In a template {s} is the subject,
{v} the value, {S} and {V} the same with a capital letter. The first statement is the canonical
one: it is the only answer that the assistant ever gives, so answers can be checked exactly.

Every fact has one held-out question: a phrasing that training uses for other facts of the same
relation but never for this one.
"""

from typing import NamedTuple


class Relation(NamedTuple):
    """Templates and pairs of one kind of fact."""

    name: str
    skill: str
    opening: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    follow_ups: tuple[str, ...]


class Fact(NamedTuple):
    """One pair of a relation, with the language it is told in."""

    relation: Relation
    lang: str
    subject: str
    value: str
    held_out_phrasing: int


def relation(name, skill, opening, statements, questions, pairs, follow_ups=()) -> Relation:
    """Build a relation from blocks of lines; `pairs` has "subject: value" entries, ";" between."""
    split = [tuple(part.strip() for part in pair.split(":")) for pair in pairs.split(";")]
    assert all(len(pair) == 2 for pair in split), name
    return Relation(
        name,
        skill,
        opening,
        tuple(line.strip() for line in statements.strip().splitlines()),
        tuple(line.strip() for line in questions.strip().splitlines()),
        tuple(split),
        tuple(follow_ups),
    )


def facts_of(relations, lang: str) -> list[Fact]:
    """Return every fact of the relations; held-out phrasings rotate through the phrasings."""
    return [
        Fact(rel, lang, subject, value, (3 * i + 1) % len(rel.questions))
        for rel in relations
        for i, (subject, value) in enumerate(rel.pairs)
    ]


def fill(template: str, fact: Fact) -> str:
    """Put the fact's subject and value into a template."""
    s, v = fact.subject, fact.value
    return template.format(s=s, v=v, S=s[0].upper() + s[1:], V=v[0].upper() + v[1:])


def statements(fact: Fact) -> list[str]:
    """Return the fact in every sentence form; the first is the canonical answer."""
    return [fill(template, fact) for template in fact.relation.statements]


def answer(fact: Fact) -> str:
    """Return the one answer that the assistant gives to a question about this fact."""
    return fill(fact.relation.statements[0], fact)


def training_questions(fact: Fact) -> list[str]:
    """Return the questions about this fact that training data may contain."""
    return [
        fill(template, fact)
        for i, template in enumerate(fact.relation.questions)
        if i != fact.held_out_phrasing
    ]


def held_out_question(fact: Fact) -> str:
    """Return the question about this fact that no training file may contain."""
    return fill(fact.relation.questions[fact.held_out_phrasing], fact)


def follow_ups(fact: Fact) -> list[str]:
    """Return short questions that only make sense after a question of the same relation."""
    return [fill(template, fact) for template in fact.relation.follow_ups]
