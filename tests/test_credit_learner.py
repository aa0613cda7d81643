"""Credit while a recurrent agent learns: parts of episodes, resuming, stages, and that it costs nothing where it is off."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.networks import build_policy
from agents.rollout import Rollout
from benchmarks.credit import KINDS, measure, table
from envs.vector import VectorEnv
from learner.checkpoint import checkpoints, load_policy
from learner.credit.attribution import OutcomeError
from learner.credit.components import ComponentCritics
from learner.credit.fragments import Origin
from learner.credit.guards import separate_advantage
from learner.credit.online import OnlineCredit, turn_features
from learner.credit.outcomes import EpisodeOutcome
from learner.credit.settings import CreditSettings
from learner.learner import Learner, NoIntrinsicReward
from learner.settings import LearnerSettings, RewardSettings
from learner.vtrace import vtrace
from orchestration.configuration import attributes_credit, load_config
from orchestration.errors import ConfigError
from tests.test_rollout import make_rollout
from tests.toy import CountingEnv

CPU = torch.device("cpu")
YENDOR = str(Path(sys.executable).parent / "yendor")


def make_credit(method="spa", w_prog=1.0, w_ground=0.0, **settings) -> OnlineCredit:
    return OnlineCredit(
        CreditSettings(
            method=method, outcome="return", **{"return_high": 4.0, "min_episodes": 2, "publish_every": 2, **settings}
        ),
        RewardSettings(w_prog=w_prog, w_ground=w_ground),
        discount=0.99, state_size=256, actions=2, seed=3, device=CPU,
    )  # fmt: skip


def make_learner(credit: OnlineCredit | None, **settings) -> Learner:
    torch.manual_seed(1)
    policy, learner = (
        build_policy("fast", 2),
        LearnerSettings(device="cpu", precision="fp32", **{"batch_size": 40, **settings}),
    )
    return Learner(policy, learner, RewardSettings(), NoIntrinsicReward(), credit)


def collect(rollout: Rollout, source: str = "a"):
    trajectory, report = rollout.collect()
    ends = [EpisodeOutcome(e.t, e.end.env_index, e.end.success, e.end.episode_return) for e in report.episodes]
    return trajectory, Origin(source, 0, trajectory.batch, tuple(ends))


def feed(learner: Learner, rollout: Rollout, times: int) -> list:
    return [update for _ in range(times) for update in learner.feed(*collect(rollout))]


# What it pays.


@pytest.mark.parametrize(("limit", "batch_size"), [(1000, 10), (4, 10), (1000, 40)])
def test_outcomes_of_episodes_that_end_in_later_parts(limit, batch_size):
    """`outcome` pays each episode's return on its last step, however rollouts and batches cut it; also where it was cut off.

    A batch has two environments of a rollout's three, or so many that it holds two or three parts of the same episode.
    """
    credit, rollout = make_credit("outcome"), make_rollout(length=5, limit=limit)
    learner = make_learner(credit, batch_size=batch_size)
    paid: dict[int, list[float]] = {0: [], 1: [], 2: []}
    expected: dict[int, list[float]] = {0: [], 1: [], 2: []}
    real = credit.attribute

    def spy(batch, origins, fused, state, version):
        found = real(batch, origins, fused, state, version)
        column = 0
        for origin in origins:
            for b in range(origin.first, origin.first + origin.width):
                assert not found.extrinsic[~(batch.terminated | batch.truncated)[:, column], column].any()
                ended = (batch.terminated | batch.truncated)[:, column]
                paid[b] += found.extrinsic[ended, column].tolist()
                column += 1
        return found

    credit.attribute = spy
    for _ in range(8):
        trajectory, origin = collect(rollout)
        for end in origin.ends:
            expected[end.b].append(end.episode_return)
        learner.feed(trajectory, origin)
    for b, returns in paid.items():
        assert len(returns) >= 3 and returns == expected[b][: len(returns)]


def test_contributions_reach_the_episodes_that_the_estimator_learns_from():
    """Each whole episode of the replay has the features of its own steps, in order, and its return as R."""
    credit = make_credit("spa", holdout=0.0)
    rollout = make_rollout(length=5)
    learner = make_learner(credit, batch_size=15)
    returns: list[float] = []
    for _ in range(8):
        trajectory, origin = collect(rollout)
        returns += [end.episode_return / 4 for end in origin.ends]
        learner.feed(trajectory, origin)
    assert credit.estimator is not None
    episodes = credit.estimator.replay.episodes
    assert sorted(e.outcome for e in episodes) == sorted(returns) and all(e.turns == 7 for e in episodes)
    actions = torch.stack([e.features[:, 256:].argmax(1) for e in episodes])
    found = (actions[:, ::2] == 1).sum(1) / 4  # pressing at even numbers is what earns
    torch.testing.assert_close(found, torch.tensor([e.outcome for e in episodes]))


def test_what_was_dropped_as_too_old_breaks_its_episodes_alone():
    credit = make_credit("spa", holdout=0.0)
    learner, rollout = make_learner(credit, batch_size=30, max_lag=2), make_rollout(length=10)
    rollout.policy_version = 0
    feed(learner, rollout, 4)  # the fourth is three versions old
    assert learner.dropped_samples == 30 and credit.metrics()["progress/episodes_lost"] == 3
    rollout.policy_version = learner.version
    feed(learner, rollout, 2)
    assert all(e.turns == 7 for e in credit.estimator.replay.episodes)


def test_an_environment_that_broke_has_no_outcome():
    fails = iter([3, None])
    envs = VectorEnv(lambda: CountingEnv(fail_at=next(fails, None)), 2, lambda env, episode: env)
    torch.manual_seed(0)
    rollout = Rollout(envs, build_policy("fast", 2), length=10, seed=0)
    credit = make_credit("spa", conserve=True, holdout=0.0)
    feed(make_learner(credit, batch_size=20), rollout, 2)
    # Of 20 steps: 7 + 7 in the one environment; 3 and a failure that is a step, then 7 + 7 in the other.
    assert [e.turns for e in credit.estimator.replay.episodes] == 4 * [7]


def test_every_component_is_a_metric_and_adds_up():
    credit = make_credit(
        "spa+grounding", w_prog=2.0, w_ground=0.25, conserve=True, heads=2, uncertainty=0.1, squash=1.0
    )
    updates = feed(make_learner(credit), make_rollout(length=10), 9)
    for update in updates:
        m = update.metrics
        parts = sum(m[f"reward/{name}"] for name in ("extrinsic", "intrinsic", "progress", "grounding"))
        assert m["reward/total"] == pytest.approx(parts, abs=1e-6) and m["reward/grounding"] == pytest.approx(0.25)
    told = credit.metrics()
    assert told["progress/version"] >= 2 and np.isfinite(told["progress/loss"])
    assert told["progress/held_out_episodes"] >= 1 and np.isfinite(told["progress/held_out_residual_mean"])


def test_an_outcome_that_is_none_ends_the_run_with_a_reason():
    credit = make_credit("spa", return_high=0.5)
    with pytest.raises(OutcomeError, match=r"R must be in \[0, 1\]"):
        feed(make_learner(credit), make_rollout(length=10), 3)


def test_turn_features_are_the_state_and_the_action():
    state = torch.arange(6.0).reshape(2, 3)
    found = turn_features(state, torch.tensor([2, 0]), 4)
    assert found.tolist() == [[0, 1, 2, 0, 0, 1, 0], [3, 4, 5, 1, 0, 0, 0]]


# How it goes on.


def test_without_weights_the_result_is_the_same_bit_for_bit():
    """`turn` credit changes no number of an update, and a run whose weights are 0 does not even have it."""
    for overrides in (["reward.w_prog=0", "reward.w_ground=0"], ["reward.w_prog=0", "reward.w_ground=0.0"]):
        assert not attributes_credit(load_config("minihack_spa", overrides))
    plain, credited = make_learner(None), make_learner(make_credit("turn", w_prog=0.0))
    for learner in (plain, credited):
        feed(learner, make_rollout(length=10), 6)
    for key, value in plain.weights().items():
        np.testing.assert_array_equal(value, credited.weights()[key])


@pytest.mark.parametrize(
    "settings",
    [
        {"heads": 2, "uncertainty": 0.1, "squash": 0.5, "advantage": "separate", "max_turns": 4},
        {"schedule": "staged", "explore_steps": 120, "estimate_steps": 5},
        {"method": "potential"},
    ],
)
def test_resuming_is_exact(settings):
    whole = make_learner(make_credit(**settings))
    rollout = make_rollout(length=10, limit=6)
    pieces = [collect(rollout) for _ in range(16)]
    for piece in pieces[:8]:
        whole.feed(*piece)
    resumed = make_learner(make_credit(**settings))
    resumed.load_state_dict(whole.state_dict())
    for piece in pieces[8:]:
        assert [u.metrics for u in whole.feed(*piece)] == [u.metrics for u in resumed.feed(*piece)]
    for key, value in whole.weights().items():
        np.testing.assert_array_equal(value, resumed.weights()[key])
    assert whole.credit.metrics() == resumed.credit.metrics()
    assert whole.version > 5 and whole.credit.metrics()["progress/version"] >= 1


def test_stages_follow_one_another_by_themselves():
    """Explore: the policy stays. Then the estimator is fitted, once, and stays while the policy learns."""
    credit = make_credit(schedule="staged", explore_steps=150, estimate_steps=7, publish_every=5)
    learner, rollout = make_learner(credit), make_rollout(length=10)
    before = learner.weights()
    versions, exploring = [], []
    for _ in range(14):
        feed(learner, rollout, 1)
        versions.append(credit.metrics()["progress/version"])
        exploring.append(credit.exploring)
        if credit.exploring:
            assert learner.version == 0 and all(np.array_equal(before[k], v) for k, v in learner.weights().items())
    assert exploring == sorted(exploring, reverse=True) and exploring[4] and not exploring[-1]
    assert set(versions) == {0.0, 2.0}  # steps 5 and 7
    assert learner.version >= 4


def test_separate_critics_read_cuts_and_ends_as_the_policys_critic_does():
    """Against one component after the other, with the critics' values put in by hand."""
    torch.manual_seed(0)
    steps, batch, hidden = 5, 3, 6
    critics = ComponentCritics(hidden, 2, learning_rate=1e-3, device=CPU)
    with torch.no_grad():
        critics._heads.weight.normal_()
    state, final_state = torch.randn(steps + 1, batch, hidden), torch.randn(1, hidden)
    rewards, log_ratio = torch.randn(2, steps, batch), 0.1 * torch.randn(steps, batch)
    terminated, truncated = torch.zeros(steps, batch, dtype=torch.bool), torch.zeros(steps, batch, dtype=torch.bool)
    terminated[2, 0] = truncated[3, 1] = True
    with torch.no_grad():
        value, after = critics._heads(state), critics._heads(final_state)[0]
    expected = []
    for c in range(2):
        final_value = torch.zeros(steps, batch)
        final_value[3, 1] = after[c]
        expected.append(
            vtrace(
                log_ratio=log_ratio, reward=rewards[c], value=value[:-1, :, c], bootstrap=value[-1, :, c],
                final_value=final_value, terminated=terminated, truncated=truncated, discount=0.9,
            ).advantage
        )  # fmt: skip
    weights = torch.tensor([0.3, 2.0])
    found = critics.advantage(
        log_ratio=log_ratio, rewards=rewards, weights=weights, state=state, final_state=final_state,
        final_index=torch.tensor([[3, 1]]), terminated=terminated, truncated=truncated, discount=0.9, rho=1.0, c=1.0,
    )  # fmt: skip
    torch.testing.assert_close(found, separate_advantage(torch.stack(expected), weights))


