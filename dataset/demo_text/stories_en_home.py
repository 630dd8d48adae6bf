"""English stories at home: mistakes, fears, promises, presents, seeds and pets.

Every plot is a function from a random generator to a `Story`. Characters, place and object are
chosen first and then used in every sentence, so who has what, and where, stays true to the end.
"""

import random

from dataset.demo_text.choosing import pick
from dataset.demo_text.words_en import (
    COLOURS,
    GROWN_UPS,
    PARENTS,
    PETS,
    Story,
    a,
    animals,
    children,
    intro,
    one_day,
    tell,
)


def broken_thing(rng: random.Random) -> Story:
    (hero,) = children(rng, 1)
    owner = pick(rng, GROWN_UPS)
    thing = pick(rng, ("vase", "cup", "plate", "bowl", "lamp", "teapot", "glass jar"))
    colour = pick(rng, COLOURS)
    game = pick(rng, ("threw a ball", "ran very fast", "danced", "jumped up and down"))
    text = tell(
        rng,
        f"""
        - {intro(rng, hero)}
        | {owner.name} had {a(colour)} {thing}. It was very pretty.
        - {one_day(rng)} {hero.name} {game} inside the house.
        - Crash! {owner.name}'s {colour} {thing} fell to the floor and broke.
        | {hero.He} bumped into the table, and {owner.name}'s {colour} {thing} fell and broke.
        - {hero.name} was afraid. {hero.He} wanted to hide the pieces under the bed.
        | {hero.name}'s heart beat fast. {hero.He} thought of saying that the cat had done it.
        | {hero.name} looked at the pieces and wanted to run away.
        - But {hero.he} knew that it was wrong to lie.
        | But then a little voice inside told {hero.him} to be honest.
        - {hero.He} went to {owner.name} and said, "I broke your {thing}. I am very sorry."
        | So {hero.he} told {owner.name} the truth. "I am sorry. I broke the {thing}," {hero.he}
          said.
        - {owner.name} was sad about the {thing}, but {owner.he} was not angry.
        | {owner.name} looked at {hero.him} for a moment. Then {owner.he} smiled.
        - "Thank you for telling me the truth," {owner.he} said. "That was brave."
        | "A {thing} can break," {owner.he} said, "but I am glad that you are honest."
        - They picked up the pieces and glued the {thing} together.
        | {hero.name} helped {owner.him} sweep the floor.
        - From then on, {hero.name} played outside.
        | {hero.name} learned that it is always best to tell the truth.
        | {hero.name} felt light and happy again, and {hero.he} was more careful after that.
        """,
    )
    return Story(f"a broken {thing}", hero.name, text)


def afraid_of_the_dark(rng: random.Random) -> Story:
    (hero,) = children(rng, 1)
    helper = pick(rng, GROWN_UPS)
    monster = pick(rng, ("a big monster", "a bear", "a ghost", "a giant with long arms"))
    thing = pick(rng, ("coat on a chair", "pile of toys", "bag on the door", "curtain in the wind"))
    text = tell(
        rng,
        f"""
        - {intro(rng, hero)}
        - {hero.He} was not afraid of dogs or spiders, but {hero.he} was afraid of the dark.
        | In the day {hero.he} was brave, but at night {hero.he} was afraid of the dark.
        | {hero.He} did not like the night, because {hero.his} room was so dark.
        - One night, {hero.name} saw a black shape by the wall. It looked like {monster}.
        | One night, {hero.he} woke up and saw something tall in the corner. It looked like
          {monster}.
        - "{helper.name}! {helper.name}!" {hero.he} cried.
        | {hero.He} pulled the blanket over {hero.his} head and called {helper.name}.
        - {helper.name} came and sat down on the bed.
        | {helper.name} came in with a warm smile and held {hero.his} hand.
        - "Let us look at it together," {helper.he} said, and {helper.he} turned on the light.
        | {helper.He} turned on the lamp. "Look again," {helper.he} said.
        - It was only a {thing}!
        | There was nothing there but a {thing}.
        - {hero.name} began to laugh.
        | "It was not {monster} at all!" said {hero.name}, and they both laughed.
        - {helper.name} gave {hero.him} a small lamp that looked like a star.
        | "The dark only hides the things that you know," said {helper.name}.
        | {helper.name} opened the curtain. "See the moon? It shines for you all night."
        - That night, {hero.name} slept well.
        | After that, {hero.name} was not afraid of the dark any more.
        | {hero.name} closed {hero.his} eyes and slept until the morning.
        """,
    )
    return Story("the dark", hero.name, text)


