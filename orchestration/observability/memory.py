"""How much memory the processes of a run hold."""

import contextlib
import time
from collections.abc import Callable

import psutil

_INTERVAL_S = 10.0
"""To find the processes means to look at all of the machine: some milliseconds."""


class MemoryMeter:
    """Resident bytes of this process and all below it, without pages that they share (Ray's object store, libraries)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due_at = clock()
        self._bytes = 0

    def read(self) -> int:
        """As of at most `_INTERVAL_S` ago."""
        if self._clock() >= self._due_at:
            self._due_at = self._clock() + _INTERVAL_S
            self._bytes = _measured()
        return self._bytes


def _measured() -> int:
    here = psutil.Process()
    total = 0
    for process in (here, *here.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # It may end meanwhile.
            memory = process.memory_info()
            total += memory.rss - getattr(memory, "shared", 0)
    return total
