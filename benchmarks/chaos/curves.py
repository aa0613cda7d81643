"""Whether a training learns under faults as it does without: one curve against the spread of several."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.chaos.audit import Finding

NAME = "the learning curve is not below that without faults"
_EVERY = 50_000
_T95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833)
"""Student's t that 5 % exceed, for 1 to 9 degrees of freedom."""

Curve = Sequence[tuple[int, float | None, float | None]]
"""Environment steps, and success and return of the last 100 episodes."""


def curve(lines: Sequence[dict[str, Any]], every: int = _EVERY) -> list[tuple[int, float | None, float | None]]:
    """Of lines of `metrics.jsonl`, at every so many steps."""
    told: list[tuple[int, float | None, float | None]] = []
    for line in lines:
        if line["env_steps"] >= every * (len(told) + 1):
            told.append(
                (line["env_steps"], line["metrics"].get("episode/success"), line["metrics"].get("episode/return"))
            )
    return told


def learning(with_faults: Curve, without: Sequence[Curve]) -> Finding:
    """The mean of the curve under faults, over the marks that all curves have, against those of the runs without faults, one for
    each seed: it holds where it is not below the lower end of the one-sided 95 % prediction interval for one more such run,
    m - t s sqrt(1 + 1/n). Success is compared where all tell of it, else the return.
    """
    marks = min(map(len, (with_faults, *without)))
    if not marks or not 2 <= len(without) <= len(_T95) + 1:
        return Finding(NAME, False, f"{marks} marks and {len(without)} runs without faults: nothing to compare")
    told = "success" if all(row[1] is not None for one in (with_faults, *without) for row in one[:marks]) else "return"
    mine = _mean(with_faults[:marks], told)
    others = [_mean(one[:marks], told) for one in without]
    n = len(others)
    bound = statistics.mean(others) - _T95[n - 2] * statistics.stdev(others) * math.sqrt(1 + 1 / n)
    detail = (
        f"mean {told} at {marks} marks of {_EVERY:,} steps: {mine:.3f} with; "
        f"{' '.join(f'{x:.3f}' for x in sorted(others))} without, so that 95 % of such runs are above {bound:.3f}"
    )
    return Finding(NAME, mine >= bound, detail)


def _mean(rows: Curve, told: str) -> float:
    values = [row[1] if told == "success" else row[2] for row in rows]
    return statistics.mean(0.0 if value is None else value for value in values)
