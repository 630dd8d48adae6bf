"""Chinese stories outdoors: lost things, sharing, kites, rain, new friends, hurt animals."""

import random

from dataset.demo_text.choosing import chance, pick
from dataset.demo_text.words_zh import (
    COLOURS,
    FOODS,
    PARENTS,
    PLACES,
    TOYS,
    Story,
    children,
    intro,
    one_day,
    tell,
    they,
)

KITE_PLACES = ("公园", "海边", "河边", "操场", "湖边", "山坡", "广场")


def lost_toy(rng: random.Random) -> Story:
    hero, friend = children(rng, 2)
    toy, measure = pick(rng, TOYS)
    place, colour = pick(rng, PLACES), pick(rng, COLOURS)
    spot = pick(rng, place.spots)
    if chance(rng, 0.5):
        found = f"忽然，{hero.name}看见{spot}有一样东西，正是那{measure}{colour}的{toy}！"
    else:
        found = f"忽然，{friend.name}在{spot}大声喊：“找到了！在这里！”"
    text = tell(
        rng,
        f"""
        - {intro(rng, hero)}
        - {hero.ta}有一{measure}{colour}的{toy}，走到哪里都带着。
        | {hero.ta}最喜欢的东西是一{measure}{colour}的{toy}。
        - {one_day(rng)}{hero.name}带着{toy}去{place.name}玩。
        | {one_day(rng)}{hero.name}拿着{toy}到了{place.name}。
        - {hero.ta}玩得很开心，可是回家的时候，{toy}不见了。
        | {hero.ta}跑了一会儿，回头一看，{toy}不见了。
        - “我的{toy}在哪里？”{hero.name}急得哭了起来。
        | {hero.name}非常难过，眼泪流了下来。
        - 好朋友{friend.name}走过来说：“别着急，我帮你一起找。”
        | {friend.name}听见了，问：“你怎么了？”{hero.name}把事情告诉了{friend.ta}。
        - {they(hero, friend)}在{place.name}找了很久。
        | 两个人沿着原来的路慢慢地找。
        - {found}
        - {hero.name}紧紧抱住{toy}，说：“谢谢你，{friend.name}！”
        | {hero.name}高兴地跳了起来，对{friend.name}说：“谢谢你！”
        - 从那以后，{hero.name}总是好好照顾自己的{toy}。
        | 后来，两个好朋友一起玩到太阳下山。
        """,
    )
    return Story(f"丢失的{toy}", hero.name, text)


def sharing(rng: random.Random) -> Story:
    hero, friend = children(rng, 2)
    food, place = pick(rng, FOODS), pick(rng, PLACES)
    text = tell(
        rng,
        f"""
        - {intro(rng, hero)}
        - {one_day(rng)}{hero.ta}带着一袋{food}去{place.name}。
        | {one_day(rng)}妈妈给了{hero.ta}一袋{food}，{hero.ta}带着它去{place.name}。
        - {hero.ta}肚子饿了，{food}闻起来很香。
        | {food}是{hero.ta}最喜欢吃的东西。
        - 这时候，{hero.ta}看见了{friend.name}。{friend.name}什么吃的也没有。
        | 这时候，{friend.name}走过来，坐在{hero.ta}旁边。
        - “我忘了带午饭。”{friend.name}说。
        | “我好饿啊。”{friend.name}小声说。
        - {hero.name}看了看手里的{food}，有一点舍不得。
        | {hero.name}想：如果分给别人，我就少了。
        - 可是{hero.ta}看到{friend.name}很饿，就把一半{food}分给了{friend.ta}。
        | 但是{hero.ta}还是把{food}分成两份，给了{friend.name}一份。
        - “谢谢你，你真好！”{friend.name}高兴地说。
        | {friend.name}笑着说：“谢谢你，{hero.name}！”
        - 两个人一边吃一边笑。
        | 两个人坐在一起，把{food}都吃完了。
        - 第二天，{friend.name}也带来了{food}，分给{hero.name}吃。
        | {hero.name}发现，和朋友一起吃的{food}更香。
        """,
    )
    return Story(f"分享{food}", hero.name, text)


def kite(rng: random.Random) -> Story:
    hero, friend = children(rng, 2)
    place, colour = (
        pick(rng, [p for p in PLACES if p.name in KITE_PLACES]),
        pick(rng, COLOURS),
    )
    shape = pick(rng, ("蝴蝶", "小鸟", "金鱼", "老鹰", "蜻蜓"))
    helper = pick(rng, PARENTS)
    text = tell(
        rng,
        f"""
        - {intro(rng, hero)}
        | {hero.name}和{friend.name}是好朋友。
        - {one_day(rng)}{hero.name}和{friend.name}去{place.name}放风筝。
        - 风筝是{colour}的，样子像{shape}。
        - {hero.name}拉着线跑，风筝越飞越高。
        | 风很大，风筝一下子飞上了天。
        - 忽然，线断了，风筝挂在了一棵大树上。
        | 忽然，一阵大风把风筝吹到了一棵高高的树上。
        - “怎么办？”{hero.name}快要哭了。
        | {hero.name}很着急，想自己爬上树。
        - “爬树太危险了，”{friend.name}说，“我们去找{helper.name}帮忙吧。”
        | {friend.name}说：“别爬，会摔下来的。我们请{helper.name}来帮忙。”
        - {helper.name}拿来一根长长的竹竿，把风筝轻轻地取了下来。
        | {helper.name}搬来梯子，小心地把风筝拿了下来。
        - 风筝破了一个小洞，大家用纸把它补好了。
        | 风筝没有坏，只是线断了，大家换上了新的线。
        - 风筝又飞上了天，大家都笑了。
        | “谢谢{helper.name}！”{hero.name}高兴地说。
        """,
    )
    return Story(f"{shape}风筝", hero.name, text)


