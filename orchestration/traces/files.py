"""The file of a trace while it is written. Invariant: a finished file appears whole and is never written again; a
`.part` ends in whole zstd frames, whatever ends the process.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import zstandard

from orchestration.errors import TraceError
from orchestration.files import sync_folder, write_all
from orchestration.traces.schema import SUFFIX, Record, encode

LEVEL = 9
"""Of the compression."""


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
        compressor: zstandard.ZstdCompressor | None = None,
    ) -> None:
        self.final = folder / f"{name}{SUFFIX}"
        self._part = folder / f"{name}{SUFFIX}.part"
        self._frame_lines = frame_lines
        self._frame_s = frame_s
        self._clock = clock
        self._compressor = compressor or zstandard.ZstdCompressor(level=LEVEL)
        self._lines: list[bytes] = []
        self._due = clock() + frame_s
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._part.open("wb", buffering=0)
        except OSError as error:
            raise TraceError(f"{self._part}: cannot be written: {error.strerror}") from error

    def write(self, record: Record) -> None:
        """Appends a record."""
        self.append(encode(record), self._clock())

    def append(self, line: bytes, now: float) -> None:
        """Appends a line; `now` is what the clock shows."""
        self._lines.append(line)
        if len(self._lines) >= self._frame_lines or now >= self._due:
            self.flush()

    def flush(self) -> None:
        """Writes what was collected as one frame. After `kill -9` it is there; the operating system holds it."""
        if not self._lines:
            return
        frame = self._compressor.compress(b"".join(self._lines))
        try:
            write_all(self._file, frame)
        except OSError as error:
            raise TraceError(f"{self._part}: cannot be written: {error.strerror}") from error
        self._lines.clear()
        self._due = self._clock() + self._frame_s

    def complete(self) -> None:
        """Makes the file durable under its final name."""
        try:
            os.fsync(self._file.fileno())
            self._file.close()
            self._part.rename(self.final)
            sync_folder(self.final.parent)
        except OSError as error:
            raise TraceError(f"{self.final}: cannot be written: {error.strerror}") from error

    def abandon(self) -> None:
        """Leaves what was recorded as `.part`."""
        self.flush()
        self._file.close()


class Finisher:
    """Completes files: at once, or `aside` in a thread, as waiting for a disk would cost short episodes more than playing.

    An error of the thread is raised by the next call.
    """

    def __init__(self, *, aside: bool) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="traces") if aside else None
        self._waiting: list[Future[None]] = []

    def complete(self, file: TraceFile) -> None:
        """Writes what is left of `file` and gives it its final name."""
        file.flush()
        if self._pool is None:
            file.complete()
            return
        done = [each for each in self._waiting if each.done()]
        self._waiting = [each for each in self._waiting if not each.done()]
        self._waiting.append(self._pool.submit(file.complete))
        for each in done:
            each.result()

    def close(self) -> None:
        """Waits until all files are complete."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        for each in self._waiting:
            each.result()
        self._waiting = []
