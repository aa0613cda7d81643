"""R of an episode, in [0, 1]: what the progress estimator learns to explain."""

import math
from dataclasses import dataclass

from learner.credit.attribution import OutcomeError
from learner.credit.settings import CreditSettings


@dataclass(frozen=True, slots=True)
class EpisodeOutcome:
    """How an episode ended, at step t of environment b of a trajectory."""

    t: int
    b: int
    success: bool | None
    episode_return: float
    """Extrinsic, unscaled."""


def outcome_of(end: EpisodeOutcome, settings: CreditSettings) -> float:
    """R of the episode. Raises OutcomeError where it has none, or one that is not in [0, 1]; it names the key to set."""
    if settings.outcome == "success":
        if end.success is None:
            raise OutcomeError(
                "credit.outcome=success: the task does not say whether an episode succeeded; "
                "set credit.outcome=return, with credit.return_low and credit.return_high"
            )
        return float(end.success)
    low, high = settings.return_low, settings.return_high
    value = (end.episode_return - low) / (high - low)
    if not math.isfinite(value) or not 0.0 <= value <= 1.0:
        raise OutcomeError(
            f"an episode returned {end.episode_return:g}, which credit.return_low={low:g} and credit.return_high={high:g} "
            f"make R={value:g}; an outcome R must be in [0, 1]: widen them"
        )
    return value
