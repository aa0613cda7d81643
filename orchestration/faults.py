"""What went wrong in a run and did not end it: counted here, told in summary, metrics and live view."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Faults:
    """Counters of the whole run, resumes included; they never fall."""

    learner_restarts: int = 0
    reward_server_restarts: int = 0
    judge_restarts: int = 0
    """Replicas of the judge that died; Ray Serve replaces them."""
    samples_lost: int = 0
    """Steps that were played and that no policy will ever have learned from: a learner died with what it had made of them
    since the checkpoint that another went on from, or their trajectory was on a machine that went away."""
    checkpoint_errors: int = 0
    """Checkpoints that could not be written."""
    uploads: int = 0
    """Checkpoints that were copied to `checkpoint.url`."""
    upload_errors: int = 0
    """Attempts to do so that failed."""
    checkpoint_failing: bool = False
    """Whether the newest one was such."""
    still: dict[str, float] = field(default_factory=dict[str, float])
    """Parts that stand still now, by name, with the time since when (seconds since the epoch)."""

    running_out: dict[str, str] = field(default_factory=dict[str, str])
    """What runs out now (`orchestration.watch.backstops`), with how much is left and what to do."""

    def state_dict(self) -> dict[str, Any]:
        return {
            "learner_restarts": self.learner_restarts,
            "reward_server_restarts": self.reward_server_restarts,
            "judge_restarts": self.judge_restarts,
            "samples_lost": self.samples_lost,
            "checkpoint_errors": self.checkpoint_errors,
            "uploads": self.uploads,
            "upload_errors": self.upload_errors,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner_restarts = state["learner_restarts"]
        self.samples_lost = state["samples_lost"]
        self.checkpoint_errors = state["checkpoint_errors"]
        # The others are not in checkpoints of before they were counted.
        self.reward_server_restarts = state.get("reward_server_restarts", 0)
        self.judge_restarts = state.get("judge_restarts", 0)
        self.uploads = state.get("uploads", 0)
        self.upload_errors = state.get("upload_errors", 0)
