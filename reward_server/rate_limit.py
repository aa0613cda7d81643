"""How many captions a second may be asked about: a token bucket that holds one second's worth."""

import math


class RateLimit:
    """At most `per_s` captions a second on average, and at most `max(1, per_s)` at once; None: no bound.

    Times are seconds on the caller's clock, which only grows.
    """

    def __init__(self, per_s: float | None) -> None:
        self._per_s = per_s
        self._most = math.inf if per_s is None else max(1.0, per_s)
        self._tokens = self._most
        self._at: float | None = None

    def available(self, now: float) -> float:
        """How many captions may be asked about now (a whole number, or infinity)."""
        if self._per_s is None:
            return math.inf
        if self._at is not None:
            self._tokens = min(self._most, self._tokens + (now - self._at) * self._per_s)
        self._at = now
        return math.floor(self._tokens + 1e-9)

    def spend(self, captions: int) -> None:
        """That many have been asked about."""
        self._tokens -= captions

    @property
    def ready_at(self) -> float:
        """From when on one more may be asked about; 0 where it may be now."""
        if self._per_s is None or self._at is None or self._tokens >= 1.0:
            return 0.0
        return self._at + (1.0 - self._tokens) / self._per_s
