"""ALFWorld as an environment of this system: one class for games that were made here and for those of the download."""

import random
from pathlib import Path
from typing import Any, Protocol

from envs.alfworld import package
from envs.alfworld.compiled import Game, GameFileError, compile_game
from envs.alfworld.data import find_games, read_game
from envs.alfworld.engine import Player
from envs.alfworld.generate import GAMES, GenerationError, Maker, game_of
from envs.alfworld.grammar import GrammarError
from envs.alfworld.ids import ALL, SPLITS, is_path, tasks_of
from envs.alfworld.planner import PlannerError, shared_planner
from envs.alfworld.progress import Progress
from envs.cache import cache_folder
from envs.captions import normalise
from envs.registry import (
    EnvironmentOptionError,
    EnvironmentUnavailableError,
    check_choice,
    check_count,
    check_flag,
    check_options,
)
from envs.text import TextEnv, TextEnvSpec, TextInfo

MAX_STEPS = 50
"""ALFWorld's own step limit."""

REWARDS = ("sparse", "dense")

_COMMON = ("cache_dir", "domain_randomization", "facts", "max_episode_steps", "reward", "split")


class Source(Protocol):
    """Where the game of a seed comes from."""

    def folder(self, seed: int) -> Path:
        """The folder of the game that `seed` names."""
        ...

    def name(self, folder: Path) -> str:
        """What names that game: wherever it is kept, if it was made here."""
        ...

    def close(self) -> None: ...


class MadeHere:
    """Games that are made from their seeds (`generate`), now where they are not in the cache yet."""

    def __init__(self, tasks: tuple[str, ...], split: str, games: int, maker: Maker) -> None:
        self._tasks, self._split, self._games, self._maker = tasks, split, games, maker

    def folder(self, seed: int) -> Path:
        task, number = game_of(self._tasks, seed, self._games)
        return self._maker.game(task, self._split, number)

    def name(self, folder: Path) -> str:
        return "/".join(folder.parts[-3:])

    def close(self) -> None:
        self._maker.close()


class Stored:
    """Games of the download: seed s plays the game s modulo their count, sorted by path."""

    def __init__(self, folders: tuple[Path, ...]) -> None:
        self._folders = folders

    def folder(self, seed: int) -> Path:
        return self._folders[seed % len(self._folders)]

    def name(self, folder: Path) -> str:
        return str(folder)

    def close(self) -> None:
        pass


def make_alfworld(name: str, **options: Any) -> TextEnv:
    """The environment `alfworld/<name>`: a task type, a `+`-joined mix, `all`, or a path to ALFWorld's data.

    Options: `split` (train, seen, unseen), `reward` (sparse, dense), `facts`, `max_episode_steps`,
    `domain_randomization` (of split train), `cache_dir`; of made games also `games`, of a path `tasks`
    (`docs/alfworld.md`). Raises `EnvironmentIdError`, `EnvironmentOptionError`, `EnvironmentUnavailableError`.
    """
    env_id = f"alfworld/{name}"
    path = is_path(name)
    check_options(env_id, options, (*_COMMON, "tasks" if path else "games"))
    split = check_choice(env_id, "split", options["split"], SPLITS) if "split" in options else None
    reward = check_choice(env_id, "reward", options.get("reward", "sparse"), REWARDS)
    facts = check_flag(env_id, "facts", options.get("facts", False))
    shuffled = check_flag(env_id, "domain_randomization", options.get("domain_randomization", False))
    if shuffled and split not in (None, "train"):
        raise EnvironmentOptionError(f"{env_id}: domain_randomization is for split=train, not {split}")
    steps = check_count(env_id, "max_episode_steps", options.get("max_episode_steps", MAX_STEPS))
    cache = cache_folder("alfworld", options.get("cache_dir"))
    package.versions()  # says what is missing, before anything is looked for or made
    source: Source
    if path:
        tasks = tasks_of(str(options.get("tasks", ALL)))
        source = Stored(_found(env_id, name, split, tasks, cache))
    else:
        split = split or "train"
        games = check_count(env_id, "games", options.get("games", GAMES[split]))
        source = MadeHere(tasks_of(name), split, games, Maker(cache, shared_planner()))
    spec = TextEnvSpec(id=env_id, max_episode_steps=steps, has_success=True, options=dict(options))
    return AlfworldEnv(spec, source, cache, reward=reward, facts=facts, shuffled=shuffled)


