"""What an objective of a language-model agent is: from rollouts to targets, once a batch; from targets to a loss, once a
micro-batch. Pure functions of tensors: the model, its optimiser and its devices are the learner's.

    rollouts ── prepare ──▶ Targets [M] ── take(rows) ──▶ loss (micro-batch)  ┐ sum of the gradients = gradient of the batch
                                        └─ take(rows) ──▶ loss (micro-batch)  ┘

To add one: a file in `algorithms/` that subclasses `Objective` and defines `KIND`, and one line in `registry.py`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from learner.language.advantages import kl_penalty, token_rewards
from learner.language.batch import ActionTokens, TokenBatch
from learner.language.kl import kl_estimate
from learner.language.losses import aggregation_weights, clipped_surrogate, fresh, importance_weight
from learner.language.settings import PolicySettings


@dataclass(frozen=True, slots=True, eq=False)
class Rollouts:
    """Episodes, what they earned, and what the trainer thinks of them at the start of the update."""

    batch: TokenBatch
    reward: Tensor
    """[K] float32: the whole reward of each turn, but for the KL penalty."""
    version: int
    """Version of the weights that are about to be trained."""
    proximal_log_prob: Tensor | None = None
    """[M]: log π_prox of the action tokens, computed again by the trainer. None: the behaviour's stand for them, so all
    importance weights are 1 and PPO's ratio carries staleness and numerics."""
    reference_log_prob: Tensor | None = None
    """[M]: log π_ref; wanted where `kl_coefficient` > 0."""
    value: Tensor | None = None
    """[M]: the critic's V of the state before each action token; read by objectives with a critic, which want it."""
    bootstrap: Tensor | None = None
    """[E]: V at each episode's last token (`TokenBatch.final_position`); read where an episode was cut."""


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """All that the loss needs of M action tokens; constants. Each tensor is [M]."""

    advantage: Tensor
    weight: Tensor
    """Share of the token in the policy's loss (`aggregation_weights`); 0 where it is masked."""
    keep: Tensor
    """bool: not masked for staleness."""
    lag: Tensor
    """int64: weights versions between sampling and training."""
    importance: Tensor
    """min(π_prox / μ, cap)."""
    behaviour_log_prob: Tensor
    proximal_log_prob: Tensor
    reference_log_prob: Tensor | None = None
    value: Tensor | None = None
    """V at the start of the update."""
    value_target: Tensor | None = None
    value_weight: Tensor | None = None
    """Share of the token in the critic's loss."""

    def take(self, rows: Tensor) -> "Targets":
        """The targets of these rows [m], for a micro-batch (`MicroBatch.rows`). Weights stay those of the whole batch."""
        parts: dict[str, Tensor | None] = {field.name: getattr(self, field.name) for field in fields(self)}
        return Targets(**{name: None if x is None else x[rows] for name, x in parts.items()})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Credit:
    """What an algorithm gives each of M action tokens. All [M]."""

    advantage: Tensor
    value_target: Tensor | None = None
    critic: Tensor | None = None
    """bool: tokens whose value the critic is trained on."""


@dataclass(frozen=True, slots=True)
class LanguageLoss:
    """The loss of a micro-batch and its parts, scalars; `total` carries the gradient. Over micro-batches they add up."""

    total: Tensor
    policy: Tensor
    value: Tensor
    entropy: Tensor
    """Entropy in nats, aggregated as the loss is (not its negative)."""
    kl: Tensor
    """KL to the reference as in the loss, before its coefficient; 0 where it is not in the loss."""


