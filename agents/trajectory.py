"""Trajectories: what travels from an actor to the learner. Time-major arrays with only what the learner reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Trajectory:
    """T steps of B environments under one version of the policy.

    Step t reads observation t, takes action t, and brings reward, caption and end t. An environment that ends at step t
    shows the first observation of its next episode at t + 1, where `start` is true.
    """

    policy_version: int
    observation: Arrays
    """Each [T + 1, B, ...]; the last one is only read for its value."""
    start: NDArray[np.bool_]
    """[T + 1, B]; true where an episode begins: the recurrent state is zero before that observation is read."""
    initial_state: NDArray[np.float32]
    """[B, H], the recurrent state before observation 0."""
    action: NDArray[np.int64]
    """[T, B]"""
    log_prob: NDArray[np.float32]
    """[T, B], log-probability of the action under the behaviour policy."""
    value: NDArray[np.float32]
    """[T, B], value estimate of the behaviour policy."""
    reward: NDArray[np.float32]
    """[T, B], extrinsic, unscaled."""
    terminated: NDArray[np.bool_]
    """[T, B], the episode ended, and nothing comes after."""
    truncated: NDArray[np.bool_]
    """[T, B], the episode was cut (time limit, an environment that raised): what came after still has a value."""
    caption_id: NDArray[np.int64]
    """[T, B], of the text that the step brought; 0 for none."""
    caption_count: NDArray[np.int32]
    """[T, B], how often that caption came in the episode, this time included; 0 for none."""
    grounded: NDArray[np.bool_]
    """[T, B], whether the action could be executed."""
    final_index: NDArray[np.int32]
    """[K, 2], (t, b) of each truncated step, in order of t."""
    final_observation: Arrays
    """Each [K, ...]: the observation after each truncated step, whose value bootstraps the return."""

    @property
    def steps(self) -> int:
        """T."""
        return self.action.shape[0]

    @property
    def batch(self) -> int:
        """B."""
        return self.action.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays: what one call puts on the wire."""
        arrays: list[NDArray[Any]] = [*self.observation.values(), *self.final_observation.values()]
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, np.ndarray):
                arrays.append(value)
        return sum(a.nbytes for a in arrays)

    def columns(self, begin: int, end: int) -> "Trajectory":
        """The environments `begin:end` alone."""
        inside = (self.final_index[:, 1] >= begin) & (self.final_index[:, 1] < end)
        final_index = self.final_index[inside].copy()
        final_index[:, 1] -= begin
        return replace(
            self,
            observation={k: v[:, begin:end] for k, v in self.observation.items()},
            final_observation={k: v[inside] for k, v in self.final_observation.items()},
            final_index=final_index,
            initial_state=self.initial_state[begin:end],
            **{name: getattr(self, name)[:, begin:end] for name in _TIME_MAJOR},
        )


_TIME_MAJOR = (
    "start",
    "action",
    "log_prob",
    "value",
    "reward",
    "terminated",
    "truncated",
    "caption_id",
    "caption_count",
    "grounded",
)


def concatenate(parts: Sequence[Trajectory]) -> Trajectory:
    """One trajectory of all environments of `parts`, side by side.

    `policy_version` becomes the oldest; callers that need each sample's lag take it from the parts.
    Raises ValueError where the parts differ in length.
    """
    if len(parts) == 1:
        return parts[0]
    if len({p.steps for p in parts}) != 1:
        raise ValueError(f"trajectories of different lengths cannot be joined: {[p.steps for p in parts]}")
    offsets = np.cumsum([0] + [p.batch for p in parts[:-1]])
    shifted: list[NDArray[np.int32]] = []
    for part, offset in zip(parts, offsets, strict=True):
        index = part.final_index.copy()
        index[:, 1] += offset
        shifted.append(index)
    first = parts[0]
    return Trajectory(
        policy_version=min(p.policy_version for p in parts),
        observation={k: np.concatenate([p.observation[k] for p in parts], axis=1) for k in first.observation},
        final_observation={k: np.concatenate([p.final_observation[k] for p in parts]) for k in first.final_observation},
        final_index=np.concatenate(shifted),
        initial_state=np.concatenate([p.initial_state for p in parts]),
        **{name: np.concatenate([getattr(p, name) for p in parts], axis=1) for name in _TIME_MAJOR},
    )


def trajectory_state(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory as nested dicts of tensors, for a checkpoint."""
    state: dict[str, Any] = {}
    for f in fields(trajectory):
        value = getattr(trajectory, f.name)
        if isinstance(value, np.ndarray):
            state[f.name] = torch.from_numpy(np.array(value))
        elif isinstance(value, Mapping):
            state[f.name] = {k: torch.from_numpy(np.array(v)) for k, v in cast(Arrays, value).items()}
        else:
            state[f.name] = value
    return state


def trajectory_from_state(state: Mapping[str, Any]) -> Trajectory:
    """The inverse of `trajectory_state`."""
    arrays: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, torch.Tensor):
            arrays[key] = value.numpy()
        elif isinstance(value, Mapping):
            arrays[key] = {k: v.numpy() for k, v in cast(Mapping[str, torch.Tensor], value).items()}
        else:
            arrays[key] = value
    return Trajectory(**arrays)
