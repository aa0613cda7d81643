"""What is told of an optimisation step. Apart from the learner, so that a reader need not load torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Update:
    """What one optimisation step did."""

    version: int
    """The policy's version after it."""
    samples: int
    metrics: dict[str, float]
    lag_mean: float
    """Versions between the policy that acted and the one that was updated, mean over the samples."""
    lag_max: int
    reward_s: float
    """Seconds spent on intrinsic rewards and fusion."""
    train_s: float
    """Seconds spent on the rest of the update."""
    exchange_s: float = 0.0
    """Seconds spent on exchanges with the other workers of the learner, and on waiting for them there."""
