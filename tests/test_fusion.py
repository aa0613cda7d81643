"""Reward fusion on hand-made trajectories."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.fusion import fuse
from learner.settings import RewardSettings


def test_every_part_by_hand():
    settings = RewardSettings(w_ext=2.0, w_int=0.5, scale=0.1, clip=10.0, count_exponent=3.0)
    reward = np.array([[1.0, 500.0, -500.0, 0.0]], np.float32)
    r_int = np.array([[1.0, 1.0, 1.0, 1.0]], np.float32)
    count = np.array([[1, 2, 0, 3]], np.int32)
    fused = fuse(reward, r_int, count, settings)
    np.testing.assert_allclose(fused.extrinsic, [[2 * 0.1, 2 * 10, -2 * 10, 0]], rtol=1e-6)
    np.testing.assert_allclose(fused.bonus, [[1, 1 / 8, 0, 1 / 27]], rtol=1e-6)
    np.testing.assert_allclose(fused.intrinsic, [[0.5, 0.5 / 8, 0, 0.5 / 27]], rtol=1e-6)
    np.testing.assert_allclose(fused.total, fused.extrinsic + fused.intrinsic)


def test_a_step_without_caption_earns_nothing_intrinsic():
    fused = fuse(
        np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32), np.zeros((1, 1), np.int32), RewardSettings()
    )
    assert fused.total[0, 0] == 0.0


@given(
    count=st.integers(1, 10_000), exponent=st.floats(0, 4), weight=st.floats(0, 10), r_int=st.floats(-3, 3, width=32)
)
def test_intrinsic_reward_is_the_formula(count, exponent, weight, r_int):
    settings = RewardSettings(w_int=weight, count_exponent=exponent)
    fused = fuse(
        np.zeros((1, 1), np.float32), np.full((1, 1), r_int, np.float32), np.full((1, 1), count, np.int32), settings
    )
    assert fused.intrinsic[0, 0] == pytest.approx(weight * r_int / count**exponent, rel=1e-4, abs=1e-6)
