"""The embedded corpus's world: its words, its people, and draws that know their own probability."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

Item = TypeVar("Item")

MEN = ("Tom", "Ben", "Sam", "Max", "Leo", "Jim", "Dan", "Bob")
WOMEN = ("Ann", "Eva", "Mia", "Sue", "Kim", "Amy", "Joy", "Zoe")
PRONOUN = dict.fromkeys(MEN, "he") | dict.fromkeys(WOMEN, "she")
TOWNS = ("Rome", "Oslo", "Lima", "Bern", "Kiel", "Bonn")
DOGS = ("Rex", "Spot", "Dash", "Fido", "Jet", "Wolf")
# What highlights say of towns and dogs, whatever happens in the story.
HEARD_OF_TOWNS = ("The road goes to", "The ship sails to", "The train stops in", "Many people live in")
DOGS_DO = ("barked at the moon", "slept by the door", "ate a bone", "dug a hole")
PLACES = ("market", "garden", "park", "school", "station", "harbor", "church", "library")

# Category -> its things. No two share a word and none needs "an".
KINDS = {
    "fruit": ("pear", "plum"),
    "tool": ("hammer", "rake"),
    "toy": ("doll", "kite"),
    "garment": ("hat", "coat"),
    "pet": ("cat", "hen"),
    "dish": ("cup", "bowl"),
    "vehicle": ("car", "bike"),
    "flower": ("rose", "lily"),
}
KIND_OF = {thing: kind for kind, things in KINDS.items() for thing in things}
THINGS = tuple(KIND_OF)

# What one does with a thing, from or to another: afterwards one has it, or has it no more.
GAINS = ("bought", "took", "got", "won")
LOSSES = ("sold", "gave", "lent", "lost")
# What one does with a thing alone.
DEEDS = ("saw", "drew", "found", "hid")

# What comes first and what follows from it, in a world without exceptions.
CAUSES = (
    ("were hungry", "ate some bread"),
    ("were thirsty", "drank some water"),
    ("were tired", "went to bed"),
    ("were cold", "lit a fire"),
    ("were hot", "swam in the lake"),
    ("were dirty", "washed with soap"),
    ("were late", "missed the train"),
    ("were sick", "called a doctor"),
    ("were bored", "played a game"),
    ("heard a joke", "laughed out loud"),
    ("saw a snake", "ran away"),
    ("won a prize", "gave a party"),
)

# How somebody says a thing, by what follows about it: it is so, it is not, neither. And verbs of saying.
MANNERS = ("rightly", "wrongly", "possibly")
SAYINGS = ("says", "thinks", "writes")

# Words with a living sense and a made one, and the company that either sense keeps.
TWO_SENSES = ("bat", "crane", "mouse", "seal", "bug", "mole", "fly", "palm")
COMPANY = (
    (("fed", "heard"), ("river", "forest")),
    (("fixed", "ordered"), ("shop", "office")),
)

# Why somebody did something to somebody: the verb, then the reason's subject is whom the pronoun means.
REASONS = (
    ("thanked", "had brought"),
    ("called", "wanted to see"),
    ("visited", "was proud of"),
    ("met", "needed to sell"),
    ("helped", "could not carry"),
    ("followed", "was looking for"),
)


class Draws:
    """Draws from a seeded generator that multiply up the probability of what was drawn.

    Only `random.Random.randrange` is used: integer arithmetic on the Mersenne Twister, the same everywhere.
    """

    def __init__(self, seed: str):
        self._random = random.Random(seed)
        self._favourable = 1
        self._possible = 1

    def one(self, items: Sequence[Item]) -> Item:
        """One of `items`, each as likely; they must differ from one another in the text that they make."""
        self._possible *= len(items)
        return items[self._random.randrange(len(items))]

    def weighted(self, weights: Mapping[Item, int]) -> Item:
        """One of the keys, each as likely as its weight says."""
        tickets = [item for item, weight in weights.items() for _ in range(weight)]
        chosen = tickets[self._random.randrange(len(tickets))]
        self._favourable *= weights[chosen]
        self._possible *= len(tickets)
        return chosen

    def other(self, items: Sequence[Item], *taken: Item) -> Item:
        """One of `items` that is not among `taken`."""
        return self.one([item for item in items if item not in taken])

    def take_nats(self) -> float:
        """-ln of the probability of everything drawn since the last call, to nine decimals."""
        nats = math.log(self._possible) - math.log(self._favourable)
        self._favourable = self._possible = 1
        return round(nats, 9)


def couples(held_out: bool) -> list[tuple[str, str]]:
    """Everyone who meets in a story: a man and a woman, either first.

    A quarter of the couples is held out: the evaluated stories are about these, no document is, so no evaluated
    story can be one that a model was trained on. Everyone belongs to couples of both sorts.
    """
    chosen = [
        (man, woman) for i, man in enumerate(MEN) for j, woman in enumerate(WOMEN) if ((i + j) % 4 == 0) == held_out
    ]
    return chosen + [(woman, man) for man, woman in chosen]
