"""The file of a trace while it is written. Invariant: a finished file appears whole and is never written again; a
`.part` ends in whole zstd frames, whatever ends the process.
"""

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import zstandard

from orchestration.errors import TraceError
from orchestration.files import sync_folder, write_all
from orchestration.traces.codec import encode
from orchestration.traces.schema import SUFFIX, Record

LEVEL = 9
"""Of the compression."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,239}")


def check_name(name: str) -> None:
    """Raises `TraceError` for an episode's id that cannot be the name of a file: nothing is written outside its folder,
    whatever an episode calls itself."""
    if not _NAME.fullmatch(name):
        shown = name if len(name) <= 100 else f"{name[:100]}…"
        raise TraceError(f"episode id {shown!r} cannot be the name of a file")


_own = threading.local()


def _compressor() -> zstandard.ZstdCompressor:
    """That of this thread: making one for each file would take longer than most files."""
    found: zstandard.ZstdCompressor | None = getattr(_own, "compressor", None)
    if found is None:
        found = _own.compressor = zstandard.ZstdCompressor(level=LEVEL)
    return found


class TraceFile:
    """Appends lines to `NAME.jsonl.zst.part`, a zstd frame after `frame_lines` lines or `frame_s` seconds."""

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        frame_lines: int = 256,
        frame_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises `TraceError` for a name that is none of a file's, and where it cannot be written."""
        check_name(name)
        self.final = folder / f"{name}{SUFFIX}"
        self._part = folder / f"{name}{SUFFIX}.part"
        self._frame_lines = frame_lines
        self._frame_s = frame_s
        self._clock = clock
        self._lines: list[bytes] = []
        self._count = 0
        self._whole = 0
        """Bytes of the frames in the file."""
        self.failing = False
        """Whether the last frame could not be written."""
        self._due = clock() + frame_s
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._part.open("wb", buffering=0)
        except OSError as error:
            raise TraceError(f"{self._part}: cannot be written: {error.strerror}") from error

    def write(self, record: Record) -> None:
        """Appends a record."""
        self.append(encode(record))

    def append(self, line: bytes, count: int = 1) -> None:
        """Appends a line, which stands for so many."""
        self._lines.append(line)
        self._count += count
        if self._count >= self._frame_lines or self._clock() >= self._due:
            self.flush()

    def flush(self) -> None:
        """Writes what was collected as one frame. After `kill -9` it is there; the operating system holds it.

        What cannot be written (a full disk) stays collected, for whoever tries again.
        """
        if not self._lines:
            return
        frame = _compressor().compress(b"".join(self._lines))
        self._count = 0
        self._due = self._clock() + self._frame_s
        self.failing = True
        try:
            write_all(self._file, frame)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.seek(self._whole)
                self._file.truncate()
            raise TraceError(f"{self._part}: cannot be written: {error.strerror}") from error
        self.failing = False
        self._whole += len(frame)
        self._lines.clear()

    def complete(self) -> None:
        """Makes the file durable under its final name, unless one is there: the run was killed and resumed while a process of
        before still finished that episode."""
        try:
            os.fsync(self._file.fileno())
            self._file.close()
            if self.final.exists():
                self._part.unlink(missing_ok=True)
                return
            self._part.rename(self.final)
            sync_folder(self.final.parent)
        except OSError as error:
            raise TraceError(f"{self.final}: cannot be written: {error.strerror}") from error

    def abandon(self) -> None:
        """Leaves what was recorded as `.part`."""
        self.flush()
        self._file.close()

    def remove(self) -> None:
        """Leaves nothing: the room is needed for something else."""
        self._file.close()
        self._part.unlink(missing_ok=True)

    def drop(self) -> None:
        """Leaves what was written as `.part`, and what was not."""
        self._file.close()


class Finisher:
    """Completes files: at once, or `aside` in a thread, as waiting for a disk would cost short episodes more than playing.

    What could not be written aside is told by `take_trouble`; at once, it is raised.
    """

    def __init__(self, *, aside: bool) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="traces") if aside else None
        self._waiting: list[tuple[Future[None], str]] = []
        self._settled: list[str] = []

    def complete(self, file: TraceFile) -> None:
        """Writes what is left of `file` and gives it its final name."""
        name = file.final.name.removesuffix(SUFFIX)
        if self._pool is None:
            _complete(file)
            self._settled.append(name)
        else:
            self._waiting.append((self._pool.submit(_complete, file), name))

    def take_trouble(self) -> tuple[str, ...]:
        """Why files could not be completed, a line each; since the last call."""
        done = [each for each in self._waiting if each[0].done()]
        self._waiting = [each for each in self._waiting if not each[0].done()]
        self._settled += [name for _, name in done]
        errors = (future.exception() for future, _ in done)
        trouble: list[str] = []
        for error in errors:
            if isinstance(error, TraceError):
                trouble.append(str(error))
            elif error is not None:
                raise error
        return tuple(trouble)

    def take_settled(self) -> tuple[str, ...]:
        """Names of files that are complete, or of which `take_trouble` has told why they are not; since the last call."""
        settled, self._settled = tuple(self._settled), []
        return settled

    def close(self) -> None:
        """Waits until all files are complete."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def _complete(file: TraceFile) -> None:
    file.flush()
    file.complete()
