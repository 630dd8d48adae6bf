"""English stories about the animals of the forest: races, winter, helping and being helped."""

import random

from dataset.demo_text.choosing import chance, pick
from dataset.demo_text.words_en import (
    Story,
    a,
    animals,
    cap,
    intro,
    one_day,
    tell,
)


def forest_race(rng: random.Random) -> Story:
    hero, rival, weak = animals(rng, 3)
    prize = pick(rng, ("a golden cup", "a big cake", "a crown of flowers", "a jar of honey"))
    short = prize.split()[-1] if "crown" not in prize and "jar" not in prize else prize.split()[1]
    text = tell(
        rng,
        f"""
        - {one_day(rng)} the animals of the forest had a race. The prize was {prize}.
        - {hero.name} the {hero.kind} wanted to win. So did {rival.name} the {rival.kind}.
        | {hero.name} the {hero.kind} and {rival.name} the {rival.kind} had both trained for weeks.
        - "I will win, because I am the best," said {rival.name}.
        | "You are too slow for me," {rival.name} said, and {rival.he} laughed.
        - "Ready, steady, go!" They all ran as fast as they could.
        - {hero.name} was in front. Then {hero.he} heard a cry.
        | Near the end, {hero.name} was first. But then somebody cried for help.
        - {weak.name} the {weak.kind} had fallen and hurt {weak.his} foot.
        | {weak.name} the {weak.kind} lay on the path and could not get up.
        - {rival.name} ran past and did not stop.
        | {rival.name} only looked and ran on.
        - But {hero.name} stopped. {hero.He} helped {weak.name} walk to the end of the road.
        | "I will not leave you here," said {hero.name}, and {hero.he} helped {weak.him} walk.
        - {rival.name} came in first, and {hero.name} came in last.
        | {rival.name} won the race. {hero.name} and {weak.name} were the last two.
        - But all the animals clapped for {hero.name}.
        | "{hero.name} has the biggest heart of all," said the old raven.
        - {rival.name} was ashamed. {rival.He} gave the {short} to {hero.name} and said, "You are
          the real winner."
        | Then {rival.name} said sorry to {weak.name} and gave {weak.him} the {short}.
        """,
    )
    return Story(f"a race and {a(hero.kind)}", hero.name, text)


def winter_food(rng: random.Random) -> Story:
    hero, lazy = animals(rng, 2)
    food = pick(rng, ("nuts", "berries", "apples", "seeds", "carrots", "mushrooms"))
    text = tell(
        rng,
        f"""
        - {intro(rng, hero)}
        - All summer, {hero.he} gathered {food} and put them away for the winter.
        | Every day in autumn, {hero.he} carried {food} to {hero.his} home.
        - {lazy.name} the {lazy.kind} only played and slept in the sun.
        | {hero.His} neighbour, {lazy.name} the {lazy.kind}, sang songs all day long.
        - "Come and play," said {lazy.name}. "Winter is far away."
        | "Why do you work so much?" asked {lazy.name}. "There is food everywhere."
        - "Winter comes sooner than you think," said {hero.name}.
        | "There will be no {food} under the snow," {hero.name} answered.
        - Then the snow came. The forest was white and cold.
        | One night the cold wind came, and in the morning everything was white.
        - {lazy.name} looked for food, but {lazy.he} found nothing.
        | {lazy.name} was cold and hungry. {lazy.He} had no {food} at all.
        - At last {lazy.he} knocked on {hero.name}'s door.
        | {lazy.He} went to {hero.name} and said, "Please help me. I am so hungry."
        - {hero.name} let {lazy.him} in and gave {lazy.him} a bowl of {food}.
        | "Come in and get warm," said {hero.name}, and {hero.he} shared the {food}.
        - "You were right," said {lazy.name}. "Next year I will work with you."
        | "Thank you," said {lazy.name}. "I was foolish. I will not forget this."
        - And the next summer, {hero.name} and {lazy.name} gathered {food} together.
        | And {lazy.he} kept {lazy.his} word. The next autumn, they worked side by side.
        """,
    )
    return Story(f"{a(hero.kind)} in winter", hero.name, text)


