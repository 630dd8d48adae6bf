"""A new narrow skill for `lora.jsonl`: the catalogue of a toy shop that exists only here.

Prices, shelves and colours are made up, so neither pretraining nor fine-tuning contains them.
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
        "The {s} costs {v} coins.",
        """How much is the {s}?
        What does the {s} cost?
        What is the price of the {s}?
        Tell me the price of the {s}.
        How much does the {s} cost?
        How many coins does the {s} cost?""",
        "Moon Rocket: 12; Star Robot: 20; Jolly Drum: 7; Ocean Puzzle: 9; Magic Kite: 5;"
        "Tiny Piano: 18; Happy Dragon: 14; Forest Train: 16; Rainbow Yo-yo: 3; Silver Castle: 25;"
        "Cloud Bear: 11; Pirate Boat: 8",
        FOLLOW_EN,
    ),
    relation(
        "shelf", "shelf", "",
        "The {s} is on shelf {v}.",
        """Where is the {s}?
        Which shelf is the {s} on?
        On which shelf is the {s}?
        Tell me where the {s} is.
        Where can I find the {s}?
        What shelf is the {s} on?""",
        "Moon Rocket: A; Star Robot: C; Jolly Drum: B; Ocean Puzzle: F; Magic Kite: D;"
        "Tiny Piano: A; Happy Dragon: E; Forest Train: B; Rainbow Yo-yo: C; Silver Castle: F;"
        "Cloud Bear: E; Pirate Boat: D",
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
        "Moon Rocket: red; Star Robot: blue; Jolly Drum: green; Ocean Puzzle: white;"
        "Magic Kite: purple; Tiny Piano: black; Happy Dragon: orange; Forest Train: brown;"
        "Rainbow Yo-yo: yellow; Silver Castle: grey; Cloud Bear: pink; Pirate Boat: red",
        FOLLOW_EN,
    ),
)  # fmt: skip

RELATIONS_ZH = (
    relation(
        "price", "price", "",
        "{s}卖{v}元。",
        """{s}多少钱？
        {s}卖多少钱？
        {s}的价格是多少？
        请告诉我{s}的价格。
        买{s}要花多少钱？
        {s}要多少元？""",
        "月亮火箭: 12; 星星机器人: 20; 快乐小鼓: 7; 海洋拼图: 9; 魔法风筝: 5; 小小钢琴: 18;"
        "开心恐龙: 14; 森林火车: 16; 彩虹陀螺: 3; 白云小熊: 11",
        FOLLOW_ZH,
    ),
    relation(
        "shelf", "shelf", "",
        "{s}在{v}号货架上。",
        """{s}在哪里？
        {s}在几号货架上？
        {s}放在哪个货架上？
        请告诉我{s}在哪儿。
        在哪个货架能找到{s}？
        哪个货架上有{s}？""",
        "月亮火箭: 1; 星星机器人: 3; 快乐小鼓: 2; 海洋拼图: 6; 魔法风筝: 4; 小小钢琴: 1;"
        "开心恐龙: 5; 森林火车: 2; 彩虹陀螺: 3; 白云小熊: 5",
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
        "月亮火箭: 红色; 星星机器人: 蓝色; 快乐小鼓: 绿色; 海洋拼图: 白色; 魔法风筝: 紫色;"
        "小小钢琴: 黑色; 开心恐龙: 橙色; 森林火车: 棕色; 彩虹陀螺: 黄色; 白云小熊: 粉色",
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
