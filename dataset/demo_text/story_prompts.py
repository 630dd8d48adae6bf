"""Held-out story openings: the characters, place and object of an opening never met in training."""

from dataset.demo_text import words_en, words_zh
from dataset.demo_text.choosing import make_rng
from dataset.demo_text.pretraining import story

SENTENCE_ENDS = {"en": ". ", "zh": "。"}
MARKS = {
    "en": (
        *words_en.GIRLS, *words_en.BOYS, *words_en.ANIMAL_NAMES, *words_en.WOODLAND,
        *words_en.TOYS, *words_en.FOODS, *words_en.COLOURS,
        *(place.name.removeprefix("the ") for place in words_en.PLACES),
    ),
    "zh": (
        *words_zh.GIRLS, *words_zh.BOYS, *words_zh.ANIMAL_NAMES, *words_zh.ANIMALS,
        *words_zh.FOODS, *words_zh.COLOURS, *(toy for toy, _ in words_zh.TOYS),
        *(place.name for place in words_zh.PLACES),
    ),
}  # fmt: skip


def marks(text: str, lang: str) -> list[str]:
    """Return the names, places, objects and colours that occur in the text."""
    return [mark for mark in MARKS[lang] if mark in text]


def story_prompts(seed: int, texts: list[str]) -> list[dict]:
    """Return 40 openings whose combination of marks is in none of the pretraining texts."""
    prompts: list[dict] = []
    for lang, count in (("en", 26), ("zh", 14)):
        rng = make_rng(seed, f"story prompts {lang}")
        found: list[str] = []
        while len(found) < count:
            text = story(rng, lang).text.replace("\n", " " if lang == "en" else "")
            sentences = text.split(SENTENCE_ENDS[lang])
            prompt = SENTENCE_ENDS[lang].join(sentences[: 2 if lang == "en" else 3])
            prompt = prompt.rstrip() + SENTENCE_ENDS[lang].strip()
            words = marks(prompt, lang)
            if len(words) < 3 or prompt.count('"') % 2 or prompt.count("“") != prompt.count("”"):
                continue
            if not any(all(word in t for word in words) for t in texts):
                found.append(prompt)
        prompts += [{"prompt": prompt, "lang": lang} for prompt in found]
    return prompts
