"""Small arithmetic, comparisons and counting: always computed, never written by hand.

Sums have both numbers in 1 .. 10, differences undo such a sum, products go up to 5 x 5. The answer
is the same in both languages ("3 + 4 = 7", then "." or "。"), so each equation is learned once.
"""

import random
from typing import NamedTuple

from dataset.demo_text.choosing import Deck, pick, words
from dataset.demo_text.words_en import children as children_en
from dataset.demo_text.words_zh import children as children_zh

WORDS_EN = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty twenty-one twenty-two twenty-three "
    "twenty-four twenty-five"
)
DIGITS_ZH = "零一二三四五六七八九"


def words_zh(n: int) -> str:
    """Return a number below 100 in Chinese characters: 七, 十二, 二十五."""
    tens, ones = divmod(n, 10)
    if tens == 0:
        return DIGITS_ZH[ones]
    return ("" if tens == 1 else DIGITS_ZH[tens]) + "十" + (DIGITS_ZH[ones] if ones else "")


class Sum(NamedTuple):
    """One equation: a (+, - or ×) b = c."""

    a: int
    op: str
    b: int
    c: int

    @property
    def left(self) -> str:
        return f"{self.a} {self.op} {self.b}"

    @property
    def equation(self) -> str:
        return f"{self.a} {self.op} {self.b} = {self.c}"


ADDITIONS = [Sum(a, "+", b, a + b) for a in range(1, 11) for b in range(1, 11)]
SUBTRACTIONS = [Sum(a + b, "-", b, a) for a in range(1, 11) for b in range(1, 11)]
PRODUCTS = [Sum(a, "×", b, a * b) for a in range(1, 6) for b in range(1, 6)]
EQUATIONS = ADDITIONS + SUBTRACTIONS + PRODUCTS

OPS_EN = {"+": "plus", "-": "minus", "×": "times"}
OPS_ZH = {"+": "加", "-": "减", "×": "乘以"}

QUESTIONS_EN = (
    "What is {e}?",
    "How much is {e}?",
    "Calculate {e}.",
    "What does {e} equal?",
    "Can you work out {e}?",
    "Tell me what {e} is.",
    "What is {p}?",
    "How much is {p}?",
    "What do you get for {e}?",
)
QUESTIONS_ZH = (
    "{e}等于几？",
    "{e}是多少？",
    "请计算{e}。",
    "{p}等于几？",
    "{p}是多少？",
    "请算一算{e}。",
    "请告诉我{e}得多少。",
)


def answer(equation: Sum, lang: str) -> str:
    """Return the one answer of the assistant: "3 + 4 = 7." or "3 + 4 = 7。"."""
    return equation.equation + ("." if lang == "en" else "。")


def _questions(equation: Sum, lang: str) -> list[str]:
    forms, ops = (QUESTIONS_EN, OPS_EN) if lang == "en" else (QUESTIONS_ZH, OPS_ZH)
    space = " " if lang == "en" else ""
    spoken = space.join((str(equation.a), ops[equation.op], str(equation.b)))
    return [form.format(e=equation.left, p=spoken) for form in forms]


# Which phrasings may be held out. A Chinese question that starts with a number is also the end of a
# longer one ("3 - 1等于几？" in "13 - 1等于几？"), so only those that start with a word are.
HOLDABLE = {"en": tuple(range(len(QUESTIONS_EN))), "zh": (2, 5, 6)}


def _held_out(equation: Sum, lang: str) -> int:
    forms = HOLDABLE[lang]
    return forms[(7 * equation.a + 4 * equation.b) % len(forms)]


def training_questions(equation: Sum, lang: str) -> list[str]:
    """Return the questions about this equation that training data may contain."""
    forms = _questions(equation, lang)
    skip = _held_out(equation, lang)
    return [form for i, form in enumerate(forms) if i != skip]


def held_out_question(equation: Sum, lang: str) -> str:
    """Return the question about this equation that no training file may contain."""
    forms = _questions(equation, lang)
    return forms[_held_out(equation, lang)]


def in_words_en(equation: Sum) -> str:
    """Return "three plus four" and the like."""
    a, b = WORDS_EN[equation.a], WORDS_EN[equation.b]
    return f"{a} {OPS_EN[equation.op]} {b}"


def sentence_en(rng: random.Random, q: Sum) -> str:
    """Return one English sentence that states the equation."""
    return pick(
        rng,
        (
            f"{q.equation}.",
            f"{q.equation}.",
            f"{q.equation}.",
            f"{q.a} {OPS_EN[q.op]} {q.b} is {q.c}.",
            f"{q.left} equals {q.c}.",
            f"{in_words_en(q).capitalize()} is {WORDS_EN[q.c]}.",
            f"{in_words_en(q).capitalize()} makes {WORDS_EN[q.c]}, so {q.equation}.",
        ),
    )


