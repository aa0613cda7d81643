"""Evaluation: the same episodes whoever plays them, intervals that hold what they should."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from agents.networks import build_policy
from learner.checkpoint import save_checkpoint
from orchestration import evaluate as evaluation
from orchestration.cli.main import run
from orchestration.configuration import load_config, to_yaml
from orchestration.evaluate import Evaluation, evaluate, mean_interval, wilson
from orchestration.parts import action_count


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that has learnt nothing, of a task that it solves now and then."""
    config = load_config("demo", ["env.id=minihack/Room-5x5", "env.options.max_episode_steps=40"])
    policy = build_policy(config.agent.network, action_count(config))
    return save_checkpoint(
        tmp_path_factory.mktemp("eval"), 0, policy=policy.state_dict(), state={}, config=to_yaml(config), keep=1
    )


def without_time(result: Evaluation) -> Evaluation:
    return dataclasses.replace(result, wall_s=0.0)


@pytest.mark.slow
def test_the_result_depends_on_the_seed_and_not_on_who_plays(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluation, "_TOGETHER", 8)
    alone = evaluate(checkpoint, episodes=20, seed=1, processes=1)
    assert without_time(evaluate(checkpoint, episodes=20, seed=1, processes=2)) == without_time(alone)
    other = evaluate(checkpoint, episodes=20, seed=2, processes=1)
    assert (other.return_mean, other.length_mean) != (alone.return_mean, alone.length_mean)
    assert alone.episodes == 20 and alone.success_rate is not None
    assert alone.success_low is not None and alone.success_high is not None
    assert 0 <= alone.success_low <= alone.success_rate <= alone.success_high <= 1
    assert alone.metrics.keys() == alone.metric_intervals.keys() >= {"dungeon_level", "gold", "scout", "kills"}
    assert run(["eval", str(checkpoint), "--episodes", "8", "--seed", "1", "--processes", "1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["episodes"] == 8 and printed["env"] == "minihack/Room-5x5"


def test_intervals() -> None:
    # Wilson 1927 by hand: 8 of 10 at z = 1.96.
    assert wilson(8, 10) == pytest.approx((0.490157, 0.943319), abs=1e-6)
    assert wilson(0, 5)[0] == 0.0 and wilson(5, 5)[1] == 1.0
    mean, half = mean_interval([1.0, 2.0, 3.0, 4.0])
    assert (mean, half) == pytest.approx((2.5, 1.96 * math.sqrt(5 / 3) / 2))
    assert mean_interval([3.0]) == (3.0, 0.0)
