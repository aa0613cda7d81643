"""The learner of language-model agents: groups of episodes in, weights out.

episodes ─▶ rewards of turns ─▶ packed batch ─▶ π_prox, π_ref, V ─▶ targets ─▶ minibatches of micro-batches ─▶ weights
"""

import dataclasses
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.language.episode import LanguageEpisode
from learner.checkpoint import on_cpu
from learner.credit.language import LanguageCredit, component_advantage
from learner.language.batch import TokenBatch, pack
from learner.language.episodes import TurnRewards, episode_tokens, outcomes, temperature_of, turn_rewards
from learner.language.objective import Rollouts, Targets
from learner.language.step import LanguageStep, Minibatch, Reading
from learner.language.team import LanguageLeader
from learner.language.trained import batch_metrics, reward_metrics, value_metrics
from learner.learner import IntrinsicReward
from learner.parallel import Group
from learner.settings import RewardSettings
from learner.update import Update


class LanguageLearner:
    """Owns the model, its optimiser and the queue of groups that do not fill a batch yet."""

    def __init__(
        self,
        step: LanguageStep,
        reward: RewardSettings,
        intrinsic: IntrinsicReward,
        seed: int = 0,
        credit: LanguageCredit | None = None,
    ) -> None:
        """`seed`: of the order in which several minibatches are taken."""
        self.step = step
        self.model = step.model
        self.objective = step.objective
        self.settings = step.settings
        self.reward = reward
        self.intrinsic = intrinsic
        self.credit = credit
        """None: every turn keeps what it was paid (`credit.method=turn`)."""
        self.version = 0
        self.dropped_samples = 0
        """Turns of groups that were never trained on: all older than `max_lag` versions, or one episode alone where the
        objective compares those of a group (the worlds of the others raised)."""
        self.trained_samples = 0
        """Turns trained on."""
        self._queue: deque[tuple[LanguageEpisode, ...]] = deque()
        self._random = torch.Generator().manual_seed(seed)
        self._leader: LanguageLeader | None = None
        """None: it learns alone."""

    def lead(self, group: Group) -> LanguageLeader:
        """From now on every update is made together with the followers of a group, until the leader is closed."""
        self._leader = LanguageLeader(group, self.step)
        return self._leader

    # Episodes in.

    @property
    def waiting_groups(self) -> tuple[int, ...]:
        """Numbers of the groups that wait for a full batch."""
        return tuple(group[0].group for group in self._queue)

    def feed(self, group: Sequence[LanguageEpisode]) -> list[Update]:
        """Queues the finished episodes of one group and makes an update for each batch that is full then.

        Raises as `update` does.
        """
        if len(group) == 1 and self.objective.compares:
            self.dropped_samples += group[0].length
        elif group:
            self._queue.append(tuple(group))
        updates: list[Update] = []
        while (batch := self._next_batch()) is not None:
            if self.credit is not None and self.credit.exploring:
                self._explore(self.credit, batch)
            else:
                updates.append(self.update(batch))
        return updates

    def _next_batch(self) -> list[LanguageEpisode] | None:
        """Whole groups of at least `batch_episodes` episodes, the oldest first; None while there are too few."""
        self._drop_stale()
        if sum(map(len, self._queue)) < self.settings.batch_episodes:
            return None
        batch: list[LanguageEpisode] = []
        while len(batch) < self.settings.batch_episodes:
            batch += self._queue.popleft()
        return batch

    def _drop_stale(self) -> None:
        limit = self.objective.policy_settings.max_lag
        if limit is None:
            return
        fresh: deque[tuple[LanguageEpisode, ...]] = deque()
        for group in self._queue:
            if all(self.version - max(episode.versions) > limit for episode in group):
                self.dropped_samples += sum(episode.length for episode in group)
            else:
                fresh.append(group)
        self._queue = fresh

    # One update.

    def update(self, episodes: Sequence[LanguageEpisode]) -> Update:
        """Trains on the episodes: `epochs` × `minibatches` optimisation steps, fewer where nothing can be learnt.

        Raises ValueError for episodes that the model cannot read, and FloatingPointError where a loss is not finite (the
        weights are then those before the step).
        """
        began, exchanged = time.perf_counter(), self.step.workers.exchange_s
        rewards = turn_rewards(episodes, self.intrinsic, self.reward)
        reading = Reading(self.version, temperature_of(episodes), self._fuses_proximal())
        batch = pack([episode_tokens(e, self.model.context) for e in episodes]).to(self.model.device)
        if self.credit is not None:
            rewards = self._attribute(self.credit, episodes, batch, rewards)
            self.credit.learn()
        rewarded = time.perf_counter()
        rollouts = self._evaluate(batch, torch.from_numpy(rewards.total).to(self.model.device), reading)
        targets = self.objective.prepare(rollouts)
        if self.credit is not None and self.credit.settings.advantage == "separate":
            advantage = self._separate_advantage(self.credit, rollouts, rewards)
            targets = dataclasses.replace(targets, advantage=advantage)
        minibatches = list(self._minibatches(batch, targets))
        if self._leader is None:
            trained = self.step.take(batch.packed, targets, minibatches, reading)
        else:
            trained = self._leader.take(targets, minibatches, reading)
        self.version += 1
        self.trained_samples += batch.turns
        lag = self.version - 1 - batch.version
        done = time.perf_counter()
        exchange_s = self.step.workers.exchange_s - exchanged
        metrics = {
            **reward_metrics(episodes, rewards),
            **trained.metrics(targets, self.objective),
            **batch_metrics(batch, len(targets.advantage), done - rewarded),
            **value_metrics(targets),
        }
        return Update(
            version=self.version,
            samples=batch.turns,
            metrics=metrics,
            lag_mean=float(lag.double().mean()),
            lag_max=int(lag.max()),
            reward_s=rewarded - began,
            train_s=done - rewarded - exchange_s,
            exchange_s=exchange_s,
        )

    def _explore(self, credit: LanguageCredit, episodes: Sequence[LanguageEpisode]) -> None:
        """Episodes that the progress estimator alone learns from: the policy stays as it is."""
        batch = pack([episode_tokens(e, self.model.context) for e in episodes]).to(self.model.device)
        self._attribute(credit, episodes, batch, turn_rewards(episodes, self.intrinsic, self.reward))
        credit.explored(batch.turns)

    def _attribute(
        self, credit: LanguageCredit, episodes: Sequence[LanguageEpisode], batch: TokenBatch, rewards: TurnRewards
    ) -> TurnRewards:
        """The rewards as the credit method gives them to the turns."""
        paid = credit.attribute(
            batch,
            extrinsic=rewards.extrinsic.astype(np.float64),
            intrinsic=rewards.intrinsic.astype(np.float64),
            grounded=np.array([turn.grounded for episode in episodes for turn in episode.turns]),
            outcome=np.full(len(episodes), np.nan) if credit.estimator is None else outcomes(episodes, credit.settings),
            policy=self.model.hidden,
            version=self.version,
        )
        extrinsic, intrinsic, progress, grounding = (
            x.astype(np.float32) for x in (paid.extrinsic, paid.intrinsic, paid.progress, paid.grounding)
        )
        return dataclasses.replace(
            rewards, extrinsic=extrinsic, intrinsic=intrinsic, progress=progress, grounding=grounding
        )

    def _separate_advantage(self, credit: LanguageCredit, rollouts: Rollouts, rewards: TurnRewards) -> Tensor:
        """[M]: advantages of the components, normalised one by one. The penalty for answers is one of them, and its
        size (of the largest there is) its weight, so that it also counts where nothing else does."""
        parts = [rewards.extrinsic, rewards.intrinsic, rewards.progress, rewards.grounding, rewards.penalty]
        paid = torch.from_numpy(np.stack([np.zeros_like(rewards.total) if p is None else p for p in parts]))
        penalty = credit.weights.new_tensor([float(np.abs(rewards.penalty).max())])
        weights = torch.cat([credit.weights, penalty])
        return component_advantage(self.objective, rollouts, paid.to(self.model.device), weights)

    def _fuses_proximal(self) -> bool:
        """Whether π_prox can be read in the training pass: there is one step, and nothing before it needs π_prox."""
        one_step = self.settings.epochs * self.settings.minibatches == 1
        needed = self.objective.needs_value or self.objective.policy_settings.kl_in_reward
        return self.settings.recompute and one_step and not needed

    def _evaluate(self, batch: TokenBatch, reward: Tensor, reading: Reading) -> Rollouts:
        """What the trainer and the reference think of the batch before it is trained on."""
        objective = self.objective
        reads = self.step if self._leader is None else self._leader
        found = reads.evaluate(batch.packed, reading)
        last = torch.searchsorted(batch.offsets, batch.final_position, right=True) - 1
        return Rollouts(
            batch=batch,
            reward=reward,
            version=self.version,
            proximal_log_prob=found.log_prob if self.settings.recompute and not reading.fused else None,
            reference_log_prob=found.reference if objective.needs_reference else None,
            value=found.value if objective.needs_value else None,
            bootstrap=found.final_value[last] if objective.needs_value else None,
        )

    def _minibatches(self, batch: TokenBatch, targets: Targets) -> Iterator[Minibatch]:
        """The sequences of each step. Those that have no part in the gradient are left out: it is the same."""
        rows = self._with_gradient(batch, targets)
        count = min(self.settings.minibatches, len(rows))
        for _ in range(self.settings.epochs if rows else 0):
            order = [rows[i] for i in torch.randperm(len(rows), generator=self._random).tolist()] if count > 1 else rows
            yield from (Minibatch(order[part::count], count) for part in range(count))

    def _with_gradient(self, batch: TokenBatch, targets: Targets) -> list[int]:
        """Sequences with a token that the loss depends on: groups that all won or all lost have none."""
        active = (targets.weight > 0) & (targets.advantage != 0)
        if self.objective.needs_entropy or self.objective.policy_settings.kl_in_loss:
            active = targets.weight > 0
        if targets.value_weight is not None:
            active = active | (targets.value_weight > 0)
        sequence = batch.sequence[batch.action]
        return sequence[active].unique().tolist()

    # Weights and state out.

    def weights(self) -> dict[str, Tensor]:
        """Names and weights of the policy as the plain model has them, adapters merged, on the CPU: for engines.

        Tied weights come once.
        """
        tied: Any = getattr(self.model.network, "all_tied_weights_keys", None) or ()
        return {name: w.to("cpu", copy=True) for name, w in self.model.merged() if name not in tied}

    def save(self, folder: Path) -> None:
        """The policy as a Hugging Face folder."""
        self.model.save(folder)

    def state_dict(self) -> dict[str, Any]:
        """What decides how learning goes on besides the weights that `save` writes: copies, on the CPU."""
        return {
            "trained": self.model.trained_state(),
            "optimizer": on_cpu(self.step.optimizer.state_dict()),
            "version": self.version,
            "steps": self.step.steps,
            "dropped_samples": self.dropped_samples,
            "waiting_samples": sum(episode.length for group in self._queue for episode in group),
            "trained_samples": self.trained_samples,
            "random": self._random.get_state(),
            "credit": None if self.credit is None else self.credit.state_dict(),
        }

    def take_over(self, version: int, dropped_samples: int) -> None:
        """Goes on in place of a learner that died, as `learner.Learner.take_over`."""
        self.version = max(self.version, version) + 1
        self.dropped_samples = max(self.dropped_samples, dropped_samples)

    def restore(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Goes on where `save(folder)` and `state_dict` were taken. Episodes that waited for a full batch are gone: they
        are played again."""
        self.model.restore(folder, state["trained"])
        self.step.optimizer.load_state_dict(state["optimizer"])
        self.version = int(state["version"])
        self.step.steps = int(state["steps"])
        self.dropped_samples = int(state["dropped_samples"])
        self.trained_samples = int(state["trained_samples"])
        self._random.set_state(state["random"])
        credit = state.get("credit")  # none in checkpoints of before credit was attributed
        if self.credit is not None and credit is not None:
            self.credit.load_state_dict(credit)
        if self._leader is not None:
            self._leader.forget()
