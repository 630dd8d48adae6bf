"""English stories outdoors: lost things, sharing, courage, weather, trips and new friends."""

import random

from dataset.demo_text.choosing import chance, pick
from dataset.demo_text.words_en import (
    COLOURS,
    FOODS,
    GROWN_UPS,
    OUTSIDE,
    PARENTS,
    PLACES,
    TOYS,
    Story,
    a,
    children,
    intro,
    one_day,
    tell,
)


def lost_toy(rng: random.Random) -> Story:
    hero, friend = children(rng, 2)
    toy, place = pick(rng, TOYS), pick(rng, PLACES)
    thing = f"{pick(rng, COLOURS)} {toy}"
    spot = pick(rng, place.spots)
    if chance(rng, 0.5):
        found = f"At last, {hero.name} saw something {spot}. It was the {thing}!"
    else:
        found = f'Then {friend.name} looked {spot}. "Here it is!" {friend.he} shouted.'
    text = tell(
        rng,
        f"""
        - {intro(rng, hero)}
        - {hero.He} had {a(thing)} and took it everywhere.
        | {hero.He} loved {hero.his} {thing} more than any other toy.
        | {hero.His} favourite thing was {a(thing)}.
        - {one_day(rng)} {hero.name} went to {place.name} with the {toy}.
        - {hero.He} played and ran all day, and then {hero.he} saw that the {toy} was gone.
        | {hero.He} put it down to play. When {hero.he} came back, the {toy} was not there.
        - "Oh no! Where is my {toy}?" {hero.he} cried.
        | {hero.name} felt very sad and began to cry.
        | "I have lost my {toy}," {hero.he} said in a small voice.
        - {hero.His} friend {friend.name} heard {hero.him}. "Do not worry," {friend.he} said. "We
          will look for it together."
        | {friend.name} came to {hero.him} and asked, "What is wrong?" {hero.name} told
          {friend.him} about the {toy}. "I will help you," said {friend.name}.
        - They looked here and there {place.at}.
        | They looked for a long time.
        | They walked back the same way and looked at the ground.
        - {found}
        - {hero.name} held the {toy} tight. "Thank you, {friend.name}," {hero.he} said.
        | {hero.name} was so happy that {hero.he} gave {friend.name} a big hug.
        - After that day, {hero.name} always took good care of the {toy}.
        | Then the two friends played with the {toy} until the sun went down.
        | They went home together, and {hero.name} did not let go of the {toy}.
        """,
    )
    return Story(f"a lost {toy}", hero.name, text)


def rainy_picnic(rng: random.Random) -> Story:
    hero, friend = children(rng, 2)
    parent = pick(rng, PARENTS)
    food, place = pick(rng, FOODS), pick(rng, OUTSIDE)
    colour = pick(rng, COLOURS)
    text = tell(
        rng,
        f"""
        - {one_day(rng)} {hero.name} and {friend.name} wanted to have a picnic {place.at}.
        - {parent.name} helped them pack {food} and {a(colour)} blanket.
        | They took a basket full of {food} and {a(colour)} blanket.
        - The sky was blue when they sat down to eat.
        | They put the {colour} blanket on the ground and sat down.
        - But soon dark clouds came, and big drops of rain began to fall.
        | Then they heard thunder, and it started to rain.
        - "Our picnic!" cried {friend.name}. "Now everything is wet."
        | "Oh no," said {friend.name}. "The picnic is over."
        - "Quick, take the basket!" said {hero.name}. They ran all the way home.
        | {hero.name} held the {colour} blanket over their heads, and they ran home.
        - At home, {friend.name} looked out of the window with a sad face.
        | They sat by the window, and {friend.name} was close to tears.
        - Then {hero.name} had an idea. "We can have the picnic inside!" {hero.he} said.
        | "Who says that a picnic must be outside?" asked {hero.name}.
        - They put the {colour} blanket on the floor and made a tent out of two chairs.
        | They spread the {colour} blanket under the big table. It was like a cave.
        - They ate the {food} and listened to the rain on the roof.
        | {parent.name} made hot tea, and they ate all the {food}.
        - "This is the best picnic ever," said {friend.name}.
        | When the sun came out again, there was a rainbow in the sky.
        | They laughed so much that they forgot about the rain.
        """,
    )
    return Story("a picnic in the rain", hero.name, text)


