"""Thanks after a turn or two on other subjects: the prompts of `manners.jsonl`, and held-out ones.

What is to be learned from a reward model is to answer them kindly, as the chosen answers of
`dpo.jsonl` do. The right answer stands beside each, to count what was learned; a reward model does
not read it.
"""

from dataset.demo_text import identity
from dataset.demo_text.changing import LANGUAGES, MultiTurnQuestion
from dataset.demo_text.choosing import below, make_rng, pick, shuffled
from dataset.demo_text.conversations import messages
from dataset.demo_text.preferences import kind_thanks, preference_pairs
from dataset.demo_text.questions import QuestionDecks

PROMPTS = {"en": 300, "zh": 200}
HELD_OUT = {"en": 60, "zh": 40}


def _prompts(seed: int, part: str, counts: dict[str, int], known: set) -> list[MultiTurnQuestion]:
    """Prompts whose conversations are not in `known`, which then has them."""
    rng = make_rng(seed, part)
    result = []
    for lang in LANGUAGES:
        decks, wanted = QuestionDecks(rng, lang), len(result) + counts[lang]
        while len(result) < wanted:
            before = messages([decks.any() for _ in range(1 + below(rng, 2))])
            question, plain = pick(rng, identity.THANKS[lang])
            said = *(message["content"] for message in before), question
            if said not in known:
                known.add(said)
                answer = kind_thanks(lang, plain)
                result.append(MultiTurnQuestion(before, question, answer, "manners", lang))
    return shuffled(rng, result)


def manners(seed: int) -> tuple[list[MultiTurnQuestion], list[MultiTurnQuestion]]:
    """The prompts of `manners.jsonl` and of `manners_questions.jsonl`: no conversation twice.

    None of them is in `dpo.jsonl` either, of which a reward model is made.
    """
    pairs = (pair["chosen"][:-1] for pair in preference_pairs(seed))
    known = {tuple(message["content"] for message in turns) for turns in pairs}
    held_out = _prompts(seed, "held-out manners", HELD_OUT, known)
    return _prompts(seed, "manners", PROMPTS, known), held_out
