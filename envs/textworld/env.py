"""A game of TextWorld as an environment of this system."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.captions import normalise
from envs.registry import EnvironmentOptionError
from envs.text import TextEnv, TextEnvSpec, TextInfo
from envs.textworld.interpreter import Interpreter, Told, caption_of, take_apart
from envs.textworld.tracking import Plan, Rules, State, rules_of

MAX_LINE = 120
"""Longest command that is passed on; the longest that a game admits has about 80 characters."""

_SEVERAL = re.compile(r"[.;]|\bthen\b", re.IGNORECASE)
"""What Inform takes for the end of one command and the beginning of the next."""

_OUTSIDE = frozenset(
    {
        "brief",
        "disable",
        "enable",
        "full",
        "long",
        "normal",
        "notify",
        "nouns",
        "print_state",
        "pronouns",
        "q",
        "quit",
        "restart",
        "restore",
        "restrict",
        "save",
        "score",
        "script",
        "short",
        "superbrief",
        "transcript",
        "undo",
        "unscript",
        "verbose",
        "verify",
        "version",
    }
)
"""First words of the commands that are about the program and not in the world (Inform's Standard Rules, "out of world",
and TextWorld's own): they would start the game again, write files, or change what is printed."""


@dataclass(frozen=True, slots=True)
class Episode:
    """Which game is played, and what names it."""

    story: Path
    emulator_seed: int
    """Of the interpreter's random numbers, at least 1."""
    seeds: dict[str, str]


def refusal(command: str) -> str | None:
    """Why `command` (normalised) is not passed on to the game; None where it is.

    One step is one command, whatever the game would make of several.
    """
    if len(command) > MAX_LINE:
        return "That is too long for one command."
    words = command.casefold().split()
    if words and (words[0] in _OUTSIDE or words[0].startswith(("tw-", "print"))):
        return f'"{words[0]}" is no command of this world.'
    if _SEVERAL.search(command):
        return "One command at a time, please."
    return None


class TextWorldEnv(TextEnv):
    """Plays one game of TextWorld an episode. See `docs/text_worlds.md` for what its parts mean."""

    exclusive = "textworld"  # TextWorld generates games with state that the whole process shares

    def __init__(
        self,
        spec: TextEnvSpec,
        episode_of: Callable[[int], Episode],
        reward: str = "sparse",
        facts: bool = False,
        walkthrough: bool = False,
    ) -> None:
        """`episode_of` gives the game of a seed. `reward`: `sparse`, `score` or `dense`."""
        self.env_spec = spec
        self._episode_of = episode_of
        self._reward = reward
        self._facts, self._walkthrough = facts, walkthrough
        self._interpreter = Interpreter()
        self._episode: Episode | None = None
        self._running = False
        self._text = ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, Any]:
        episode = self._episode_of(self.draw_seed(seed, options))
        self._rules: Rules = rules_of(episode.story)
        if self._reward == "score" and self._rules.max_score <= 0:
            raise EnvironmentOptionError(
                f"{self.env_spec.id}: reward=score has no effect, as the game counts no points; take sparse or dense"
            )
        told = self._interpreter.start(episode.story, episode.emulator_seed)
        self._episode = episode
        self._state: State = self._rules.start
        self._plan = Plan(self._rules) if self._reward == "dense" else None
        self._plan_length = self._length_of_plan()
        self._steps, self._score, self._running = 0, 0, True
        self._description, self._inventory = "", ""
        self._look(told)
        observation = _observation(self._description, "", self._inventory)
        self._text = f"{self._rules.objective}\n\n{observation}".strip()
        info = self._info(caption_of(self._description), True)
        if self._walkthrough:
            info["walkthrough"] = self._rules.walkthrough
        return observation, info

    def step(self, action: str) -> tuple[str, float, bool, bool, Any]:
        """Says `action`. Raises RuntimeError after the end and before the start of an episode."""
        if not self._running:
            raise RuntimeError(f"{self.env_spec.id}: the episode is over or has not begun; call reset first")
        # The full stop that a sentence ends with is none of the command's; other signs than ASCII no game understands.
        command = normalise(action).rstrip(" .!").encode("ascii", "replace").decode()
        grounded = command.casefold() in self._state.folded
        refused = None if grounded else refusal(command)
        told = Told(refused, None, None, None, ()) if refused else take_apart(self._interpreter.send(command))
        score, length = self._score, self._plan_length
        self._follow(told)
        self._steps += 1
        terminated = told.won or told.lost
        truncated = not terminated and self._steps >= self.env_spec.max_episode_steps
        self._running = not (terminated or truncated)
        self._text = _observation(self._description, told.feedback, self._inventory)
        info = self._info(caption_of(told.feedback), grounded)
        if not self._running:
            info["success"] = told.won
            info["metrics"] = {"score": float(self._score), "max_score": float(self._rules.max_score)}
        return self._text, self._rewarded(told, self._score - score, length), terminated, truncated, info

    def _follow(self, told: Told) -> None:
        """Takes over what the game said of itself, and what its actions changed."""
        self._look(told)
        for event in told.events:
            self._state, done = self._state.after(event)
            if done is not None and self._plan is not None:
                self._plan.advance(done, self._state.logic)
                self._plan_length = self._length_of_plan()

    def _look(self, told: Told) -> None:
        if told.description is not None:
            self._description = told.description
        if told.inventory is not None:
            self._inventory = told.inventory
        if told.score is not None:
            self._score = told.score

    def _length_of_plan(self) -> int | None:
        policy = None if self._plan is None else self._plan.winning_policy
        return None if policy is None else len(policy)

    @property
    def plan(self) -> tuple[str, ...] | None:
        """Commands that win from here, the shortest that TextWorld knows; None where it knows none, and unless `reward=dense`."""
        policy = None if self._plan is None else self._plan.winning_policy
        return None if policy is None else tuple(self._rules.commands(policy))

    def _rewarded(self, told: Told, points: int, length: int | None) -> float:
        """The reward of a step that brought `points` and began with `length` commands to go.

        `dense` is TextWorld's `intermediate_reward`: the sign of what the plan has become shorter by; 1 for the step that
        wins, −1 for the one that loses.
        """
        if self._reward == "sparse":
            return float(told.won)
        if self._reward == "score":
            return points / self._rules.max_score
        if told.won or told.lost:
            return 1.0 if told.won else -1.0
        if length is None:
            return 0.0
        shorter = length - (self._plan_length or 0)
        return float((shorter > 0) - (shorter < 0))

    def _info(self, caption: str, grounded: bool) -> TextInfo:
        return {
            "caption": caption,
            "grounded": grounded,
            "objective": self._rules.objective,
            "admissible": self._state.commands,
            "facts": self._state.facts if self._facts else (),
            "score": float(self._score),
        }

    @property
    def seeds(self) -> dict[str, str]:
        return {} if self._episode is None else dict(self._episode.seeds)

    def screen(self) -> str:
        """The last text; at the start, what is to be done goes before it."""
        return self._text

    def close(self) -> None:
        self._interpreter.close()
        self._running = False


def _observation(description: str, feedback: str, inventory: str) -> str:
    """Room, answer and possessions, the answer only where it says more than the two."""
    parts = [description, "" if feedback in (description, inventory) else feedback, inventory]
    return "\n\n".join(part for part in parts if part)