# The configuration.


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reward.w_prog=1"], "reward.w_prog: has no effect, as credit.method=turn"),
        (["credit.method=spa"], "credit.method: has no effect, as reward.w_prog=0"),
        (["credit.method=spa", "reward.w_prog=1", "reward.w_ground=1"], "reward.w_ground: has no effect, as credit.method=spa"),
        (["credit.heads=2"], "credit.heads: has no effect, as credit.method=turn"),
        (["credit.method=outcome", "credit.hidden=8"], "credit.hidden: has no effect, as credit.method=outcome"),
        (["credit.method=spa", "reward.w_prog=1", "credit.explore_steps=5"], "credit.explore_steps: has no effect"),
        (["credit.method=potential", "reward.w_prog=1", "credit.conserve=true"], "credit.conserve: has no effect"),
        (["credit.method=spa", "reward.w_prog=1", "credit.uncertainty=1"], "credit.uncertainty=1: needs credit.heads"),
        (["credit.method=spa", "reward.w_prog=1", "credit.return_high=5"], "credit.return_high: has no effect"),
        (["credit.method=leave_one_out"], "credit.method=leave_one_out: gives advantages, and no rewards of turns"),
    ],
)  # fmt: skip
def test_configurations_without_effect_are_errors(overrides, message):
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    assert str(caught.value).startswith(message)


