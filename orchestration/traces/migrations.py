"""Reads what older versions wrote: one function from each version of the schema to the next, applied to JSON objects.

A migration changes the objects of one file in their order and never the file: finished traces stay as they are.
"""

from collections.abc import Callable, Mapping
from typing import Any

from orchestration.errors import TraceError
from orchestration.traces.schema import SCHEMA

Migration = Callable[[dict[str, Any]], dict[str, Any]]
"""Applied to the objects of one file in their order; it may remember what came before."""


def _from_1() -> Migration:
    """`reward.target` became `targets`; all else that is new has defaults."""

    def upgrade(tree: dict[str, Any]) -> dict[str, Any]:
        if tree.get("type") == "reward" and "target" in tree:
            tree["targets"] = [tree.pop("target")]
        return tree

    return upgrade


def _from_2() -> Migration:
    """An `env_step` could have `rows` instead of its screen: those that differ from the screen before."""
    shown: list[str] = []

    def upgrade(tree: dict[str, Any]) -> dict[str, Any]:
        nonlocal shown
        if tree.get("type") not in ("env_reset", "env_step"):
            return tree
        rows = tree.pop("rows", None)
        if rows is not None:
            height = tree.pop("height", len(shown))
            try:
                shown = [*shown[:height], *[""] * (height - len(shown))]
                for number, text in rows:
                    shown[number] = text
            except (IndexError, TypeError, ValueError) as error:
                raise TraceError(f"env_step: its rows do not fit: {error}") from error
            tree["screen"] = "\n".join(shown)
        elif tree.get("screen"):
            shown = str(tree["screen"]).split("\n")
        return tree

    return upgrade


def _from_3() -> Migration:
    """What is new has defaults."""
    return lambda tree: tree


MIGRATIONS: Mapping[str, tuple[str, Callable[[], Migration]]] = {
    "yendor-trace/1": ("yendor-trace/2", _from_1),
    "yendor-trace/2": ("yendor-trace/3", _from_2),
    "yendor-trace/3": ("yendor-trace/4", _from_3),
}
"""Version: the next one, and what makes the migration of one file there."""


def migration(version: object) -> Migration:
    """What turns the objects of one file of `version` into those of this version. Raises `TraceError` where no way leads
    here."""
    steps: list[Migration] = []
    at = version
    while at != SCHEMA:
        if not isinstance(at, str) or at not in MIGRATIONS:
            known = ", ".join((*MIGRATIONS, SCHEMA))
            raise TraceError(f"written as {version}, this version reads {known}")
        at, make = MIGRATIONS[at]
        steps.append(make())

    def upgrade(tree: dict[str, Any]) -> dict[str, Any]:
        if steps and tree.get("record") == "header":
            tree["schema"] = SCHEMA
        for step in steps:
            tree = step(tree)
        return tree

    return upgrade
