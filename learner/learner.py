"""The learner: trajectories in, weights out. One optimisation step for each full batch (one epoch, as in ONI)."""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from agents.networks.base import RecurrentPolicy
from agents.trajectory import Trajectory, concatenate, trajectory_from_state, trajectory_state
from learner.credit.fragments import Origin
from learner.credit.online import OnlineCredit
from learner.credit.outcomes import EpisodeOutcome
from learner.fusion import FusedReward, fuse
from learner.parallel import Group
from learner.settings import LearnerSettings, RewardSettings
from learner.step import PolicyStep, StepRewards
from learner.team import Leader
from learner.update import Update

Weights = dict[str, NDArray[Any]]


class IntrinsicReward(Protocol):
    """r_int by caption: `reward_server.scorer.CaptionScorer`, or nothing."""

    def lookup(self, ids: NDArray[np.int64]) -> NDArray[np.float32]: ...


class NoIntrinsicReward:
    """`reward.model=none`: r_int is 0 everywhere."""

    def lookup(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.zeros(ids.shape, dtype=np.float32)


class Learner:
    """Owns the policy, its optimiser and the queue of trajectories that do not fill a batch yet."""

    def __init__(
        self,
        policy: RecurrentPolicy,
        settings: LearnerSettings,
        reward: RewardSettings,
        intrinsic: IntrinsicReward,
        credit: OnlineCredit | None = None,
    ) -> None:
        self.settings = settings
        self.reward = reward
        self.intrinsic = intrinsic
        self.credit = credit
        """None: every step keeps what it was paid (`credit.method=turn`)."""
        self.policy = policy
        self.step = policy_step(policy, settings, credit)
        self.version = 0
        self.dropped_samples = 0
        """Samples of policies older than `max_lag` versions, never trained on."""
        self.trained_samples = 0
        self._queue: deque[_Waiting] = deque()
        self._leader: Leader | None = None
        """None: it learns alone."""

    def lead(self, group: Group) -> Leader:
        """From now on every optimisation step is taken together with the followers of a group, until the leader is closed."""
        self._leader = Leader(group, self.step)
        return self._leader

    def feed(self, trajectory: Trajectory, origin: Origin | None = None) -> list[Update]:
        """Queues a trajectory and takes an optimisation step for each batch that is full then.

        `origin` is wanted where credit is attributed. Raises ValueError where a batch cannot be made of whole segments,
        and FloatingPointError where a loss is not finite (the weights are then still those before the step).
        """
        if self.settings.batch_size % trajectory.steps:
            raise ValueError(
                f"learner.batch_size={self.settings.batch_size} is not a multiple of the rollout length {trajectory.steps}"
            )
        self._queue.append(_Waiting(trajectory, origin or _nowhere(trajectory)))
        updates: list[Update] = []
        while (batch := self._next_batch()) is not None:
            parts, origins = [each.trajectory for each in batch], [each.origin for each in batch]
            if self.credit is not None and self.credit.exploring:
                self._explore(self.credit, parts, origins)
            else:
                updates.append(self.update(parts, origins))
        return updates

    def _next_batch(self) -> "list[_Waiting] | None":
        """Segments of exactly `batch_size` samples, the oldest first; None while there are too few."""
        self._drop_stale()
        if not self._queue:
            return None
        segments = self.settings.batch_size // self._queue[0].trajectory.steps
        if sum(each.trajectory.batch for each in self._queue) < segments:
            return None
        parts: list[_Waiting] = []
        while segments:
            first = self._queue.popleft()
            if first.trajectory.batch > segments:
                self._queue.appendleft(first.columns(segments, first.trajectory.batch))
                first = first.columns(0, segments)
            parts.append(first)
            segments -= first.trajectory.batch
        return parts

    def _drop_stale(self) -> None:
        fresh: deque[_Waiting] = deque()
        for each in self._queue:
            if self.version - each.trajectory.policy_version > self.settings.max_lag:
                self.dropped_samples += each.trajectory.steps * each.trajectory.batch
                if self.credit is not None:
                    self.credit.miss(each.origin)
            else:
                fresh.append(each)
        self._queue = fresh

    def _explore(self, credit: OnlineCredit, parts: list[Trajectory], origins: list[Origin]) -> None:
        """A batch that the progress estimator alone learns from: the policy stays as it is."""
        batch = concatenate(parts)
        with torch.no_grad():
            states = self.step.evaluate(batch).output.state
        credit.attribute(batch, origins, self._fuse(batch), states, self.version)
        credit.explored(batch.steps * batch.batch)

    def _fuse(self, batch: Trajectory) -> FusedReward:
        return fuse(batch.reward, self.intrinsic.lookup(batch.caption_id), batch.caption_count, self.reward)

    def update(self, parts: list[Trajectory], origins: list[Origin] | None = None) -> Update:
        """One optimisation step on the segments of `parts`, side by side; `origins` are wanted where credit is attributed."""
        began, exchanged = time.perf_counter(), self.step.workers.exchange_s
        lag = np.concatenate([np.full(p.batch, self.version - p.policy_version) for p in parts])
        batch = concatenate(parts)
        estimates = self.credit is not None and self.credit.estimator is not None
        mine = batch if self._leader is None else self._leader.share_batch(batch, wants_states=estimates)
        rewarding = time.perf_counter()
        rewards = self._fuse(batch)
        reward_s = time.perf_counter() - rewarding

        evaluation = self.step.evaluate(mine)
        if self.credit is not None:
            states = evaluation.output.state
            if self._leader is not None and estimates:
                states = self._leader.gather_states(states)
            credited = time.perf_counter()
            assert origins is not None  # `feed` knows them
            rewards = self.credit.attribute(batch, origins, rewards, states, self.version)
            self.credit.learn()
            reward_s += time.perf_counter() - credited
        paid = StepRewards(rewards.total, None if self.step.critics is None else rewards.parts())
        if self._leader is not None:
            paid = self._leader.share_rewards(paid)
        metrics = {**self.step.take(mine, paid, evaluation), **_metrics(batch, rewards)}
        self.version += 1
        samples = batch.steps * batch.batch
        self.trained_samples += samples
        exchange_s = self.step.workers.exchange_s - exchanged
        return Update(
            version=self.version,
            samples=samples,
            metrics=metrics,
            lag_mean=float(lag.mean()),
            lag_max=int(lag.max()),
            reward_s=reward_s,
            train_s=time.perf_counter() - began - reward_s - exchange_s,
            exchange_s=exchange_s,
        )

    def weights(self) -> Weights:
        """A copy of the policy's weights, for actors."""
        return {k: v.detach().cpu().numpy().copy() for k, v in self.policy.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """All that decides how learning goes on: policy, optimiser, counters, trajectories that wait."""
        return {
            **self.step.state_dict(),
            "version": self.version,
            "dropped_samples": self.dropped_samples,
            "trained_samples": self.trained_samples,
            "queue": [trajectory_state(each.trajectory) for each in self._queue],
            "origins": [asdict(each.origin) for each in self._queue],
            "credit": None if self.credit is None else self.credit.state_dict(),
        }

    def take_over(self, version: int, dropped_samples: int) -> int:
        """Goes on in place of a learner that died after it had published `version`, and had dropped so many samples.

        What this one knows is older, or the beginning. It counts on above `version`, so that a version is never that of
        two policies. Trajectories that waited, and parts of episodes whose next parts died, are forgotten; the samples
        of the former are returned.
        """
        waited = sum(each.trajectory.steps * each.trajectory.batch for each in self._queue)
        self._queue.clear()
        if self.credit is not None:
            self.credit.forget_running()
        self.version = max(self.version, version) + 1
        self.dropped_samples = max(self.dropped_samples, dropped_samples)
        return waited

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken."""
        self.step.load_state_dict(state)
        self.version = state["version"]
        self.dropped_samples = state["dropped_samples"]
        self.trained_samples = state["trained_samples"]
        trajectories = [trajectory_from_state(each) for each in state["queue"]]
        # Checkpoints of before credit was attributed have no origins, and nobody asks for them.
        origins = [_origin(each) for each in state.get("origins", ())] or [_nowhere(t) for t in trajectories]
        self._queue = deque(_Waiting(t, o) for t, o in zip(trajectories, origins, strict=True))
        if self.credit is not None and state["credit"] is not None:
            self.credit.load_state_dict(state["credit"])
        if self._leader is not None:
            self._leader.forget()


def policy_step(policy: RecurrentPolicy, settings: LearnerSettings, credit: OnlineCredit | None) -> PolicyStep:
    """What a learner, or a worker that follows one, takes its optimisation steps with. Raises as `learner_device`."""
    device = learner_device(settings)
    if credit is None:
        return PolicyStep(policy, settings, device)
    return PolicyStep(policy, settings, device, critics=credit.critics, weights=credit.weights)


def learner_device(settings: LearnerSettings) -> torch.device:
    """Where a worker of the learner is. Raises ValueError where several would take the same GPU."""
    device = resolve_device(settings.device)
    if settings.workers > 1 and settings.device == "auto" and device.type == "cuda":
        raise ValueError(
            f"learner.workers={settings.workers}: learner.device=auto asks Ray for no GPU; take learner.device=cuda (a GPU "
            "for each worker) or cpu"
        )
    return device


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A trajectory that no batch has taken yet."""

    trajectory: Trajectory
    origin: Origin

    def columns(self, begin: int, end: int) -> "_Waiting":
        return _Waiting(self.trajectory.columns(begin, end), self.origin.columns(begin, end))


def _nowhere(trajectory: Trajectory) -> Origin:
    return Origin("", 0, trajectory.batch, ())


def _origin(state: Mapping[str, Any]) -> Origin:
    """The inverse of `asdict`."""
    ends = tuple(EpisodeOutcome(**end) for end in state["ends"])
    return Origin(state["source"], state["first"], state["width"], ends)


def _metrics(batch: Trajectory, rewards: FusedReward) -> dict[str, float]:
    """Of what came and what it was paid."""
    credited: dict[str, float] = {}
    if rewards.progress is not None and rewards.grounding is not None:
        credited = {
            "reward/progress": float(rewards.progress.mean()),
            "reward/grounding": float(rewards.grounding.mean()),
            "progress/uncertainty": rewards.uncertainty,
        }
    return {
        "value/mean": float(batch.value.mean()),
        "reward/extrinsic": float(rewards.extrinsic.mean()),
        "reward/intrinsic": float(rewards.intrinsic.mean()),
        "reward/total": float(rewards.total.mean()),
        "grounded": float(batch.grounded.mean()),
        **credited,
    }


def resolve_device(name: str) -> torch.device:
    """`auto` is cuda where there is one. Raises ValueError where cuda is asked for and absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("learner.device=cuda: no CUDA device is visible; use learner.device=auto or cpu")
    return torch.device(name)
