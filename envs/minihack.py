"""Every task that MiniHack registers, with its own actions, reward and limit."""

# pyright: reportPrivateUsage=false

import contextlib
import functools
import random
import re
import sys
from collections.abc import Generator
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec as GymSpec

from envs.base import View
from envs.nle_constants import CLOSED_DOORS, X, Y
from envs.nle_env import FILLED, NleEnv
from envs.nle_game import Buffers, GameRules
from envs.registry import EnvironmentOptionError, EnvironmentUnavailableError, check_count, check_options

OPTIONS = ("max_episode_steps", "penalty_step", "reward_lose", "reward_win")
_ATTRIBUTE = {"max_episode_steps": "_max_episode_steps"}


class _Later(ModuleType):
    """Takes a module's place in `sys.modules` until something of it is used."""

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):  # Python's own questions about a module are no use of it
            raise AttributeError(attribute)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), attribute)


@functools.cache
def _registered() -> dict[str, GymSpec]:
    # MiniHack's reader of wiki pages, which nothing here uses, imports it, and that takes three seconds.
    sys.modules.setdefault("inflect", _Later("inflect"))
    import_module("minihack")  # registers its tasks with gymnasium
    specs: dict[str, GymSpec] = {}
    for env_id, spec in gym.registry.items():
        match = re.fullmatch(r"MiniHack-(.+)-v\d+", env_id)
        # The two base classes are registered as well, but want a level file.
        if match and match[1] not in ("Navigation-Custom", "Skill-Custom"):
            specs[match[1]] = spec
    return specs


def registered_names() -> frozenset[str]:
    """The names of the tasks that the installed MiniHack registers, without `MiniHack-` and the version."""
    return frozenset(_registered())


class _Doors:
    """KeyRoom looks for a closed door among the descriptions of all squares. Its glyph says the same at no cost."""

    last_observation: Buffers
    _observation_keys: list[str]
    _glyph_index: int
    _blstats_index: int

    def get_object_direction(self, name: str, observation: Buffers | None = None) -> int | None:
        """The key of the direction in which a closed door is next to the agent."""
        if name != "closed door":
            raise ValueError(f"KeyRoom was expected to look for nothing but closed doors, not {name!r}")
        observation = self.last_observation if observation is None else observation
        glyphs, blstats = observation[self._glyph_index], observation[self._blstats_index]
        x, y = int(blstats[X]), int(blstats[Y])
        for index, key in enumerate("ykuh.lbjn"):
            row, column = y + index // 3 - 1, x + index % 3 - 1
            inside = 0 <= row < glyphs.shape[0] and 0 <= column < glyphs.shape[1]
            if key != "." and inside and int(glyphs[row, column]) in CLOSED_DOORS:
                return ord(key)
        return None

    def key_in_inventory(self, name: str) -> str | None:
        """The inventory letter of the first thing whose description contains `name`."""
        letters = self.last_observation[self._observation_keys.index("inv_letters")].tobytes()
        lines = self.last_observation[self._observation_keys.index("inv_strs")]
        for letter, line in zip(letters.partition(b"\0")[0], lines, strict=False):
            if name.encode() in line.tobytes():
                return chr(letter)
        return None


@functools.cache
def _rules() -> type[GameRules]:
    """`MiniHackRules`, made when MiniHack is loaded: its base class comes from there."""
    from minihack import MiniHack

    class MiniHackRules(MiniHack, GameRules):  # pyright: ignore
        """Stands right before MiniHack's base class in the method order of a task."""

        def step(self, action: int) -> Any:
            # MiniHack copies every array for its reward managers; few tasks have one.
            if self.reward_manager is not None:
                self._previous_obs = tuple(array.copy() for array in self.last_observation)
            self._previous_action = action
            return GameRules.step(self, action)

        def _remember(self) -> Buffers:
            # The rewards of Sokoban and Boxoban count what lay where on the map.
            index, live = self._chars_index, super()._remember()
            return (*live[:index], live[index].copy(), *live[index + 1 :])

        def _get_observation(self, observation: Buffers) -> dict[str, Any]:
            return GameRules._get_observation(self, observation)

        def _get_time_penalty(self, last_observation: Buffers, observation: Buffers) -> float:
            if self.penalty_mode != "constant" or self.penalty_time:
                return float(super()._get_time_penalty(last_observation, observation))
            return self.penalty_step if self._stood_still() else 0.0

    return MiniHackRules


