"""What is read of the alfworld package: its domain, grammar, goals, lists and floor plans, all of them files.

The package itself is not imported: to import any of its modules makes a folder in the user's home and sets an
environment variable, and most of them load what games with pictures need.
"""

import importlib.metadata
import importlib.util
import json
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from envs.registry import EnvironmentUnavailableError

INSTALL = "pip install alfworld==0.4.2 'textworld[pddl]==1.7.0'"


@cache
def root() -> Path:
    """The folder of the alfworld package. Raises `EnvironmentUnavailableError` where it is not installed."""
    spec = importlib.util.find_spec("alfworld")
    if spec is None or not spec.submodule_search_locations:
        raise EnvironmentUnavailableError(f"ALFWorld's games need the package alfworld: {INSTALL}")
    return Path(next(iter(spec.submodule_search_locations)))


@cache
def versions() -> str:
    """The versions of what decides how a game is made: games that differ in them are not the same games. Raises
    `EnvironmentUnavailableError` where one is not installed."""
    names = ("alfworld", "textworld", "fast-downward-textworld")
    try:
        return " ".join(f"{name}=={importlib.metadata.version(name)}" for name in names)
    except importlib.metadata.PackageNotFoundError as error:
        raise EnvironmentUnavailableError(f"ALFWorld's games need the package {error.name}: {INSTALL}") from error


@cache
def domain() -> str:
    """What actions do, as PDDL."""
    return (root() / "data" / "alfred.pddl").read_text()


@cache
def grammar() -> str:
    """What the game says, as a context-sensitive grammar; its task is `UNKNOWN GOAL`."""
    return (root() / "data" / "alfred.twl2").read_text()


@cache
def goals() -> dict[str, Any]:
    """By task type: the goal as PDDL (`pddl`) and the ways to say it (`templates`)."""
    return _module("goal_library").gdict


@cache
def constants() -> Any:
    """ALFWorld's lists: which things go where (`VAL_RECEPTACLE_OBJECTS`), which can be heated, and so on."""
    return _module("constants")


def layout(plan: int, part: str) -> Any:
    """A floor plan's `objects` (the types of what is in the room) or `openable` (where its receptacles stand)."""
    return json.loads((root() / "gen" / "layouts" / f"FloorPlan{plan}-{part}.json").read_text())


def _module(name: str) -> ModuleType:
    """`alfworld/gen/<name>.py`, run by itself: neither of the two that are read imports another module of alfworld."""
    spec = importlib.util.spec_from_file_location(f"_alfworld_{name}", root() / "gen" / f"{name}.py")
    if spec is None or spec.loader is None:
        raise EnvironmentUnavailableError(f"the alfworld package at {root()} has no gen/{name}.py; install 0.4.2")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
