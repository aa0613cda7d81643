"""What a game is about: a room, the things that lie in it, and the task, drawn from a seed."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from envs.alfworld import package
from envs.alfworld.rooms import KINDS, Room, new_position, plans_of, room

MAX_THINGS = 18
"""So many things lie in a room at most, those that the task is about included. Bounds the time of planning."""

MAX_INSTANCES = 3
"""So many of one type (ALFRED's `MAX_NUM_OF_OBJ_INSTANCES`)."""

LAMP = "DeskLamp"
"""The lamp that things are looked at under. ALFWorld's other one, the floor lamp, stands in no receptacle, and a lamp
that is in none can't be used by ALFWorld's own rules."""

LAMP_STANDS = ("Desk", "Dresser", "SideTable", "DiningTable", "CoffeeTable", "Shelf", "CounterTop")
"""Where a desk lamp stands: the lists of alfworld do not say."""

TREATMENTS = {
    "pick_clean_then_place_in_recep": ("Cleanable", "SinkBasin"),
    "pick_heat_then_place_in_recep": ("Heatable", "Microwave"),
    "pick_cool_then_place_in_recep": ("Coolable", "Fridge"),
}
"""By task type: what a thing must be, and the receptacle that makes it so. The thing never has to end in that one."""


@dataclass(frozen=True, slots=True)
class Thing:
    """An object: its id (`Mug|-01.57|+00.90|+02.10`), type, and the id of the receptacle that it is in."""

    id: str
    type: str
    receptacle: str


@dataclass(frozen=True, slots=True)
class Scene:
    """One game before it is written down. `target` is the type of thing that the task is about, `parent` the type of
    receptacle that it has to be put in (empty for `look_at_obj_in_light`), `toggle` the lamp's type (empty elsewhere)."""

    task: str
    room: Room
    things: tuple[Thing, ...]
    target: str
    parent: str
    toggle: str
    objective: str


def draw(task: str, unseen: bool, rng: random.Random) -> Scene | None:
    """A scene for `task`, in a room that training never uses if `unseen`; None where the room that was drawn has not
    what the task needs. All that is random comes from `rng`."""
    kinds: set[str] = package.constants().GOALS_VALID[task]
    plans = [plan for kind in sorted(kinds, key=list(KINDS).index) for plan in plans_of(kind, unseen)]
    place = room(rng.choice(plans))
    goal = _draw_goal(task, place, rng)
    if goal is None:
        return None
    target, parent = goal
    toggle = LAMP if task == "look_at_obj_in_light" else ""
    things = _draw_things(task, place, target, parent, toggle, rng)
    if things is None:
        return None
    words = {"obj": target, "recep": parent, "toggle": toggle, "mrecep": ""}
    template: str = rng.choice(package.goals()[task]["templates"])
    objective = template.format(**{name: word.lower() for name, word in words.items()})
    return Scene(task, place, things, target, parent, toggle, objective)


def holders(place: Room, kind: str) -> tuple[str, ...]:
    """The ids of the receptacles of the room that a thing of type `kind` can be in."""
    may_hold: Mapping[str, set[str]] = package.constants().VAL_RECEPTACLE_OBJECTS
    return tuple(r.id for r in place.receptacles if kind in may_hold.get(r.type, ()))


def _movable_types(place: Room) -> list[str]:
    """The types of things of the room that lie about: at least one of its receptacles can hold them."""
    return [kind for kind in place.types if holders(place, kind)]


def _draw_goal(task: str, place: Room, rng: random.Random) -> tuple[str, str] | None:
    """A type of thing and a type of receptacle that the task can be about in this room."""
    kinds = _movable_types(place)
    if task == "look_at_obj_in_light":
        has_lamp = LAMP in place.types and any(r.type in LAMP_STANDS for r in place.receptacles)
        return (rng.choice(kinds), "") if has_lamp and kinds else None
    excluded = ""
    if task in TREATMENTS:
        able, excluded = TREATMENTS[task]
        allowed: set[str] = package.constants().VAL_ACTION_OBJECTS[able]
        kinds = [kind for kind in kinds if kind in allowed]
        if excluded not in place.receptacle_types():
            return None
    may_hold: Mapping[str, set[str]] = package.constants().VAL_RECEPTACLE_OBJECTS
    pairs = [
        (kind, parent)
        for kind in kinds
        for parent in place.receptacle_types()
        if parent != excluded and kind in may_hold.get(parent, ()) and _elsewhere(place, kind, parent)
    ]
    return rng.choice(pairs) if pairs else None


def _elsewhere(place: Room, kind: str, parent: str) -> list[str]:
    """The receptacles that can hold a thing of type `kind` and are not of the type in which the task wants it."""
    types = {r.id: r.type for r in place.receptacles}
    return [receptacle for receptacle in holders(place, kind) if types[receptacle] != parent]


def _draw_things(
    task: str, place: Room, target: str, parent: str, toggle: str, rng: random.Random
) -> tuple[Thing, ...] | None:
    """What lies in the room: the task's things, none of them where it has to go, then others, at most `MAX_THINGS`."""
    least = 2 if task == "pick_two_obj_and_place" else 1
    wanted = _elsewhere(place, target, parent)
    things = [_thing(target, rng.choice(wanted), rng) for _ in range(rng.randint(least, MAX_INSTANCES))]
    if toggle:
        stands = [r.id for r in place.receptacles if r.type in LAMP_STANDS]
        things.append(_thing(toggle, rng.choice(stands), rng))
    others = [kind for kind in _movable_types(place) if kind != target]
    rng.shuffle(others)
    for kind in others:
        for _ in range(rng.randint(1, MAX_INSTANCES)):
            if len(things) == MAX_THINGS:
                break
            things.append(_thing(kind, rng.choice(holders(place, kind)), rng))
    ids = {thing.id for thing in things}
    return tuple(things) if len(ids) == len(things) else None


def _thing(kind: str, receptacle: str, rng: random.Random) -> Thing:
    return Thing("|".join((kind, *new_position(rng))), kind, receptacle)
