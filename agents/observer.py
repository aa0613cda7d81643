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
class CallArrays:
    """What one rollout call brings: T steps of B environments under one version of the policy. It is filled step by step."""

    policy_version: int
    reward_model_version: int | None
    observation: Mapping[str, NDArray[Any]]
    """Each [T + 1, B, ...]: before each step, and after the last. Where an episode ended that is the next one's first."""
    action: NDArray[np.int64]
    """[T, B]"""
    log_prob: NDArray[np.float32]
    """[T, B], of the behaviour policy."""
    value: NDArray[np.float32]
    """[T, B], the behaviour policy's estimate before the action."""
    reward: NDArray[np.float32]
    """[T, B], extrinsic, unscaled."""
    caption_id: NDArray[np.int64]
    """[T, B]"""
    grounded: NDArray[np.bool_]
    """[T, B]"""
    at: NDArray[np.float64]
    """[T], when the step had been taken, on the clock of `time.monotonic`."""
    duration: NDArray[np.float64]
    """[T], seconds that the environments took for the step (all those of the batch together)."""


@dataclass(frozen=True, slots=True)
class EpisodeSteps:
    """L steps of one episode that follow one another, under one version of the policy: what became of each action.

    It names its place in the arrays of the call, which many episodes share: to hand it to another process costs little.
    """

    call: CallArrays
    index: int
    """The environment, of those of the call."""
    first: int
    """Number of the first step in the call."""
    captions: Sequence[str]
    """L texts; empty where nothing was said."""
    seen: int
    """Steps that brought an observation: L, or one less where the last step raised."""
    screens: Screens
    """As many as observations."""
    final: Mapping[str, NDArray[Any]] | None = None
    """The last observation, where it is not in the arrays of the call because the episode ended."""

    @classmethod
    def alone(
        cls,
        *,
        policy_version: int,
        reward_model_version: int | None,
        action: NDArray[np.int64],
        log_prob: NDArray[np.float32],
        value: NDArray[np.float32],
        reward: NDArray[np.float32],
        captions: Sequence[str],
        caption_id: NDArray[np.int64],
        grounded: NDArray[np.bool_],
        at: NDArray[np.float64],
        duration: NDArray[np.float64],
        observation: Mapping[str, NDArray[Any]],
        screens: Screens,
    ) -> "EpisodeSteps":
        """Steps of a call of their own: arrays [L] as in `CallArrays`, and observations [seen, ...] after the actions."""
        length = len(action)
        room: dict[str, NDArray[Any]] = {}
        for name, after in observation.items():
            room[name] = np.zeros((length + 1, 1, *after.shape[1:]), after.dtype)
            room[name][1 : 1 + len(after), 0] = after
        call = CallArrays(
            policy_version, reward_model_version, room, action[:, None], log_prob[:, None], value[:, None],
            reward[:, None], caption_id[:, None], grounded[:, None], at, duration,
        )  # fmt: skip
        return cls(call, 0, 0, captions, len(screens), screens)

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def policy_version(self) -> int:
        return self.call.policy_version

    @property
    def reward_model_version(self) -> int | None:
        return self.call.reward_model_version

    @property
    def _column(self) -> tuple[slice, int]:
        return slice(self.first, self.first + len(self)), self.index

    @property
    def action(self) -> NDArray[np.int64]:
        """[L]"""
        return self.call.action[self._column]

    @property
    def log_prob(self) -> NDArray[np.float32]:
        """[L], of the behaviour policy."""
        return self.call.log_prob[self._column]

    @property
    def value(self) -> NDArray[np.float32]:
        """[L], the behaviour policy's estimate before the action."""
        return self.call.value[self._column]

    @property
    def reward(self) -> NDArray[np.float32]:
        """[L], extrinsic, unscaled."""
        return self.call.reward[self._column]

    @property
    def caption_id(self) -> NDArray[np.int64]:
        """[L]"""
        return self.call.caption_id[self._column]

    @property
    def grounded(self) -> NDArray[np.bool_]:
        """[L]"""
        return self.call.grounded[self._column]

    @property
    def at(self) -> NDArray[np.float64]:
        """[L], when the step had been taken, on the clock of `time.monotonic`."""
        return self.call.at[self._column[0]]

    @property
    def duration(self) -> NDArray[np.float64]:
        """[L], seconds that the environments took for the step (all those of the batch together)."""
        return self.call.duration[self._column[0]]

    @property
    def observation(self) -> dict[str, NDArray[Any]]:
        """Each [seen, ...], after the action."""
        low, high = self.first + 1, self.first + 1 + self.seen
        arrays = self.call.observation
        if self.final is None:
            return {name: array[low:high, self.index] for name, array in arrays.items()}
        last = self.final
        return {
            name: np.concatenate([array[low : high - 1, self.index], last[name][None]])
            for name, array in arrays.items()
        }


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
