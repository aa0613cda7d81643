"""How well contributions explain outcomes, on episodes that the estimator never learned from."""

import math
from dataclasses import asdict, dataclass

import numpy as np

from learner.credit.attribution import Floats

_BINS = 10


@dataclass(frozen=True, slots=True)
class Calibration:
    """The distribution of Σ ĉ − R over held-out episodes. NaN where there are none."""

    episodes: int
    residual_mean: float
    residual_std: float
    residual_p10: float
    residual_p90: float
    error: float
    """Expected calibration error: of ten bins of Σ ĉ (clipped to [0, 1]) the distance between the means of Σ ĉ and R,
    weighted by the share of episodes in them (Naeini et al. 2015)."""
    explained: float
    """1 − mean squared residual / variance of R; NaN where all outcomes are equal."""

    def metrics(self) -> dict[str, float]:
        """By name, `progress/…`."""
        return {f"progress/held_out_{name}": float(value) for name, value in asdict(self).items()}


NO_CALIBRATION = Calibration(0, *(6 * (math.nan,)))


def calibrate(sums: Floats, outcome: Floats) -> Calibration:
    """sums, outcome [E]: Σ ĉ and R of each episode."""
    if not len(sums):
        return NO_CALIBRATION
    residual = sums - outcome
    shown = np.clip(sums, 0.0, 1.0)
    bins = np.minimum((shown * _BINS).astype(np.int64), _BINS - 1)
    error = sum(
        abs(float(shown[bins == each].mean() - outcome[bins == each].mean())) * float((bins == each).mean())
        for each in np.unique(bins)
    )
    low, high = np.quantile(residual, (0.1, 0.9))
    spread = float(outcome.var())
    return Calibration(
        episodes=len(sums),
        residual_mean=float(residual.mean()),
        residual_std=float(residual.std()),
        residual_p10=float(low),
        residual_p90=float(high),
        error=error,
        explained=1.0 - float(np.square(residual).mean()) / spread if spread > 0 else math.nan,
    )
