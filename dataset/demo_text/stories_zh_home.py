"""Chinese stories at home: mistakes, fears, presents, seeds, baking and learning something new.

The plots follow the same rule as the English ones: what is chosen first stays the same to the end.
"""

import random

from dataset.demo_text.choosing import pick
from dataset.demo_text.words_zh import (
    COLOURS,
    GROWN_UPS,
    Story,
    children,
    intro,
    one_day,
    tell,
    they,
)


def broken_thing(rng: random.Random) -> Story:
    (hero,) = children(rng, 1)
    owner = pick(rng, GROWN_UPS)
    thing, measure = pick(
        rng,
        (
            ("花瓶", "个"),
            ("杯子", "个"),
            ("盘子", "个"),
            ("台灯", "盏"),
            ("茶壶", "把"),
            ("镜子", "面"),
        ),
    )
    colour = pick(rng, COLOURS)
    text = tell(
        rng,
        f"""
        - {intro(rng, hero)}
        - {owner.name}有一{measure}{colour}的{thing}，非常漂亮。
        - {one_day(rng)}{hero.name}在屋子里踢球。
        | {one_day(rng)}{hero.name}在屋子里跑来跑去。
        - “啪！”{thing}掉在地上，碎了。
        | {hero.ta}撞到了桌子，{thing}掉下来摔碎了。
        - {hero.name}很害怕，想把碎片藏起来。
        | {hero.name}的心跳得很快，{hero.ta}想说是小猫打碎的。
        - 可是{hero.ta}知道，说谎是不对的。
        | 但是{hero.ta}想了想，决定说实话。
        - {hero.ta}走到{owner.name}面前，说：“对不起，{thing}是我打碎的。”
        | {hero.ta}找到{owner.name}，小声说：“我打碎了你的{thing}，对不起。”
        - {owner.name}没有生气，{owner.ta}摸了摸{hero.name}的头。
        | {owner.name}看着{hero.ta}，慢慢地笑了。
        - “谢谢你告诉我真话，”{owner.name}说，“你是个诚实的孩子。”
        | “{thing}碎了没关系，”{owner.name}说，“诚实更重要。”
        - {hero.name}和{owner.name}一起把地扫干净了。
        | {they(hero, owner)}一起把碎片收拾好。
        - 从那以后，{hero.name}只在外面玩球和跑步。
        | {hero.name}明白了，做错事要勇敢地说出来。
        """,
    )
    return Story(f"打碎的{thing}", hero.name, text)


def afraid_of_the_dark(rng: random.Random) -> Story:
    (hero,) = children(rng, 1)
    helper = pick(rng, GROWN_UPS)
    monster = pick(rng, ("大怪物", "大灰狼", "大黑熊", "巨人"))
    thing = pick(rng, ("椅子上的一件大衣", "一堆玩具", "门后的一个书包", "被风吹动的窗帘"))
    text = tell(
        rng,
        f"""
        - {intro(rng, hero)}
        - {hero.ta}什么都不怕，就是怕黑。
        | 白天{hero.ta}很勇敢，可是到了晚上，{hero.ta}就怕黑。
        - 一天夜里，{hero.name}醒来，看见墙边有一个黑影，好像一个{monster}。
        | 一天晚上，{hero.name}看见屋角有一个高高的影子，好像一个{monster}。
        - “{helper.name}！{helper.name}！”{hero.ta}大声喊。
        | {hero.ta}用被子盖住头，叫{helper.name}快来。
        - {helper.name}走进来，坐在床边，拉住{hero.ta}的手。
        | {helper.name}马上来了，轻轻抱住{hero.ta}。
        - “我们一起看看吧。”{helper.name}说着，打开了灯。
        | {helper.name}打开灯，说：“你再看看。”
        - 原来那只是{thing}！
        | 哪里有什么{monster}，那只是{thing}。
        - {hero.name}笑了起来。
        | {hero.name}和{helper.name}都笑了。
        - {helper.name}送给{hero.ta}一盏像星星一样的小灯。
        | {helper.name}拉开窗帘，说：“你看，月亮整夜都陪着你。”
        - 那天晚上，{hero.name}睡得很香。
        | 从那以后，{hero.name}再也不怕黑了。
        """,
    )
    return Story("怕黑的孩子", hero.name, text)


