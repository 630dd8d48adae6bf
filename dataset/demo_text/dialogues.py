"""Short everyday dialogues in prose: lending, shopping, asking the way, saying sorry, bedtime."""

import random

from dataset.demo_text import words_en, words_zh
from dataset.demo_text.choosing import pick
from dataset.demo_text.words_en import a

SMALL_NUMBERS = ("two", "three", "four", "five", "six")


def borrowing(rng: random.Random) -> str:
    x, y = words_en.children(rng, 2)
    toy, colour = pick(rng, words_en.TOYS), pick(rng, words_en.COLOURS)
    return words_en.tell(
        rng,
        f"""
        - {x.name} met {y.name} in the street.
        | {x.name} went to see {y.name}.
        - "Hello, {y.name}," said {x.name}.
        | "Good morning, {y.name}," said {x.name}.
        - "Hello, {x.name}. How are you?" asked {y.name}.
        - "I am fine, thank you. May I borrow your {colour} {toy}?" said {x.name}.
        | "Very well, thank you. Can you lend me your {colour} {toy}?" asked {x.name}.
        - "Of course," said {y.name}. "But please be careful with it."
        | "Yes," said {y.name}. "Please bring it back tomorrow."
        - "I will," said {x.name}.
        | "I promise," said {x.name}.
        - The next day, {x.name} brought the {toy} back.
        - "Thank you," {x.he} said. "You are welcome," said {y.name}.
        | {y.name} was glad, because the {toy} was clean and whole.
        """,
    )


def shopping(rng: random.Random) -> str:
    (x,) = words_en.children(rng, 1)
    sender, food = pick(rng, words_en.GROWN_UPS), pick(rng, words_en.FOODS)
    count, coins = pick(rng, SMALL_NUMBERS), pick(rng, SMALL_NUMBERS)
    return words_en.tell(
        rng,
        f"""
        - {sender.name} sent {x.name} to the market to buy {food}.
        - "Good morning," said {x.name}.
        | "Hello," said {x.name}.
        - "Good morning," said the woman. "What would you like?"
        | "Hello, dear," said the woman. "How can I help you?"
        - "I would like {count} {food}, please," said {x.name}.
        - "Here you are," said the woman. "That is {coins} coins."
        - {x.name} gave her {coins} coins and put the {food} in the bag.
        | {x.name} counted {coins} coins and took the {food}.
        - "Thank you. Goodbye!" {x.he} said.
        | "Thank you, and have a nice day!" {x.he} said.
        - At home, {x.name} gave the {food} to {sender.name}.
        - "Well done," said {sender.name}.
        | {sender.name} was pleased.
        """,
    )


def asking_the_way(rng: random.Random) -> str:
    x, y = words_en.children(rng, 2)
    place = pick(rng, words_en.PLACES)
    mark = pick(rng, ("church", "bakery", "old tree", "school", "post office", "well"))
    turn = pick(rng, ("left", "right"))
    return words_en.tell(
        rng,
        f"""
        - {x.name} wanted to go to {place.name}, but {x.he} did not know the way.
        - {x.He} saw {a(y.kind)} by the road.
        - "Excuse me," said {x.name}. "How do I get to {place.name}?"
        - "Go straight on and turn {turn} at the {mark}," said the {y.kind}.
        | "That is easy. Walk to the {mark} and turn {turn}," said the {y.kind}.
        - "Is it far?" asked {x.name}. "No, it is not far."
        | "Is it a long way?" asked {x.name}. "A little. But the way is nice."
        - "Thank you very much," said {x.name}. "What is your name?"
        - "I am {y.name}," said the {y.kind}. "I can come with you."
        - They walked to the {mark}, turned {turn}, and there was {place.name}.
        """,
    )


def saying_sorry(rng: random.Random) -> str:
    x, y = words_en.children(rng, 2)
    toy = pick(rng, words_en.TOYS)
    return words_en.tell(
        rng,
        f"""
        - {x.name} and {y.name} both wanted the {toy}.
        | {x.name} and {y.name} had only one {toy}.
        - "Give it to me!" shouted {x.name}.
        - "No, I want it too!" said {y.name}.
        | {y.name} began to cry.
        - Then {x.name} was quiet for a while.
        - "I am sorry, {y.name}," {x.he} said. "I was not nice to you."
        | "I should not shout at you," {x.he} said. "I am sorry."
        - "That is all right," said {y.name}.
        | "I am sorry too," said {y.name}.
        - "You can have the {toy} first, and then I can have it."
        | "We can play with the {toy} together."
        - "That is a good idea," said {x.name}.
        - And so they did.
        | Soon they were laughing again.
        """,
    )