# The real system.


def train(folder: Path, name: str, *more: str) -> list[tuple[int, dict]]:
    command = [
        YENDOR, "train", "minihack_spa", f"run.dir={folder}", f"run.name={name}", "env.id=minihack/Room-5x5",
        "actors.envs=8", "actors.rollout_length=16", "learner.batch_size=128", "credit.min_episodes=3",
        "credit.publish_every=2", "env.options.max_episode_steps=20", "trace.rate=0.2", "--plain", *more,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=os.environ)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return [(line["env_steps"], line["metrics"]) for line in lines]


@pytest.mark.long
def test_a_serial_run_that_was_resumed_equals_one_that_was_not(tmp_path):
    whole = train(tmp_path, "whole", "runtime=serial", "train.env_steps=3072")
    train(tmp_path, "parts", "runtime=serial", "train.env_steps=1536")
    parts = train(tmp_path, "parts", "runtime=serial", "train.env_steps=3072", "--resume")
    assert parts == whole and whole[-1][1]["progress/version"] >= 3
    assert any(line["reward/progress"] for _, line in whole)
    one, other = (load_policy(checkpoints(tmp_path / name / "checkpoints")[-1]) for name in ("whole", "parts"))
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_the_benchmark_runs(monkeypatch):
    monkeypatch.setattr("benchmarks.credit._WARM_UP", 2)
    found = measure(1, "actors.envs=4", "actors.rollout_length=8", "learner.batch_size=32")
    assert [cost.kind for cost in found] == list(KINDS) and found[0].ratios == (1.0,)
    assert found[0].state_mb == 0 < found[2].state_mb and "| spa, 5 heads |" in table(found)


@pytest.mark.slow
def test_the_estimator_learns_on_ray(tmp_path):
    metrics = train(tmp_path, "ray", "train.env_steps=6000", "log.interval_s=0.5")
    assert metrics[-1][1]["progress/version"] >= 3 and metrics[-1][1]["progress/episodes_high"] >= 3
