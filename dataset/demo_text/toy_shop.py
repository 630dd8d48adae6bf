"""A new narrow skill for `lora.jsonl`: the catalogue of a toy shop that exists only here.

Prices, boxes and colours are made up, so neither pretraining nor fine-tuning contains them; the
words are those of the pretraining text. An adapter does not touch the embeddings, and those of
words that were never read are all alike: no adapter could tell them apart.
"""

from dataset.demo_text.choosing import Deck, below, make_rng, pick, shuffled
from dataset.demo_text.conversations import messages
from dataset.demo_text.facts import (
    answer,
    facts_of,
    follow_ups,
    held_out_question,
    relation,
    training_questions,
)
from dataset.demo_text.questions import Question, QuestionDecks

FOLLOW_EN = ("And the {s}?", "What about the {s}?")
FOLLOW_ZH = ("那{s}呢？", "{s}呢？")

RELATIONS_EN = (
    relation(
        "price", "price", "",
        "The {s} is {v} coins.",
        """How much is the {s}?
        What does the {s} cost?
        How many coins is the {s}?
        Tell me how much the {s} is.
        How much does the {s} cost?
        How many coins does the {s} cost?""",
        "toy boat: 12; toy drum: 20; toy ball: 7; toy kite: 9; toy train: 5; toy bear: 18;"
        "toy doll: 14; toy tower: 16; toy whale: 3; toy rabbit: 15; toy duck: 11; toy horse: 8",
        FOLLOW_EN,
    ),
    relation(
        "box", "place", "",
        "The {s} is in box {v}.",
        """Where is the {s}?
        Which box is the {s} in?
        In which box is the {s}?
        Tell me where the {s} is.
        Where can I find the {s}?
        What box is the {s} in?""",
        "toy boat: 1; toy drum: 3; toy ball: 2; toy kite: 6; toy train: 4; toy bear: 1;"
        "toy doll: 5; toy tower: 2; toy whale: 3; toy rabbit: 6; toy duck: 5; toy horse: 4",
        FOLLOW_EN,
    ),
    relation(
        "toy_colour", "colour", "",
        "The {s} is {v}.",
        """What colour is the {s}?
        What is the colour of the {s}?
        Which colour is the {s}?
        Tell me the colour of the {s}.
        What colour does the {s} have?
        Can you tell me the colour of the {s}?""",
        "toy boat: red; toy drum: blue; toy ball: green; toy kite: white; toy train: purple;"
        "toy bear: black; toy doll: orange; toy tower: brown; toy whale: yellow;"
        "toy rabbit: grey; toy duck: pink; toy horse: red",
        FOLLOW_EN,
    ),
)  # fmt: skip

RELATIONS_ZH = (
    relation(
        "price", "price", "",
        "{s}要{v}块钱。",
        """{s}多少钱？
        {s}要多少块钱？
        你知道{s}多少钱吗？
        请告诉我{s}要多少钱。
        买{s}要几块钱？
        我想买{s}，要多少钱？""",
        "玩具小熊: 12; 玩具小鸭: 20; 玩具小鸟: 7; 玩具小狗: 9; 玩具小猫: 5; 玩具大象: 18;"
        "玩具风筝: 14; 玩具青蛙: 16; 玩具乌龟: 3; 玩具老鼠: 11",
        FOLLOW_ZH,
    ),
    relation(
        "box", "place", "",
        "{s}在第{v}个盒子里。",
        """{s}在哪里？
        {s}在第几个盒子里？
        {s}放在哪个盒子里？
        请告诉我{s}在哪里。
        在哪个盒子里能找到{s}？
        哪个盒子里有{s}？""",
        "玩具小熊: 1; 玩具小鸭: 3; 玩具小鸟: 2; 玩具小狗: 6; 玩具小猫: 4; 玩具大象: 1;"
        "玩具风筝: 5; 玩具青蛙: 2; 玩具乌龟: 3; 玩具老鼠: 5",
        FOLLOW_ZH,
    ),
    relation(
        "toy_colour", "colour", "",
        "{s}是{v}的。",
        """{s}是什么颜色的？
        {s}的颜色是什么？
        {s}是哪种颜色？
        请告诉我{s}的颜色。
        你知道{s}的颜色吗？
        {s}看起来是什么颜色？""",
        "玩具小熊: 红色; 玩具小鸭: 蓝色; 玩具小鸟: 绿色; 玩具小狗: 白色; 玩具小猫: 紫色;"
        "玩具大象: 黑色; 玩具风筝: 橙色; 玩具青蛙: 棕色; 玩具乌龟: 黄色; 玩具老鼠: 粉色",
        FOLLOW_ZH,
    ),
)  # fmt: skip

CATALOGUE = {"en": facts_of(RELATIONS_EN, "en"), "zh": facts_of(RELATIONS_ZH, "zh")}
LORA_COUNTS = {"en": 680, "zh": 520}


def lora_conversations(seed: int) -> list[list[dict]]:
    """Return the conversations of `lora.jsonl`: four in five are about the toy shop."""
    result = []
    for lang in ("en", "zh"):
        rng = make_rng(seed, f"toy shop {lang}")
        catalogue = CATALOGUE[lang]
        deck = Deck(rng, [(fact, q) for fact in catalogue for q in training_questions(fact)])
        usual = QuestionDecks(rng, lang)
        for i in range(LORA_COUNTS[lang]):
            if i % 5 == 4:
                result.append(messages([usual.about_me() if i % 10 == 9 else usual.any()]))
                continue
            fact, question = deck.deal()
            turns = [(question, answer(fact))]
            others = [f for f in catalogue if f.relation == fact.relation and f != fact]
            same = [f for f in catalogue if f.subject == fact.subject and f != fact]
            if i % 5 == 1:
                other = pick(rng, others)
                turns.append((pick(rng, follow_ups(other)), answer(other)))
            if i % 5 == 2 and below(rng, 2):
                other = pick(rng, same)
                turns.append((pick(rng, training_questions(other)), answer(other)))
            result.append(messages(turns))
    return shuffled(make_rng(seed, "order of the toy shop"), result)


def lora_questions() -> list[Question]:
    """Return the held-out questions about the toy shop, one for every fact."""
    return [
        Question(held_out_question(fact), answer(fact), fact.relation.skill, lang)
        for lang in ("en", "zh")
        for fact in CATALOGUE[lang]
    ]
