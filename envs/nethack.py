"""The NetHack tasks of ONI, "Online Intrinsic Rewards for Decision Making Agents from LLM Feedback" (arXiv 2410.23022),
and the NetHack Challenge with NLE's own rules."""

# pyright: reportPrivateUsage=false

import enum
import functools
import re
from typing import Any

import numpy as np
from nle import nethack
from nle.env.tasks import TASK_ACTIONS, NetHackChallenge

from envs.base import View
from envs.nethack_actions import ONI_ACTIONS, OniKeys
from envs.nle_constants import ASCENDED, CONDITION, DEPTH, HALLUCINATING, SCORE, X, Y, monster_glyph
from envs.nle_env import BUFFERS, FILLED, NleEnv
from envs.nle_game import Buffers, GameRules
from envs.registry import EnvironmentOptionError, check_count, check_options

CHARACTER = "mon-hum-neu-mal"
MAX_EPISODE_STEPS = 5000
GOAL_REWARD = 50.0
FROZEN_PENALTY = -0.01

ACTION_SETS = {"oni": ONI_ACTIONS, "task": TASK_ACTIONS, "full": nethack.ACTIONS}


class NetHackTask(GameRules):
    """What the tasks have in common: their rewards look at the status line before and after, at nothing else."""

    def _remember(self) -> Buffers:
        return ()


class ScoreTask(NetHackTask):
    """Reward: the change of the in-game score, `FROZEN_PENALTY` where game time stood still."""

    def _reward_fn(self, last_observation: Buffers, action: int, observation: Buffers, end_status: Any) -> float:
        del last_observation, action, observation, end_status
        if not self.nethack.in_normal_game():
            return 0.0  # a game that is over has a status line of zeros
        gain = self.now[SCORE] - self.before[SCORE]
        return gain + (FROZEN_PENALTY if self._stood_still() else 0.0)


class GoalTask(NetHackTask):
    """Reward: `GOAL_REWARD` once, when the goal is reached, which ends the episode."""

    class StepStatus(enum.IntEnum):  # pyright: ignore[reportIncompatibleVariableOverride] - NLE's way of adding one
        ABORTED = -1
        RUNNING = 0
        DEATH = 1
        TASK_SUCCESSFUL = 2

    def _reward_fn(self, last_observation: Buffers, action: int, observation: Buffers, end_status: Any) -> float:
        del last_observation, action, observation
        return GOAL_REWARD if end_status == self.StepStatus.TASK_SUCCESSFUL else 0.0


class StaircaseTask(GoalTask):
    """The goal: to descend to dungeon level `target`."""

    target: int

    def _is_episode_end(self, observation: Buffers) -> Any:
        reached = int(observation[self._blstats_index][DEPTH]) >= self.target
        return self.StepStatus.TASK_SUCCESSFUL if reached else self.StepStatus.RUNNING


class StaircaseLvl3Task(StaircaseTask):
    target = 3


class StaircaseLvl4Task(StaircaseTask):
    target = 4


@functools.cache
def oracle_glyph() -> int:
    """The glyph of the Oracle."""
    return monster_glyph("Oracle")


class OracleTask(GoalTask):
    """The goal: the Oracle's glyph in the 3x3 squares around the agent, even where a hallucination shows it."""

    sober = False

    def _is_episode_end(self, observation: Buffers) -> Any:
        blstats = observation[self._blstats_index]
        if self.sober and blstats[CONDITION] & HALLUCINATING:
            return self.StepStatus.RUNNING
        x, y = int(blstats[X]), int(blstats[Y])
        around = observation[self._glyph_index][max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        reached = bool(np.any(around == oracle_glyph()))
        return self.StepStatus.TASK_SUCCESSFUL if reached else self.StepStatus.RUNNING


class OracleSoberTask(OracleTask):
    """As `OracleTask`, while the agent does not hallucinate."""

    sober = True


class ChallengeTask(NetHackChallenge, GameRules):
    """NLE's `NetHackChallenge`: the whole keyboard, nothing skipped, a random character."""


TASKS: dict[str, type[GameRules]] = {
    "Score": ScoreTask,
    "Oracle": OracleTask,
    "OracleSober": OracleSoberTask,
    "StaircaseLvl3": StaircaseLvl3Task,
    "StaircaseLvl4": StaircaseLvl4Task,
}


_CHARACTER = re.compile(
    r"@|(?:arc|bar|cav|hea|kni|mon|pri|ran|rog|sam|tou|val|wiz)-(?:hum|elf|dwa|gno|orc)-(?:law|neu|cha)-(?:mal|fem)"
)
"""`@` (a random one), or NetHack's role, race, alignment and gender by their first three letters (role.c)."""


def _check_character(env_id: str, character: object) -> str:
    """`character` if NetHack knows it; for any other NetHack plays a random one without a word."""
    if not isinstance(character, str) or not _CHARACTER.fullmatch(character):
        raise EnvironmentOptionError(
            f"{env_id}: character must be '@' or role-race-alignment-gender like {CHARACTER!r}, not {character!r}"
        )
    return character


def _with_macros(task: type[GameRules]) -> type[GameRules]:
    """The task with ONI's macros, which come first in the method order."""
    return type(task.__name__, (OniKeys, task), {})


def _reset(game: GameRules, core: int) -> None:
    del core
    game.reset()


def make_nethack(name: str, view: View, **options: Any) -> NleEnv:
    """The environment `nethack/<name>`.

    Options: `max_episode_steps`; of Challenge `no_progress_timeout`, of the others `actions` and `character`.
    """
    env_id = f"nethack/{name}"
    if name == "Challenge":
        return _make_challenge(env_id, view, options)
    check_options(env_id, options, ("actions", "character", "max_episode_steps"))
    action_set = options.get("actions", "oni")
    if action_set not in ACTION_SETS:
        raise EnvironmentOptionError(f"{env_id}: actions must be one of {', '.join(ACTION_SETS)}, not {action_set!r}")
    task = _with_macros(TASKS[name]) if action_set == "oni" else TASKS[name]
    character = _check_character(env_id, options.get("character", CHARACTER))
    game = task(
        observation_keys=BUFFERS,
        actions=ACTION_SETS[action_set],
        character=character,
        max_episode_steps=check_count(env_id, "max_episode_steps", options.get("max_episode_steps", MAX_EPISODE_STEPS)),
        fix_moon_phase=True,
        render_mode="ansi",
    )
    game.prepare(FILLED)
    won = getattr(game.StepStatus, "TASK_SUCCESSFUL", None)
    return NleEnv(env_id, game, view, options, None if won is None else (lambda status: status == won), _reset)


def _make_challenge(env_id: str, view: View, options: dict[str, Any]) -> NleEnv:
    check_options(env_id, options, ("max_episode_steps", "no_progress_timeout"))
    limits: dict[str, Any] = {name: check_count(env_id, name, value) for name, value in options.items()}
    game = ChallengeTask(observation_keys=BUFFERS, fix_moon_phase=True, render_mode="ansi", **limits)
    game.prepare(FILLED)

    def ascended(status: Any) -> bool:
        del status
        return game.nethack.how_done() == ASCENDED

    return NleEnv(env_id, game, view, options, ascended, _reset)
