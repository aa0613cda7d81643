"""Where a run's time goes, and how fast it is."""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

_RATE_WINDOW_S = 20.0


@dataclass(slots=True)
class Clock:
    """Seconds that each part spent, by what it spent them on, since the last look."""

    spent: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])

    def add(self, part: str, what: str, seconds: float) -> None:
        kinds = self.spent.setdefault(part, {})
        kinds[what] = kinds.get(what, 0.0) + seconds

    def shares(self, window_s: float, parts: Mapping[str, int]) -> dict[str, dict[str, float]]:
        """Of `window_s` seconds of each part; `parts` says of how many processes a part consists."""
        total = max(window_s, 1e-9)
        return {
            part: {what: seconds / (total * max(parts.get(part, 1), 1)) for what, seconds in kinds.items()}
            for part, kinds in self.spent.items()
        }


class Rate:
    """Steps a second over the last twenty."""

    def __init__(self) -> None:
        self._counts: deque[tuple[float, int]] = deque()

    def look(self, steps: int) -> None:
        """Notes how many steps there are now."""
        now = time.monotonic()
        self._counts.append((now, steps))
        while now - self._counts[0][0] > _RATE_WINDOW_S:
            self._counts.popleft()

    @property
    def per_second(self) -> float:
        """0 before the second look."""
        if len(self._counts) < 2:
            return 0.0
        (t0, steps0), (t1, steps1) = self._counts[0], self._counts[-1]
        return (steps1 - steps0) / (t1 - t0) if t1 > t0 else 0.0
