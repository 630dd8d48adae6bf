"""English stories about friends: promises, courage, sharing and meeting somebody new."""

import random

from dataset.demo_text.choosing import pick
from dataset.demo_text.words_en import (
    FOODS,
    OUTSIDE,
    PLACES,
    Story,
    cap,
    children,
    intro,
    one_day,
    tell,
)


def promise(rng: random.Random) -> Story:
    hero, friend, other = children(rng, 3)
    place = pick(rng, PLACES)
    task, past, done = pick(
        rng,
        (
            ("help me paint my fence", "painted the fence", "The fence was bright and new"),
            ("help me clean my room", "cleaned the room", "The room was clean and tidy"),
            (
                "help me build a bird house",
                "built the bird house",
                "A little bird came to live in it",
            ),
            ("help me fix my bike", "fixed the bike", "The wheels turned round and round again"),
            ("help me wash my dog", "washed the dog", "The dog was clean and smelled good"),
            ("help me carry wood", "carried the wood", "The wood stood in a neat pile"),
        ),
    )
    text = tell(
        rng,
        f"""
        - {intro(rng, hero)}
        - {one_day(rng)} {hero.his} friend {friend.name} said, "Will you {task} tomorrow?"
        - "Yes, I promise," said {hero.name}.
        | "I will. You have my promise," {hero.name} answered.
        - The next day, {other.name} came to {hero.name}'s door.
        | In the morning, {hero.name} met {other.name} in the street.
        - "We are all going to {place.name}. Come with us!" {other.he} said.
        | "Come and play {place.at} with me," {other.he} said. "It will be fun!"
        - {hero.name} wanted to go very much. But {hero.he} remembered the promise.
        | {hero.name} loved to play {place.at}. Then {hero.he} thought of {friend.name}.
        - "I cannot go," {hero.he} said. "I made a promise to {friend.name}."
        | "Thank you, but {friend.name} is waiting for me," {hero.he} said.
        - {hero.He} went to {friend.name}'s house, and together they {past}.
        | So {hero.he} ran to {friend.name}, and they {past}.
        - {other.name} came too, and with three it was quick. {done}.
        | It was hard work, but they laughed a lot. {done}.
        - "You kept your promise. You are a true friend," said {friend.name}.
        | {friend.name} was happy. "I knew that you would come," {friend.he} said.
        - Then they all went to {place.name} and played until dark.
        | {hero.name} felt warm inside, because {hero.he} had kept {hero.his} word.
        """,
    )
    return Story("a promise", hero.name, text)


def brave_child(rng: random.Random) -> Story:
    hero, friend = children(rng, 2)
    where, fear, deed, after = pick(
        rng,
        (
            (
                "at the swimming pool",
                "the deep water",
                "jumped into the water",
                "The water was cool, and it carried {him} like a soft bed.",
            ),
            (
                "at the playground",
                "the high slide",
                "went down the slide",
                "The wind blew in {his} hair. It was like flying!",
            ),
            (
                "at school",
                "singing in front of the class",
                "sang the song",
                "{His} voice was small at first, and then it was loud and clear.",
            ),
            (
                "on the farm",
                "the big horse",
                "touched the horse",
                "Its nose was warm and soft, and it was very gentle.",
            ),
            (
                "in the park",
                "the long rope bridge",
                "walked over the bridge",
                "It moved a little, but {he} held on and got to the other side.",
            ),
            (
                "in the street",
                "riding a bike",
                "rode the bike",
                "The wheels turned, and {he} did not fall.",
            ),
        ),
    )
    after = after.format(he=hero.he, him=hero.him, his=hero.his, His=hero.His)
    text = tell(
        rng,
        f"""
        - {intro(rng, hero)}
        | {hero.name} and {friend.name} were good friends.
        - {one_day(rng)} {hero.name} and {friend.name} were {where}.
        - {hero.name} was afraid of {fear}.
        | {friend.name} was having fun, but {hero.name} stood still. {hero.He} was afraid of
          {fear}.
        - "I can't do it," {hero.he} said. {hero.His} legs were shaking.
        | "What if something bad happens?" {hero.he} asked.
        | {hero.He} wanted to go home.
        - "I was afraid too, the first time," said {friend.name}.
        | {friend.name} did not laugh at {hero.him}. "It is all right to be afraid," {friend.he}
          said.
        - "Take a deep breath and count to three."
        | "I will stay with you. You can do it."
        - {hero.name} took a deep breath. One, two, three! {hero.He} {deed}.
        | {hero.name} closed {hero.his} eyes, opened them again, and {deed}.
        - {after}
        - "I did it!" {hero.name} shouted.
        | "That was fun! I want to do it again!" said {hero.name}.
        - {friend.name} clapped {friend.his} hands.
        | "I knew that you could do it," said {friend.name}.
        - {hero.name} was not afraid of {fear} any more.
        | That day {hero.name} learned that brave people are sometimes afraid too.
        """,
    )
    return Story("being brave", hero.name, text)


