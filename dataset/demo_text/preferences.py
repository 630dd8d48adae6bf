"""The pairs of `dpo.jsonl`: the same question, one answer that is preferred and one that is not.

Two thirds are about quality: the rejected answer is wrong, rude, cut off or repeats itself. A model
that was fine-tuned well knows most of that already. The rest is about manners, where both answers
are right and the fine-tuned model has only ever seen the plain one: thanks are answered with one
more kind sentence, and a story says that it is over.

For questions the chosen answer is word for word the one of `sft.jsonl`, so preference training
does not move the answers that are checked exactly.
"""

import random

from dataset.demo_text import articles, identity
from dataset.demo_text.changing import LANGUAGES, changing_turns, make_decks
from dataset.demo_text.choosing import below, chance, make_rng, pick, shuffled
from dataset.demo_text.conversations import messages, story_request
from dataset.demo_text.facts import answer, training_questions
from dataset.demo_text.pretraining import story
from dataset.demo_text.questions import QuestionDecks

PAIR_COUNTS = {
    "fact": {"en": 190, "zh": 120},
    "any": {"en": 80, "zh": 60},
    "identity": {"en": 90, "zh": 60},  # what it is not reminded of, it forgets first
    "story": {"en": 130, "zh": 70},
    "turns": {"en": 55, "zh": 35},
    "thanks": {"en": 220, "zh": 150},
    "ending": {"en": 120, "zh": 60},
}

CHANGING = 60  # pairs after other subjects, in both languages

KIND_WORDS = {"en": "I am always happy to help you.", "zh": "能帮到你我很高兴。"}
STORY_ENDS = {"en": "The end.", "zh": "故事讲完了。"}
RUDE = {
    "en": (
        "I do not care.",
        "That is a stupid question.",
        "Go away and ask someone else.",
        "Leave me alone. I am tired of you.",
        "Why do you ask me that? Find it out yourself.",
    ),
    "zh": (
        "我不想理你。",
        "这个问题真笨。",
        "走开，去问别人吧。",
        "别烦我，我不想说。",
        "你自己去想，不要问我。",
    ),
}


def space(lang: str) -> str:
    return " " if lang == "en" else ""


def kind_thanks(lang: str, plain: str) -> str:
    """Return the preferred answer to thanks: the plain one and a kind sentence."""
    return plain + space(lang) + KIND_WORDS[lang]


def bad_answer(rng: random.Random, lang: str, good: str, wrong: str) -> str:
    """Return a rejected answer: rude, repeating itself, or the given wrong one."""
    kind = below(rng, 4)
    if kind == 0:
        return pick(rng, RUDE[lang])
    if kind == 1:
        return space(lang).join([good] * (3 + below(rng, 3)))
    if kind == 2:
        return good + space(lang) + pick(rng, RUDE[lang])
    return wrong


def bad_story(rng: random.Random, lang: str, text: str) -> str:
    """Return a rejected story: cut off in the middle, stuck in a loop, or ended rudely."""
    end = "." if lang == "en" else "。"
    sentences = text.replace("\n", space(lang)).split(end)
    half = end.join(sentences[: max(2, len(sentences) // 2)]) + end
    kind = below(rng, 3)
    if kind == 0:
        return half[: len(half) - 4 - below(rng, 12)].rstrip()
    if kind == 1:
        return space(lang).join([sentences[0] + end] * (4 + below(rng, 3)))
    return half + space(lang) + pick(rng, RUDE[lang])


def _fact_pair(rng: random.Random, lang: str):
    fact = pick(rng, articles.FACTS[lang])
    others = [
        f for f in articles.FACTS[lang] if f.relation == fact.relation and f.value != fact.value
    ]
    wrong = answer(fact._replace(value=pick(rng, others).value))
    good = answer(fact)
    return pick(rng, training_questions(fact)), good, bad_answer(rng, lang, good, wrong)


def _pair(kind: str, rng: random.Random, decks: QuestionDecks) -> dict:
    lang = decks.lang
    before: list[tuple[str, str]] = []
    if kind == "fact":
        question, good, bad = _fact_pair(rng, lang)
    elif kind == "story":
        tale = story(rng, lang)
        question, good = story_request(rng, lang, tale), tale.text
        bad = pick(rng, RUDE[lang]) if chance(rng, 0.2) else bad_story(rng, lang, good)
    elif kind == "ending":
        tale = story(rng, lang)
        question, bad = story_request(rng, lang, tale), tale.text
        good = bad + space(lang) + STORY_ENDS[lang]
    elif kind == "thanks":
        before = [decks.any() for _ in range(1 + below(rng, 2))]
        question, bad = pick(rng, identity.THANKS[lang])
        good = kind_thanks(lang, bad)
    elif kind in ("any", "identity"):
        question, good = decks.any() if kind == "any" else decks.about_me()
        bad = bad_answer(rng, lang, good, pick(rng, RUDE[lang]))
    else:
        *before, (question, good) = decks.fact_and_follow_ups(1 + below(rng, 2))
        bad = bad_answer(rng, lang, good, pick(rng, RUDE[lang]))
    return {
        "chosen": messages([*before, (question, good)]),
        "rejected": messages([*before, (question, bad)]),
    }


def _changing_pairs(seed: int) -> list[dict]:
    """Pairs whose rejected answer is that to the question before, or rude."""
    rng = make_rng(seed, "preferences that change")
    decks = make_decks(rng)
    result = []
    for _ in range(CHANGING):
        *before, (question, good) = changing_turns(rng, decks, 2 + below(rng, 2))
        rude = pick(rng, RUDE[pick(rng, LANGUAGES)])
        bad = before[-1][1] if before[-1][1] != good and below(rng, 2) else rude
        result.append(
            {
                "chosen": messages([*before, (question, good)]),
                "rejected": messages([*before, (question, bad)]),
            }
        )
    return result


def preference_pairs(seed: int) -> list[dict]:
    """Return the pairs of `dpo.jsonl` in their final order."""
    result = []
    for lang in ("en", "zh"):
        rng = make_rng(seed, f"preferences {lang}")
        decks = QuestionDecks(rng, lang)
        for kind, counts in PAIR_COUNTS.items():
            result += [_pair(kind, rng, decks) for _ in range(counts[lang])]
    result += _changing_pairs(seed)
    return shuffled(make_rng(seed, "order of preferences"), result)
