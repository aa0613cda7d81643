"""REINFORCE++: returns to go, the KL penalty in each token's reward, whitened over the whole batch (Hu 2025, arXiv 2501.03262)."""

from torch import Tensor

from learner.language.advantages import returns_to_go, whiten
from learner.language.batch import ActionTokens
from learner.language.objective import Credit, Objective, Rollouts
from learner.language.registry import ObjectiveKind
from learner.language.settings import ReinforcePlusPlusSettings


class ReinforcePlusPlus(Objective):
    def __init__(self, settings: ReinforcePlusPlusSettings) -> None:
        super().__init__(settings)
        self.settings = settings

    def credit(self, rollouts: Rollouts, actions: ActionTokens, reward: Tensor, keep: Tensor) -> Credit:
        return Credit(whiten(returns_to_go(reward, actions, self.settings.discount), keep))


KIND = ObjectiveKind(ReinforcePlusPlusSettings, ReinforcePlusPlus)
