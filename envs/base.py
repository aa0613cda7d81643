"""What every environment of the system is: a gymnasium environment whose steps also carry a caption."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

Observation = dict[str, NDArray[Any]]
"""What the policy reads: arrays by name, without a batch axis."""


class EnvironmentIdError(ValueError):
    """An environment id that names nothing; the message names the near miss."""


@dataclass(frozen=True, slots=True)
class Terminal:
    """The cells of a terminal: the game's own arrays, which change with its next step."""

    chars: NDArray[np.uint8]
    """[rows, columns], latin-1."""
    colors: NDArray[np.int8]
    """[rows, columns], the terminal's 16 colours; of a blank cell whatever the game left there."""

    def planes(self) -> NDArray[np.uint8]:
        """[2, rows, columns], a copy of both."""
        return np.stack([self.chars, self.colors.view(np.uint8)])


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Shape and numpy dtype name of one array of an observation, without a batch axis."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class View:
    """What a policy asks an environment to show it.

    `crop_height` x `crop_width` characters around the agent (as NetHack counts rows and columns), the first
    `message_bytes` bytes of the message line.
    """

    crop_height: int = 9
    crop_width: int = 9
    message_bytes: int = 256


@dataclass(frozen=True, slots=True)
class EnvSpec:
    """What is fixed about an environment before it runs."""

    id: str
    observation: Mapping[str, ArraySpec]
    action_names: tuple[str, ...]
    max_episode_steps: int
    has_success: bool
    """False where the task has no notion of success (`nethack/Score`): success is then None everywhere."""
    options: Mapping[str, Any] = field(default_factory=dict)
    view: View = field(default_factory=View)


class StepInfo(TypedDict, total=False):
    """The `info` of `reset` and `step`."""

    caption: str
    """Normalised text of what this step brought; empty where nothing was said."""
    grounded: bool
    """Whether the action could be executed (the game did not refuse it)."""
    success: bool | None
    """Only on the last step of an episode; None where the task has none."""
    metrics: dict[str, float]
    """Only on the last step: what the family measures of an episode (dungeon level, gold, ...)."""


class YendorEnv(gym.Env[Observation, int]):
    """One environment. `reset(seed=...)` really seeds it: the same seed and actions give the same observations.

    Without a seed, `reset` draws one, as gymnasium has it: from `np_random`, which the last seed given to `reset` has
    set, or else the operating system. Either way `seeds` says afterwards what was set.
    """

    env_spec: EnvSpec

    @property
    def seeds(self) -> dict[str, str]:
        """The seeds of the episode that runs, as decimal strings (2^64 - 1 is legal and JSON numbers are not exact)."""
        raise NotImplementedError

    def screen(self) -> str:
        """What a person would see now, as lines of text."""
        raise NotImplementedError

    def terminal(self) -> Terminal | None:
        """The same as cells, where the world draws on a terminal; None elsewhere."""
        return None
