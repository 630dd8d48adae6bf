"""English word lists, and the small grammar helpers that the stories are built with."""

import random
from typing import NamedTuple

from dataset.demo_text.choosing import chance, pick, pick_several, words

GIRLS = words(
    "Lily Mia Anna Emma Sara Lucy Ella Zoe Nora Ruby Amy Clara Eva Grace Ivy Jane Kate Leah "
    "Maya Nina Rosa Sophie Tina Vera Wendy Alice Bella Cora Dora Elsa Fiona Molly"
)
BOYS = words(
    "Tom Ben Sam Max Leo Jack Tim Dan Adam Finn Noah Luke Paul Omar Peter Oscar Henry Hugo Ian "
    "James Kevin Liam Mark Nick Otto Ryan Simon Theo Victor Will Alex David"
)
ANIMAL_NAMES = words(
    "Pip Dot Momo Bibi Coco Nibbles Hazel Bruno Tilly Poppy Rusty Fern Biscuit Olive Peanut "
    "Maple Button Clover Pepper Ginger Bramble Pebble Acorn Teddy"
)

# Kinds of animal that can be the hero of a story.
WOODLAND = words(
    "rabbit fox bear mouse squirrel hedgehog duck frog owl deer turtle badger otter goat mole "
    "beaver"
)
PETS = ("puppy", "kitten", "rabbit", "hamster", "parrot", "turtle", "goldfish", "guinea pig")

TOYS = words(
    "ball,doll,teddy bear,toy car,toy boat,robot,drum,hat,scarf,book,whistle,spinning top,"
    "toy train,toy plane,bucket,bell,skipping rope,flute,toy horse,paper crown,lantern,basket,"
    "toy truck,puppet",
    ",",
)
COLOURS = words("red,blue,green,yellow,orange,purple,pink,white,brown,silver,golden", ",")
TRAITS = words(
    "little,kind,brave,shy,curious,happy,clever,cheerful,quiet,friendly,gentle,busy,young,funny",
    ",",
)
WEATHER = words("sunny,warm,bright,cool,windy,quiet,fine,lovely", ",")
FOODS = words(
    "apples,berries,cookies,nuts,carrots,cherries,pears,buns,strawberries,pancakes,grapes,plums",
    ",",
)


class Place(NamedTuple):
    """A place, how one is at it, and where something small can be found there."""

    name: str
    at: str
    spots: tuple[str, ...]


PLACES = (
    Place("the park", "in the park", ("under a bench", "behind a tall tree", "near the swings")),
    Place("the garden", "in the garden", ("behind a pot", "under a rose bush", "near the gate")),
    Place("the beach", "on the beach", ("behind a rock", "under a towel", "near a sandcastle")),
    Place("the forest", "in the forest", ("under a bush", "behind a log", "beside a mushroom")),
    Place("the farm", "on the farm", ("behind the barn", "under a cart", "in the hay")),
    Place("the river", "by the river", ("behind a stone", "in the tall grass", "under a bridge")),
    Place("the market", "at the market", ("under a table", "behind a box", "near the fish stand")),
    Place("the library", "in the library", ("under a chair", "behind a shelf", "by the window")),
    Place("the playground", "on the playground", ("under the slide", "in the sandbox")),
    Place("the lake", "by the lake", ("behind a boat", "under a tree", "between two stones")),
    Place("the hill", "on the hill", ("behind a rock", "in the long grass", "under a small tree")),
    Place("the village square", "in the village square", ("behind the well", "under a bench")),
    Place("the schoolyard", "in the schoolyard", ("behind the wall", "under a bench")),
    Place("the meadow", "in the meadow", ("between the flowers", "behind a fence")),
    Place("the zoo", "at the zoo", ("under a bench", "beside a fence", "near the gate")),
    Place("the train station", "at the train station", ("under a seat", "behind a suitcase")),
)

# Where children can play, eat and meet other children.
OUTSIDE = [
    place
    for place in PLACES
    if place.name not in ("the library", "the train station", "the forest")
]


class Person(NamedTuple):
    """A character: what it is ("girl", "fox") and its pronouns."""

    name: str
    kind: str
    he: str
    him: str
    his: str

    @property
    def He(self) -> str:
        return self.he.capitalize()

    @property
    def His(self) -> str:
        return self.his.capitalize()

    @property
    def self_(self) -> str:
        return "herself" if self.he == "she" else "himself"


class Story(NamedTuple):
    """A finished story, its hero's name, and what it is about ("a lost ball")."""

    topic: str
    hero: str
    text: str


def female(name: str, kind: str) -> Person:
    return Person(name, kind, "she", "her", "her")


def male(name: str, kind: str) -> Person:
    return Person(name, kind, "he", "him", "his")


MUM = female("Mum", "mother")
DAD = male("Dad", "father")
GRANDMA = female("Grandma", "grandmother")
GRANDPA = male("Grandpa", "grandfather")
PARENTS = (MUM, DAD)
GROWN_UPS = (MUM, DAD, GRANDMA, GRANDPA)


def children(rng: random.Random, count: int) -> list[Person]:
    """Return `count` children with different names."""
    names = pick_several(rng, GIRLS + BOYS, count)
    return [female(n, "girl") if n in GIRLS else male(n, "boy") for n in names]


def animals(rng: random.Random, count: int) -> list[Person]:
    """Return `count` animals of different kinds with different names."""
    names = pick_several(rng, ANIMAL_NAMES, count)
    kinds = pick_several(rng, WOODLAND, count)
    return [
        female(n, k) if chance(rng, 0.5) else male(n, k) for n, k in zip(names, kinds, strict=True)
    ]


def a(noun: str) -> str:
    """Return the noun with its indefinite article: "a ball", "an orange ball"."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def cap(text: str) -> str:
    """Return the text with its first letter in upper case."""
    return text[0].upper() + text[1:]


def intro(rng: random.Random, hero: Person) -> str:
    """Return a first sentence that presents the hero."""
    trait = pick(rng, TRAITS)
    home = "a small village" if hero.kind in ("girl", "boy") else "the forest"
    return pick(
        rng,
        (
            f"Once upon a time, there was {a(trait)} {hero.kind} named {hero.name}.",
            f"Once upon a time, {a(trait)} {hero.kind} named {hero.name} lived in a small house.",
            f"{hero.name} was {a(trait)} {hero.kind}.",
            f"There once was {a(trait)} {hero.kind} called {hero.name}.",
            f"In {home} lived {a(trait)} {hero.kind} named {hero.name}.",
        ),
    )


def one_day(rng: random.Random) -> str:
    """Return the words that begin the action: "One sunny morning,"."""
    time = pick(rng, ("day", "morning", "afternoon"))
    if chance(rng, 0.5):
        return f"One {time},"
    return f"One {pick(rng, WEATHER)} {time},"


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
            beats[-1][-1] += " " + line
    told = [pick(rng, ways) for ways in beats]
    if chance(rng, 0.6):
        return " ".join(told)
    third = len(told) // 3
    parts = told[:third], told[third : 2 * third], told[2 * third :]
    return "\n".join(" ".join(part) for part in parts)
