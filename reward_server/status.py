"""What is told of the reward server. Apart from it, so that a reader need not load torch."""

from dataclasses import dataclass

from reward_server.annotator_status import AnnotatorStatus
from reward_server.models.base import RewardModelMetrics


@dataclass(frozen=True, slots=True)
class RewardServerStatus:
    """How the reward server stands."""

    annotator: AnnotatorStatus
    version: int
    """Of the newest reward model; 0: none yet."""
    metrics: RewardModelMetrics | None
    """Of the newest reward model."""
    distil_s: float
    """Seconds spent training reward models."""
    store_error: str | None = None
    """Why labels cannot be written now; they are kept, and it is tried again."""
    store_restored: str | None = None
    """Where the label store's file lies that was found damaged and was replaced by its copy."""

    @property
    def accuracy(self) -> float | None:
        """Of the newest reward model on labels that it was not trained on; for a ranking pair accuracy."""
        return None if self.metrics is None else self.metrics.accuracy

    def quality(self) -> dict[str, float | None]:
        """What is logged of the newest reward model, by name."""
        return {} if self.metrics is None else self.metrics.quality()
