"""Writes checkpoints beside the training: at most one at a time, in a thread that gives way to it."""

import contextlib
import os
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
    """Runs what writes a checkpoint in a thread. Its calls come from one other thread."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._path: Path | None = None
        self._error: Exception | None = None
        self._seconds = 0.0

    def start(self, write: Callable[[], Path]) -> None:
        """Has `write` called; one that still goes on is waited for, and forgotten."""
        self.wait()
        self._path = self._error = None
        self._thread = threading.Thread(target=self._write, args=(write,), name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a write goes on."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Waits for the write that goes on."""
        if self._thread is not None:
            self._thread.join()

    def outcome(self) -> tuple[Path | None, Exception | None, float]:
        """Of the newest write, when it is not `busy`: where it is, or why it failed; and the seconds it took."""
        return self._path, self._error, self._seconds

    def _write(self, write: Callable[[], Path]) -> None:
        give_way()
        began = time.perf_counter()
        try:
            self._path = write()
        except Exception as error:  # told by `outcome`: this thread has nobody to raise it to
            self._error = error
        self._seconds = time.perf_counter() - began
