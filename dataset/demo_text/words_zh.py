"""Chinese word lists, and the small helpers that the Chinese stories are built with."""

import random
from typing import NamedTuple

from dataset.demo_text.choosing import chance, pick, pick_several, words

GIRLS = words(
    "小红 小丽 小梅 小雪 小芳 小玲 小兰 小月 小雨 小花 小静 小燕 婷婷 圆圆 朵朵 甜甜 丫丫 "
    "妞妞 乐乐 佳佳 莉莉 娜娜 欣欣 晴晴"
)
BOYS = words(
    "小明 小刚 小强 小军 小华 小亮 小勇 小杰 小龙 小东 小伟 小宝 小天 小石 大山 阳阳 浩浩 "
    "豆豆 壮壮 轩轩 鹏鹏 冬冬 亮亮 文文"
)
ANIMALS = words(
    "小兔子 小狐狸 小熊 小老鼠 小松鼠 小刺猬 小鸭子 小青蛙 小鹿 小乌龟 小山羊 小猴子 小猫 小狗 "
    "小猪 小象"
)
ANIMAL_NAMES = words("果果 毛毛 点点 球球 米米 灰灰 泡泡 团团 旺旺 奇奇 嘟嘟 贝贝")
TRAITS = words("可爱 善良 勇敢 害羞 好奇 快乐 聪明 活泼 安静 热心 温柔 勤劳 调皮")
COLOURS = words("红色 蓝色 绿色 黄色 橙色 紫色 粉色 白色 棕色 黑色")
WEATHER = words("晴朗 温暖 凉爽 美丽 安静 明亮")
FOODS = words("苹果 饼干 草莓 葡萄 香蕉 樱桃 橘子 面包 梨子 桃子")

# Toys with the measure word that each takes: 一个皮球, 一辆小汽车.
TOYS = (
    ("皮球", "个"),
    ("布娃娃", "个"),
    ("小汽车", "辆"),
    ("风筝", "只"),
    ("帽子", "顶"),
    ("图画书", "本"),
    ("铃铛", "个"),
    ("小木船", "只"),
    ("围巾", "条"),
    ("雨伞", "把"),
    ("小火车", "列"),
    ("书包", "个"),
    ("口琴", "支"),
    ("小鼓", "面"),
    ("玩具熊", "只"),
    ("机器人", "个"),
    ("水杯", "个"),
    ("陀螺", "个"),
    ("手套", "双"),
    ("飞机模型", "架"),
)


class Place(NamedTuple):
    """A place and the spots where something small can be found there."""

    name: str
    spots: tuple[str, ...]


PLACES = (
    Place("公园", ("长椅下面", "大树后面", "秋千旁边")),
    Place("花园", ("花盆后面", "玫瑰花旁边", "小门旁边")),
    Place("海边", ("石头后面", "沙堆旁边")),
    Place("森林", ("草丛里", "大树后面", "蘑菇旁边")),
    Place("农场", ("草堆里", "小车下面", "木桶后面")),
    Place("河边", ("石头后面", "小桥下面", "草丛里")),
    Place("市场", ("桌子下面", "箱子后面")),
    Place("图书馆", ("椅子下面", "书架后面", "窗户旁边")),
    Place("操场", ("滑梯下面", "沙坑里", "墙边")),
    Place("湖边", ("小船后面", "柳树下面")),
    Place("山坡", ("石头后面", "草丛里", "小树下面")),
    Place("动物园", ("长椅下面", "大门旁边")),
    Place("广场", ("水池旁边", "长椅下面")),
    Place("果园", ("梯子下面", "果树后面")),
)


class Person(NamedTuple):
    """A character: what it is ("小女孩"), its pronoun, and how the story first names it."""

    name: str
    kind: str
    ta: str


class Story(NamedTuple):
    """A finished story, its hero's name, and what it is about."""

    topic: str
    hero: str
    text: str


MUM = Person("妈妈", "妈妈", "她")
DAD = Person("爸爸", "爸爸", "他")
GRANDMA = Person("奶奶", "奶奶", "她")
GRANDPA = Person("爷爷", "爷爷", "他")
PARENTS = (MUM, DAD)
GROWN_UPS = (MUM, DAD, GRANDMA, GRANDPA)


def children(rng: random.Random, count: int) -> list[Person]:
    """Return `count` children with different names."""
    names = pick_several(rng, GIRLS + BOYS, count)
    return [Person(n, "小女孩", "她") if n in GIRLS else Person(n, "小男孩", "他") for n in names]


def animals(rng: random.Random, count: int) -> list[Person]:
    """Return `count` animals of different kinds, called by their kind and name: 小兔子果果."""
    kinds = pick_several(rng, ANIMALS, count)
    names = pick_several(rng, ANIMAL_NAMES, count)
    return [Person(n, k, "它") for n, k in zip(names, kinds, strict=True)]


def they(x: Person, y: Person) -> str:
    """Return the word for two people: 她们 only if both are female."""
    return "她们" if (x.ta, y.ta) == ("她", "她") else "他们"


def intro(rng: random.Random, hero: Person) -> str:
    """Return a first sentence that presents the hero."""
    trait = pick(rng, TRAITS)
    one = "一个" if hero.ta != "它" else "一头" if hero.kind == "小象" else "一只"
    home = "森林" if hero.ta == "它" else "村子"
    return pick(
        rng,
        (
            f"从前，有{one}{trait}的{hero.kind}，名字叫{hero.name}。",
            f"{hero.name}是{one}{trait}的{hero.kind}。",
            f"很久以前，有{one}{trait}的{hero.kind}，大家都叫{hero.ta}{hero.name}。",
            f"{home}里住着{one}{trait}的{hero.kind}，{hero.ta}叫{hero.name}。",
        ),
    )


def one_day(rng: random.Random) -> str:
    """Return the words that begin the action: 一个晴朗的早上，"""
    if chance(rng, 0.5):
        return pick(rng, ("有一天，", "一天早上，", "一天下午，"))
    return f"一个{pick(rng, WEATHER)}的{pick(rng, ('早上', '下午'))}，"


def tell(rng: random.Random, script: str) -> str:
    """Return the story that a script tells.

    A line that starts with "- " is the next beat, one that starts with "| " is another way to tell
    the same beat, and any other line continues the one above. One way of each beat is chosen, and
    some stories are split into paragraphs.
    """
    beats: list[list[str]] = []
    for line in script.strip().splitlines():
        line = line.strip()
        if line.startswith("- "):
            beats.append([line[2:]])
        elif line.startswith("| "):
            beats[-1].append(line[2:])
        else:
            beats[-1][-1] += line
    told = [pick(rng, ways) for ways in beats]
    if chance(rng, 0.6):
        return "".join(told)
    half = len(told) // 2
    return "".join(told[:half]) + "\n" + "".join(told[half:])