TRIPS = (
    (
        "the sea",
        "by train",
        "a white shell",
        "the blue waves",
        "the waves were loud and cold",
        "they built a castle of sand",
    ),
    (
        "the mountains",
        "by bus",
        "a smooth stone",
        "the high rocks",
        "the path was long and steep",
        "they stood on the top and saw the whole valley",
    ),
    (
        "the city",
        "by train",
        "a small postcard",
        "the tall houses",
        "the streets were full of people",
        "they went up a tower and looked down at the cars",
    ),
    (
        "the zoo",
        "by bus",
        "a long feather",
        "all the animals",
        "the lion gave a loud roar",
        "they saw a baby elephant drink milk",
    ),
    (
        "the old castle",
        "by car",
        "an old coin",
        "the stone walls",
        "the stairs were dark and narrow",
        "they found a room with a golden chair",
    ),
    (
        "the island",
        "by boat",
        "a pink shell",
        "the green water",
        "the boat went up and down",
        "they watched the fish swim under the boat",
    ),
)


def trip(rng: random.Random) -> Story:
    (hero,) = children(rng, 1)
    guide = pick(rng, GROWN_UPS)
    goal, way, gift, sight, trouble, joy = pick(rng, TRIPS)
    the_gift = "the " + gift.split(" ", 1)[1]
    text = tell(
        rng,
        f"""
        - {intro(rng, hero)}
        - {hero.He} had never seen {goal}.
        | {hero.He} had a picture of {goal} over {hero.his} bed.
        - {one_day(rng)} {guide.name} said, "Today we are going to {goal}!"
        | {one_day(rng)} {guide.name} took {hero.him} to {goal}.
        - They went {way}, and {hero.name} looked out of the window all the time.
        | They went {way}. {hero.name} asked ten times, "Are we there yet?"
        - When they got there, {hero.name} saw {sight} and opened {hero.his} eyes wide.
        | "Look at that!" said {hero.name} when {hero.he} saw {sight}.
        - At first {trouble}, and {hero.name} was a little afraid.
        - "Hold my hand," said {guide.name}. "I am here."
        | But {guide.name} took {hero.his} hand, and then {hero.he} felt safe.
        - After that, {joy}.
        - On the ground, {hero.name} found {gift}.
        | {guide.name} gave {hero.him} {gift}.
        - When the sun went down, it was time to go home.
        | In the evening they went home {way}.
        - {hero.name} fell asleep with {the_gift} in {hero.his} hand.
        | At home, {hero.he} put {the_gift} next to {hero.his} bed and dreamed of {goal}.
        | "Thank you, {guide.name}," said {hero.name}. "It was a wonderful day."
        """,
    )
    return Story(f"a trip to {goal}", hero.name, text)