def planting_seeds(rng: random.Random) -> Story:
    hero, friend = children(rng, 2)
    giver = pick(rng, GROWN_UPS)
    plant, result = pick(
        rng,
        (
            ("向日葵", "一朵金黄的向日葵"),
            ("西红柿", "许多红红的西红柿"),
            ("南瓜", "一个又大又圆的南瓜"),
            ("豆子", "一串串绿绿的豆子"),
            ("草莓", "一颗颗又红又甜的草莓"),
            ("西瓜", "一个又大又甜的西瓜"),
        ),
    )
    text = tell(
        rng,
        f"""
        - {intro(rng, hero)}
        - {one_day(rng)}{giver.name}给了{hero.ta}一粒{plant}种子，说：“你要好好照顾它。”
        | {one_day(rng)}{giver.name}把一粒{plant}种子放在{hero.ta}的手心里。
        - {hero.name}在土里挖了一个小洞，把种子放进去，再浇上水。
        | {hero.name}把种子种在院子里，那里的阳光很暖和。
        - 第一天，什么也没有。第二天，还是什么也没有。
        | 每天早上{hero.ta}都去看，可是只看见黑黑的泥土。
        - “你的种子不会发芽了。”{hero.ta}的朋友{friend.name}说。
        | “它什么时候才能长出来呢？”{hero.ta}的朋友{friend.name}问。
        - “我们要有耐心。”{hero.name}说。
        | “{giver.name}说，好东西要慢慢等。”{hero.name}回答。
        - {hero.name}每天都给种子浇水。
        - 终于有一天，土里长出了一片小小的绿叶！
        | 过了一个星期，一棵小苗从土里钻了出来。
        - 小苗喝着雨水，晒着太阳，一天一天长高了。
        | 小苗越长越高，越长越壮。
        - 夏天结束的时候，{hero.name}得到了{result}。
        - “你说得对，要有耐心。”{friend.name}说。{hero.name}开心地笑了。
        | {giver.name}说：“你把它照顾得真好，我为你骄傲。”
        | {hero.name}也送给{friend.name}一粒种子。
        """,
    )
    return Story(f"一粒{plant}种子", hero.name, text)


def gift(rng: random.Random) -> Story:
    (hero,) = children(rng, 1)
    loved = pick(rng, GROWN_UPS)
    wish, made, thing = pick(
        rng,
        (
            ("一条项链", "用贝壳穿成一串项链", "贝壳项链"),
            ("一束花", "用彩纸折了一束花", "纸花"),
            ("一张卡片", "用纸做了一张有爱心的卡片", "卡片"),
            ("一幅画", "画了一幅全家人的画", "画"),
            ("一个盒子", "把一个小木盒涂上了颜色", "小木盒"),
        ),
    )
    text = tell(
        rng,
        f"""
        - {intro(rng, hero)}
        - 明天是{loved.name}的生日，{hero.name}想送{loved.ta}{wish}。
        - 可是{hero.ta}只有一块钱，不够买。
        | 可是商店里的太贵了，{hero.ta}买不起。
        - {hero.name}有点难过，慢慢地走回家。
        | “我能送什么呢？”{hero.name}想。
        - 忽然，{hero.ta}有了一个好主意：“我可以自己做！”
        | 后来{hero.ta}笑了：“自己做的礼物也很好。”
        - {hero.ta}坐下来，{made}。
        - {hero.ta}做了整整一个下午。
        | {hero.ta}做得很认真，一直做到睡觉的时候。
        - 第二天，{hero.name}把{thing}送给{loved.name}，说：“生日快乐！”
        | 第二天早上，{hero.name}对{loved.name}说：“生日快乐！”然后拿出了{thing}。
        - “这是你自己做的吗？真漂亮！”{loved.name}说。
        | {loved.name}高兴得流下了眼泪：“这是最好的礼物。”
        - {hero.name}开心极了，因为用爱做的礼物最珍贵。
        | 一家人一起吃了生日蛋糕，大家都很高兴。
        """,
    )
    return Story(f"送给{loved.name}的礼物", hero.name, text)


