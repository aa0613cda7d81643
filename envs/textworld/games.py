"""Games that are generated when they are first wanted and kept: a folder each, named by a digest of all that makes it.

    <cache>/<first two digits>/<digest>/game.z8, game.json, sums.json

A folder is written under another name and renamed when it is whole, so that a reader sees all of it or none; a lock on
a file keeps processes that want the same game from generating it twice, and falls with its holder. A folder that does
not match its own sums is generated again.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from envs.cache import keep_folder, locked
from envs.textworld.tasks import Setting, Task

_STORY, _ABOUT, _SUMS = "game.z8", "game.json", "sums.json"
_LAYOUT = 2
"""Part of every digest; to be raised when games are made differently here."""

_SERIAL = slice(0x12, 0x18)
"""Where a story file has its serial number (The Z-Machine Standards Document 1.1, section 11): Inform writes the day."""


class GameGenerationError(RuntimeError):
    """A game that TextWorld could not generate; the message names the task, the seed and the cause."""


class GameFileError(ValueError):
    """A file that is no game that can be played here; the message says why."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that makes a game: the same recipe gives the same bytes."""

    task: Task
    seed: int
    """In [0, 2^32)."""
    extra: tuple[tuple[str, Setting], ...] = ()
    """What options add to the task's settings, sorted by name."""

    @property
    def settings(self) -> dict[str, Setting]:
        return {**dict(self.task.settings), **dict(self.extra)}

    @property
    def digest(self) -> str:
        """40 hexadecimal digits."""
        made_of = [_LAYOUT, self.task.kind, sorted(self.settings.items()), self.seed, _textworld_version()]
        return hashlib.blake2b(json.dumps(made_of).encode(), digest_size=20).hexdigest()


def story_of(recipe: Recipe, folder: Path) -> Path:
    """The story file of a game, generated now unless it is in `folder` already and whole.

    Takes one to four seconds of a core where it must be generated. Raises `GameGenerationError`.
    """
    home = _home_of(recipe, folder)
    if not _is_whole(home):
        with locked(folder / "locks" / recipe.digest):
            if not _is_whole(home):  # another process may have made it while this one waited
                _make(recipe, home)
    return home / _STORY


def is_made(recipe: Recipe, folder: Path) -> bool:
    """Whether a game is in `folder` already, whole."""
    return _is_whole(_home_of(recipe, folder))


def prepare(
    recipes: Iterable[Recipe],
    folder: Path,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Generates the games that are not in `folder` yet, in `workers` processes; returns how many those were.

    `progress(done, total)` is called once at the start and after each game. The first game that cannot be generated
    raises its `GameGenerationError` and stops the rest; what was finished by then is kept.
    """
    missing = {recipe.digest: recipe for recipe in recipes if not is_made(recipe, folder)}
    report = progress or _tell_nobody
    report(0, len(missing))
    if workers <= 1 or len(missing) <= 1:
        for done, recipe in enumerate(missing.values(), 1):
            story_of(recipe, folder)
            report(done, len(missing))
        return len(missing)
    # A forked child would inherit the threads' locks of a caller that has a model loaded.
    with ProcessPoolExecutor(min(workers, len(missing)), mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(story_of, recipe, folder) for recipe in missing.values()]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                report(done, len(missing))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return len(missing)


def check_file(path: Path) -> None:
    """Raises `GameFileError` unless `path` is a whole Z-machine story with TextWorld's `.json` beside it.

    The header is that of the Z-Machine Standards Document 1.1, section 11: version at 0x00, length at 0x1A in units
    of 8 bytes (version 8; 4 for versions 4 and 5), checksum at 0x1C over all bytes from 0x40.
    """
    story = path.read_bytes()
    if len(story) < 64 or story[0] not in (3, 4, 5, 8):
        raise GameFileError(f"{path}: is no Z-machine game (its first byte would be the version, 3 to 8)")
    unit = {3: 2, 4: 4, 5: 4, 8: 8}[story[0]]
    length = int.from_bytes(story[0x1A:0x1C], "big") * unit
    if length > len(story):
        raise GameFileError(f"{path}: is cut off: {len(story)} bytes of {length}")
    if length and sum(story[0x40:length]) % 0x10000 != int.from_bytes(story[0x1C:0x1E], "big"):
        raise GameFileError(f"{path}: is damaged: its checksum does not match")
    about = path.with_suffix(".json")
    try:
        described: Any = json.loads(about.read_bytes())
    except ValueError as error:
        raise GameFileError(f"{about}: is no JSON ({error})") from error
    if not isinstance(described, dict) or not {"world", "quests", "KB"} <= described.keys():
        raise GameFileError(f"{about}: is not what TextWorld writes beside a game (world, quests, KB)")


def _tell_nobody(done: int, total: int) -> None:
    del done, total


@cache
def _textworld_version() -> str:
    return version("textworld")


def digest_of(path: Path) -> str:
    """40 hexadecimal digits of the contents of a file."""
    return _digest_of(path.read_bytes())


def _digest_of(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=20).hexdigest()


def _home_of(recipe: Recipe, folder: Path) -> Path:
    return folder / recipe.digest[:2] / recipe.digest


def _is_whole(home: Path) -> bool:
    try:
        sums: Any = json.loads((home / _SUMS).read_bytes())
        return sums == {name: digest_of(home / name) for name in (_STORY, _ABOUT)}
    except (FileNotFoundError, ValueError):
        return False


def _make(recipe: Recipe, home: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="yendor-game-") as draft:
        _generate(recipe, Path(draft) / _STORY)
        story = bytearray((Path(draft) / _STORY).read_bytes())
        story[_SERIAL] = b"000000"  # the same on any day; the file's own checksum leaves the header out
        files = {_STORY: bytes(story), _ABOUT: (Path(draft) / _ABOUT).read_bytes()}
    sums = {name: _digest_of(content) for name, content in files.items()}
    keep_folder(home, {**files, _SUMS: json.dumps(sums).encode()}, damaged=True)


def _generate(recipe: Recipe, story: Path) -> None:
    from textworld import GameOptions
    from textworld.generator import compile_game

    options = GameOptions()
    options.seeds = recipe.seed
    options.path = str(story)
    options.force_recompile = True
    try:
        compile_game(_build(recipe, options), options)
    except Exception as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise GameGenerationError(
            f"{recipe.task.env_id}, seed {recipe.seed}: TextWorld could not generate the game: {cause}"
        ) from error
    story.with_suffix(".ni").unlink()  # Inform's source: 23 kB that nothing reads


def _build(recipe: Recipe, options: Any) -> Any:
    """TextWorld's game object for a recipe."""
    settings: dict[str, Any] = dict(recipe.settings)
    if recipe.task.kind == "custom":
        from textworld.generator import make_game

        options.nb_rooms, options.nb_objects = settings["rooms"], settings["objects"]
        options.quest_length = settings["quest_length"]
        return make_game(options)
    from textworld.challenges import CHALLENGES

    if recipe.task.kind == "cooking":
        # Without a seed of its own TextWorld draws the same recipe for all games; it takes one only where the ingredients
        # have to be fetched.
        recipe_seed = recipe.seed if settings["take"] else 0
        settings = {"recipe_seed": recipe_seed, **settings, "split": settings["split"] or None}
    if recipe.task.kind == "simple":
        settings["test"] = False
    return CHALLENGES[f"tw-{recipe.task.kind}"][1](settings, options)