def lunch_to_share(rng: random.Random) -> Story:
    hero, friend = children(rng, 2)
    food, place = pick(rng, FOODS), pick(rng, PLACES)
    text = tell(
        rng,
        f"""
        - {intro(rng, hero)}
        - {one_day(rng)} {hero.he} took a bag of {food} to {place.name}.
        | {one_day(rng)} {hero.he} sat {place.at} with a bag of {food}.
        - {hero.He} was hungry, and the {food} looked so good.
        | {cap(food)} were {hero.his} favourite food.
        - Then {hero.he} saw {friend.name}. {friend.name} had nothing to eat.
        | {friend.name} came and sat down next to {hero.him}. {friend.His} lunch box was empty.
        - "I forgot my lunch at home," said {friend.name}.
        | "My dog ate my lunch," {friend.name} said with a sad smile.
        - {hero.name} looked at the bag. At first {hero.he} did not want to share.
        | "If I share, I will have less," thought {hero.name}.
        - But {hero.he} saw how hungry {friend.name} was.
        | Then {hero.he} looked at {friend.name}'s face again.
        - {hero.He} gave {friend.him} half of the {food}. "Let us eat together," {hero.he} said.
        | "Here, take some of my {food}," {hero.he} said.
        - "Thank you! You are very kind," said {friend.name}.
        | {friend.name}'s eyes grew big. "Thank you, {hero.name}!" {friend.he} said.
        - They ate and talked and laughed.
        | They sat side by side and ate every one of the {food}.
        - The next day, {friend.name} brought {food} for both of them.
        | {hero.name} found out that the {food} tasted better with a friend.
        """,
    )
    return Story(f"sharing {food}", hero.name, text)


def new_friend(rng: random.Random) -> Story:
    hero, other = children(rng, 2)
    place = pick(rng, OUTSIDE)
    game = pick(rng, ("hide and seek", "football", "chess", "tag", "cards", "a jumping game"))
    text = tell(
        rng,
        f"""
        - {other.name} was new in town and did not know anyone.
        | A new {other.kind} came to {hero.name}'s school. {other.His} name was {other.name}.
        - {one_day(rng)} {other.he} stood alone {place.at} and watched the other children.
        | {one_day(rng)} {hero.name} saw {other.him} {place.at}. {other.He} was all alone.
        - {other.name} wanted to play, but {other.he} was too shy to ask.
        | {other.name} looked down at {other.his} shoes.
        - {hero.name} remembered that {hero.he} had been new once too.
        | {hero.name} thought, "It is not nice to be alone."
        - {hero.He} walked over and said, "Hello! I am {hero.name}. What is your name?"
        | So {hero.he} smiled and said, "Hi, I am {hero.name}. Who are you?"
        - "I am {other.name}," said the {other.kind} in a soft voice.
        | "My name is {other.name}," {other.he} answered.
        - "Do you want to play {game} with us?" asked {hero.name}.
        | "We need one more for {game}. Will you play?" asked {hero.name}.
        - {other.name}'s face lit up. "Yes, please!" {other.he} said.
        | "I would love to," said {other.name}, and {other.he} smiled for the first time.
        - They played {game} all afternoon, and {other.name} was very good at it.
        | {other.name} did not know the rules of the game, so {hero.name} showed {other.him}.
        - When it was time to go home, {other.name} said, "See you tomorrow, {hero.name}!"
        | That evening, {other.name} told {other.his} mother, "I have a friend now."
        - From then on, the two were always together.
        | A kind word was all it took to make a new friend.
        """,
    )
    return Story("a new friend", hero.name, text)


PLOTS = (promise, brave_child, lunch_to_share, new_friend)
