"""What the rollout loop tells about the episodes that somebody wants to follow (a trace recorder, a viewer)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Cells:
    """L screens of a terminal, after one that was there before. The rollout's own array: valid during the call."""

    planes: NDArray[np.uint8]
    """[L + 1, 2, rows, columns]: characters (latin-1), and the terminal's 16 colours (of a blank cell any)."""

    def __len__(self) -> int:
        return len(self.planes) - 1


Screens = Cells | Sequence[str]
"""What a person would have seen, screen after screen."""


@dataclass(frozen=True, slots=True)
class EpisodeStart:
    """The beginning of an episode."""

    episode_id: str
    env_id: str
    env_options: Mapping[str, Any]
    action_names: tuple[str, ...]
    seeds: Mapping[str, str]
    policy_version: int
    reward_model_version: int | None
    """Of the newest reward model when the episode began; None where there is none."""
    observation: Mapping[str, NDArray[Any]]
    """The rollout's own arrays: valid during the call."""
    screen: Screens
    """One; of a terminal, that before the first step."""
    at: float
    """When it began, on the clock of `time.monotonic`."""
    caption: str = ""
    """What the opening said."""
    view: Mapping[str, int] | None = None
    """What the policy asked the environment to show it (`envs.base.View`)."""


@dataclass(frozen=True, slots=True)
class EpisodeSteps:
    """L steps of one episode that follow one another, under one version of the policy: what became of each action."""

    policy_version: int
    reward_model_version: int | None
    action: NDArray[np.int64]
    """[L]"""
    log_prob: NDArray[np.float32]
    """[L], of the behaviour policy."""
    value: NDArray[np.float32]
    """[L], the behaviour policy's estimate before the action."""
    reward: NDArray[np.float32]
    """[L], extrinsic, unscaled."""
    captions: Sequence[str]
    """L texts; empty where nothing was said."""
    caption_id: NDArray[np.int64]
    """[L]"""
    grounded: NDArray[np.bool_]
    """[L]"""
    at: NDArray[np.float64]
    """[L], when the step had been taken, on the clock of `time.monotonic`."""
    duration: NDArray[np.float64]
    """[L], seconds that the environments took for the step (all those of the batch together)."""
    observation: Mapping[str, NDArray[Any]]
    """Each [L, ...], after the action; one less where the last step raised."""
    screens: Screens
    """As many as observations."""

    def __len__(self) -> int:
        return len(self.action)


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
    reward_model_versions: NDArray[np.int64]
    """[L]; -1 where there is no reward model."""


class EpisodeObserver(Protocol):
    """Follows some of the episodes of one rollout."""

    def wants(self, episode_id: str) -> bool:
        """Whether the episode that begins now is to be followed."""
        ...

    def start(self, env_index: int, start: EpisodeStart) -> None: ...

    def steps(self, env_index: int, steps: EpisodeSteps) -> None:
        """The next steps of an episode: told once for each rollout call, and before it finishes. The arrays are only
        read, and stay as they are."""
        ...

    def finish(self, env_index: int, finish: EpisodeFinish, recall: Callable[[], Recalled | None]) -> None:
        """The end of an episode; `recall` gives what the rollout remembers of it, None where it was too long for that."""
        ...

    def wants_back(self, episode_id: str, finish: EpisodeFinish) -> bool:
        """Whether an episode that ended without being followed is worth recording after all."""
        ...

    def recall(self, env_index: int, episode: Recalled, finish: EpisodeFinish) -> None:
        """Records an episode that `wants_back` asked for, where the rollout still remembers it."""
        ...

    def take_trouble(self) -> tuple[str, ...]:
        """Why episodes could not be followed, a line each; since the last call. It is no reason to end the rollout."""
        ...

    def close(self) -> None:
        """Gives up the episodes that still run; what was recorded of them stays readable."""
        ...