def sentence_zh(rng: random.Random, q: Sum) -> str:
    """Return one Chinese sentence that states the equation."""
    spoken = f"{q.a}{OPS_ZH[q.op]}{q.b}"
    return pick(
        rng,
        (
            f"{q.equation}。",
            f"{q.equation}。",
            f"{q.equation}。",
            f"{spoken}等于{q.c}。",
            f"{spoken}得{q.c}，所以{q.equation}。",
            f"{words_zh(q.a)}{OPS_ZH[q.op]}{words_zh(q.b)}等于{words_zh(q.c)}。",
        ),
    )


THINGS_EN = (
    ("apple", "apples"), ("shell", "shells"), ("book", "books"), ("stone", "stones"),
    ("coin", "coins"), ("pencil", "pencils"), ("nut", "nuts"), ("flower", "flowers"),
    ("card", "cards"), ("button", "buttons"),
)  # fmt: skip
THINGS_ZH = ("个苹果", "颗糖", "本书", "支铅笔", "块石头", "朵花", "张卡片", "个橘子")


def _some(n: int, thing: tuple[str, str]) -> str:
    return f"{n} {thing[0] if n == 1 else thing[1]}"


def word_problem_en(rng: random.Random, q: Sum) -> tuple[str, str, str]:
    """Return (what happens, the question, the answer sentence) for a sum or a difference."""
    hero, friend = children_en(rng, 2)
    thing = pick(rng, THINGS_EN)
    if q.op == "+":
        happens = f"{hero.name} has {_some(q.a, thing)}. {friend.name} gives {hero.him} {q.b} more."
    else:
        happens = f"{hero.name} has {_some(q.a, thing)} and gives {q.b} to {friend.name}."
    question = f"How many {thing[1]} does {hero.name} have now?"
    return happens, question, f"{hero.name} has {_some(q.c, thing)} now."


def word_problem_zh(rng: random.Random, q: Sum) -> tuple[str, str, str]:
    """Return (what happens, the question, the answer sentence) for a sum or a difference."""
    hero, friend = children_zh(rng, 2)
    thing = pick(rng, THINGS_ZH)
    if q.op == "+":
        happens = f"{hero.name}有{q.a}{thing}，{friend.name}又给了{hero.ta}{q.b}{thing[0]}。"
    else:
        happens = f"{hero.name}有{q.a}{thing}，送给{friend.name}{q.b}{thing[0]}。"
    question = f"{hero.name}现在有几{thing}？"
    return happens, question, f"{hero.name}现在有{q.c}{thing}。"


OPENINGS_EN = (
    "Here are some sums that everyone should know.",
    "Let us practise our numbers.",
    "This page is about numbers.",
    "{name} is doing homework. These are the answers.",
    "{name} wrote some sums on the board.",
)
OPENINGS_ZH = (
    "我们来做算术题。",
    "下面是一些算术题和答案。",
    "{name}正在做数学作业，答案是这样的。",
    "老师在黑板上写了几道题。",
)


def page(rng: random.Random, deck: Deck, lang: str) -> str:
    """Return a page of statements, about ten equations."""
    name = (children_en if lang == "en" else children_zh)(rng, 1)[0].name
    opening = pick(rng, OPENINGS_EN if lang == "en" else OPENINGS_ZH).format(name=name)
    hand = deck.deal_several(10)
    if lang == "en":
        return " ".join([opening] + [sentence_en(rng, q) for q in hand])
    return opening + "".join(sentence_zh(rng, q) for q in hand)


def lesson(rng: random.Random, deck: Deck, lang: str) -> str:
    """Return a short lesson in which one person asks for sums and another answers."""
    hand = deck.deal_several(4)
    if lang == "en":
        asker, pupil = children_en(rng, 2)
        lines = [f"{asker.name} and {pupil.name} were playing school."]
        for q in hand:
            verb = pick(rng, ("said", "answered"))
            question = pick(rng, training_questions(q, lang))
            said = "asked" if question.endswith("?") else "said"
            lines.append(f'{asker.name} {said}, "{question}" {pupil.name} {verb}, "{q.equation}."')
        praise = pick(rng, ("Very good", "All of them are right", "You are good with numbers"))
        lines.append(f'"{praise}," said {asker.name}.')
        return " ".join(lines)
    asker, pupil = children_zh(rng, 2)
    lines = [f"{asker.name}和{pupil.name}在玩上课的游戏。"]
    for q in hand:
        question = pick(rng, training_questions(q, lang))
        verb = pick(rng, ("说", "回答"))
        asked = "问" if question.endswith("？") else "说"
        lines.append(f"{asker.name}{asked}：“{question}”{pupil.name}{verb}：“{q.equation}。”")
    lines.append(f"“全都对了！”{asker.name}说。")
    return "".join(lines)


def problems(rng: random.Random, deck: Deck, lang: str) -> str:
    """Return three little word problems with their sums and answers."""
    parts = []
    for q in deck.deal_several(3):
        if lang == "en":
            happens, question, result = word_problem_en(rng, q)
            parts.append(f"{happens} {question} {q.equation}. {result}")
        else:
            happens, question, result = word_problem_zh(rng, q)
            parts.append(f"{happens}{question}{q.equation}。{result}")
    return "\n".join(parts)
