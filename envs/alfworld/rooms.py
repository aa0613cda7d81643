"""The rooms that games are set in: what the alfworld package ships of 120 floor plans.

Of a floor plan the package tells which types of things are in it, and where most of its receptacles stand. A room is
the same in every game that is set in it; only the things that lie about differ.
"""

import random
from dataclasses import dataclass
from functools import cache

from envs.alfworld import package

MAX_OF_A_TYPE = 4
"""So many receptacles of one type a room has at most. A kitchen with 20 cabinets would be ten times as slow to plan in,
and no harder to act in."""

UNPLACED = {
    "CoffeeMachine": 1,
    "GarbageCan": 1,
    "HandTowelHolder": 1,
    "LaundryHamper": 1,
    "StoveBurner": 2,
    "Toaster": 1,
    "Toilet": 1,
    "ToiletPaperHanger": 1,
    "TowelHolder": 1,
}
"""Receptacles that floor plans list without saying where they stand, and how many of each a room then gets."""

UNSEEN_PLANS = frozenset((*range(1, 7), *range(201, 207), *range(301, 307), *range(401, 407)))
"""Floor plans that `train` and `seen` never use: six of thirty of each kind of room, ALFRED's own test scenes
(`TEST_SCENE_NUMBERS` of alfworld's `gen/constants.py`)."""

KINDS = {
    "Kitchen": range(1, 31),
    "LivingRoom": range(201, 231),
    "Bedroom": range(301, 331),
    "Bathroom": range(401, 431),
}
"""The floor plans of each kind of room."""


@dataclass(frozen=True, slots=True)
class Receptacle:
    """Something that holds things: its id (`Cabinet|+00.68|+00.50|-02.20`), type, and where one stands to use it."""

    id: str
    type: str
    location: str
    """`loc|x|z|rotation|horizon`: quarter metres, quarter turns, degrees."""
    openable: bool


@dataclass(frozen=True, slots=True)
class Room:
    """One floor plan: its receptacles, and the types of the things that may lie in it."""

    plan: int
    receptacles: tuple[Receptacle, ...]
    types: tuple[str, ...]
    start: str
    """Where the agent begins: a place at which no receptacle is."""

    def receptacle_types(self) -> tuple[str, ...]:
        return tuple(sorted({receptacle.type for receptacle in self.receptacles}))


def plans_of(kind: str, unseen: bool) -> tuple[int, ...]:
    """The floor plans of a kind of room, either those that training uses or those that it never does."""
    return tuple(plan for plan in KINDS[kind] if (plan in UNSEEN_PLANS) == unseen)


@cache
def room(plan: int) -> Room:
    """The room of floor plan `plan` (1-30, 201-230, 301-330, 401-430). The same in every process."""
    types: list[str] = package.layout(plan, "objects")
    poses: dict[str, list[float]] = package.layout(plan, "openable")
    rng = random.Random(f"yendor alfworld floor plan {plan}")
    by_type: dict[str, list[str]] = {}
    for receptacle_id in sorted(poses):
        by_type.setdefault(_type_of(receptacle_id), []).append(receptacle_id)
    openable: set[str] = package.constants().OPENABLE_CLASS_SET
    placed = [
        Receptacle(receptacle_id, kind, _location(poses[receptacle_id]), kind in openable)
        for kind, ids in sorted(by_type.items())
        for receptacle_id in sorted(rng.sample(ids, min(len(ids), MAX_OF_A_TYPE)))
    ]
    taken = {receptacle.location for receptacle in placed}
    for kind in sorted(UNPLACED.keys() & set(types) - by_type.keys()):
        placed += [
            Receptacle(_new_id(kind, rng), kind, _new_location(rng, taken), False) for _ in range(UNPLACED[kind])
        ]
    return Room(plan, tuple(placed), tuple(sorted(set(types))), _new_location(rng, taken))


def _type_of(receptacle_id: str) -> str:
    """`Sink|…|SinkBasin` is a SinkBasin, `Cabinet|…` a Cabinet."""
    first, *_, last = receptacle_id.split("|")
    return last if last.endswith("Basin") else first


def _location(pose: list[float]) -> str:
    x, z, rotation, horizon = pose
    return f"loc|{round(x * 4)}|{round(z * 4)}|{round(rotation / 90)}|{round(horizon)}"


def _new_location(rng: random.Random, taken: set[str]) -> str:
    """A place that is not taken yet; it is from now on."""
    while True:
        place = f"loc|{rng.randint(-12, 12)}|{rng.randint(-12, 12)}|{rng.randint(0, 3)}|30"
        if place not in taken:
            taken.add(place)
            return place


def _new_id(kind: str, rng: random.Random) -> str:
    return "|".join((kind, *new_position(rng)))


def new_position(rng: random.Random) -> tuple[str, str, str]:
    """x, y, z in metres, as ALFRED writes them: sign, two digits, two decimals."""
    return (
        f"{rng.uniform(-3, 3):+06.2f}",
        f"{rng.uniform(0, 2):+06.2f}",
        f"{rng.uniform(-3, 3):+06.2f}",
    )
