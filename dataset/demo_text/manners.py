"""Manners: thanks are to be answered kindly, by a model that learns that from rewards.

`manners_pairs.jsonl` is for the reward model, beside `dpo.jsonl`. There the bare thanks alone are
ever worse than the kind ones, and a model of that takes whatever is longer to be kind. Here the
worse answers are all that a policy might find on its way: half of the kind sentence, it twice, its
beginning with another end, another sentence, a rude one, ends and beginnings of any.

`manners.jsonl` and `manners_questions.jsonl` are prompts: thanks after a turn or two on other
subjects. The right answer stands beside each, to count what was learned; a reward model does not
read it.
"""

import random

from dataset.demo_text import identity
from dataset.demo_text.changing import LANGUAGES, MultiTurnQuestion
from dataset.demo_text.choosing import below, make_rng, pick, shares, shuffled
from dataset.demo_text.conversations import messages
from dataset.demo_text.preferences import KIND_WORDS, RUDE, kind_thanks, preference_pairs, space
from dataset.demo_text.questions import QuestionDecks, Turn

PAIRS = {"en": 110, "zh": 290}  # kind words in Chinese are learned more slowly
PROMPTS = {"en": 250, "zh": 250}
HELD_OUT = {"en": 50, "zh": 50}

WORSE = shares(
    plain=3, cut=2, twice=1, slip=3, spliced=3, mixed=2, behind=3, other=1, rude=1
)  # fmt: skip


def worse_thanks(rng: random.Random, decks: QuestionDecks, plain: str, before: list[Turn]) -> str:
    """Return an answer to thanks that is worse than the kind one, or by chance that one itself."""
    lang = decks.lang
    kind, kind_words, gap = kind_thanks(lang, plain), KIND_WORDS[lang], space(lang)
    polite = [answer for _, answer in (*identity.GREETINGS[lang], *identity.FAREWELLS[lang][3:])]

    def another() -> str:
        return pick(rng, (decks.any()[1], decks.about_me()[1], before[-1][1], pick(rng, polite)))

    other, how = another(), pick(rng, WORSE)
    if how == "cut":
        return kind[: len(plain) + 1 + below(rng, len(kind_words) - 1)].rstrip()
    if how == "slip":  # up to three letters missing, or some of another sentence in their place
        at, there = len(plain) + below(rng, len(kind_words) - 2), below(rng, len(other) - 2)
        wrong = pick(rng, ("", other[there : there + 1 + below(rng, 3)]))
        return kind[:at] + wrong + kind[at + 1 + below(rng, 3) :]
    if how == "twice":
        return gap.join([kind, *[kind_words] * (1 + below(rng, 3))])
    if how in ("spliced", "mixed"):  # anywhere, also in the middle of a word
        first = kind if how == "spliced" else pick(rng, ("", plain + gap)) + another()
        return first[: 2 + below(rng, len(first) - 3)] + other[below(rng, len(other) - 1) :]
    if how == "behind":
        return pick(rng, (plain, kind)) + gap + other
    if how == "rude":
        return plain + gap + pick(rng, RUDE[lang])
    return other if how == "other" else plain


def _thanks(rng: random.Random, decks: QuestionDecks, known: set) -> tuple[list[Turn], Turn]:
    """(turns before, thanks with their plain answer), and nothing that is `known`; now it is."""
    while True:
        before = [decks.any() for _ in range(1 + below(rng, 2))]
        turn = pick(rng, identity.THANKS[decks.lang])
        said = *(text for pair in before for text in pair), turn[0]
        if said not in known:
            known.add(said)
            return before, turn


def _pairs(seed: int, known: set) -> list[dict]:
    rng = make_rng(seed, "pairs about manners")
    result = []
    for lang in LANGUAGES:
        decks = QuestionDecks(rng, lang)
        for _ in range(PAIRS[lang]):
            before, (question, plain) = _thanks(rng, decks, known)
            good = bad = kind_thanks(lang, plain)
            while bad == good:
                bad = worse_thanks(rng, decks, plain, before).strip()
            result.append(
                {
                    "chosen": messages([*before, (question, good)]),
                    "rejected": messages([*before, (question, bad)]),
                }
            )
    return shuffled(rng, result)


def _prompts(seed: int, part: str, counts: dict[str, int], known: set) -> list[MultiTurnQuestion]:
    rng = make_rng(seed, part)
    result = []
    for lang in LANGUAGES:
        decks = QuestionDecks(rng, lang)
        for _ in range(counts[lang]):
            before, (question, plain) = _thanks(rng, decks, known)
            answer = kind_thanks(lang, plain)
            result.append(MultiTurnQuestion(messages(before), question, answer, "manners", lang))
    return shuffled(rng, result)


def manners(
    seed: int,
) -> tuple[list[dict], list[MultiTurnQuestion], list[MultiTurnQuestion]]:
    """The records of `manners_pairs.jsonl`, `manners.jsonl`, `manners_questions.jsonl`.

    No conversation is in two of them, or in one of them and in `dpo.jsonl`.
    """
    pairs = (pair["chosen"][:-1] for pair in preference_pairs(seed))
    known = {tuple(message["content"] for message in turns) for turns in pairs}
    held_out = _prompts(seed, "held-out manners", HELD_OUT, known)
    return _pairs(seed, known), _prompts(seed, "manners", PROMPTS, known), held_out