def _found(env_id: str, name: str, split: str | None, tasks: tuple[str, ...], cache: Path) -> tuple[Path, ...]:
    try:
        return find_games(env_id, name, split, tasks, cache)
    except GameFileError as error:
        raise EnvironmentUnavailableError(f"{env_id}: {error}") from error


class AlfworldEnv(TextEnv):
    """Plays one game of ALFWorld an episode, word for word as the stock environment does. `folder` is where the game of
    the episode lies; None before the first."""

    exclusive = "alfworld"  # the planner's library has one state in a process

    def __init__(
        self, spec: TextEnvSpec, source: Source, cache: Path, *, reward: str, facts: bool, shuffled: bool
    ) -> None:
        """`cache` holds what was translated. `shuffled`: things are numbered in an order drawn from the episode's seed."""
        self.env_spec = spec
        self._source = source
        self._cache = cache
        self._dense, self._facts, self._shuffled = reward == "dense", facts, shuffled
        self._player: Player | None = None
        self._progress: Progress
        self._objective = ""
        self.folder: Path | None = None
        self._seeds: dict[str, str] = {}
        self._text = ""
        self._steps = self._grounded = 0
        self._running = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, Any]:
        """Starts the episode of `seed`. Raises `EnvironmentUnavailableError` where its game can't be made or read."""
        seed = self.draw_seed(seed, options)
        self._running = False
        try:
            folder = self._source.folder(seed)
            game, traj = self._load(folder)
            player = self._player = self._player or Player()
            self._text = player.start(game, random.Random(seed) if self._shuffled else None)
            self._objective = player.task()
        except (GameFileError, GenerationError, GrammarError, PlannerError) as error:
            raise EnvironmentUnavailableError(f"{self.env_spec.id}: {error}") from error
        self._progress = Progress(traj, player.world, player.won)
        self._seeds = {"seed": str(seed), "game": self._source.name(folder)}
        self.folder = folder
        self._steps = self._grounded = 0
        self._running = True
        return self._text, {
            **self._info(player, True),
            "walkthrough": player.walkthrough() if self._shuffled else game.walkthrough,
        }

    def step(self, action: str) -> tuple[str, float, bool, bool, Any]:
        """Says `action`. Raises RuntimeError after the end and before the start of an episode."""
        player = self._player
        if not self._running or player is None:
            raise RuntimeError(f"{self.env_spec.id}: the episode is over or has not begun; call reset first")
        grounded = player.knows(action)
        self._text = player.say(action)
        self._steps += 1
        self._grounded += grounded
        worth = self._progress.update(player.won)
        truncated = not player.won and self._steps >= self.env_spec.max_episode_steps
        self._running = not (player.won or truncated)
        info = self._info(player, grounded)
        if not self._running:
            info["success"] = player.won
            info["metrics"] = {"progress": self._progress.share, "grounded": self._grounded / self._steps}
        return self._text, worth if self._dense else float(player.won), player.won, truncated, info

    def _load(self, folder: Path) -> tuple[Game, dict[str, Any]]:
        data, traj = read_game(folder)
        return compile_game(str(folder), data, shared_planner(), self._cache), traj

    def _info(self, player: Player, grounded: bool) -> TextInfo:
        return {
            "caption": normalise(self._text),
            "grounded": grounded,
            "objective": self._objective,
            "admissible": player.admissible,
            "facts": player.facts() if self._facts else (),
        }

    @property
    def seeds(self) -> dict[str, str]:
        """The episode's `seed`, and the `game` it names: `<task type>/<split>/<number>-<digest>`, or the folder's path."""
        return dict(self._seeds)

    def screen(self) -> str:
        return self._text

    def close(self) -> None:
        self._running = False
        self._source.close()
        if self._player is not None:
            self._player.close()
            self._player = None