class Objective(ABC):
    """One algorithm with its settings."""

    needs_value: ClassVar[bool] = False
    """Whether there is a critic: `Rollouts.value` and `.bootstrap`, and `value` of the loss."""
    compares: ClassVar[bool] = False
    """Whether episodes are compared within their group, which then needs at least two."""

    def __init__(self, settings: PolicySettings, *, value_coefficient: float = 0.0) -> None:
        self.policy_settings = settings
        self._value_coefficient = value_coefficient

    @property
    def needs_reference(self) -> bool:
        """Whether `Rollouts.reference_log_prob` is read."""
        return self.policy_settings.kl_coefficient > 0.0

    @property
    def needs_entropy(self) -> bool:
        """Whether the loss has an entropy term; otherwise `entropy` is only reported, and may be left out."""
        return self.policy_settings.entropy_coefficient > 0.0

    @abstractmethod
    def credit(self, rollouts: Rollouts, actions: ActionTokens, reward: Tensor, keep: Tensor) -> Credit:
        """Advantages from token rewards [M], KL penalty included; statistics are those of the tokens in `keep` [M] bool."""

    @torch.no_grad()
    def prepare(self, rollouts: Rollouts) -> Targets:
        """Targets of a whole batch. Raises `ValueError` for a batch without action tokens, for missing or non-finite parts.

        A batch whose tokens are all too stale is no error: all weights are 0, and so are loss and gradient.
        """
        settings, batch = self.policy_settings, rollouts.batch
        actions = batch.actions()
        if len(actions) == 0:
            raise ValueError("the batch has no action token; there is nothing to learn from")
        behaviour = batch.behaviour_log_prob[actions.position]
        proximal = behaviour if rollouts.proximal_log_prob is None else rollouts.proximal_log_prob
        self._check(rollouts, len(actions))
        lag = rollouts.version - batch.version[actions.turn]
        keep = fresh(lag, settings.max_lag)
        reward = token_rewards(rollouts.reward, actions)
        reference = rollouts.reference_log_prob
        if settings.kl_in_reward and reference is not None:
            reward = reward + kl_penalty(settings.kl_estimator, settings.kl_coefficient, proximal, reference)
        credit = self.credit(rollouts, actions, reward, keep)
        weight = aggregation_weights(settings.aggregation, actions, keep, fixed_length=settings.fixed_length)
        critic = None if credit.critic is None else aggregation_weights("token_mean", actions, keep & credit.critic)
        return Targets(
            advantage=credit.advantage,
            weight=weight,
            keep=keep,
            lag=lag,
            importance=importance_weight(proximal, behaviour, settings.importance_cap),
            behaviour_log_prob=behaviour,
            proximal_log_prob=proximal,
            reference_log_prob=reference if settings.kl_in_loss else None,
            value=rollouts.value if self.needs_value else None,
            value_target=credit.value_target,
            value_weight=critic,
        )

    def loss(
        self, targets: Targets, log_prob: Tensor, entropy: Tensor | None = None, value: Tensor | None = None
    ) -> LanguageLoss:  # fmt: skip
        """The loss of the action tokens of `targets`; log_prob, entropy, value [M] under the weights that are trained."""
        settings = self.policy_settings
        _wide_enough("log_prob", log_prob)
        zero = log_prob.new_zeros(())
        each = clipped_surrogate(
            log_prob=log_prob,
            proximal_log_prob=targets.proximal_log_prob,
            advantage=targets.advantage,
            importance=targets.importance,
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            dual_clip=settings.dual_clip,
        )
        policy = (targets.weight * each).sum()
        if entropy is None and self.needs_entropy:
            raise ValueError("entropy_coefficient is above 0, so the loss needs the tokens' entropies")
        spread = zero if entropy is None else (targets.weight * entropy).sum()
        kl = zero
        if settings.kl_in_loss:
            assert targets.reference_log_prob is not None  # `prepare` saw to it
            kl = (targets.weight * kl_estimate(settings.kl_estimator, log_prob, targets.reference_log_prob)).sum()
        worth = self._value_loss(targets, value)
        total = policy + settings.kl_coefficient * kl
        if self.needs_entropy:
            total = total - settings.entropy_coefficient * spread
        if worth is not None:
            total = total + self._value_coefficient * worth
        parts = (policy, zero if worth is None else worth, spread, kl)
        return LanguageLoss(total, *(part.detach() for part in parts))

    def _value_loss(self, targets: Targets, value: Tensor | None) -> Tensor | None:
        """The critic's part; None without a critic."""
        del targets
        if value is not None:
            raise ValueError("this algorithm has no critic, so its loss takes no values")
        return None

    def _check(self, rollouts: Rollouts, count: int) -> None:
        wanted: list[tuple[str, Tensor | None, int, bool]] = [
            ("reward", rollouts.reward, rollouts.batch.turns, True),
            ("proximal_log_prob", rollouts.proximal_log_prob, count, False),
            ("reference_log_prob", rollouts.reference_log_prob, count, self.needs_reference),
            ("value", rollouts.value, count, self.needs_value),
            ("bootstrap", rollouts.bootstrap, rollouts.batch.episodes, self.needs_value),
        ]
        for name, x, length, needed in wanted:
            if x is None:
                if needed:
                    raise ValueError(
                        f"{type(self).__name__} with these settings needs {name} [{length}], which is missing"
                    )
                continue
            if x.shape != (length,):
                raise ValueError(f"{name} has the shape {tuple(x.shape)}, not ({length},)")
            _wide_enough(name, x)
            if not bool(x.isfinite().all()):
                raise ValueError(f"{name} has {int((~x.isfinite()).sum())} values of {length} that are not finite")


def _wide_enough(name: str, x: Tensor) -> None:
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} is {x.dtype}; differences of log-probabilities and returns need torch.float32")
