"""Writes checkpoints beside the training: at most one at a time, in a thread that gives way to it."""

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

_NICENESS = 10


def give_way() -> None:
    """Has the calling thread yield to the others: its hashing would else take turns with the learner's."""
    if hasattr(os, "setpriority"):
        # On Linux the niceness of this thread alone.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


class BackgroundWriter:
    """Runs what writes a checkpoint in a thread. Its calls come from one other thread.

    It is always the same thread: glibc gives a new one whichever of its arenas (eight for each processor) is next, and keeps what
    is free at their ends, so that each of the first checkpoints would cost some megabytes for good.
    """

    def __init__(self) -> None:
        self._todo: queue.SimpleQueue[Callable[[], Path]] = queue.SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        self._thread: threading.Thread | None = None
        self._path: Path | None = None
        self._error: Exception | None = None
        self._seconds = 0.0

    def start(self, write: Callable[[], Path]) -> None:
        """Has `write` called; one that still goes on is waited for, and forgotten."""
        self.wait()
        self._path = self._error = None
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="checkpoint", daemon=True)
            self._thread.start()
        self._idle.clear()
        self._todo.put(write)

    @property
    def busy(self) -> bool:
        """Whether a write goes on."""
        return not self._idle.is_set()

    def wait(self) -> None:
        """Waits for the write that goes on."""
        self._idle.wait()

    def outcome(self) -> tuple[Path | None, Exception | None, float]:
        """Of the newest write, when it is not `busy`: where it is, or why it failed; and the seconds it took."""
        return self._path, self._error, self._seconds

    def _work(self) -> None:
        give_way()
        while True:
            self._write(self._todo.get())
            self._idle.set()

    def _write(self, write: Callable[[], Path]) -> None:
        began = time.perf_counter()
        try:
            self._path = write()
        except Exception as error:  # told by `outcome`: this thread has nobody to raise it to
            self._error = error
        self._seconds = time.perf_counter() - began
