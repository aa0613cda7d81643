"""Reward fusion: R_t = w_ext · clip(s · r_t) + w_int · r_int(c_t) / N(c_t)^β + w_prog · ĉ_t + w_ground · g_t, its parts kept apart.

The first two are made here; `learner.credit` attributes them to turns and adds the last two.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learner.settings import RewardSettings

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FusedReward:
    """The reward of every step, and what it is made of: `total` is the sum of the parts. All [T, B]."""

    extrinsic: Floats
    intrinsic: Floats
    bonus: Floats
    """r_int / N^β alone, before `w_int`; not a part of the sum."""
    progress: Floats | None = None
    """w_prog · ĉ, or a shaping made of it; None where credit is not attributed."""
    grounding: Floats | None = None
    """w_ground · g; None where credit is not attributed."""
    uncertainty: float = 0.0
    """Mean disagreement of the progress estimator's heads."""

    @property
    def total(self) -> Floats:
        total = self.extrinsic + self.intrinsic
        if self.progress is not None:
            total = total + self.progress
        return total if self.grounding is None else total + self.grounding

    def parts(self) -> Floats:
        """The four components, [4, T, B], 0 where there is none."""
        nothing = np.zeros_like(self.extrinsic)
        rest = [nothing if part is None else part for part in (self.progress, self.grounding)]
        return np.stack([self.extrinsic, self.intrinsic, *rest])


def fuse(reward: Floats, r_int: Floats, caption_count: NDArray[np.int32], settings: RewardSettings) -> FusedReward:
    """Fuses extrinsic rewards with the intrinsic rewards r_int of the steps' captions.

    caption_count is N(c_t), at least 1 where there is a caption; 0 marks a step without one, which earns nothing
    intrinsic whatever r_int says.
    """
    extrinsic = settings.w_ext * np.clip(settings.scale * reward, -settings.clip, settings.clip)
    count = np.maximum(caption_count, 1).astype(np.float32)
    bonus = np.where(caption_count > 0, r_int / count**settings.count_exponent, 0.0).astype(np.float32)
    return FusedReward(
        extrinsic=extrinsic.astype(np.float32), intrinsic=(settings.w_int * bonus).astype(np.float32), bonus=bonus
    )
