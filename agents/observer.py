"""What the rollout loop tells about the episodes that somebody wants to follow (a trace recorder, a viewer)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
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
    """The rollout's own arrays: valid during the call."""
    screen: str
    colors: str = ""
    """Hexadecimal digits, as `screen` has characters; empty where colours are not known."""


@dataclass(slots=True)
class StepRecord:
    """One step: the action and what came of it. `observation` is what the policy reads next (the final one at an end).

    Not frozen, as making a frozen one costs a tenth of recording a step; nobody changes it.
    """

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
    """The rollout's own arrays: valid during the call. Empty where the last one of an episode was not kept."""
    screen: str
    colors: str = ""
    """As in `EpisodeStart`."""
    duration_s: float = 0.0
    """Seconds that the environments took for the step (all those of the batch together)."""


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


@dataclass(frozen=True, slots=True)
class Recalled:
    """An episode that nobody followed, as far as the rollout remembers it. L is its length.

    With the seeds it is enough to play the episode again and to record it then.
    """

    episode_id: str
    env_id: str
    env_options: Mapping[str, Any]
    action_names: tuple[str, ...]
    seeds: Mapping[str, str]
    actions: NDArray[np.int64]
    """[L]"""
    log_probs: NDArray[np.float32]
    """[L]"""
    values: NDArray[np.float32]
    """[L]"""
    policy_versions: NDArray[np.int64]
    """[L]"""


class EpisodeObserver(Protocol):
    """Follows some of the episodes of one rollout."""

    def wants(self, episode_id: str) -> bool:
        """Whether the episode that begins now is to be followed."""
        ...

    def start(self, env_index: int, start: EpisodeStart) -> None: ...

    def step(self, env_index: int, record: StepRecord) -> None: ...

    def finish(self, env_index: int, finish: EpisodeFinish) -> None: ...

    def wants_back(self, episode_id: str, finish: EpisodeFinish) -> bool:
        """Whether an episode that ended without being followed is worth recording after all."""
        ...

    def recall(self, env_index: int, episode: Recalled, finish: EpisodeFinish) -> None:
        """Records an episode that `wants_back` asked for, where the rollout still remembers it."""
        ...

    def close(self) -> None:
        """Gives up the episodes that still run; what was recorded of them stays readable."""
        ...
