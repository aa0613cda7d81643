"""Reward fusion: R_t = w_ext · clip(s · r_t) + w_int · r_int(c_t) / N(c_t)^β, its parts kept apart."""

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

    @property
    def total(self) -> Floats:
        return self.extrinsic + self.intrinsic


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
