"""The reward hacking watch: which captions the intrinsic return comes from, and whether it grows while success does not.

An intrinsic reward is hacked where the agent earns ever more of it without getting better at the task. So the watch sums
up what each caption earned (r_int / N^β) over windows of episodes, and compares the last quarter of the run with the one
before it. It judges nothing that training depends on: what it finds is shown, in the live view, the summary and the report.

Cost: a call for each trajectory, with the few captions that were rewarded in it. Windows are joined by pairs when there
are too many, and each keeps the captions that earned most, so memory is bounded however long a run is.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestration.summary import HackingFlag, RewardWatchReport

WINDOW_EPISODES = 50
"""Episodes of the first windows; twice as many each time that windows are joined."""
_WINDOWS = 32
_KEPT = 128
"""Captions that a window keeps by name; what the others earned counts as a whole."""
_OPEN = 8 * _KEPT
"""Captions that a window may name while it is open: how many come until so many episodes have ended has no bound."""
_TOP = 5
GROWTH = 1.25
"""A caption is flagged from this ratio of what it earns an episode now to what it earned before."""
SHARE = 0.05
"""... if it brings this share of the intrinsic return ..."""
CONCENTRATED = 0.5
"""... and whatever it earned before, where it alone brings this share, or"""
FEW, FEW_SHARE, AMONG = 3, 0.8, 20
"""where it is one of so few that together bring this share, of at least so many that earn anything."""
SATURATED = 0.95
"""A task that succeeds so often is learnt: nothing more can be asked of it."""
_Z = 1.0
"""Success (or return) has grown where the difference is that many standard errors: rather a late alarm than a false one."""


@dataclass(slots=True)
class _Window:
    """Sums over consecutive episodes."""

    episodes: int = 0
    goal: float = 0.0
    """Sum of success, or of the extrinsic return where the task has no success."""
    goal_squared: float = 0.0
    earned: dict[str, float] = field(default_factory=dict[str, float])
    """Intrinsic return by caption."""
    rest: float = 0.0
    """What captions that are not kept by name earned, where it was more than nothing."""
    rest_count: int = 0
    """How many of them earned something; one that comes again counts again."""

    def join(self, other: "_Window") -> None:
        self.episodes += other.episodes
        self.goal += other.goal
        self.goal_squared += other.goal_squared
        for text, earned in other.earned.items():
            self.earned[text] = self.earned.get(text, 0.0) + earned
        self.rest += other.rest
        self.rest_count += other.rest_count

    def trim(self) -> None:
        """Keeps the captions that earned most."""
        if len(self.earned) > _KEPT:
            ordered = sorted(self.earned.items(), key=lambda item: -item[1])
            self.earned = dict(ordered[:_KEPT])
            dropped = [earned for _, earned in ordered[_KEPT:] if earned > 0]
            self.rest += math.fsum(dropped)
            self.rest_count += len(dropped)

    def total(self) -> float:
        """What was earned without what was taken: a ranking's reward may be below 0, and a caption that is farmed earns as
        much whatever others cost."""
        return math.fsum(earned for earned in self.earned.values() if earned > 0) + self.rest


class RewardWatch:
    """Takes what captions earned and how episodes ended; `report` says what stands out. Deterministic in its input."""

    def __init__(self) -> None:
        self._windows: list[_Window] = [_Window()]
        self._size = WINDOW_EPISODES
        self._has_success = False
        self._report = RewardWatchReport()

    def earned(self, captions: Iterable[tuple[str, float]]) -> None:
        """What captions (by their text) earned in one trajectory."""
        window = self._windows[-1]
        for text, earned in captions:
            window.earned[text] = window.earned.get(text, 0.0) + earned
        if len(window.earned) > _OPEN:
            window.trim()

    def ended(self, success: bool | None, extrinsic: float) -> None:
        """An episode ended. `extrinsic` is its return, which counts only where the task has no success."""
        window = self._windows[-1]
        self._has_success = success is not None
        goal = extrinsic if success is None else float(success)
        window.episodes += 1
        window.goal += goal
        window.goal_squared += goal * goal
        if window.episodes >= self._size:
            window.trim()
            if len(self._windows) == _WINDOWS:
                self._halve()
            self._windows.append(_Window())
            self._report = self._look()

    def _halve(self) -> None:
        joined: list[_Window] = []
        for first, second in zip(self._windows[::2], self._windows[1::2], strict=True):
            first.join(second)
            first.trim()
            joined.append(first)
        self._windows = joined
        self._size *= 2

    def report(self) -> RewardWatchReport:
        """How the last quarter of the run's episodes compares with the quarter before it, as of the last whole window."""
        return self._report

    def _look(self) -> RewardWatchReport:
        whole = self._windows[:-1]
        span = max(1, len(whole) // 4)
        late = _sum(whole[-span:])
        shares = _shares(late)
        stagnant = False
        flags: tuple[HackingFlag, ...] = ()
        early = _sum(whole[-2 * span : -span])
        if len(whole) >= 2 * span:
            saturated = self._has_success and late.goal >= SATURATED * late.episodes
            stagnant = not saturated and not _grown(early, late)
            flags = self._flags(early, late) if stagnant and shares else ()
        return RewardWatchReport(
            episodes=late.episodes,
            top_share=shares[0] if shares else None,
            top5_share=math.fsum(shares[:_TOP]) if shares else None,
            gini=gini(shares) if shares else None,
            stagnant=stagnant,
            flags=flags,
        )

    def _flags(self, early: _Window, late: _Window) -> tuple[HackingFlag, ...]:
        total = late.total()
        named = sorted((earned for earned in late.earned.values() if earned > 0), reverse=True)
        few = len(named) + late.rest_count >= AMONG and math.fsum(named[:FEW]) >= FEW_SHARE * total
        least = named[min(FEW, len(named)) - 1] if few else math.inf
        found: list[HackingFlag] = []
        for text, earned in late.earned.items():
            share = earned / total
            now, before = earned / late.episodes, early.earned.get(text, 0.0) / early.episodes
            reasons = [
                *(["grows"] if share >= SHARE and now >= GROWTH * before else []),
                *(["concentrated"] if share >= CONCENTRATED or earned >= least else []),
            ]
            if reasons:
                found.append(
                    HackingFlag(
                        text=text,
                        reasons=tuple(reasons),
                        share=share,
                        earned_before=before,
                        earned_now=now,
                        goal="success" if self._has_success else "return",
                        goal_before=early.goal / early.episodes,
                        goal_now=late.goal / late.episodes,
                    )
                )
        return tuple(sorted(found, key=lambda flag: -flag.share)[:_TOP])

    def state_dict(self) -> dict[str, Any]:
        """Everything, as plain Python objects."""
        return {
            "size": self._size,
            "has_success": self._has_success,
            "windows": [
                [w.episodes, w.goal, w.goal_squared, [[t, e] for t, e in w.earned.items()], w.rest, w.rest_count]
                for w in self._windows
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        self._size, self._has_success = state["size"], state["has_success"]
        self._windows = [
            _Window(episodes, goal, squared, dict(captions), rest, *count)  # checkpoints of before have no count
            for episodes, goal, squared, captions, rest, *count in state["windows"]
        ]
        self._report = self._look() if len(self._windows) > 1 else RewardWatchReport()


def _sum(windows: Sequence[_Window]) -> _Window:
    total = _Window()
    for window in windows:
        total.join(window)
    return total


def _shares(window: _Window) -> list[float]:
    """Shares of what was earned by caption, largest first; empty where nothing was."""
    total = window.total()
    return sorted((earned / total for earned in window.earned.values() if earned > 0), reverse=True)


def _grown(early: _Window, late: _Window) -> bool:
    """Whether the mean of success (or return) rose by more than `_Z` standard errors of the difference."""
    difference = late.goal / late.episodes - early.goal / early.episodes
    error = math.sqrt(_variance(early) / early.episodes + _variance(late) / late.episodes)
    return difference > _Z * error and difference > 0


def _variance(window: _Window) -> float:
    mean = window.goal / window.episodes
    return max(0.0, window.goal_squared / window.episodes - mean * mean)


def gini(values: Sequence[float]) -> float:
    """Gini coefficient of non-negative values: 0 where all are equal, (n - 1) / n where one of n has everything."""
    ordered = sorted(values)
    n, total = len(ordered), math.fsum(ordered)
    if total <= 0:
        return 0.0
    weighted = math.fsum(rank * value for rank, value in enumerate(ordered, start=1))
    return 2.0 * weighted / (n * total) - (n + 1) / n
