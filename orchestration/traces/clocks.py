"""The two clocks of a trace. Events tell the monotonic one; what the wall clock showed follows from the header, and where
it was set, or the machine slept, from `Event.skew`.
"""

import time

_TELLING_S = 0.02
"""Less than this is how the two drift apart, and the time between reading one and the other."""


class WallClock:
    """The wall clock beside a trace whose t = 0 was `began` on the monotonic clock of this machine (any process's)."""

    def __init__(self, began: float | None = None) -> None:
        """`began`: now, where it is not given."""
        self._began = time.monotonic() if began is None else began
        self.recorded_at = self._start()
        """Seconds since the epoch at t = 0 (`Header.recorded_at`)."""

    def _start(self) -> float:
        """When the trace began, as the wall clock is set by now."""
        return time.time() - (time.monotonic() - self._began)

    def skew(self) -> float:
        """`Event.skew` of what happens now, to a millisecond; 0 where nobody set the clock."""
        moved = self._start() - self.recorded_at
        return 0.0 if abs(moved) < _TELLING_S else round(moved, 3)
