"""ALFWorld's own games, as `alfworld-download` lays them out: `json_2.1.*/<split>/<task>/<trial>/game.tw-pddl`."""

import json
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from envs.alfworld.compiled import GameFileError
from envs.alfworld.generate import GAME_FILE, TRAJ_FILE
from envs.cache import digest, keep_json
from envs.registry import EnvironmentOptionError, EnvironmentUnavailableError

FOLDERS = {"train": "train", "seen": "valid_seen", "unseen": "valid_unseen"}
"""What ALFWorld calls the splits."""

UNSUPPORTED = ("movable", "Sliced")
"""Words in the path of games that ALFWorld's text environment leaves out too."""


def find_games(env_id: str, name: str, split: str | None, tasks: Iterable[str], cache: Path) -> tuple[Path, ...]:
    """The folders of the solvable games of `tasks` below the path `name`, sorted by their paths.

    `name` is the folder of the download, of one of its splits, of one game, or a game file. `split` (`train` without
    one) is asked for only where the folder has splits. Raises `EnvironmentUnavailableError` where there is nothing to
    play, `EnvironmentOptionError` for a split that can't be meant, `GameFileError` for a game that can't be read.
    """
    path = Path(os.path.expandvars(name)).expanduser()
    if path.is_file():
        _require_no_split(env_id, path, split)
        return (path.parent,) if path.name == GAME_FILE else _refuse(path)
    root = _root(env_id, path, split)
    if root is None:
        raise _missing(env_id, path, "there is nothing of ALFWorld's data")
    listed = _index(root.resolve(), cache)
    if not listed:
        raise _missing(env_id, path, f"there is no {GAME_FILE} below {root}")
    wanted = set(tasks)
    games = tuple(root / where for where, task, solvable in listed if solvable and task in wanted)
    if not games:
        raise EnvironmentUnavailableError(
            f"{env_id}: no solvable game of {', '.join(sorted(wanted))} among the {len(listed)} below {root}"
        )
    return games


def read_game(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of a game's `game.tw-pddl` and `traj_data.json`. Raises `GameFileError`, which names the file."""
    return _read(folder / GAME_FILE), _read(folder / TRAJ_FILE)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise GameFileError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise GameFileError(f"{path} is no ALFWorld game: {error}") from error
    if not isinstance(data, dict):
        raise GameFileError(f"{path} is no ALFWorld game: it holds no JSON object")
    return data


def _refuse(path: Path) -> tuple[Path, ...]:
    raise GameFileError(f"{path} is no ALFWorld game: the files of games are called {GAME_FILE}")


def _root(env_id: str, path: Path, split: str | None) -> Path | None:
    """The folder below which all games of the split are."""
    wanted = FOLDERS[split or "train"]
    for candidate in (path, *sorted(path.glob("json_2.1.*"), reverse=True)):
        if (candidate / wanted).is_dir():
            return candidate / wanted
        if any((candidate / folder).is_dir() for folder in FOLDERS.values()):
            raise _missing(env_id, path, f"{candidate} has no folder {wanted}")
    if not path.is_dir():
        return None
    if path.name in FOLDERS.values():
        if split is not None and path.name != wanted:
            raise EnvironmentOptionError(f"{env_id}: the folder is {path.name}, but split={split} is {wanted}")
        return path
    _require_no_split(env_id, path, split)
    return path


def _require_no_split(env_id: str, path: Path, split: str | None) -> None:
    if split is not None:
        raise EnvironmentOptionError(f"{env_id}: split={split} has no effect, for {path} has no folders of splits")


def _missing(env_id: str, path: Path, cause: str) -> EnvironmentUnavailableError:
    return EnvironmentUnavailableError(
        f"{env_id}: {cause} at {path}; fetch it with `ALFWORLD_DATA={path} alfworld-download`, "
        "or play games that need no download: alfworld/all"
    )


@lru_cache(maxsize=16)
def _index(root: Path, cache: Path) -> list[tuple[str, str, bool]]:
    """Of every game below `root`: its folder, task type, and whether it can be solved. Read once for given files."""
    found: list[tuple[str, int, int]] = []
    for folder, _, files in os.walk(root):
        where = str(Path(folder).relative_to(root))
        if GAME_FILE in files and TRAJ_FILE in files and not any(word in where for word in UNSUPPORTED):
            stat = (Path(folder) / GAME_FILE).stat()
            found.append((where, stat.st_size, stat.st_mtime_ns))
    found.sort()

    def read() -> list[tuple[str, str, bool]]:
        games: list[tuple[str, str, bool]] = []
        for where, _, _ in found:
            game, traj = read_game(root / where)
            games.append((where, str(traj.get("task_type")), bool(game.get("solvable"))))
        return games

    listed = keep_json(cache / "indexes", digest("1", str(root), *(repr(game) for game in found)), read)
    return [(where, task, solvable) for where, task, solvable in listed]
