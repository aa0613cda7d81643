"""Files that must never be seen half written."""

import contextlib
import os
from collections import deque
from io import RawIOBase
from pathlib import Path


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replaces `path` by `data`: a reader sees the old content or the new, also after `kill -9`.

    `durable` also survives a power failure, at the price of waiting for the disk.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        sync_folder(path.parent)


def write_all(file: RawIOBase, data: bytes) -> None:
    """Appends all of `data` to an unbuffered file; one write may take only a part of it (a disk that gets full)."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) or 0 :]


class GrowingFile:
    """A file that grows by whole records. Those that cannot be written (a full disk) wait, and are written in their order
    with a later one, so a record is a matter of kilobytes and of seconds."""

    def __init__(self, path: Path) -> None:
        """Appends to what is there. Raises `OSError` where it cannot be opened."""
        self._file = path.open("ab", buffering=0)
        self._whole = os.fstat(self._file.fileno()).st_size
        self._waiting: deque[bytes] = deque()
        self.trouble: OSError | None = None
        """Why records wait; None where none does."""

    def append(self, record: bytes) -> None:
        """Writes what waits, and `record`."""
        self._waiting.append(record)
        self._write()

    def _write(self) -> None:
        try:
            while self._waiting:
                write_all(self._file, self._waiting[0])
                self._whole += len(self._waiting.popleft())
        except OSError as error:
            # A part of a record may be there.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), self._whole)
            self.trouble = error
        else:
            self.trouble = None

    def close(self) -> None:
        """Tries once more to write what waits."""
        if not self._file.closed:
            self._write()
            self._file.close()


def sync_folder(folder: Path) -> None:
    """Makes renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
