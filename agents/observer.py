"""What the rollout loop tells about the episodes that somebody wants to follow (a trace recorder, a viewer)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class EpisodeStart:
    """The beginning of an episode."""

    episode_id: str
    env_id: str
    env_options: Mapping[str, Any]
    action_names: tuple[str, ...]
    seeds: Mapping[str, str]
    policy_version: int
    observation: Mapping[str, NDArray[Any]]
    screen: str


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step: the action and what came of it. `observation` is what the policy reads next (the final one at an end)."""

    step: int
    """0 for the first action of the episode."""
    action: int
    log_prob: float
    """Of the behaviour policy."""
    value: float
    """The behaviour policy's estimate before the action."""
    reward: float
    """Extrinsic, unscaled."""
    caption: str
    caption_id: int
    caption_count: int
    """How often the caption came in this episode, this time included; 0 for the empty caption."""
    grounded: bool
    policy_version: int
    observation: Mapping[str, NDArray[Any]]
    screen: str


@dataclass(frozen=True, slots=True)
class EpisodeFinish:
    """The end of an episode."""

    episode_return: float
    length: int
    terminated: bool
    success: bool | None
    metrics: Mapping[str, float]
    error: str | None
    """Set where the environment raised: the episode has no regular end."""


class EpisodeObserver(Protocol):
    """Follows some of the episodes of one rollout."""

    def wants(self, episode_id: str) -> bool: ...

    def start(self, env_index: int, start: EpisodeStart) -> None: ...

    def step(self, env_index: int, record: StepRecord) -> None: ...

    def finish(self, env_index: int, finish: EpisodeFinish) -> None: ...

    def close(self) -> None:
        """Gives up the episodes that still run; what was recorded of them stays readable."""
        ...
