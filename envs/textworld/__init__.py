"""TextWorld: games generated from a seed, kept, and played (arXiv 1806.11532). See `docs/text_worlds.md`."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.base import EnvironmentIdError
from envs.cache import cache_folder
from envs.registry import check_choice, check_count, check_flag, check_options
from envs.text import TextEnvSpec
from envs.textworld import games
from envs.textworld.games import GameFileError, GameGenerationError, Recipe
from envs.textworld.tasks import Setting, Task, parse

if TYPE_CHECKING:
    from envs.textworld.env import Episode, TextWorldEnv

__all__ = ["SPLITS", "GameFileError", "GameGenerationError", "game_seed", "is_made", "make_textworld", "prepare"]

SPLITS = {"train": range(30001, 35001), "sft": range(40001, 40102), "test": range(1, 101)}
"""The game seeds of the splits, as in arXiv 2510.01132: no two share one."""

REWARDS = ("sparse", "score", "dense")
_SIMPLE = {"rewards": ("dense", "balanced", "sparse"), "goal": ("detailed", "brief", "none")}
"""Settings of `textworld/simple`, the first choice being the default."""
_SEED_LIMIT = 2**32
"""TextWorld draws from numpy's RandomState, which takes seeds below it."""


def game_seed(seed: int, split: str | None) -> int:
    """The seed of the game that `reset(seed=seed)` plays: the seed-th of the split, counted from 0 and around; without a
    split the seed itself (modulo 2^32)."""
    if split is None:
        return seed % _SEED_LIMIT
    seeds = SPLITS[split]
    return seeds[seed % len(seeds)]


def make_textworld(name: str, **options: Any) -> "TextWorldEnv":
    """The environment `textworld/<name>`.

    Options: `max_episode_steps`, `reward` (`sparse`, `score`, `dense`), `facts`, `walkthrough`; where games are
    generated also `split` (`train`, `sft`, `test` or None) and `cache_dir`; for `simple` also `rewards` and `goal`.
    Raises `EnvironmentIdError`, `EnvironmentOptionError`, and `GameFileError` for a file that is no game.
    """
    from envs.textworld.env import TextWorldEnv

    task = _task(name)
    split, extra, folder = _check(task, options)
    if task.path is not None:
        games.check_file(task.path)
    spec = TextEnvSpec(
        id=task.env_id,
        max_episode_steps=int(options.get("max_episode_steps", task.max_episode_steps)),
        has_success=True,
        options=dict(options),
    )
    episode_of = _of_file(task.path) if task.path else _of_seed(task, split, extra, folder)
    return TextWorldEnv(
        spec,
        episode_of,
        reward=options.get("reward", "sparse"),
        facts=options.get("facts", False),
        walkthrough=options.get("walkthrough", False),
    )


def prepare(
    env_id: str,
    seeds: Iterable[int],
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> int:
    """Generates now the games that `reset` would play with `seeds` and `options`; returns how many were missing.

    `workers` processes share the work; `progress(done, total)` is called at the start and after each game. Raises
    `GameGenerationError` for the first game that cannot be generated; what was finished by then is kept.
    """
    task = _task(env_id.removeprefix("textworld/"))
    split, extra, folder = _check(task, options)
    if task.path is not None:
        raise EnvironmentIdError(f"{env_id} is a file: there is nothing to generate")
    recipes = {seed: Recipe(task, seed, extra) for seed in (game_seed(given, split) for given in seeds)}
    return games.prepare(recipes.values(), folder, workers, progress)


def is_made(env_id: str, seed: int, **options: Any) -> bool:
    """Whether `reset` would find the game that it plays with `seed` and `options`: a file, or generated before."""
    task = _task(env_id.removeprefix("textworld/"))
    split, extra, folder = _check(task, options)
    return task.path is not None or games.is_made(Recipe(task, game_seed(seed, split), extra), folder)


def is_generated(env_id: str) -> bool:
    """Whether the games of `textworld/...` are generated from seeds; otherwise it is a game file. Raises `EnvironmentIdError`."""
    return _task(env_id.removeprefix("textworld/")).path is None


def _task(name: str) -> Task:
    task = parse(name)
    if task is None:
        raise EnvironmentIdError(f"textworld has no task {name!r}")
    return task


def _check(task: Task, options: dict[str, Any]) -> tuple[str | None, tuple[tuple[str, Setting], ...], Path]:
    """Split, settings that options add to the task's, and the folder of its games."""
    env_id = task.env_id
    generated = () if task.kind == "file" else ("cache_dir", "split")
    simple = tuple(_SIMPLE) if task.kind == "simple" else ()
    check_options(env_id, options, ("facts", "max_episode_steps", "reward", "walkthrough", *generated, *simple))
    for flag in ("facts", "walkthrough"):
        check_flag(env_id, flag, options.get(flag, False))
    check_choice(env_id, "reward", options.get("reward", "sparse"), REWARDS)
    if "max_episode_steps" in options:
        check_count(env_id, "max_episode_steps", options["max_episode_steps"])
    split = options.get("split")
    if split is not None:
        check_choice(env_id, "split", split, SPLITS)
    extra = tuple((key, check_choice(env_id, key, options.get(key, _SIMPLE[key][0]), _SIMPLE[key])) for key in simple)
    return split, extra, cache_folder("textworld", options.get("cache_dir"))


def _of_seed(
    task: Task, split: str | None, extra: tuple[tuple[str, Setting], ...], folder: Path
) -> "Callable[[int], Episode]":
    from envs.textworld.env import Episode

    def episode_of(seed: int) -> Episode:
        recipe = Recipe(task, game_seed(seed, split), extra)
        story = games.story_of(recipe, folder)
        return Episode(story, 1, {"seed": str(seed), "game_seed": str(recipe.seed), "game": recipe.digest})

    return episode_of


def _of_file(path: Path) -> "Callable[[int], Episode]":
    from envs.textworld.env import Episode

    story, digest = path.resolve(), games.digest_of(path)

    def episode_of(seed: int) -> Episode:
        # The interpreter takes a C int, and 0 for a seed of its own choice.
        return Episode(story, seed % (2**31 - 1) + 1, {"seed": str(seed), "game": digest})

    return episode_of
