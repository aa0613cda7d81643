"""GRPO: the episode's score against its group (DeepSeekMath, arXiv 2402.03300, section 4.1)."""

from typing import ClassVar

from torch import Tensor

from learner.language.advantages import group_relative
from learner.language.batch import ActionTokens
from learner.language.objective import Credit, Objective, Rollouts
from learner.language.registry import ObjectiveKind
from learner.language.settings import GRPOSettings


class GRPO(Objective):
    compares: ClassVar[bool] = True

    def __init__(self, settings: GRPOSettings) -> None:
        super().__init__(settings)
        self.settings = settings

    def credit(self, rollouts: Rollouts, actions: ActionTokens, reward: Tensor, keep: Tensor) -> Credit:
        """The score is the episode's undiscounted reward; a cut episode's is what it earned until then."""
        score = actions.sum_by_episode(reward)
        advantage = group_relative(score, rollouts.batch.group, scale=self.settings.scale_by_deviation)
        return Credit(advantage[actions.episode])


KIND = ObjectiveKind(GRPOSettings, GRPO)
