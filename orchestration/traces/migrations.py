"""Reads what older versions wrote: one function from each version of the schema to the next, applied to JSON objects.

A migration changes the objects of one file in their order and never the file: finished traces stay as they are.
"""

from collections.abc import Callable, Mapping
from typing import Any

from orchestration.errors import TraceError
from orchestration.traces.schema import SCHEMA

Migration = Callable[[dict[str, Any]], dict[str, Any]]


def _from_1(tree: dict[str, Any]) -> dict[str, Any]:
    """`reward.target` became `targets`; all else that is new has defaults."""
    if tree.get("type") == "reward" and "target" in tree:
        tree["targets"] = [tree.pop("target")]
    if tree.get("record") == "header":
        tree["schema"] = "yendor-trace/2"
    return tree


MIGRATIONS: Mapping[str, tuple[str, Migration]] = {"yendor-trace/1": ("yendor-trace/2", _from_1)}
"""Version: the next one, and what leads there."""


def migration(version: object) -> Migration:
    """What turns an object of `version` into one of this version. Raises `TraceError` where no way leads here."""
    steps: list[Migration] = []
    at = version
    while at != SCHEMA:
        if not isinstance(at, str) or at not in MIGRATIONS:
            known = ", ".join((*MIGRATIONS, SCHEMA))
            raise TraceError(f"written as {version}, this version reads {known}")
        at, step = MIGRATIONS[at]
        steps.append(step)

    def upgrade(tree: dict[str, Any]) -> dict[str, Any]:
        for step in steps:
            tree = step(tree)
        return tree

    return upgrade
