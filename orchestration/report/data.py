"""What a report shows, as plain numbers: runs, and groups of runs that differ in nothing but their seed."""

import bisect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from orchestration.configuration import read_config
from orchestration.configuration.checks import value_at
from orchestration.configuration.effects import without_effect
from orchestration.configuration.keys import key_types
from orchestration.metrics import MetricsLine, read_metrics
from orchestration.rundir import RunDir
from orchestration.runs import current_summary
from orchestration.summary import Summary

_POINTS = 120
"""Of a curve: enough for the width of a chart."""

Curve = tuple[list[float], list[float]]
"""x and y."""


@dataclass(frozen=True, slots=True)
class RunData:
    """One run as it lies on disk."""

    name: str
    seed: int
    settings: Mapping[str, Any]
    """Resolved configuration by key, without `run.*`."""
    idle: Set[str]
    """Keys that have no effect in it."""
    summary: Summary
    lines: Sequence[MetricsLine]

    def curve(self, value: Callable[[MetricsLine], float | None], x: "Axis") -> Curve:
        """(x, value) of the lines that have both."""
        points = [(x.of(line), value(line)) for line in self.lines]
        kept = [(a, b) for a, b in points if a is not None and b is not None and math.isfinite(b)]
        return [a for a, _ in kept], [b for _, b in kept]

    def names(self, prefix: str) -> list[str]:
        """Metrics that begin with `prefix` and have a value somewhere, in their order."""
        return list(
            dict.fromkeys(
                name
                for line in self.lines
                for name, v in line.metrics.items()
                if name.startswith(prefix) and v is not None
            )
        )


@dataclass(frozen=True, slots=True)
class Axis:
    """What runs along the x axis."""

    label: str
    of: Callable[[MetricsLine], float | None]


STEPS = Axis("environment steps", lambda line: float(line.env_steps))
MINUTES = Axis("minutes", lambda line: None if (s := line.time.get("wall_s")) is None else s / 60.0)


@dataclass(frozen=True, slots=True)
class Spread:
    """The mean of several runs' curves, and the least and most of them."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that differ in nothing but their seed (and name)."""

    label: str
    runs: tuple[RunData, ...]

    def spread(self, value: Callable[[MetricsLine], float | None], x: Axis = STEPS) -> Spread:
        """The runs' curves over a common x, each as far as it goes."""
        return spread([run.curve(value, x) for run in self.runs])

    def metric(self, name: str, x: Axis = STEPS) -> Spread:
        """`spread` of a metric by its name."""
        return self.spread(lambda line: line.metrics.get(name), x)

    def timing(self, name: str, x: Axis = STEPS) -> Spread:
        """`spread` of what depends on the clock, by its name."""
        return self.spread(lambda line: line.time.get(name), x)

    def over_seeds(self, value: Callable[[Summary], float | None]) -> list[float]:
        """A number of each run's summary, where it has one."""
        return [v for run in self.runs if (v := value(run.summary)) is not None]


def load(run: RunDir) -> RunData:
    """Reads a run, also one that goes on. Raises `MetricsError` and `ConfigError` for files that are damaged."""
    config = read_config(run.config)
    settings = {key: value_at(config, key) for key in key_types() if not key.startswith("run.")}
    idle = without_effect(config, settings).keys()
    lines = read_metrics(run.metrics) if run.metrics.is_file() else []
    return RunData(run.name, config.run.seed, settings, idle, current_summary(run), lines)


def group(runs: Iterable[RunData]) -> list[Group]:
    """Groups by configuration, in the order in which they come first; named after what they differ in."""
    groups: list[list[RunData]] = []
    for run in runs:
        for members in groups:
            if members[0].settings == run.settings:
                members.append(run)
                break
        else:
            groups.append([run])
    if len(groups) == 1:
        return [Group(_common_name(groups[0]), tuple(groups[0]))]
    differing = differences([members[0] for members in groups])
    return [Group(_label(members, differing), tuple(members)) for members in groups]


def differences(runs: Sequence[RunData]) -> list[str]:
    """Keys whose values are not the same in all runs."""
    return [key for key in runs[0].settings if any(run.settings.get(key) != runs[0].settings[key] for run in runs)]


def _label(members: Sequence[RunData], differing: Sequence[str]) -> str:
    told = [key for key in differing if key not in members[0].idle]
    if len(told) > 3:
        return _common_name(members)
    return ", ".join(f"{key}={_text(members[0].settings[key])}" for key in told) or _common_name(members)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "null" if value is None else str(value)


def _common_name(members: Sequence[RunData]) -> str:
    """What the runs' names begin with, or the first name."""
    names = [run.name for run in members]
    if len(names) == 1:
        return names[0]
    common = names[0]
    while common and not all(name.startswith(common) for name in names):
        common = common[:-1]
    return common.rstrip("0123456789").rstrip("-_.=").removesuffix("seed").rstrip("-_.=") or names[0]


def spread(curves: Sequence[Curve]) -> Spread:
    """Mean, least and most of curves over a common grid, by linear interpolation; no curve is extended."""
    curves = [curve for curve in curves if curve[0]]
    if not curves:
        return Spread([], [], [], [])
    if len(curves) == 1:
        x, y = _thinned(curves[0])
        return Spread(x, y, [], [])
    first, last = min(xs[0] for xs, _ in curves), max(xs[-1] for xs, _ in curves)
    grid = [first + (last - first) * n / (_POINTS - 1) for n in range(_POINTS)]
    result = Spread([], [], [], [])
    for at in grid:
        values = [v for curve in curves if (v := _at(curve, at)) is not None]
        if values:
            result.x.append(at)
            result.mean.append(math.fsum(values) / len(values))
            result.low.append(min(values))
            result.high.append(max(values))
    return result


def _thinned(curve: Curve) -> Curve:
    """At most about `2 * _POINTS` points of a curve, the last among them."""
    x, y = curve
    stride = max(1, len(x) // (2 * _POINTS))
    kept = sorted({*range(0, len(x), stride), len(x) - 1})
    return [x[n] for n in kept], [y[n] for n in kept]


def _at(curve: Curve, at: float) -> float | None:
    x, y = curve
    if at < x[0] or at > x[-1]:
        return None
    right = bisect.bisect_left(x, at)
    if x[right] == at or right == 0:
        return y[right]
    share = (at - x[right - 1]) / (x[right] - x[right - 1])
    return y[right - 1] + share * (y[right] - y[right - 1])


def mean_and_spread(values: Sequence[float]) -> tuple[float, float, float] | None:
    """Mean, least and most; None for no values."""
    return (math.fsum(values) / len(values), min(values), max(values)) if values else None
