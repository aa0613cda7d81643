"""Environments that write their observation straight into a caller's arrays (a row of a batch)."""

from abc import abstractmethod
from typing import Any, cast

import gymnasium as gym
import numpy as np

from envs.base import EnvSpec, Observation, StepInfo, YendorEnv

MAX_SEED = 2**64 - 1


def check_seed(seed: int) -> int:
    """`seed` if it is one that every environment can take; otherwise raises ValueError."""
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed must lie between 0 and 2^64 - 1, not {seed}")
    return seed


def empty_observation(spec: EnvSpec, *leading: int) -> Observation:
    """Zeroed arrays as `spec` describes them, with the leading axes given (for a batch: its size)."""
    return {name: np.zeros((*leading, *array.shape), array.dtype) for name, array in spec.observation.items()}


class DirectEnv(YendorEnv):
    """An environment in two halves: `begin` or `advance` moves the game, `observe_into` says what is seen then.

    `reset` and `step` are made of them. A batched stepper calls the halves and saves an allocation and a copy.
    """

    metadata = {"render_modes": ["ansi"]}  # noqa: RUF012 - gymnasium's own way
    render_mode = "ansi"

    def __init__(self, spec: EnvSpec) -> None:
        self.env_spec = spec
        # gymnasium types the actions of a Discrete as numpy's integers; ours are Python's as well.
        self.action_space = cast(gym.spaces.Space[int], gym.spaces.Discrete(len(spec.action_names)))
        boxes: dict[str, gym.spaces.Space[Any]] = {}
        for name, array in spec.observation.items():
            limits = np.iinfo(array.dtype)
            boxes[name] = gym.spaces.Box(int(limits.min), int(limits.max), array.shape, np.dtype(array.dtype).type)
        self.observation_space = gym.spaces.Dict(boxes)

    @abstractmethod
    def begin(self, seed: int) -> StepInfo:
        """Starts the episode of `seed`, in [0, 2^64)."""

    @abstractmethod
    def advance(self, action: int) -> tuple[float, bool, bool, StepInfo]:
        """One step: reward, terminated, truncated, info."""

    @abstractmethod
    def observe_into(self, out: Observation) -> None:
        """Writes what is seen now into `out`, whose arrays have the shapes and dtypes of the spec."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Any]:
        """Starts the episode of `seed`. Without one it is drawn from `np_random`, which the last seed given has set, or
        else the operating system. `options` must be empty: what can be set is set when the environment is made."""
        if options:
            raise ValueError(f"{self.env_spec.id}: reset takes no options, but was given {', '.join(sorted(options))}")
        super().reset(seed=None if seed is None else check_seed(seed))
        info = self.begin(int(self.np_random.integers(2**63)) if seed is None else seed)
        observation = empty_observation(self.env_spec)
        self.observe_into(observation)
        return observation, info

    def step(self, action: int) -> tuple[Observation, float, bool, bool, Any]:
        reward, terminated, truncated, info = self.advance(int(action))
        observation = empty_observation(self.env_spec)
        self.observe_into(observation)
        return observation, reward, terminated, truncated, info

    def render(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.screen()