def planting_seeds(rng: random.Random) -> Story:
    hero, friend = children(rng, 2)
    giver = pick(rng, GROWN_UPS)
    plant, seen = pick(
        rng,
        (
            ("sunflower", "a tall yellow sunflower"),
            ("tomato plant", "a plant with round red tomatoes"),
            ("pumpkin", "a fat orange pumpkin"),
            ("rose", "a rose with a sweet smell"),
            ("bean plant", "a bean plant as tall as the door"),
            ("strawberry plant", "a plant full of red strawberries"),
        ),
    )
    text = tell(
        rng,
        f"""
        - {intro(rng, hero)}
        - {one_day(rng)} {giver.name} gave {hero.him} a tiny seed. "Take care of it," {giver.he}
          said.
        | {one_day(rng)} {giver.name} put a seed in {hero.his} hand and said, "This is a {plant}
          seed."
        - {hero.name} made a hole in the soil, put the seed in it and gave it some water.
        | {hero.name} planted the seed in the garden, where the sun was warm.
        | {hero.name} planted the seed in a pot and put the pot by the window.
        - The next day, nothing happened. The day after that, nothing happened.
        | Every morning {hero.he} looked, but {hero.he} saw only brown soil.
        - "Your seed is not going to grow," said {hero.his} friend {friend.name}.
        | "When will it grow?" asked {hero.his} friend {friend.name}.
        - "It will grow. We must wait," said {hero.name}.
        | "{giver.name} says that good things take time," {hero.name} answered.
        - So {hero.name} gave the seed water every day.
        - Then one morning, there was a little green leaf!
        | After a week, a small green stem came out of the soil.
        - The plant grew and grew.
        | It drank the rain and the sun, and it grew taller every day.
        - At the end of the summer, {hero.name} had {seen}.
        | Soon {hero.name} and {friend.name} were looking at {seen}.
        - "You were right to wait," said {friend.name}, and {hero.name} smiled.
        | {hero.name} was very proud, and {hero.he} gave {friend.name} a seed too.
        | {giver.name} said, "You took good care of it. I am proud of you."
        """,
    )
    return Story("a seed", hero.name, text)


def new_pet(rng: random.Random) -> Story:
    (hero,) = children(rng, 1)
    parent = pick(rng, PARENTS)
    kind = pick(rng, PETS)
    pet = animals(rng, 1)[0]._replace(kind=kind)
    hiding = {
        "goldfish": "behind a stone in the water",
        "parrot": "at the back of the cage",
        "turtle": "inside the shell",
    }.get(kind) or pick(rng, ("behind the sofa", "under the bed", "behind a chair"))
    text = tell(
        rng,
        f"""
        - {intro(rng, hero)}
        - {hero.He} wanted a pet more than anything.
        | Every day {hero.he} asked, "May I have a pet?"
        - On {hero.his} birthday, {parent.name} came home with a box. In it was a little {kind}!
        | {one_day(rng)} {parent.name} said, "I have a surprise for you." It was a small {kind}!
        - "I will call {pet.him} {pet.name}," said {hero.name}.
        - But {pet.name} was afraid. {pet.He} hid {hiding} and did not come out.
        | At first {pet.name} was shy and stayed {hiding}.
        - {hero.name} was sad. "{pet.name} does not like me," {hero.he} said.
        | "Why does {pet.he} not want to play?" asked {hero.name}.
        - "{pet.He} needs time," said {parent.name}. "Be quiet and kind."
        | "Everything is new for {pet.him}," {parent.name} said. "You must wait."
        - So {hero.name} sat near {pet.him} every day and spoke in a soft voice.
        | {hero.name} gave {pet.him} food and water each day and did not make any noise.
        - On the third day, {pet.name} came out and looked at {hero.him}.
        | One evening, {pet.name} came closer and closer.
        - {pet.He} ate from {hero.name}'s hand. {hero.name} laughed with joy.
        | {hero.name} held out {hero.his} hand, and {pet.name} was not afraid any more.
        - From that day on, {hero.name} and {pet.name} were best friends.
        | Now {hero.name} knew that a friend needs time and love.
        """,
    )
    return Story(f"a {kind}", hero.name, text)


