"""What the parts of a run tell each other. Apart from the parts, so that the coordinator need not load torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from learner.update import Update
from orchestration.summary import CaptionScore


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
    credit: Mapping[str, float] = field(default_factory=dict[str, float])
    """How the progress estimator stands, as metrics; empty without one."""
    earned: tuple[tuple[str, float], ...] = ()
    """Captions that were rewarded in the trajectory, with the sum of r_int / N^β of each."""
