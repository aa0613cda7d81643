"""RLOO: the episode's score against the mean of the others of its group (Ahmadian et al. 2024, arXiv 2402.14740)."""

from typing import ClassVar

from torch import Tensor

from learner.language.advantages import leave_one_out
from learner.language.batch import ActionTokens
from learner.language.objective import Credit, Objective, Rollouts
from learner.language.registry import ObjectiveKind
from learner.language.settings import RLOOSettings


class RLOO(Objective):
    compares: ClassVar[bool] = True

    def __init__(self, settings: RLOOSettings) -> None:
        super().__init__(settings)

    def credit(self, rollouts: Rollouts, actions: ActionTokens, reward: Tensor, keep: Tensor) -> Credit:
        """The score is the episode's undiscounted reward; a cut episode's is what it earned until then."""
        advantage = leave_one_out(actions.sum_by_episode(reward), rollouts.batch.group)
        return Credit(advantage[actions.episode])


KIND = ObjectiveKind(RLOOSettings, RLOO)
