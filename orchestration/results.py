"""What the parts of a run tell each other. Apart from the parts, so that the coordinator need not load torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from learner.update import Update
from orchestration.summary import CaptionScore
from reward_server.models.base import RewardModelMetrics


def actor_name(index: int, incarnation: int = 0) -> str:
    """Such as `actor-03`, or `actor-03.1` for the one that took its place."""
    return f"actor-{index:02d}" + (f".{incarnation}" if incarnation else "")


@dataclass(frozen=True, slots=True)
class FeedResult:
    """What came of one trajectory."""

    updates: tuple[Update, ...]
    intrinsic_returns: Mapping[tuple[int, int], float]
    """Sum of r_int / N^β of each episode that ended in the trajectory, by (t, environment)."""
    policy_version: int
    reward_model_version: int
    samples_dropped: int
    liked: tuple[CaptionScore, ...]
    disliked: tuple[CaptionScore, ...]
    scores: Mapping[int, float]
    """r_int by caption id: of the trajectory's captions those that were not told under this version of the reward model."""
    reward_s: float
    """Seconds spent scoring captions and adding up their rewards, apart from the updates' own share."""
    waited_s: float
    """Seconds since the call before: what the learner waited for trajectories."""
    unknown: tuple[int, ...] = ()
    """Ids of the captions that the learner did not know: they earned no r_int, and the actor is to tell of them again."""
    steps_unknown: int = 0
    """Steps so far with such a caption."""
    credit: Mapping[str, float] = field(default_factory=dict[str, float])
    """How the progress estimator stands, as metrics; empty without one."""
    earned: tuple[tuple[str, float], ...] = ()
    """Captions that were rewarded in the trajectory, with the sum of r_int / N^β of each."""
    reward_model: RewardModelMetrics | None = None
    """What is known of the reward model in force, where it was trained on labels."""


@dataclass(frozen=True, slots=True)
class Floor:
    """What was known of a learner that died. Versions and counters of the one in its place go on above it."""

    policy_version: int
    """The highest that was published."""
    reward_model_version: int
    samples_dropped: int


@dataclass(frozen=True, slots=True)
class TakenOver:
    """How a learner began that took another's place."""

    policy_version: int
    checkpoint: str | None
    """Folder of what it went on from; None: the beginning."""
    samples: int
    """Environment steps that its policy has learned from, of those that the run has counted."""


@dataclass(frozen=True, slots=True)
class Written:
    """What came of a checkpoint."""

    path: Path | None
    """None where it could not be written."""
    error: str | None
    seconds: float
    """That writing took, beside the training."""
    warnings: tuple[str, ...] = ()