def way_home(rng: random.Random) -> Story:
    baby, helper = animals(rng, 2)
    lure = pick(rng, ("a blue butterfly", "a shiny beetle", "a falling leaf", "a red bird"))
    mark = pick(rng, ("the big oak tree", "the little bridge", "the old well", "the round pond"))
    text = tell(
        rng,
        f"""
        - {intro(rng, baby)}
        - {baby.His} mother always said, "Stay close to me, {baby.name}."
        | {baby.He} lived with {baby.his} mother near {mark}.
        - {one_day(rng)} {baby.name} saw {lure} and ran after it.
        | {one_day(rng)} {baby.he} followed {lure} into the trees.
        - It went left and right, deeper and deeper into the forest.
        | {baby.He} ran and ran and did not look back.
        - When {baby.he} stopped, nothing looked the same. {baby.name} was lost.
        | Then it was gone, and {baby.name} did not know the way home.
        - "Mother! Where are you?" {baby.he} called, but nobody answered.
        | It was getting dark, and {baby.name} began to cry.
        - {cap(a(helper.kind))} named {helper.name} heard {baby.him} and came closer.
        | "Why are you crying?" asked {a(helper.kind)} named {helper.name}.
        - "I am lost," said {baby.name}. "My home is near {mark}."
        | "I want to go home," {baby.name} said. "We live near {mark}."
        - "I know that place," said {helper.name}. "Come with me."
        | "That is not far," said {helper.name}. "I will show you the way."
        - They walked side by side until they saw {mark}.
        - {baby.name}'s mother ran to them and held {baby.him} tight.
        | There was {baby.name}'s mother! She kissed {baby.him} again and again.
        - "Thank you, {helper.name}," she said. "Please eat with us tonight."
        | After that, {baby.name} stayed close to home, and {helper.name} often came to visit.
        """,
    )
    return Story(f"a lost {baby.kind}", baby.name, text)


def one_and_all(rng: random.Random) -> Story:
    hero, second, third = animals(rng, 3)
    thing, verb, reward = pick(
        rng,
        (
            ("a giant carrot", "pull it out of the ground", "carrot soup"),
            ("a heavy log", "push it off the path", "a dance on the open path"),
            ("a big stone", "roll it away from the spring", "cool, fresh water"),
            ("a huge pumpkin", "carry it to the village", "pumpkin pie"),
            ("a round cheese", "get it up the hill", "bread and cheese"),
        ),
    )
    short = thing.split()[-1]
    text = tell(
        rng,
        f"""
        - {one_day(rng)} {hero.name} the {hero.kind} found {thing}.
        - {hero.He} tried to {verb}, but {hero.he} was not strong enough.
        | {hero.He} wanted to {verb}. {hero.He} tried and tried, but nothing happened.
        - {second.name} the {second.kind} came by. "May I help you?" {second.he} asked.
        | "Please help me," {hero.he} said to {second.name} the {second.kind}.
        - Now there were two of them, but the {short} did not move.
        | They both tried until they were tired. The {short} stayed where it was.
        - Then {third.name} the {third.kind} came along the road.
        | They called {third.name} the {third.kind}.
        - "I am too small to help," said {third.name}.
        | "I am not very strong," {third.name} said.
        - "Everyone can help," said {hero.name}.
        | "Together we are strong enough," said {second.name}.
        - One, two, three! All three of them tried at the same time.
        - Slowly, the {short} began to move.
        | The {short} moved a little, and then a little more.
        - "We did it!" they shouted, because they could {verb} at last.
        - In the evening there was {reward} for all of them.
        | Then they had {reward} and were happy together.
        - And {third.name} was the happiest, because even a small friend can help.
        | What is too hard for one is easy for three.
        """,
    )
    return Story(thing, hero.name, text)


def loud_party(rng: random.Random) -> Story:
    hero, friend = animals(rng, 2)
    sound = pick(rng, ("sing", "play the drum", "play the flute", "play the trumpet"))
    if chance(rng, 0.5):
        first_words = f'"Be quiet!" shouted {friend.name}, and {friend.he} shut the window.'
        later_words = (
            f'"I am sorry that I shouted," {friend.he} said. "I like your music in the day."'
        )
    else:
        first_words = f'"Please stop. I am so tired," said {friend.name}.'
        later_words = f'"I like your music," {friend.he} said, "but I need to sleep at night."'
    text = tell(
        rng,
        f"""
        - {intro(rng, hero)}
        - {hero.He} loved to {sound}.
        - {hero.He} loved it so much that {hero.he} did it at night too.
        | One night, {hero.he} could not sleep, so {hero.he} began to {sound}.
        - {friend.name} the {friend.kind} lived next door and could not sleep.
        | In the next house, {friend.name} the {friend.kind} woke up.
        - {first_words}
        - {hero.name} was hurt. "Nobody likes my music," {hero.he} said.
        | {hero.name} stopped at once and felt very sad.
        - In the morning, {friend.name} came with a cup of tea.
        | The next day, {friend.name} knocked on the door.
        - {later_words}
        - "And I am sorry that I woke you up," said {hero.name}.
        | "I did not think of that. I am sorry," said {hero.name}.
        - So they made a plan: music in the day and quiet at night.
        | From then on, {hero.name} made music only in the afternoon.
        - {friend.name} came to listen every day, and the other animals came too.
        | And {friend.name} danced to the music and clapped the loudest of all.
        """,
    )
    return Story(f"{a(hero.kind)} who loved music", hero.name, text)


PLOTS = (
    forest_race,
    winter_food,
    way_home,
    one_and_all,
    loud_party,
)
