"""The documents of `pretrain.jsonl`: how many of each kind, shuffled, none of them twice."""

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

# Documents of each kind. Stories are most of the text; the others repeat a small world of facts
# often enough (forty times and more) for a model of five million parameters to learn it.
STORIES = {"en": 4250, "zh": 1700}
ARTICLES = {"en": 1500, "zh": 800}
SUMS = {"en": 1000, "zh": 600}
COMPARISONS = {"en": 400, "zh": 300}
COUNTING = {"en": 100, "zh": 80}
DIALOGUES = {"en": 200, "zh": 150}


def story(rng, lang: str):
    """Return one story (a `Story`) of a random plot."""
    return pick(rng, PLOTS[lang])(rng)


def pretraining_texts(seed: int) -> list[str]:
    """Return the documents of `pretrain.jsonl` in their final order."""
    texts: list[str] = []
    for lang in ("en", "zh"):
        rng = make_rng(seed, f"stories {lang}")
        texts += _different(STORIES[lang], lambda i, r=rng, g=lang: story(r, g).text)

        rng = make_rng(seed, f"articles {lang}")
        decks = articles.FactDecks(rng, lang)
        texts += _different(ARTICLES[lang], lambda i, r=rng, d=decks: articles.article(r, d, i))

        rng = make_rng(seed, f"sums {lang}")
        equations = Deck(rng, arithmetic.EQUATIONS)
        to_tell = Deck(rng, [q for q in arithmetic.EQUATIONS if q.op != "×"])

        def sums(i: int, r=rng, d=equations, t=to_tell, g=lang) -> str:
            if i % 4 == 3:
                return arithmetic.problems(r, t, g)
            return (arithmetic.lesson if i % 4 == 2 else arithmetic.page)(r, d, g)

        texts += _different(SUMS[lang], sums)

        rng = make_rng(seed, f"comparisons {lang}")
        pairs = Deck(rng, comparing.PAIRS)

        def compare(i: int, r=rng, d=pairs, g=lang) -> str:
            return comparing.quiz(r, d) if g == "en" and i % 3 == 2 else comparing.page(r, d, g)

        texts += _different(COMPARISONS[lang], compare)

        rng = make_rng(seed, f"counting {lang}")
        counts = Deck(rng, comparing.COUNTS)
        texts += _different(
            COUNTING[lang], lambda i, r=rng, d=counts, g=lang: comparing.counting(r, d, g)
        )

        rng = make_rng(seed, f"dialogues {lang}")
        texts += _different(DIALOGUES[lang], lambda i, r=rng, g=lang: dialogues.dialogue(r, g))
    return shuffled(make_rng(seed, "order of documents"), texts)


def _different(count: int, make) -> list[str]:
    """Return `count` different texts; `make(i)` is called again when it repeats itself."""
    texts: dict[str, None] = {}
    attempts = 0
    while len(texts) < count:
        assert attempts < 20 * count, "the templates are too few for so many different texts"
        texts[make(attempts)] = None
        attempts += 1
    return list(texts)
