"""Makes ALFWorld games from a seed, without any download: drawn, planned, played through once, kept.

A game is named by its task type, split and number, and is the same bytes wherever it is made with the same versions of
alfworld, textworld and the planner. No clock decides anything: the planner is only given what the task is about
(`essential`), which it solves in well under a second in the largest room.
"""

import random
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

from envs.alfworld import package
from envs.alfworld.compiled import compile_game
from envs.alfworld.engine import Player
from envs.alfworld.ids import SPLITS, tasks_of
from envs.alfworld.planner import Planner, TranslationError
from envs.alfworld.problem import as_json, game_data, pddl, traj_data
from envs.alfworld.scenes import TREATMENTS, Scene, draw
from envs.cache import cache_folder, digest, keep_folder
from envs.registry import check_choice

RECIPE = "1"
"""Of how scenes are drawn and written: a change gives every game a new name."""

GAMES = {"train": 1000, "seen": 100, "unseen": 100}
"""So many games of each task type a split has, unless asked for otherwise: a seed names one of them."""

ATTEMPTS = 100
"""So many scenes are drawn for one game at most. Most first ones are used; of `look_at_obj_in_light` two in five, as not
every room has a lamp."""

GAME_FILE = "game.tw-pddl"
TRAJ_FILE = "traj_data.json"


class _RejectedError(Exception):
    """A scene that can't be used; the message says why."""


class GenerationError(RuntimeError):
    """A game that can't be made; the message names it and why its scenes were rejected."""


def game_of(tasks: tuple[str, ...], seed: int, games: int) -> tuple[str, int]:
    """The task type and number of the game that a seed names: the types in turn, then the numbers below `games`."""
    number, which = divmod(seed, len(tasks))
    return tasks[which], number % games


def essential(scene: Scene) -> Scene:
    """What the task is about, and nothing else of the room: the things of the types it names, what holds them, where
    they can go, and what changes them. A plan for this is one for the whole, and no other thing could shorten it."""
    things = tuple(thing for thing in scene.things if thing.type in (scene.target, scene.toggle))
    holding = {thing.receptacle for thing in things}
    types = {scene.parent, TREATMENTS.get(scene.task, ("", ""))[1]}
    receptacles = tuple(r for r in scene.room.receptacles if r.id in holding or r.type in types)
    return replace(scene, things=things, room=replace(scene.room, receptacles=receptacles))


def folder_of(root: Path, task: str, split: str, number: int) -> Path:
    """Where a game is kept below `root`, made or not."""
    key = digest(RECIPE, package.versions(), task, split, str(number))
    return root / "games" / task / split / f"{number}-{key[:12]}"


class Maker:
    """Makes games and keeps them below `folder`. Not for several threads."""

    def __init__(self, folder: Path, planner: Planner) -> None:
        self._folder = folder
        self._planner = planner
        self._player: Player | None = None

    def game(self, task: str, split: str, number: int) -> Path:
        """The folder of a game, which is made first where it is not there. Raises `GenerationError`."""
        folder = folder_of(self._folder, task, split, number)
        if not (folder / GAME_FILE).is_file():
            keep_folder(folder, self._make(task, split, number))
        return folder

    def close(self) -> None:
        if self._player is not None:
            self._player.close()
            self._player = None

    def _make(self, task: str, split: str, number: int) -> dict[str, bytes]:
        rejected: dict[str, int] = {}
        for attempt in range(ATTEMPTS):
            rng = random.Random(f"yendor alfworld {RECIPE} {task} {split} {number} {attempt}")
            try:
                return self._attempt(task, split, number, rng)
            except _RejectedError as error:
                rejected[str(error)] = rejected.get(str(error), 0) + 1
        causes = "; ".join(f"{count} times {cause}" for cause, count in rejected.items())
        raise GenerationError(f"no game of alfworld/{task} could be made for number {number} of {split}: {causes}")

    def _attempt(self, task: str, split: str, number: int, rng: random.Random) -> dict[str, bytes]:
        """The files of one scene, drawn from `rng`, with its walkthrough. Raises `_RejectedError`."""
        scene = draw(task, split == "unseen", rng)
        if scene is None:
            raise _RejectedError("the room lacked what the task needs")
        try:
            plan = self._planner.plan(package.domain(), pddl(essential(scene), number))
        except TranslationError as error:
            raise _RejectedError(f"the planner refused it ({error})") from error
        if not plan:
            raise _RejectedError("the planner found no plan")
        problem = pddl(scene, number)
        game = game_data(scene, problem, self._play(scene, problem, plan))
        return {GAME_FILE: as_json(game), TRAJ_FILE: as_json(traj_data(scene, f"{task}-{split}-{number}"))}

    def _play(self, scene: Scene, problem: str, plan: Iterable[str]) -> list[str]:
        """The commands of a plan, played in the whole game. Raises `_RejectedError` unless they win it, and not before
        the last."""
        game = compile_game("a new game", game_data(scene, problem, ()), self._planner, self._folder)
        player = self._player = self._player or Player()
        player.start(game)
        commands: list[str] = []
        for operator in plan:
            command = player.command_of(operator)
            if command is None or player.won:
                break
            player.say(command)
            commands.append(command)
        else:
            if player.won:
                return commands
        raise _RejectedError("the plan did not win the game")


def is_made(
    tasks: str, split: str, seed: int, *, games: int | None = None, cache_dir: str | Path | None = None
) -> bool:
    """Whether the game that `seed` names in `alfworld/<tasks>` was made before. Arguments as of `prepare`."""
    task, number = game_of(tasks_of(tasks), seed, games or GAMES[split])
    return (folder_of(cache_folder("alfworld", cache_dir), task, split, number) / GAME_FILE).is_file()


def prepare(
    tasks: str,
    split: str,
    seeds: Iterable[int],
    workers: int = 1,
    *,
    games: int | None = None,
    cache_dir: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Makes the games that `seeds` name in `alfworld/<tasks>`, with `workers` translators side by side.

    `games` and `cache_dir` as the options of the environment. `progress(done, total)` is called after each game. Gives the
    games' folders, in no particular order and each once. Raises `GenerationError` for the first that can't be made;
    those that were made stay. A split or task type that there is not is an error as in the environment.
    """
    check_choice(f"alfworld/{tasks}", "split", split, SPLITS)
    mix, count, root = tasks_of(tasks), games or GAMES[split], cache_folder("alfworld", cache_dir)
    wanted = list(dict.fromkeys(game_of(mix, seed, count) for seed in seeds))
    makers: list[tuple[Maker, Planner]] = []
    mine = threading.local()

    def make(task: str, number: int) -> Path:
        if not hasattr(mine, "maker"):
            planner = Planner()
            mine.maker = Maker(root, planner)
            makers.append((mine.maker, planner))
        return mine.maker.game(task, split, number)

    folders: list[Path] = []
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="alfworld")
    try:
        for future in as_completed([pool.submit(make, task, number) for task, number in wanted]):
            folders.append(future.result())
            if progress is not None:
                progress(len(folders), len(wanted))
    finally:
        pool.shutdown(cancel_futures=True)
        for maker, planner in makers:
            maker.close()
            planner.close()
    return folders
