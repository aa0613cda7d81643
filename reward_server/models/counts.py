"""Within-episode counts: r(c) = 1 for every caption, so that the bonus is 1 / N(c)^exponent and nothing else.

With the exponent at 1/2 this is the bonus of count-based exploration (Bellemare et al. 2016, Strehl and Littman 2008), counted
within the episode as in RIDE and NovelD; with a large one only the first time of an episode counts.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from reward_server.models.base import Evaluation, RewardModel, RewardModelKind, RewardModelVersion
from reward_server.settings import ModelSettings

if TYPE_CHECKING:
    from torch import Tensor


class CountsModel(RewardModel):
    """Likes every caption alike; what makes a difference is N."""

    name = "counts"

    def evaluate(self, captions: Sequence[str]) -> Evaluation:
        ones = np.ones(len(captions), dtype=np.float32)
        return Evaluation(ones, ones)

    def state_dict(self) -> "dict[str, Tensor]":
        return {}

    def load_state_dict(self, state: "Mapping[str, Tensor]") -> None:
        pass


def _fixed(settings: ModelSettings) -> RewardModelVersion:
    from safetensors.torch import save

    return RewardModelVersion(1, CountsModel.name, save({}), None, 0.0)


KIND = RewardModelKind(model=lambda settings, device: CountsModel(), fixed=_fixed)