def learning(rng: random.Random) -> Story:
    (hero,) = children(rng, 1)
    helper = pick(rng, GROWN_UPS)
    skill, place, fail, success = pick(
        rng,
        (
            ("骑自行车", "公园里", "骑了几步就摔倒了", "骑得又快又稳"),
            ("游泳", "游泳池里", "喝了一口水", "像小鱼一样游了起来"),
            ("滑冰", "冰场上", "一下子滑倒了", "在冰上转了一个圈"),
            ("跳绳", "院子里", "绊了一下", "一口气跳了二十下"),
            ("打鼓", "房间里", "打得乱七八糟", "打出了好听的节奏"),
        ),
    )
    text = tell(
        rng,
        f"""
        - {intro(rng, hero)}
        - {hero.ta}很想学{skill}。
        - {one_day(rng)}{helper.name}在{place}教{hero.ta}{skill}。
        - 第一次，{hero.name}{fail}。
        | {hero.name}试了试，结果{fail}。
        - “太难了，我学不会。”{hero.ta}说。
        | {hero.name}快要哭了：“我不想学了。”
        - {helper.name}笑着说：“我小时候也是这样。再试一次吧。”
        | “没关系，谁都会失败，”{helper.name}说，“慢慢来。”
        - {hero.name}擦干眼泪，又试了一次。
        | {hero.name}深深地吸了一口气，重新开始。
        - 第二天，第三天，每天都练习。
        | 一次，两次，三次，{hero.ta}没有放弃。
        - 终于，{hero.name}{success}！
        - “我学会了！”{hero.ta}高兴地喊。
        | {helper.name}拍着手说：“你真棒！”
        - {hero.name}明白了，只要不放弃，就能学会。
        | 现在，{skill}是{hero.ta}最喜欢的事。
        """,
    )
    return Story(f"学{skill}", hero.name, text)


def salty_cake(rng: random.Random) -> Story:
    (hero,) = children(rng, 1)
    helper = pick(rng, GROWN_UPS)
    cake = pick(rng, ("苹果蛋糕", "草莓蛋糕", "巧克力蛋糕", "香蕉蛋糕"))
    text = tell(
        rng,
        f"""
        - {intro(rng, hero)}
        - {one_day(rng)}{hero.ta}想给{helper.name}做一个{cake}。
        - {hero.ta}把面粉、鸡蛋和牛奶放进大碗里。
        | {hero.ta}拿来一个大碗和一把勺子，开始搅拌。
        - 桌上有两个罐子，{hero.ta}没有看清楚，把盐当成了糖。
        - 不一会儿，蛋糕做好了，闻起来很香。
        - {helper.name}吃了一口，脸上的样子很奇怪。
        | {helper.name}吃了一小块，说：“哎呀，好咸！”
        - {hero.name}也尝了一口，难过得想哭。
        | “我放错了，放的是盐！”{hero.name}的脸红了。
        - {helper.name}笑着说：“没关系，谁都会做错事。”
        | {helper.name}抱了抱{hero.ta}，说：“我们再做一个吧。”
        - 这一次，{hero.name}先尝了尝糖，再放进碗里。
        - 新的{cake}又甜又软，大家都吃完了。
        | 第二个{cake}非常好吃。
        - {helper.name}说：“这是世界上最好吃的蛋糕。”
        | {hero.name}记住了，做事要细心。
        | {hero.name}很高兴自己没有放弃。
        """,
    )
    return Story(f"一个{cake}", hero.name, text)


PLOTS = (
    broken_thing,
    afraid_of_the_dark,
    planting_seeds,
    gift,
    learning,
    salty_cake,
)