def baking(rng: random.Random) -> Story:
    (hero,) = children(rng, 1)
    helper = pick(rng, GROWN_UPS)
    cake = pick(rng, ("an apple cake", "a chocolate cake", "a pie", "some bread", "some cookies"))
    short = cake.split()[-1]
    it, was = ("they", "were") if short == "cookies" else ("it", "was")
    them = "them" if short == "cookies" else "it"
    best = "These are the best cookies" if short == "cookies" else f"This is the best {short}"
    text = tell(
        rng,
        f"""
        - {intro(rng, hero)}
        - {one_day(rng)} {hero.name} wanted to make {cake} for {helper.name}.
        - {hero.He} mixed flour, eggs and milk in a big bowl.
        | {hero.He} took a bowl and a spoon and mixed everything.
        - But {hero.he} did not read the labels, and {hero.he} put in salt and not sugar.
        | Then {hero.he} saw two white jars. {hero.He} took salt, but {hero.he} thought it was
          sugar.
        - Soon the {short} {was} ready, and {it} smelled very good.
        - {helper.name} took a bite and made a funny face.
        | {helper.name} ate a little piece. "Oh! It is very salty," {helper.he} said.
        - {hero.name} tasted {them} too. It was terrible! {hero.He} felt like crying.
        | {hero.name} tried {them}. "I used salt!" {hero.he} said, and {hero.his} face turned red.
        - But {helper.name} laughed and gave {hero.him} a hug.
        | "Everyone makes mistakes," said {helper.name} with a kind smile.
        - "Now you know it for the next time. Let us try again."
        | "We can bake again together," {helper.he} said.
        - This time, {hero.name} tasted the sugar first.
        | This time, {hero.name} read the label on every jar.
        - The new {short} {was} sweet and soft, and they ate {them} all.
        | The second time, the {short} {was} perfect.
        - {hero.name} was glad that {hero.he} had tried again.
        | "{best} in the world," said {helper.name}.
        """,
    )
    return Story(cake, hero.name, text)


def birthday_gift(rng: random.Random) -> Story:
    (hero,) = children(rng, 1)
    loved = pick(rng, GROWN_UPS)
    colour = pick(rng, COLOURS)
    wish, thing, how = pick(
        rng,
        (
            ("a necklace", "a string of shells", "put shells on a long string"),
            ("a picture", "a picture of the two of them", "drew a picture with crayons"),
            ("a card", "a card with a big heart", "folded some paper and cut out a heart"),
            ("a scarf", "a soft scarf", "took some wool and knitted a scarf"),
            ("a flower", "a paper flower", "folded a flower out of paper"),
            ("a box", "a little wooden box", "painted a little wooden box"),
        ),
    )
    text = tell(
        rng,
        f"""
        - {intro(rng, hero)}
        - Tomorrow was {loved.name}'s birthday, and {hero.name} had no present.
        | It was almost {loved.name}'s birthday.
        - {hero.name} wanted to buy {wish}, but {hero.he} had only one coin.
        | {hero.He} saw {wish} in a shop, but it cost too much.
        - {hero.He} walked home with a sad face.
        | "What can I give {loved.him}?" {hero.he} thought.
        - Then {hero.he} had an idea. "I can make something!" {hero.he} said.
        | Then {hero.he} smiled. {hero.He} could make a present {hero.self_}!
        - {hero.He} sat down and {how}.
        - It took all afternoon.
        | {hero.He} worked until it was time for bed.
        - {hero.He} put it in {a(colour)} bag.
        - In the morning, {hero.he} gave the {colour} bag to {loved.name}.
        | The next day, {hero.he} said, "Happy birthday, {loved.name}!" and gave {loved.him} the
          {colour} bag.
        - {loved.name} opened it and saw {thing}.
        - "You made it for me? It is beautiful!" {loved.he} said.
        | {loved.He} had tears of joy in {loved.his} eyes. "It is the best present of all,"
          {loved.he} said.
        - {hero.name} was very happy, because a present made with love is worth more than gold.
        | Then they ate cake together, and {hero.name} got the biggest piece.
        """,
    )
    return Story(f"a present for {loved.name}", hero.name, text)


PLOTS = (
    broken_thing,
    afraid_of_the_dark,
    planting_seeds,
    new_pet,
    baking,
    birthday_gift,
)