@functools.cache
def _game_class(name: str) -> tuple[type[GameRules], dict[str, Any]]:
    """The registered class of a task with our rules beneath it, and the arguments that it is registered with."""
    spec = _registered()[name]  # before anything else imports MiniHack

    from minihack.envs.keyroom import MiniHackKeyDoor

    entry_point = spec.entry_point
    if not isinstance(entry_point, str):
        raise TypeError(f"MiniHack registered {spec.id} without the name of its class")
    module, _, class_name = entry_point.partition(":")
    task: type[Any] = getattr(import_module(module), class_name)
    bases = (_Doors, task, _rules()) if issubclass(task, MiniHackKeyDoor) else (task, _rules())
    return type(task.__name__, bases, {}), dict(spec.kwargs)


def _reset(game: GameRules, core: int) -> None:
    """Starts a game whose level may be drawn outside NetHack: by Python's `random` or by MiniGrid."""
    grid = getattr(game, "minigrid_env", None)
    if grid is not None:
        grid.reset(seed=core % 2**31)
    # MiniHack keeps these from the episode before, and its reward managers look at them when the game starts.
    rules: Any = game
    rules._previous_obs = rules._previous_action = None
    rules._goal_pos_set = None  # Boxoban compares the map with its goals before it has ever read them
    state = random.getstate()
    random.seed(core)
    try:
        game.reset()
    finally:
        random.setstate(state)


def make_minihack(name: str, view: View, **options: Any) -> NleEnv:
    """The environment `minihack/<name>`. Options: `max_episode_steps`, `penalty_step`, `reward_win`, `reward_lose`.

    Raises `EnvironmentUnavailableError` for a task that needs what is not installed here (MiniGrid, Boxoban's levels).
    """
    env_id = f"minihack/{name}"
    check_options(env_id, options, OPTIONS)
    if "max_episode_steps" in options:
        check_count(env_id, "max_episode_steps", options["max_episode_steps"])
    game_class, registered = _game_class(name)
    try:
        with _grids_of_any_size():
            game = game_class(**{**registered, **options}, fix_moon_phase=True, render_mode="ansi")
    except ModuleNotFoundError as error:  # MiniHack's own way of saying what to install
        raise EnvironmentUnavailableError(f"{env_id} cannot be made here: {error}") from error
    try:
        _check(env_id, game, options)
    except BaseException:
        game.close()
        raise
    game.prepare(_needed(game))
    statuses: Any = game.StepStatus

    def has_won(status: Any) -> bool:
        return status == statuses.TASK_SUCCESSFUL

    return NleEnv(env_id, game, view, options, has_won, _reset)


def _check(env_id: str, game: GameRules, options: dict[str, Any]) -> None:
    """Catches what MiniHack passes over in silence: an option without effect, a level that was not compiled."""
    from minihack import MiniHack

    has_own_reward = getattr(type(game), "_reward_fn") is not MiniHack._reward_fn  # noqa: B009 - private, and on purpose
    without_effect = {
        "penalty_step": has_own_reward,
        "reward_lose": has_own_reward or getattr(game, "reward_manager", None) is not None,
        "reward_win": has_own_reward or getattr(game, "reward_manager", None) is not None,
    }
    for option, value in options.items():
        if without_effect.get(option, False) or getattr(game, _ATTRIBUTE.get(option, option)) != value:
            raise EnvironmentOptionError(f"{env_id} sets {option} itself; {option}={value!r} has no effect there")
    # MiniHack compiles its level into a data file of the game's own, in the place of a link to NetHack's.
    if (Path(game.nethack._vardir) / "nhdat").is_symlink():
        raise RuntimeError(
            f"{env_id}: MiniHack's script mh_patch_nhdat.sh could not compile the level (it needs bash, cp and mv, "
            f"and room in {game.nethack._vardir}); without it the game would be plain NetHack"
        )


def _needed(game: GameRules) -> set[str]:
    """The arrays that the game has to fill for the task's own rules."""
    keys: set[str] = set(FILLED)
    if isinstance(game, _Doors):
        keys |= {"inv_strs", "inv_letters"}  # it looks for the key among them
    if getattr(game, "reward_manager", None) is not None:
        keys |= {"screen_descriptions", "inv_strs", "inv_letters"}  # its events and functions may read them
    return keys


@contextlib.contextmanager
def _grids_of_any_size() -> Generator[None]:
    """MiniHack gives every MiniGrid a width and a height; its crossings have a size of their own and refuse them."""
    module: Any = import_module("minihack.envs.minigrid")

    def make(env_id: str, width: int, height: int) -> Any:
        has_size = "size" in gym.spec(env_id).kwargs
        return gym.make(env_id) if has_size else gym.make(env_id, width=width, height=height)

    module.gym = SimpleNamespace(make=make)
    try:
        yield
    finally:
        module.gym = gym
