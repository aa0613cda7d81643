"""The names of ALFWorld's environments, so that an id is checked without loading a game."""

import difflib
from pathlib import Path

from envs.base import EnvironmentIdError

TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
"""ALFWorld's six task types, in its own order and spelling."""

SPLITS = ("train", "seen", "unseen")
"""`seen`: new games in the rooms of `train`; `unseen`: games in rooms that `train` never shows."""

ALL = "all"


def alfworld_ids() -> list[str]:
    """The ids that need no downloaded data, with the prefix: each task type, and all of them together."""
    return [f"alfworld/{name}" for name in (ALL, *TASK_TYPES)]


def accepts(name: str) -> bool:
    """Whether `name` is a `+`-joined mix of task types or a path to data (there or not: `make` says what is missing).

    Raises `EnvironmentIdError`, with the near miss, for a mix of which one part is no task type.
    """
    if is_path(name):
        return True
    if "+" in name:
        tasks_of(name)
        return True
    return name == ALL or name in TASK_TYPES


def is_path(name: str) -> bool:
    """Whether `name` is meant as a path: it holds a separator, begins with `.` or `~`, or is there; a task type never."""
    if name == ALL or name in TASK_TYPES:
        return False
    return "/" in name or "\\" in name or name.startswith((".", "~")) or (bool(name) and Path(name).exists())


def tasks_of(mix: str) -> tuple[str, ...]:
    """The task types that `mix` names, once each, in ALFWorld's order: `all`, one, or several joined by `+`.

    Raises `EnvironmentIdError`, with the near miss, for a name that is none.
    """
    if mix == ALL:
        return TASK_TYPES
    parts = mix.split("+")
    for part in parts:
        if part not in TASK_TYPES:
            near = difflib.get_close_matches(part, TASK_TYPES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(TASK_TYPES)}, and {ALL!r} alone"
            raise EnvironmentIdError(f"alfworld has no task type {part!r}; {hint}")
        if parts.count(part) > 1:
            raise EnvironmentIdError(f"alfworld/{mix} names {part!r} twice; name each task type once")
    return tuple(task for task in TASK_TYPES if task in parts)
