"""Whether a training learns under faults as it does without: one curve against the spread of several."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

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


def learning(with_faults: Curve, without: Sequence[Curve]) -> str:
    """How the mean of the curve under faults, over the marks that all curves have, lies to those of runs without, one for each
    seed: below by more than noise where it is under the one-sided 95 % prediction interval for one more run without faults,
    m - t s sqrt(1 + 1/n), which one sound run in twenty is too. Success is compared where the environment tells of it, else
    the return.
    """
    curves = (with_faults, *without)
    marks = min(map(len, curves))
    column, told = (1, "success") if any(row[1] is not None for one in curves for row in one) else (2, "return")
    rows = [n for n in range(marks) if all(one[n][column] is not None for one in curves)]
    if not rows or not 2 <= len(without) <= len(_T95) + 1:
        return f"learning curve: nothing to compare at {len(rows)} marks of {_EVERY:,} steps and {len(without)} runs without faults"
    mine, *others = (statistics.mean(one[n][column] or 0.0 for n in rows) for one in curves)
    middle, n = statistics.mean(others), len(others)
    bound = middle - _T95[n - 2] * statistics.stdev(others) * math.sqrt(1 + 1 / n)
    verdict = "below by more than noise" if mine < bound else "not below by more than noise"
    if bound <= min(0.0, mine):
        verdict = "too few runs without faults to tell"
    return (
        f"learning curve, mean {told} at {len(rows)} marks of {_EVERY:,} steps: {mine:.3f} with faults; without, {n} seeds: "
        f"{' '.join(f'{x:.3f}' for x in others)}, mean {middle:.3f}, noise bound {bound:.3f}: {verdict}"
    )