def bedtime(rng: random.Random) -> str:
    (x,) = words_en.children(rng, 1)
    y = pick(rng, words_en.GROWN_UPS)
    topic = pick(rng, ("a bear", "a brave fox", "a small boat", "the moon", "a magic tree"))
    return words_en.tell(
        rng,
        f"""
        - "It is time for bed, {x.name}," said {y.name}.
        - "But I am not tired!" said {x.name}.
        | "Can I stay up a little longer?" asked {x.name}.
        - "The birds are asleep, and the flowers are asleep," said {y.name}.
        | "Tomorrow is a new day, and you need to rest," said {y.name}.
        - "Will you read me a story?" asked {x.name}.
        - "Yes, a short one. First brush your teeth."
        | "Of course. But first brush your teeth."
        - {x.name} brushed {x.his} teeth and got into bed.
        - {y.name} read a story about {topic}.
        - Before it was over, {x.name} was asleep.
        | "Good night, {y.name}," said {x.name}. "Good night, {x.name}," said {y.name}.
        """,
    )


def borrowing_zh(rng: random.Random) -> str:
    x, y = words_zh.children(rng, 2)
    thing, measure = pick(rng, (("铅笔", "支"), ("图画书", "本"), ("雨伞", "把"), ("尺子", "把")))
    colour = pick(rng, words_zh.COLOURS)
    return words_zh.tell(
        rng,
        f"""
        - {x.name}在学校遇见了{y.name}。
        | 早上，{x.name}来找{y.name}。
        - “你好，{y.name}！”{x.name}说。
        - “你好，{x.name}！你有什么事吗？”{y.name}问。
        - “我能借用一下你那{measure}{colour}的{thing}吗？”
        - “当然可以。”{y.name}说。
        | “可以，给你。”{y.name}回答。
        - “请小心一点用。”
        | “请明天还给我。”
        - “好的，谢谢你！”{x.name}说。“不客气。”{y.name}笑着说。
        - 第二天，{x.name}把{thing}还给了{y.name}。
        - {thing}还是好好的。
        | {y.name}很高兴，因为{x.name}说到做到。
        """,
    )


def shopping_zh(rng: random.Random) -> str:
    (x,) = words_zh.children(rng, 1)
    sender, food = pick(rng, words_zh.GROWN_UPS), pick(rng, words_zh.FOODS)
    price = pick(rng, "三四五六七八九")
    return words_zh.tell(
        rng,
        f"""
        - {sender.name}让{x.name}去商店买{food}。
        - “阿姨，您好！”{x.name}说。
        - “你好，小朋友，你要买什么？”阿姨问。
        - “我要买一袋{food}。”
        | “请给我一袋{food}。”
        - “给你，一共{price}块钱。”阿姨说。
        - {x.name}数了数钱，交给阿姨。
        | {x.name}拿出{price}块钱，交给阿姨。
        - “谢谢阿姨，再见！”
        | “谢谢您，再见！”
        - {x.name}高高兴兴地回家，把{food}交给{sender.name}。
        - “你真能干！”{sender.name}说。
        | {sender.name}笑着夸{x.ta}长大了。
        """,
    )


def asking_the_way_zh(rng: random.Random) -> str:
    x, y = words_zh.children(rng, 2)
    place = pick(rng, words_zh.PLACES)
    mark = pick(rng, ("学校", "商店", "邮局", "大树", "小桥", "医院"))
    turn = pick(rng, ("左", "右"))
    return words_zh.tell(
        rng,
        f"""
        - {x.name}想去{place.name}，可是{x.ta}不认识路。
        - {x.ta}看见路边有一个{y.kind}。
        - “请问，去{place.name}怎么走？”{x.name}问。
        - “一直往前走，到{mark}那里往{turn}转。”{y.kind}说。
        | “先走到{mark}，再往{turn}转就到了。”{y.kind}说。
        - “远不远？”{x.name}又问。“不远，很快就到。”
        | “要走很久吗？”{x.name}又问。“不要很久，我带你去吧。”
        - “谢谢你！你叫什么名字？”“我叫{y.name}。”
        - 两个人走到{mark}，往{turn}一转，就看见了{place.name}。
        """,
    )


SCENES_EN = (borrowing, shopping, asking_the_way, saying_sorry, bedtime)
SCENES_ZH = (borrowing_zh, shopping_zh, asking_the_way_zh)


def dialogue(rng: random.Random, lang: str) -> str:
    """Return one short dialogue."""
    return pick(rng, SCENES_EN if lang == "en" else SCENES_ZH)(rng)
