"""The folders in which text worlds keep games that were made or translated once. Any number of processes may share it.

Everything in it is named by what it was made from, so that nothing in it is ever out of date, and written under another
name first, so that a reader never meets a half. It can be deleted at any time.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import zstandard

from envs.registry import EnvironmentOptionError

ENVIRONMENT_VARIABLE = "YENDOR_CACHE"


_PARTS = frozenset({"games", "grammars", "indexes", "locks", "problems"})
_BEGIN = re.compile("[0-9a-f]{2}")
"""Of what is named by a digest; folders of many files are split by it."""


def cache_folder(family: str, given: object = None) -> Path:
    """Where the games of a family are kept: `given` (its option `cache_dir`), or the folder with the family's name below
    the one that YENDOR_CACHE names, or else below `.cache` here. Raises `EnvironmentOptionError` for what is no path."""
    if given is None:
        return Path(os.environ.get(ENVIRONMENT_VARIABLE) or ".cache") / family
    if not isinstance(given, str | Path) or not str(given):
        raise EnvironmentOptionError(f"{family}: cache_dir must be a folder, not {given!r}")
    return Path(given).expanduser()


def is_cache(folder: Path) -> bool:
    """Whether `folder` is one in which games are kept already: it has what caches have, and nothing else."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return False
    return bool(names) and all(name in _PARTS or _BEGIN.fullmatch(name) for name in names)


@contextlib.contextmanager
def locked(path: Path) -> Generator[None]:
    """Holds the lock of a file, made where it is not there, that others wait for; it ends with the process at the latest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def digest(*parts: object) -> str:
    """A name for what was made from `parts`, which JSON can hold: 32 hexadecimal digits of blake2b."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def keep_json(folder: Path, name: str, make: Callable[[], Any]) -> Any:
    """The JSON kept under `name`, made and kept now where it is not there yet or can't be read."""
    path = folder / name[:2] / f"{name}.json.zst"
    with contextlib.suppress(FileNotFoundError, zstandard.ZstdError, json.JSONDecodeError):
        return json.loads(zstandard.ZstdDecompressor().decompress(path.read_bytes()))
    made = json.dumps(make()).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    with os.fdopen(handle, "wb") as file:
        file.write(zstandard.ZstdCompressor().compress(made))
    Path(temporary).chmod(0o644)  # the folder may be shared with other users
    Path(temporary).replace(path)
    return json.loads(made)


def keep_folder(folder: Path, files: Mapping[str, bytes], *, damaged: bool = False) -> None:
    """Makes `folder` with these files in it, all at once. Where another process was first, its files stay: they are the
    same. `damaged`: what stands there is not, and makes room (under a lock of the caller's)."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".new-"))
    try:
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        temporary.chmod(0o755)
        if damaged and folder.exists():  # moved by a rename too, as somebody may be reading it
            away = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".old-"))
            folder.rename(away / folder.name)
            shutil.rmtree(away)
        with contextlib.suppress(FileExistsError):
            _rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rename(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:  # a folder that is not empty is "directory not empty" here, "file exists" there
        if not target.is_dir():
            raise
        raise FileExistsError(target) from None
