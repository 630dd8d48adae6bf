"""Chinese stories about the animals of the forest."""

import random

from dataset.demo_text.choosing import pick
from dataset.demo_text.words_zh import (
    Story,
    animals,
    intro,
    one_day,
    tell,
)


def way_home(rng: random.Random) -> Story:
    baby, helper = animals(rng, 2)
    lure = pick(rng, ("一只蓝色的蝴蝶", "一只闪亮的甲虫", "一片飘落的树叶", "一只红色的小鸟"))
    mark = pick(rng, ("大橡树", "小木桥", "圆圆的池塘", "红色的大石头"))
    text = tell(
        rng,
        f"""
        - {intro(rng, baby)}
        - {baby.name}和妈妈住在{mark}旁边。
        - 妈妈常常说：“{baby.name}，不要走得太远。”
        - {one_day(rng)}{baby.name}看见{lure}，就追了上去。
        | {one_day(rng)}{baby.name}跟着{lure}跑进了树林。
        - 它跑啊跑，越跑越远。
        | 它一直往前跑，没有回头看。
        - 等它停下来的时候，{baby.name}发现自己迷路了。
        | 天快黑了，它找不到回家的路了。
        - “妈妈，你在哪里？”{baby.name}哭了起来。
        | {baby.name}又冷又怕，坐在地上哭。
        - {helper.kind}{helper.name}听见了，走过来问：“你怎么了？”
        | 这时候，{helper.kind}{helper.name}走了过来，问：“你为什么哭呀？”
        - “我迷路了，我的家在{mark}旁边。”{baby.name}说。
        - “我知道那个地方，跟我来吧。”{helper.name}说。
        | “别怕，那里不远，我带你回家。”{helper.name}说。
        - 它们走了一会儿，看见了{mark}。
        - 妈妈跑过来，紧紧抱住了{baby.name}。
        | 妈妈正在那里等着，她高兴地亲了亲{baby.name}。
        - “谢谢你，{helper.name}！”{baby.name}说。从此它们成了好朋友。
        | 从那以后，{baby.name}再也不一个人跑远了。
        """,
    )
    return Story(f"迷路的{baby.kind}", baby.name, text)


def race(rng: random.Random) -> Story:
    hero, rival, weak = animals(rng, 3)
    text = tell(
        rng,
        f"""
        - {one_day(rng)}森林里举行跑步比赛。
        - {hero.kind}{hero.name}想得第一名，{rival.kind}{rival.name}也想得第一名。
        | 跑得最快的是{hero.kind}{hero.name}和{rival.kind}{rival.name}。
        - “我一定会赢！”{rival.name}骄傲地说。
        | {rival.name}笑着说：“你们都太慢了。”
        - “一，二，三，跑！”大家一起跑了出去。
        - {hero.name}跑在最前面。忽然，它听见了哭声。
        | 快到终点的时候，{hero.name}听见有人在喊救命。
        - 原来是{weak.kind}{weak.name}摔倒了，脚很疼。
        | {weak.kind}{weak.name}倒在路边，站不起来了。
        - {rival.name}看了一眼，就跑过去了。
        | {rival.name}没有停下来。
        - {hero.name}却停下来，扶着{weak.name}慢慢走到终点。
        | 可是{hero.name}停了下来，说：“我来扶你。”
        - {rival.name}得了第一名，{hero.name}和{weak.name}是最后两名。
        - 但是大家都为{hero.name}鼓掌。
        | 大家说：“{hero.name}的心最善良。”
        - {rival.name}脸红了，它把奖杯送给{hero.name}，说：“你才是真正的冠军。”
        | {rival.name}很不好意思，走过来对{weak.name}说：“对不起。”
        """,
    )
    return Story("森林里的比赛", hero.name, text)


def winter(rng: random.Random) -> Story:
    hero, lazy = animals(rng, 2)
    food = pick(rng, ("果子", "粮食", "蘑菇", "胡萝卜", "种子"))
    text = tell(
        rng,
        f"""
        - {intro(rng, hero)}
        - 秋天，{hero.name}每天都忙着收集{food}，准备过冬。
        | 整个秋天，{hero.name}都在把{food}搬回家。
        - {lazy.kind}{lazy.name}却只知道玩和睡觉。
        | 它的邻居{lazy.kind}{lazy.name}每天都在唱歌。
        - “别忙了，来玩吧。”{lazy.name}说，“冬天还早呢。”
        | {lazy.name}问：“到处都有吃的，你为什么这么忙？”
        - “冬天很快就要来了。”{hero.name}回答。
        | {hero.name}说：“下雪以后，就找不到{food}了。”
        - 不久，大雪来了，森林变成了白色。
        | 一天夜里，北风吹来，早上到处都是白雪。
        - {lazy.name}又冷又饿，什么也找不到。
        | {lazy.name}的家里没有一点吃的。
        - 它只好去敲{hero.name}的门：“请帮帮我吧。”
        | 它来到{hero.name}的家，小声说：“我饿了。”
        - “快进来吧。”{hero.name}把{food}分给了它。
        | {hero.name}请它进来，给了它很多{food}。
        - “你说得对，”{lazy.name}说，“明年我和你一起干活。”
        | {lazy.name}说：“谢谢你，我再也不偷懒了。”
        - 第二年秋天，它们一起收集{food}。
        """,
    )
    return Story(f"过冬的{hero.kind}", hero.name, text)


def together(rng: random.Random) -> Story:
    hero, second, third = animals(rng, 3)
    thing, verb, reward = pick(
        rng,
        (
            ("一个大萝卜", "把萝卜拔出来", "萝卜汤"),
            ("一个大南瓜", "把南瓜搬回家", "南瓜饼"),
            ("一个大西瓜", "把西瓜运回家", "甜甜的西瓜"),
            ("一根大玉米", "把玉米抬回家", "香香的玉米"),
        ),
    )
    short = thing[3:]
    text = tell(
        rng,
        f"""
        - {one_day(rng)}{hero.kind}{hero.name}发现了{thing}。
        - 它想{verb}，可是{short}太重了。
        | 它用力地试了又试，可是没有办法{verb}。
        - {second.kind}{second.name}走过来说：“我来帮你。”
        | {hero.name}请{second.kind}{second.name}来帮忙。
        - 它们一起用力，可是{short}还是不动。
        | 它们两个都累了，{short}一点也没有动。
        - 这时候，{third.kind}{third.name}来了。
        | 它们又叫来了{third.kind}{third.name}。
        - “我的力气很小。”{third.name}说。
        - “没关系，大家一起来！”{hero.name}说。
        | {second.name}说：“我们一起用力，力气就大了。”
        - “一，二，三！”三个好朋友一起用力。
        - {short}慢慢地动了。它们终于能{verb}了！
        | 成功了！它们终于可以{verb}了。
        - 晚上，大家一起吃{reward}，非常开心。
        - {third.name}最高兴，因为力气小也能帮上忙。
        | 一个人做不到的事，大家一起就能做到。
        """,
    )
    return Story(thing, hero.name, text)


PLOTS = (
    way_home,
    race,
    winter,
    together,
)
