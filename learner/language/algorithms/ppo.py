"""PPO with a critic (Schulman et al. 2017, arXiv 1707.06347) and GAE by token or by turn."""

from typing import ClassVar

from torch import Tensor

from learner.language.advantages import token_gae, turn_gae, whiten
from learner.language.batch import ActionTokens
from learner.language.losses import value_loss
from learner.language.objective import Credit, Objective, Rollouts, Targets
from learner.language.registry import ObjectiveKind
from learner.language.settings import PPOSettings


class PPO(Objective):
    needs_value: ClassVar[bool] = True

    def __init__(self, settings: PPOSettings) -> None:
        super().__init__(settings, value_coefficient=settings.value_coefficient)
        self.settings = settings

    def credit(self, rollouts: Rollouts, actions: ActionTokens, reward: Tensor, keep: Tensor) -> Credit:
        assert rollouts.value is not None and rollouts.bootstrap is not None  # `prepare` saw to it
        gae = token_gae if self.settings.advantage_level == "token" else turn_gae
        found = gae(
            reward=reward,
            value=rollouts.value,
            bootstrap=rollouts.bootstrap,
            terminated=rollouts.batch.terminated,
            actions=actions,
            discount=self.settings.discount,
            trace=self.settings.gae_lambda,
        )
        advantage = whiten(found.advantage, keep) if self.settings.normalise_advantage else found.advantage
        return Credit(advantage, found.value_target, found.critic)

    def _value_loss(self, targets: Targets, value: Tensor | None) -> Tensor:
        if value is None:
            raise ValueError("PPO has a critic, so its loss needs the tokens' values")
        old, target, weight = targets.value, targets.value_target, targets.value_weight
        assert old is not None and target is not None and weight is not None  # `prepare` saw to it
        return (weight * value_loss(value, old, target, self.settings.value_clip)).sum()


KIND = ObjectiveKind(PPOSettings, PPO)
