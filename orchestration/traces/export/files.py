"""Where an export is written. Invariant: nothing but the path that was asked for changes, and that all at once."""

import contextlib
import os
import re
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

from orchestration.errors import TraceError
from orchestration.files import sync_folder

_MEMBER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


@contextlib.contextmanager
def new_file(out: Path) -> Generator[BinaryIO]:
    """A file to write that appears as `out` when the block ends without an error, in place of one that is there.

    Raises `TraceError` where `out` is a folder or cannot be written.
    """
    if out.is_dir():
        raise TraceError(f"{out}: is a folder; name a file in it")
    temporary = _beside(out)
    try:
        # Exclusively: whatever lies at that name, a link perhaps, is not ours to write through.
        opened = temporary.open("xb")
    except FileExistsError as error:
        raise TraceError(f"{temporary}: left by another export; remove it") from error
    except OSError as error:
        raise TraceError(f"{out}: cannot be written: {error.strerror}") from error
    try:
        with opened as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(out)
        sync_folder(out.parent)
    except OSError as error:
        _remove(temporary)
        raise TraceError(f"{out}: cannot be written: {error.strerror or error}") from error
    except BaseException:
        _remove(temporary)
        raise


@contextlib.contextmanager
def new_folder(out: Path) -> Generator[Path]:
    """A folder to fill that appears as `out` when the block ends without an error.

    Raises `TraceError` where `out` exists, empty folders apart: what is in it is not ours to remove.
    """
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise TraceError(f"{out}: exists; remove it or name another folder")
    temporary = _beside(out)
    try:
        temporary.mkdir()
    except FileExistsError as error:
        raise TraceError(f"{temporary}: left by another export; remove it") from error
    except OSError as error:
        raise TraceError(f"{out}: cannot be written: {error.strerror}") from error
    try:
        yield temporary
        _sync_tree(temporary)
        temporary.rename(out)
        sync_folder(out.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise TraceError(f"{out}: cannot be written: {error.strerror or error}") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def new_member(folder: Path, name: str) -> Generator[BinaryIO]:
    """A new file called `name` in a `new_folder`.

    Raises `TraceError` for a name that is more than the name of a file, and where it is there already.
    """
    if not _MEMBER.fullmatch(name):
        raise TraceError(f"{name[:100]!r} cannot be the name of a file; nothing is written outside the folder")
    try:
        file = (folder / name).open("xb")
    except FileExistsError as error:
        raise TraceError(f"{name}: two traces of the same episode; export them one by one") from error
    with file:
        yield file


def _beside(out: Path) -> Path:
    if out.name in ("", ".."):
        raise TraceError(f"{out}: names no file or folder")
    if not out.parent.is_dir():
        raise TraceError(f"{out.parent}: no such folder; make it first")
    return out.with_name(f".{out.name}.{os.getpid()}.tmp")


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            with (Path(parent) / name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(parent))
