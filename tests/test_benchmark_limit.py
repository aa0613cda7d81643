"""The limit of throughput: its arithmetic, and that its parts are measured, at sizes that say nothing."""

import pytest

from benchmarks.limit import Limit, Parts, measure_parts, table


def test_the_limit_is_the_cores_over_the_time_of_a_step() -> None:
    quick, slow = Parts(1e-4, 5e-5, 5e-5, 1.0), Parts(2e-4, 1e-4, 1e-4, 1.0)
    assert quick.limit(2) == pytest.approx(10_000)
    found = Limit("oni", 2, (quick, slow, quick), (8_000.0, 9_000.0, 9_500.0), {"actor/env": 0.5}, "yendor train")
    assert found.share == pytest.approx(0.9)
    assert "| 10,000 steps/s | 8,000, 9,000, 9,500 | 0.90 |" in table(found)


@pytest.mark.slow
def test_the_parts_of_a_step_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "benchmarks.limit.KEYS", ("learner.batch_size=64", "actors.rollout_length=16", "reward.model=none")
    )
    monkeypatch.setattr("benchmarks.limit.LAYOUT", {"fast": ("actors.envs=4",)})
    parts = measure_parts("fast", 2)
    assert min(parts.env, parts.inference, parts.training) > 0.0
