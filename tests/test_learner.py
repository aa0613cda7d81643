"""The learner: what it evaluates, how it forms batches, and that it resumes bit for bit."""

import copy

import numpy as np
import pytest
import torch

from agents.networks import NETWORKS, build_policy
from agents.rollout import Rollout
from agents.trajectory import Trajectory
from envs import VectorEnv, make
from learner.learner import Learner, NoIntrinsicReward
from learner.precision import resolve_precision
from learner.returns import EpisodeSums
from learner.settings import LearnerSettings, RewardSettings
from tests.test_rollout import make_rollout


def make_learner(**settings) -> Learner:
    torch.manual_seed(1)
    return Learner(
        build_policy("fast", 2),
        LearnerSettings(device="cpu", precision="fp32", **settings),
        RewardSettings(),
        NoIntrinsicReward(),
    )


def test_values_after_a_cut_are_read_with_the_state_of_that_step():
    """Against a policy that reads each environment's episode alone, one observation after the other."""
    learner = make_learner(batch_size=27)
    trajectory, _ = make_rollout(length=9, limit=4).collect()
    evaluation = learner.step.evaluate(trajectory)
    output, final_value = evaluation.output, evaluation.final_value
    assert trajectory.final_index.shape == (6, 2)
    for k, (t, b) in enumerate(trajectory.final_index):
        begin = max(i for i in range(t + 1) if trajectory.start[i, b])
        episode = {
            key: torch.from_numpy(np.concatenate([v[begin : t + 1, b], trajectory.final_observation[key][k : k + 1]]))
            for key, v in trajectory.observation.items()
        }
        start = torch.zeros(t + 2 - begin, 1, dtype=torch.bool)
        alone = learner.policy({key: v.unsqueeze(1) for key, v in episode.items()}, start, torch.zeros(1, 256))
        torch.testing.assert_close(final_value[t, b], alone.value[-1, 0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(output.value[t, b], alone.value[-2, 0], atol=1e-5, rtol=1e-4)


def test_batches_are_exact_and_in_order(monkeypatch):
    learner = make_learner(batch_size=40)  # 4 segments of 10 steps
    seen: list[list[tuple[int, int]]] = []
    real = learner.update

    def spy(parts: list[Trajectory], origins):
        seen.append([(p.batch, p.steps) for p in parts])
        return real(parts, origins)

    monkeypatch.setattr(learner, "update", spy)
    rollout = make_rollout(length=10)  # 3 segments each
    updates = [learner.feed(rollout.collect()[0]) for _ in range(4)]
    assert [len(u) for u in updates] == [0, 1, 1, 1]
    assert seen == [[(3, 10), (1, 10)], [(2, 10), (2, 10)], [(1, 10), (3, 10)]]
    assert learner.version == 3 and learner.trained_samples == 120


def test_lag_is_counted_per_sample_and_bounded():
    learner = make_learner(batch_size=30, max_lag=2)
    rollout = make_rollout(length=10)
    rollout.policy_version = 0
    lags = [update.lag_max for _ in range(4) for update in learner.feed(rollout.collect()[0])]
    assert lags == [0, 1, 2]  # the fourth is three versions old: dropped, not trained on
    assert learner.dropped_samples == 30


def test_a_batch_that_cannot_be_filled_by_whole_segments_is_an_error():
    with pytest.raises(ValueError, match=r"learner.batch_size=25 is not a multiple of the rollout length 10"):
        make_learner(batch_size=25).feed(make_rollout(length=10).collect()[0])


def test_a_loss_that_is_not_finite_names_what_to_do():
    learner = make_learner(batch_size=30)
    trajectory, _ = make_rollout(length=10).collect()
    before = learner.weights()
    trajectory.log_prob[:] = -np.inf
    with pytest.raises(FloatingPointError, match=r"learner.learning_rate"):
        learner.feed(trajectory)
    assert all(np.array_equal(before[k], v) for k, v in learner.weights().items())


def test_it_learns_the_toy():
    """Pressing at even numbers alone earns; 60 updates of 3 x 70 samples suffice to do nearly always so."""
    learner = make_learner(batch_size=210, learning_rate=3e-3, entropy_coefficient=0.001)
    rollout = make_rollout(length=70)
    for _ in range(60):
        rollout.set_weights(learner.weights(), learner.version)
        learner.feed(rollout.collect()[0])
    rollout.set_weights(learner.weights(), learner.version)
    trajectory, _ = rollout.collect()
    even = (np.arange(70) % 7) % 2 == 0
    assert (trajectory.action[even] == 1).mean() > 0.9


def test_resuming_is_exact():
    whole, rollout = make_learner(batch_size=40), make_rollout(length=10)
    trajectories = [rollout.collect()[0] for _ in range(6)]
    for trajectory in trajectories[:3]:
        whole.feed(trajectory)
    resumed = make_learner(batch_size=40)
    resumed.load_state_dict(whole.state_dict())
    for trajectory in trajectories[3:]:
        assert [u.metrics for u in whole.feed(trajectory)] == [u.metrics for u in resumed.feed(trajectory)]
    for key, value in whole.weights().items():
        np.testing.assert_array_equal(value, resumed.weights()[key])


def test_episode_sums_over_pieces():
    sums = EpisodeSums()
    rollout = make_rollout(length=5)
    total: dict[int, list[float]] = {}
    expected: dict[int, list[float]] = {0: [], 1: [], 2: []}
    running = [0.0, 0.0, 0.0]
    for _ in range(6):
        trajectory, _ = rollout.collect()
        done = sums.add("actor", trajectory, trajectory.reward)
        for (_, b), value in sorted(done.items()):
            total.setdefault(b, []).append(value)
        for t in range(5):
            for b in range(3):
                running[b] += float(trajectory.reward[t, b])
                if trajectory.terminated[t, b]:
                    expected[b].append(running[b])
                    running[b] = 0.0
    assert total == expected and all(len(v) == 4 for v in expected.values())


@pytest.mark.parametrize("network", ["fast", "oni"])
def test_bf16_learns_in_the_direction_of_fp32(network):
    envs = VectorEnv(lambda: make("nethack/Score", NETWORKS[network].view), 3, lambda env, episode: env)
    torch.manual_seed(0)
    policy = build_policy(network, len(envs.env_spec.action_names))
    trajectory, _ = Rollout(envs, copy.deepcopy(policy), length=6, seed=0).collect()
    envs.close()
    gradients, losses = [], []
    for precision in ("fp32", "bf16"):
        settings = LearnerSettings(device="cpu", batch_size=18, precision=precision)
        learner = Learner(copy.deepcopy(policy), settings, RewardSettings(), NoIntrinsicReward())
        losses.append(learner.update([trajectory]).metrics["loss/total"])
        gradients.append(torch.cat([p.grad.flatten() for p in learner.policy.parameters()]))
        assert all(p.dtype == torch.float32 for p in learner.policy.parameters())
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert not torch.equal(*gradients)  # or the products would not be in bf16
    assert torch.cosine_similarity(*gradients, dim=0) > 0.98


def test_the_precision_is_what_the_hardware_multiplies(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr("learner.precision.cpu_has_bfloat16", lambda: True)
    assert resolve_precision("auto", cpu) == torch.bfloat16 and resolve_precision("fp32", cpu) == torch.float32
    monkeypatch.setattr("learner.precision.cpu_has_bfloat16", lambda: False)
    assert resolve_precision("auto", cpu) == torch.float32 and resolve_precision("bf16", cpu) == torch.bfloat16