def building(rng: random.Random) -> Story:
    hero, friend = children(rng, 2)
    what, made, hit, better = pick(
        rng,
        (
            (
                "tower",
                "with wooden blocks",
                "The cat ran by and hit it with its tail",
                "put the biggest blocks at the bottom",
            ),
            (
                "sandcastle",
                "with wet sand",
                "A big wave came and washed it away",
                "built it farther from the water",
            ),
            (
                "snowman",
                "with two balls of snow",
                "The sun came out and its head fell off",
                "built it in the shade of a tree",
            ),
            (
                "tree house",
                "with old boards",
                "A strong wind came and blew it down",
                "used longer nails and a rope",
            ),
            (
                "paper boat",
                "with an old newspaper",
                "It went into the water, got wet and sank",
                "rubbed it with wax to keep the water out",
            ),
            (
                "kite",
                "with paper and two sticks",
                "The wind tore it into two pieces",
                "used strong cloth and a longer tail",
            ),
        ),
    )
    text = tell(
        rng,
        f"""
        - {intro(rng, hero)}
        | {hero.name} and {friend.name} liked to make things.
        - {one_day(rng)} {hero.name} and {friend.name} made a {what} {made}.
        - "It is the best {what} in the world," said {hero.name}.
        | They worked hard, and the {what} looked very nice.
        - But then something happened. {hit}!
        - "All our work is gone," said {hero.name}, and {hero.he} kicked a stone.
        | {hero.name} was angry and sad. "I will never make a {what} again," {hero.he} said.
        - But {friend.name} was thinking. "Now we know what went wrong," {friend.he} said.
        | {friend.name} sat down next to {hero.him}. "Let us try again," {friend.he} said. "We can
          make it better."
        - They made a new {what}. This time, they {better}.
        | So they started again, and this time they {better}.
        - It took a long time, but they did not give up.
        | They helped each other and did not hurry.
        - The new {what} was even better than the first one.
        | At last the {what} was ready, and this time nothing bad happened to it.
        - "I am glad that we tried again," said {hero.name}.
        | {hero.name} and {friend.name} were proud of their work.
        | {hero.name} learned that a mistake can teach you something.
        """,
    )
    return Story(f"a {what}", hero.name, text)


def stuck_animal(rng: random.Random) -> Story:
    (hero,) = children(rng, 1)
    helper = pick(rng, GROWN_UPS)
    animal, sound, trouble, act, thanks = pick(
        rng,
        (
            (
                "kitten",
                "a soft meow",
                "It was high up in a tree and could not come down",
                "put a ladder against the tree and brought it down",
                "It licked {name}'s hand",
            ),
            (
                "bird",
                "a sad little peep",
                "It had a hurt wing and could not fly",
                "made a nest in a box and gave it seeds and water",
                "A week later, it could fly again",
            ),
            (
                "puppy",
                "a quiet whine",
                "Its paw was stuck under a fence",
                "lifted the fence and pulled the paw out",
                "It jumped up and licked {name}'s face",
            ),
            (
                "duckling",
                "a tiny quack",
                "It had lost its mother",
                "carried it to the pond, where its mother was",
                "It swam to its mother very fast",
            ),
            (
                "hedgehog",
                "a small squeak",
                "It had fallen into a deep hole",
                "put a board into the hole so that it could climb out",
                "It looked back once and ran into the bushes",
            ),
            (
                "lamb",
                "a weak baa",
                "It was caught in a thorn bush",
                "cut the branches and set it free",
                "It ran to its mother and jumped for joy",
            ),
        ),
    )
    thanks = thanks.format(name=hero.name)
    text = tell(
        rng,
        f"""
        - {intro(rng, hero)}
        - {one_day(rng)} {hero.name} was walking home when {hero.he} heard {sound}.
        | {one_day(rng)} {hero.he} was playing outside. Suddenly {hero.he} heard {sound}.
        - It was a little {animal}. {trouble}.
        - "Poor {animal}," said {hero.name}. "I want to help you."
        | "Do not be afraid, little {animal}," {hero.he} said.
        - {hero.He} tried to help it alone, but it was too hard.
        | {hero.He} thought for a moment. This was too hard for one child.
        - So {hero.he} ran to get {helper.name}.
        | {hero.He} ran home and called, "{helper.name}, please come quickly!"
        - Together they {act}.
        - The {animal} was safe now.
        | At last the little {animal} was not in danger any more.
        - {thanks}.
        - "You did the right thing," said {helper.name}. "You asked for help."
        | {hero.name} was happy, and {helper.name} was proud of {hero.him}.
        - That night, {hero.name} dreamed of the little {animal}.
        | {hero.name} never forgot the little {animal}.
        """,
    )
    return Story(f"a little {animal}", hero.name, text)


PLOTS = (
    lost_toy,
    rainy_picnic,
    trip,
    building,
    stuck_animal,
)
