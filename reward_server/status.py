"""What is told of the reward server. Apart from it, so that a reader need not load torch."""

from dataclasses import dataclass

from reward_server.annotator_status import AnnotatorStatus


@dataclass(frozen=True, slots=True)
class RewardServerStatus:
    """How the reward server stands."""

    annotator: AnnotatorStatus
    version: int
    """Of the newest reward model; 0: none yet."""
    accuracy: float | None
    """Of the newest reward model on labels kept from its training."""
    distil_s: float
    """Seconds spent training reward models."""
