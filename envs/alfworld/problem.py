"""A scene written down as ALFWorld writes its games: a PDDL problem, `game.tw-pddl` and `traj_data.json`."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from envs.alfworld import package
from envs.alfworld.scenes import LAMP, Scene

AGENT = "agent1"
UNKNOWN_GOAL = "UNKNOWN GOAL"
"""Where the grammar that alfworld ships names the task."""

_MANGLED = {"-": "_minus_", "#": "-", "|": "_bar_", "+": "_plus_", ".": "_dot_", ",": "_comma_"}
_MANGLE = str.maketrans(_MANGLED)


def mangle(text: str) -> str:
    """PDDL has no `|`, `+`, `.`; ALFWorld spells them out (`Mug_bar__minus_01_dot_57`). `#` stands for PDDL's own dash."""
    return text.translate(_MANGLE)


def pddl(scene: Scene, number: int) -> str:
    """The problem: what there is, what is true at the start, and the goal as alfworld's library has it."""
    goal: str = package.goals()[scene.task]["pddl"].format(
        obj=scene.target, recep=scene.parent, toggle=scene.toggle, mrecep=""
    )
    text = "\n".join(
        (
            f"(define (problem plan_{number})",
            "    (:domain alfred)",
            "    (:objects",
            *_indented(_declarations(scene)),
            "    )",
            "    (:init",
            "        (= (total-cost) 0)",
            *_indented(_facts(scene)),
            "    )",
        )
    )
    return mangle(text + goal)


def game_data(scene: Scene, problem: str, walkthrough: Iterable[str]) -> dict[str, Any]:
    """The content of `game.tw-pddl`."""
    return {
        "pddl_domain": package.domain(),
        "grammar": package.grammar().replace(UNKNOWN_GOAL, scene.objective),
        "pddl_problem": problem,
        "solvable": True,
        "walkthrough": list(walkthrough),
    }


def traj_data(scene: Scene, name: str) -> dict[str, Any]:
    """The content of `traj_data.json`, as far as text games have any use for it."""
    return {
        "task_id": name,
        "task_type": scene.task,
        "pddl_params": {
            "object_target": scene.target,
            "parent_target": scene.parent,
            "toggle_target": scene.toggle,
            "mrecep_target": "",
            "object_sliced": False,
        },
        "scene": {"floor_plan": f"FloorPlan{scene.room.plan}", "scene_num": scene.room.plan},
        "turk_annotations": {"anns": [{"task_desc": scene.objective}]},
    }


def as_json(data: Mapping[str, Any]) -> bytes:
    """The same bytes for the same data."""
    return (json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _indented(lines: Iterable[str]) -> Iterable[str]:
    return (f"        {line}" for line in lines)


def _declarations(scene: Scene) -> list[str]:
    place = scene.room
    locations = sorted({r.location for r in place.receptacles} | {place.start})
    return [
        f"{AGENT} # agent",
        *(f"{thing.id} # object" for thing in scene.things),
        *(f"{kind}Type # otype" for kind in _types(scene)),
        *(f"{receptacle.id} # receptacle" for receptacle in place.receptacles),
        *(f"{kind}Type # rtype" for kind in place.receptacle_types()),
        *(f"{location} # location" for location in locations),
    ]


def _types(scene: Scene) -> list[str]:
    """The types of the things of a scene. The goal's are among them, or the planner would not know them."""
    return sorted({thing.type for thing in scene.things})


def _facts(scene: Scene) -> list[str]:
    """All that is true at the start: every receptacle is shut, nothing is hot, cool, clean, sliced or switched on."""
    place = scene.room
    may_hold: Mapping[str, set[str]] = package.constants().VAL_RECEPTACLE_OBJECTS
    at = {receptacle.id: receptacle.location for receptacle in place.receptacles}
    facts = [f"(atLocation {AGENT} {place.start})"]
    for receptacle in place.receptacles:
        facts.append(f"(receptacleType {receptacle.id} {receptacle.type}Type)")
        facts.append(f"(receptacleAtLocation {receptacle.id} {receptacle.location})")
        if receptacle.openable:
            facts.append(f"(openable {receptacle.id})")
    facts += [
        f"(canContain {holder}Type {kind}Type)"
        for holder in place.receptacle_types()
        for kind in _types(scene)
        if kind in may_hold.get(holder, ())
    ]
    for thing in scene.things:
        facts.append(f"(objectType {thing.id} {thing.type}Type)")
        facts.append(f"(inReceptacle {thing.id} {thing.receptacle})")
        facts.append(f"(objectAtLocation {thing.id} {at[thing.receptacle]})")
        facts += [f"({ability} {thing.id})" for ability in _abilities(thing.type)]
    return facts


def _abilities(kind: str) -> list[str]:
    """What can be done with things of a type, besides to look at them."""
    actions: Mapping[str, set[str]] = package.constants().VAL_ACTION_OBJECTS
    able = [name.lower() for name in ("Cleanable", "Heatable", "Coolable", "Toggleable") if kind in actions[name]]
    if kind in actions["Sliceable"]:
        able.append("sliceable")
    if kind in package.constants().MOVABLE_RECEPTACLES_SET:
        able.append("isReceptacleObject")
    return able if kind == LAMP else [*able, "pickupable"]
