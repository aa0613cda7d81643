"""How far a task is done, read from the facts: what the dense reward pays for.

The subgoals of a task are a chain, and the last of all is to win:

- `pick_and_place_simple`: hold such a thing; win.
- `look_at_obj_in_light`: hold such a thing, or have switched the lamp on; both; win.
- clean, heat, cool: hold such a thing; have one that is clean (hot, cool); win.
- `pick_two_obj_and_place`: hold such a thing; have one in place; have one in place and hold another; win.

The best that was reached counts, so that to undo and do again pays nothing (unlike a difference of potentials, which takes
back what is undone; Ng, Harada and Russell 1999).
"""

from collections.abc import Mapping
from typing import Any

from envs.alfworld.grammar import World

TREATED = {
    "pick_clean_then_place_in_recep": "isclean",
    "pick_heat_then_place_in_recep": "ishot",
    "pick_cool_then_place_in_recep": "iscool",
}


class Progress:
    """Counts the subgoals that an episode has reached. `traj` is the game's `traj_data.json`."""

    def __init__(self, traj: Mapping[str, Any], world: World, won: bool) -> None:
        parameters = traj.get("pddl_params") or {}
        self._task = str(traj.get("task_type"))
        self._target = f"{parameters.get('object_target') or ''}Type".lower()
        self._parent = f"{parameters.get('parent_target') or ''}Type".lower()
        self._toggle = f"{parameters.get('toggle_target') or ''}Type".lower()
        self.goals = {"pick_and_place_simple": 2, "pick_two_obj_and_place": 4}.get(self._task, 3)
        self._world = world
        self._start = self.reached = self._count(won)

    def update(self, won: bool) -> float:
        """What the step was worth: its share of the subgoals that the start left open. All steps of an episode that is
        won sum to 1, those of any other to less."""
        before = self.reached
        self.reached = max(before, self._count(won))
        return (self.reached - before) / max(self.goals - self._start, 1)

    @property
    def share(self) -> float:
        """The share of all subgoals that were reached, those included that were there at the start."""
        return self.reached / self.goals

    def _count(self, won: bool) -> int:
        if won:
            return self.goals
        world = self._world
        targets = {thing for thing, kind in world.ordered("objecttype") if kind == self._target}
        held = any(thing in targets for _, thing in world.ordered("holds"))
        if self._task in TREATED:
            treated = any(thing in targets for (thing,) in world.ordered(TREATED[self._task]))
            return 2 if treated else int(held)
        if self._task == "look_at_obj_in_light":
            return int(held) + int(self._lit())
        if self._task == "pick_two_obj_and_place":
            placed = self._placed(targets)
            return 2 + held if placed else int(held)
        return int(held)

    def _lit(self) -> bool:
        lamps = {thing for thing, kind in self._world.ordered("objecttype") if kind == self._toggle}
        return any(thing in lamps for (thing,) in self._world.ordered("istoggled"))

    def _placed(self, targets: set[str]) -> bool:
        parents = {thing for thing, kind in self._world.ordered("receptacletype") if kind == self._parent}
        inside = self._world.ordered("inreceptacle")
        return any(thing in targets and holder in parents for thing, holder in inside)
