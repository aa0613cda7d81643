"""Freed memory goes back to the system.

torch asks for large blocks of ever new sizes (so many distinct crops, so long a caption). The C library keeps what is freed of
them for the next, which seldom fits: in a learner such gaps grew to more than what was in use.
"""

import ctypes
import time
from collections.abc import Callable
from functools import cache
from typing import Any

_INTERVAL_S = 10.0
"""What is given back has to be asked for again, page by page: a part of a hundredth of the time between two trims."""


class HeapTrimmer:
    """Gives free memory back now and then. Does nothing where the C library is not GNU's."""

    def __init__(self, interval_s: float = _INTERVAL_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._due_at = clock() + interval_s

    def trim(self) -> None:
        """Cheap to call often: at most once in `interval_s` seconds it takes some milliseconds."""
        now = self._clock()
        if now >= self._due_at:
            self._due_at = now + self._interval_s
            trim = _malloc_trim()
            if trim is not None:
                trim(0)


@cache
def _malloc_trim() -> Any:
    """glibc's `malloc_trim(pad)`: also what lies free between blocks in use, in all arenas (malloc_trim(3))."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
