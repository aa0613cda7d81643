"""What the episodes of a run brought: recent means, and how the beginning compares with the end."""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

RECENT = 100
"""Episodes that the recent means look at."""

_BINS = 200


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """One finished episode."""

    env_steps: int
    """Environment steps of the whole run when it ended."""
    extrinsic: float
    """Return, unscaled."""
    intrinsic: float
    """Sum of r_int / N^count_exponent."""
    length: int
    success: bool | None
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    """What the environment measures of an episode (dungeon level, gold, ...)."""


@dataclass(frozen=True, slots=True)
class Recent:
    """Means over the last `RECENT` episodes; None without episodes, or where the task has no success."""

    extrinsic: float | None
    intrinsic: float | None
    length: float | None
    success: float | None
    metrics: Mapping[str, float]
    """Of what the environment measures; each over the episodes that have it."""


@dataclass(frozen=True, slots=True)
class Tenths:
    """Means over the episodes that ended in the first and in the last tenth of the steps so far."""

    success_first: float | None
    success_last: float | None
    return_first: float | None
    return_last: float | None


class EpisodeStatistics:
    """Constant memory: episodes are summed up in bins of equal width, which are joined by pairs when they run out."""

    def __init__(self) -> None:
        self.episodes = 0
        self._recent: deque[EpisodeResult] = deque(maxlen=RECENT)
        self._width = 1000
        # Columns: episodes, sum of returns, episodes with a notion of success, successes.
        self._sums = np.zeros((_BINS, 4))

    def add(self, episode: EpisodeResult) -> None:
        """Counts an episode. They need not come in order of `env_steps`."""
        self.episodes += 1
        self._recent.append(episode)
        while episode.env_steps >= self._width * _BINS:
            joined = self._sums.reshape(_BINS // 2, 2, 4).sum(axis=1)
            self._sums = np.concatenate([joined, np.zeros_like(joined)])
            self._width *= 2
        known = episode.success is not None
        self._sums[episode.env_steps // self._width] += (1, episode.extrinsic, known, bool(episode.success))

    def recent(self) -> Recent:
        """Means over the last episodes."""
        judged = [episode.success for episode in self._recent if episode.success is not None]
        return Recent(
            extrinsic=_mean([episode.extrinsic for episode in self._recent]),
            intrinsic=_mean([episode.intrinsic for episode in self._recent]),
            length=_mean([episode.length for episode in self._recent]),
            success=_mean([float(success) for success in judged]),
            metrics=self._measured(),
        )

    def _measured(self) -> dict[str, float]:
        values: dict[str, list[float]] = {}
        for episode in self._recent:
            for name, value in episode.metrics.items():
                values.setdefault(name, []).append(value)
        return {name: sum(found) / len(found) for name, found in values.items()}

    def tenths(self, env_steps: int) -> Tenths:
        """First against last tenth of `env_steps`, the steps run so far, as exact as the bins are wide (0.5 % to 1 %).

        A tenth in which no episode ended has no mean.
        """
        last_bin = min(env_steps // self._width, _BINS - 1)
        bins = max(1, math.ceil((last_bin + 1) / 10))
        first = self._sums[:bins].sum(axis=0)
        last = self._sums[max(0, last_bin + 1 - bins) : last_bin + 1].sum(axis=0)
        return Tenths(
            success_first=_ratio(first[3], first[2]),
            success_last=_ratio(last[3], last[2]),
            return_first=_ratio(first[1], first[0]),
            return_last=_ratio(last[1], last[0]),
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything, as plain Python objects and arrays."""
        return {
            "episodes": self.episodes,
            "recent": [asdict(episode) for episode in self._recent],
            "width": self._width,
            "sums": self._sums.copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        self.episodes = state["episodes"]
        self._recent = deque((EpisodeResult(**episode) for episode in state["recent"]), maxlen=RECENT)
        self._width = state["width"]
        self._sums = np.array(state["sums"])


def _mean(values: list[float] | list[int]) -> float | None:
    return sum(values) / len(values) if values else None


def _ratio(total: float, count: float) -> float | None:
    return float(total / count) if count else None
