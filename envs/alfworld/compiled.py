"""A game file made ready to be played: its problem translated, its grammar parsed, both once and then from the cache."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from envs.alfworld import package
from envs.alfworld.grammar import Grammar
from envs.alfworld.planner import Planner, PlannerError
from envs.alfworld.problem import UNKNOWN_GOAL
from envs.cache import digest, keep_json

FORMAT = "1"
"""Of what is kept; a change makes everything be translated anew."""

_TASK = re.compile(r'(?<="Your task is to: )[^;|"<>\[\]#{}\\]+(?=\.")')
"""The task in a grammar, where nothing in it means anything to the grammar: all else is alike in all games."""


class GameFileError(ValueError):
    """A game that can't be read or translated; the message names the file and the cause."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A PDDL problem translated (`translator.problem`)."""

    sas: bytes
    facts: tuple[tuple[str, ...], ...]
    objects: Mapping[str, str]
    supertypes: Mapping[str, list[str]]
    parameters: Mapping[str, tuple[tuple[str, str], ...]]
    fluents: frozenset[str]


@dataclass(frozen=True, slots=True)
class Game:
    """One game, ready to be played. `name` is what errors call it. Where `task` is not empty, it has to be put in place
    of `UNKNOWN_GOAL` in all that the grammar says: so that games whose grammars differ in the task alone share one."""

    name: str
    problem: Problem
    grammar: Grammar
    task: str
    walkthrough: tuple[str, ...]

    def worded(self, text: str) -> str:
        """What the grammar said, with the game's own task."""
        return text.replace(UNKNOWN_GOAL, self.task) if self.task else text


def compile_game(name: str, data: Mapping[str, Any], planner: Planner, folder: Path) -> Game:
    """Makes the content of a `game.tw-pddl` ready, with what `folder` keeps. Raises `GameFileError`."""
    for key in ("pddl_domain", "pddl_problem", "grammar"):
        if not isinstance(data.get(key), str):
            raise GameFileError(f"{name} is no ALFWorld game: it has no {key!r}")
    try:
        problem = _problem(data["pddl_domain"], data["pddl_problem"], planner, folder)
        grammar, task = _grammar(data["grammar"], planner, folder)
    except (PlannerError, ValueError) as error:
        raise GameFileError(f"{name} can't be played: {error}") from error
    return Game(name, problem, grammar, task, tuple(data.get("walkthrough") or ()))


def _problem(domain: str, problem: str, planner: Planner, folder: Path) -> Problem:
    key = digest(FORMAT, package.versions(), domain, problem)
    made = keep_json(folder / "problems", key, lambda: planner.problem(domain, problem))
    return Problem(
        sas=made["sas"].encode(),
        facts=tuple(tuple(fact) for fact in made["facts"]),
        objects=made["objects"],
        supertypes=made["supertypes"],
        parameters={name: tuple((p, kind) for p, kind in of) for name, of in made["parameters"].items()},
        fluents=frozenset(made["fluents"]),
    )


def _grammar(text: str, planner: Planner, folder: Path) -> tuple[Grammar, str]:
    """The grammar, and the task that its texts have to be given (`Game.task`)."""
    tasks = _TASK.findall(text)
    task = tasks[0] if len(tasks) == 1 else ""
    general = _TASK.sub(UNKNOWN_GOAL, text) if task else text
    return _parsed(digest(FORMAT, package.versions(), general), general, planner, folder), task


@lru_cache(maxsize=16)
def _parsed(key: str, text: str, planner: Planner, folder: Path) -> Grammar:
    return Grammar(keep_json(folder / "grammars", key, lambda: planner.grammar(text)))