def new_friend(rng: random.Random) -> Story:
    hero, other = children(rng, 2)
    game = pick(rng, ("捉迷藏", "踢球", "跳绳", "下棋", "搭积木"))
    where = pick(rng, ("公园里", "操场上", "广场上", "教室里", "院子里"))
    text = tell(
        rng,
        f"""
        - {other.name}刚搬到这里，谁也不认识。
        | 班里来了一个新同学，{other.ta}叫{other.name}。
        - {one_day(rng)}{other.name}一个人站在{where}，看着别的孩子玩。
        - {other.ta}也想玩，可是{other.ta}很害羞，不敢开口。
        | {other.ta}低着头，看着自己的鞋子。
        - {hero.name}看见了，想：一个人多孤单啊。
        | {hero.name}想起来，自己刚来的时候也是这样。
        - {hero.ta}走过去，笑着说：“你好，我叫{hero.name}。你叫什么名字？”
        | 于是{hero.ta}走过去说：“我是{hero.name}，你呢？”
        - “我叫{other.name}。”{other.ta}小声回答。
        - “你想和我们一起{game}吗？”{hero.name}问。
        | “我们一起{game}吧！”{hero.name}说。
        - “好啊！”{other.name}的眼睛亮了起来。
        | {other.name}用力点点头，第一次笑了。
        - 整个下午，大家玩得非常开心。
        | {other.name}不太会玩，{hero.name}就一步一步地教{other.ta}。
        - 回家的时候，{other.name}说：“明天见，{hero.name}！”
        | 晚上，{other.name}告诉妈妈：“我有朋友了。”
        - 从那天起，两个人成了好朋友。
        | 一句温暖的话，就能交到一个新朋友。
        """,
    )
    return Story("新朋友", hero.name, text)


def umbrella(rng: random.Random) -> Story:
    hero, friend = children(rng, 2)
    colour = pick(rng, ("红色", "蓝色", "黄色", "绿色", "紫色"))
    both = they(hero, friend)
    text = tell(
        rng,
        f"""
        - {intro(rng, hero)}
        - {one_day(rng)}{hero.ta}去上学，妈妈说：“带上雨伞吧。”
        | {one_day(rng)}妈妈看了看天，给{hero.ta}一把雨伞。
        - {hero.name}带上了那把{colour}的雨伞。
        - 放学的时候，天上忽然下起了大雨。
        | 下课以后，乌云来了，雨下得很大。
        - {friend.name}没有雨伞，站在门口等着。
        | {friend.name}看着大雨，不知道怎么回家。
        - {hero.name}走过去说：“我们一起走吧。”
        | “来，我的雨伞很大，我送你回家。”{hero.name}说。
        - {both}一起打着{colour}的雨伞，慢慢往前走。
        | {both}在雨里手拉着手走。
        - {hero.name}的衣服湿了一点，可是{hero.ta}心里很暖和。
        | 路上有很多小水坑，{both}一边走一边笑。
        - 到家了，{friend.name}说：“谢谢你，{hero.name}！”
        | {friend.name}的妈妈说：“{hero.name}，你真是个好孩子。”
        - 雨停了，天上出现了一道美丽的彩虹。
        | 从那天起，{both}每天都一起回家。
        """,
    )
    return Story("一把雨伞", hero.name, text)


def hurt_animal(rng: random.Random) -> Story:
    (hero,) = children(rng, 1)
    helper = pick(rng, PARENTS)
    animal, trouble, act, thanks = pick(
        rng,
        (
            (
                "小鸟",
                "它的翅膀受伤了，飞不起来",
                "用盒子给它做了一个窝，每天喂它吃米",
                "过了一个星期，小鸟的伤好了，飞上了蓝天",
            ),
            ("小猫", "它爬到了树上，下不来了", "搬来梯子，把它抱了下来", "小猫舔了舔{name}的手"),
            (
                "小狗",
                "它的脚被夹在木头中间",
                "搬开木头，把它的脚拉了出来",
                "小狗摇着尾巴，围着{name}跑",
            ),
            (
                "小鸭子",
                "它找不到妈妈了",
                "把它带到池塘边，它的妈妈就在那里",
                "小鸭子叫着游到了妈妈身边",
            ),
            (
                "小刺猬",
                "它掉进了一个深坑",
                "把一块木板放进坑里，让它爬了上来",
                "小刺猬回头看了看，跑进了草丛",
            ),
        ),
    )
    thanks = thanks.format(name=hero.name)
    text = tell(
        rng,
        f"""
        - {intro(rng, hero)}
        - {one_day(rng)}{hero.name}在回家的路上听见了细细的叫声。
        | {one_day(rng)}{hero.ta}正在外面玩，忽然听见了奇怪的声音。
        - 原来是一只{animal}。{trouble}。
        - “可怜的{animal}，我来帮你。”{hero.name}说。
        | “别怕，{animal}。”{hero.name}轻轻地说。
        - {hero.ta}一个人做不到，就跑回家叫{helper.name}。
        | {hero.ta}想了想，去请{helper.name}来帮忙。
        - {hero.name}和{helper.name}一起{act}。
        - {thanks}。
        - “你做得对，”{helper.name}说，“遇到困难要找人帮忙。”
        | {helper.name}说：“你真是一个善良的孩子。”
        - 那天晚上，{hero.name}梦见了那只{animal}。
        | {hero.name}永远忘不了那只{animal}。
        """,
    )
    return Story(f"一只{animal}", hero.name, text)


PLOTS = (
    lost_toy,
    sharing,
    kite,
    new_friend,
    umbrella,
    hurt_animal,
)
