"""The learner: trajectories in, weights out. One optimisation step for each full batch (one epoch, as in ONI)."""

import copy
import functools
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.networks.base import PolicyOutput, RecurrentPolicy
from agents.precision import products_in
from agents.trajectory import Arrays, Trajectory, concatenate, trajectory_from_state, trajectory_state
from learner.credit.fragments import Origin
from learner.credit.online import OnlineCredit
from learner.credit.outcomes import EpisodeOutcome
from learner.fusion import FusedReward, fuse
from learner.objective import Loss, appo_loss, normalise
from learner.precision import resolve_precision
from learner.settings import LearnerSettings, RewardSettings
from learner.update import Update
from learner.vtrace import VTrace, vtrace

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
        self.device = resolve_device(settings.device)
        self.dtype = resolve_precision(settings.precision, self.device)
        self.policy = policy.to(self.device).train()
        self.version = 0
        self.dropped_samples = 0
        """Samples of policies older than `max_lag` versions, never trained on."""
        self.trained_samples = 0
        self._queue: deque[_Waiting] = deque()

    @functools.cached_property
    def optimizer(self) -> torch.optim.Adam:
        """Made when it is first needed: torch loads its compiler with it, and actors wait for the first weights."""
        settings = self.settings
        return torch.optim.Adam(
            self.policy.parameters(),
            lr=settings.learning_rate,
            betas=(settings.adam_beta1, settings.adam_beta2),
            eps=settings.adam_eps,
            fused=True,
        )

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
            output, _, _ = self._evaluate(batch)
        credit.attribute(batch, origins, self._fuse(batch), output.state, self.version)
        credit.explored(batch.steps * batch.batch)

    def _fuse(self, batch: Trajectory) -> FusedReward:
        return fuse(batch.reward, self.intrinsic.lookup(batch.caption_id), batch.caption_count, self.reward)

    def update(self, parts: list[Trajectory], origins: list[Origin] | None = None) -> Update:
        """One optimisation step on the segments of `parts`, side by side; `origins` are wanted where credit is attributed."""
        began = time.perf_counter()
        lag = np.concatenate([np.full(p.batch, self.version - p.policy_version) for p in parts])
        batch = concatenate(parts)
        rewards = self._fuse(batch)
        reward_s = time.perf_counter() - began

        output, final_value, final_state = self._evaluate(batch)
        if self.credit is not None:
            credited = time.perf_counter()
            assert origins is not None  # `feed` knows them
            rewards = self.credit.attribute(batch, origins, rewards, output.state, self.version)
            self.credit.learn()
            reward_s += time.perf_counter() - credited
        loss, targets = self._loss(batch, rewards, output, final_value, final_state)
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()  # pyright: ignore[reportUnknownMemberType]
        grad_norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.settings.max_grad_norm)
        if not torch.isfinite(grad_norm) or not torch.isfinite(loss.total):
            raise FloatingPointError(
                f"the loss is not finite at policy version {self.version} (loss {loss.total.item()}, gradient norm "
                f"{grad_norm.item()}); lower learner.learning_rate, or look at the rewards"
            )
        self.optimizer.step()
        self.version += 1
        samples = batch.steps * batch.batch
        self.trained_samples += samples
        metrics = _metrics(batch, rewards, loss, targets, grad_norm)
        return Update(
            version=self.version,
            samples=samples,
            metrics=metrics,
            lag_mean=float(lag.mean()),
            lag_max=int(lag.max()),
            reward_s=reward_s,
            train_s=time.perf_counter() - began - reward_s,
        )

    def _evaluate(self, batch: Trajectory) -> tuple[PolicyOutput, Tensor, Tensor | None]:
        """The policy on all T + 1 observations, the values [T, B] after truncated steps (0 elsewhere), and the recurrent
        states [K, H] there (None where no step was truncated).

        The observation after a truncated step is read with the recurrent state of that step: it is one more
        observation of the same episode, not the first of the next.
        """
        start = self._tensor(batch.start)
        with products_in(self.dtype, self.device):
            output = self.policy(self._observation(batch.observation), start, self._tensor(batch.initial_state))
        final_value = torch.zeros(batch.steps, batch.batch, device=self.device)
        final_state = None
        if len(batch.final_index):
            index = self._tensor(batch.final_index).to(torch.int64)
            with torch.no_grad(), products_in(self.dtype, self.device):
                final = {k: v.unsqueeze(0) for k, v in self._observation(batch.final_observation).items()}
                state = output.state[index[:, 0], index[:, 1]]
                fresh = torch.zeros(1, state.shape[0], dtype=torch.bool, device=self.device)
                after = self.policy(final, fresh, state)
            final_value[index[:, 0], index[:, 1]], final_state = after.value[0], after.state[0]
        return output, final_value, final_state

    def _loss(
        self,
        batch: Trajectory,
        rewards: FusedReward,
        output: PolicyOutput,
        final_value: Tensor,
        final_state: Tensor | None,
    ) -> tuple[Loss, VTrace]:
        log_probs = torch.log_softmax(output.logits[:-1], dim=-1)
        action = self._tensor(batch.action)
        behaviour_log_prob = self._tensor(batch.log_prob)
        value = output.value[:-1]
        with torch.no_grad():
            log_ratio = log_probs.gather(2, action.unsqueeze(2)).squeeze(2) - behaviour_log_prob
            targets = vtrace(
                log_ratio=log_ratio,
                reward=self._tensor(rewards.total),
                value=value,
                bootstrap=output.value[-1],
                final_value=final_value,
                terminated=self._tensor(batch.terminated),
                truncated=self._tensor(batch.truncated),
                discount=self.settings.discount,
                rho=self.settings.vtrace_rho,
                c=self.settings.vtrace_c,
            )
            advantage = normalise(targets.advantage) if self.settings.normalise_advantage else targets.advantage
        if self.credit is not None and self.credit.critics is not None:
            advantage = self.credit.critics.advantage(
                log_ratio=log_ratio,
                rewards=self._tensor(rewards.parts()),
                weights=self.credit.weights,
                state=output.state,
                final_state=final_state,
                final_index=self._tensor(batch.final_index).to(torch.int64),
                terminated=self._tensor(batch.terminated),
                truncated=self._tensor(batch.truncated),
                discount=self.settings.discount,
                rho=self.settings.vtrace_rho,
                c=self.settings.vtrace_c,
            )
        loss = appo_loss(
            log_probs=log_probs.flatten(0, 1),
            action=action.flatten(),
            behaviour_log_prob=behaviour_log_prob.flatten(),
            value=value.flatten(),
            behaviour_value=self._tensor(batch.value).flatten(),
            advantage=advantage.flatten(),
            target=targets.target.flatten(),
            settings=self.settings,
        )
        return loss, targets

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        # Arrays from an object store are read-only and may be views; the learner never writes into them.
        return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(self.device, non_blocking=True)

    def _observation(self, arrays: Arrays) -> dict[str, Tensor]:
        return {k: self._tensor(v) for k, v in arrays.items()}

    def weights(self) -> Weights:
        """A copy of the policy's weights, for actors."""
        return {k: v.detach().cpu().numpy().copy() for k, v in self.policy.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """All that decides how learning goes on: policy, optimiser, counters, trajectories that wait."""
        return {
            "policy": {k: v.detach().cpu().clone() for k, v in self.policy.state_dict().items()},
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
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
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.version = state["version"]
        self.dropped_samples = state["dropped_samples"]
        self.trained_samples = state["trained_samples"]
        trajectories = [trajectory_from_state(each) for each in state["queue"]]
        # Checkpoints of before credit was attributed have no origins, and nobody asks for them.
        origins = [_origin(each) for each in state.get("origins", ())] or [_nowhere(t) for t in trajectories]
        self._queue = deque(_Waiting(t, o) for t, o in zip(trajectories, origins, strict=True))
        if self.credit is not None and state["credit"] is not None:
            self.credit.load_state_dict(state["credit"])


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


def _metrics(
    batch: Trajectory, rewards: FusedReward, loss: Loss, targets: VTrace, grad_norm: Tensor
) -> dict[str, float]:
    value_error = (targets.target - targets.target.mean()).square().mean()
    # (target - V) is the V-trace excess; its variance against the target's says how much the critic explains.
    residual = targets.target - torch.from_numpy(batch.value.copy()).to(targets.target.device)
    explained = 1.0 - residual.var(unbiased=False) / value_error.clamp(min=1e-8)
    credited: dict[str, float] = {}
    if rewards.progress is not None and rewards.grounding is not None:
        credited = {
            "reward/progress": float(rewards.progress.mean()),
            "reward/grounding": float(rewards.grounding.mean()),
            "progress/uncertainty": rewards.uncertainty,
        }
    return {
        "loss/total": loss.total.item(),
        "loss/policy": loss.policy.item(),
        "loss/value": loss.value.item(),
        "policy/entropy": loss.entropy.item(),
        "policy/clipped": loss.clipped.item(),
        "policy/kl": loss.kl.item(),
        "policy/grad_norm": grad_norm.item(),
        "value/mean": float(batch.value.mean()),
        "value/explained_variance": explained.item(),
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
