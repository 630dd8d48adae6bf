"""Random choices that give the same result on every platform and Python version.

Python promises that `random.Random(seed).random()` never changes; it does not promise that for
`choice`, `shuffle` or `sample`. So every choice in the demo corpus is built on `random()` alone.
"""

import random


def make_rng(seed: int, part: str) -> random.Random:
    """Return the generator for one part of the corpus, independent of all other parts."""
    return random.Random(f"minimind demo, seed {seed}, {part}")


def below(rng: random.Random, n: int) -> int:
    """Return a uniform integer in 0 .. n-1."""
    return int(rng.random() * n)


def chance(rng: random.Random, probability: float) -> bool:
    """Return True with the given probability."""
    return rng.random() < probability


def pick(rng: random.Random, items):
    """Return one item of a list or tuple."""
    return items[below(rng, len(items))]


def shuffled(rng: random.Random, items) -> list:
    """Return the items in random order (Fisher-Yates)."""
    result = list(items)
    for i in range(len(result) - 1, 0, -1):
        j = below(rng, i + 1)
        result[i], result[j] = result[j], result[i]
    return result


def pick_several(rng: random.Random, items, count: int) -> list:
    """Return `count` different items."""
    return shuffled(rng, items)[:count]


def words(text: str, separator: str | None = None) -> tuple[str, ...]:
    """Return a word list that is written as one string, split at spaces or at the separator."""
    return tuple(text.split(separator))


def shares(**times: int) -> tuple[str, ...]:
    """Return the names, each as often as is said, for `pick` to draw from."""
    return tuple(name for name, count in times.items() for _ in range(count))


class Deck:
    """Deals items evenly: every item is dealt once before any is dealt again."""

    def __init__(self, rng: random.Random, items):
        self.rng = rng
        self.items = list(items)
        self.left: list = []

    def deal(self):
        if not self.left:
            self.left = shuffled(self.rng, self.items)
        return self.left.pop()

    def deal_several(self, count: int) -> list:
        """Deal `count` items, all different (`count` must not exceed the number of items)."""
        hand: list = []
        skipped: list = []
        while len(hand) < count:
            item = self.deal()
            (skipped if item in hand else hand).append(item)
        self.left.extend(skipped)
        return hand
