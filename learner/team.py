"""Data-parallel learning: the worker that leads, and those that follow.

The leader has the queue, the rewards and the credit, all that a learner alone has; checkpoints and weights are its own.
Of each batch it sends every follower a share, keeps one, and all take the same optimisation step: means are over the
whole batch, gradients are averaged before they are clipped. So followers hold nothing but policy and optimiser.

    leader:   state (the first time) → batch → [← recurrent states] → rewards → the step
    follower: heed → the same messages in the same order
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from agents.trajectory import Trajectory, trajectory_from_state, trajectory_state
from learner.parallel import Group, Workers
from learner.step import PolicyStep, StepRewards

_STATE = "state"
_BATCH = "batch"
_END = "end"


class TeamStep(Protocol):
    """What a worker takes its optimisation steps with."""

    workers: Workers

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


StepT = TypeVar("StepT", bound=TeamStep)


class TeamLeader(Generic[StepT], ABC):
    """Rank 0 of a group, whatever learns."""

    def __init__(self, group: Group, step: StepT) -> None:
        self._group = group
        self._step = step
        self._followers = range(1, group.size)
        self._told_state = False
        step.workers = group

    def forget(self) -> None:
        """The leader's state is another: followers take it over before the next step."""
        self._told_state = False

    @abstractmethod
    def _state(self) -> Mapping[str, Any]:
        """What followers take over."""

    def _call(self) -> None:
        """Begins a batch: followers hear of the state where they do not know it, and wait for their share."""
        if not self._told_state:
            state = self._state()
            for rank in self._followers:
                self._group.call(rank, _STATE)
                self._group.send(rank, state)
            self._told_state = True
        for rank in self._followers:
            self._group.call(rank, _BATCH)

    def close(self) -> None:
        """Sends the followers home, and leaves."""
        for rank in self._followers:
            self._group.call(rank, _END)
        self._group.close()


class TeamFollower(Generic[StepT], ABC):
    """Any other worker of a group, whatever learns."""

    def __init__(self, group: Group, step: StepT) -> None:
        self._group = group
        self._step = step
        step.workers = group

    def follow(self) -> None:
        """Takes every step with the leader, until that ends the group. Raises GroupError where it dies, and
        FloatingPointError as the leader does."""
        while (word := self._group.heed()) != _END:
            message = self._group.receive(0)
            if word == _STATE:
                self._take_state(message)
            else:
                self._learn(message)
        self._group.close()

    def _take_state(self, state: dict[str, Any]) -> None:
        self._step.load_state_dict(state)

    @abstractmethod
    def _learn(self, message: dict[str, Any]) -> None:
        """One batch; `message` begins it."""


class Leader(TeamLeader[PolicyStep]):
    """Leads the learner of a network."""

    def share_batch(self, batch: Trajectory, *, wants_states: bool) -> Trajectory:
        """Sends each follower its share; the leader's own. `wants_states`: they will be gathered.

        Raises ValueError where there are more workers than segments.
        """
        if batch.batch < self._group.size:
            raise ValueError(
                f"a batch of {batch.batch} trajectories cannot be shared by learner.workers={self._group.size}; raise "
                "learner.batch_size"
            )
        self._call()
        for rank in self._followers:
            begin, end = self._columns(batch.batch, rank)
            part = trajectory_state(batch.columns(begin, end))
            self._group.send(rank, {"batch": part, "wants_states": wants_states})
        return batch.columns(*self._columns(batch.batch, 0))

    def _state(self) -> Mapping[str, Any]:
        state: dict[str, Any] = {"step": self._step.state_dict()}
        if self._step.critics is not None:
            state["critics"] = self._step.critics.state_dict()
        return state

    def gather_states(self, states: Tensor) -> Tensor:
        """[T + 1, B, H] on the leader's device: its own share of the recurrent states and those of the others."""
        others = [self._group.receive(rank)["states"].to(states.device) for rank in self._followers]
        return torch.cat([states.detach(), *others], dim=1)

    def share_rewards(self, rewards: StepRewards) -> StepRewards:
        """Sends each follower the rewards of its share; the leader's own."""
        for rank in self._followers:
            part = self._part(rewards, rank)
            message = {"total": torch.from_numpy(part.total)}
            if part.components is not None:
                message["components"] = torch.from_numpy(part.components)
            self._group.send(rank, message)
        return self._part(rewards, 0)

    def _part(self, rewards: StepRewards, rank: int) -> StepRewards:
        begin, end = self._columns(rewards.total.shape[1], rank)
        components = rewards.components
        return StepRewards(
            np.ascontiguousarray(rewards.total[:, begin:end]),
            None if components is None else np.ascontiguousarray(components[..., begin:end]),
        )

    def _columns(self, segments: int, rank: int) -> tuple[int, int]:
        """Shares are equal, or the first workers have one segment more."""
        return segments * rank // self._group.size, segments * (rank + 1) // self._group.size


class Follower(TeamFollower[PolicyStep]):
    """Follows the leader of a network's learner."""

    def _take_state(self, state: dict[str, Any]) -> None:
        self._step.load_state_dict(state["step"])
        if self._step.critics is not None:
            self._step.critics.load_state_dict(state["critics"])

    def _learn(self, message: dict[str, Any]) -> None:
        batch = trajectory_from_state(message["batch"])
        evaluation = self._step.evaluate(batch)
        if message["wants_states"]:
            self._group.send(0, {"states": evaluation.output.state.detach()})
        paid = {name: tensor.numpy() for name, tensor in self._group.receive(0).items()}
        self._step.take(batch, StepRewards(**paid), evaluation)
