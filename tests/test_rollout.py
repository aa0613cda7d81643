"""The rollout loop on an environment whose truth is known: alignment, episode ends, captions, resuming."""

import numpy as np
import torch

from agents.networks import build_policy
from agents.rollout import Rollout
from agents.trajectory import concatenate, trajectory_from_state, trajectory_state
from envs.captions import caption_id
from envs.vector import VectorEnv
from tests.toy import CountingEnv


def make_rollout(seed=0, envs=3, length=10, **toy) -> Rollout:
    torch.manual_seed(1)
    vector = VectorEnv(lambda: CountingEnv(**toy), envs, lambda env, episode: 10 * env + episode)
    return Rollout(vector, build_policy("fast", 2), length=length, seed=seed)


def test_arrays_are_aligned_and_sized():
    trajectory, report = make_rollout(length=10).collect()
    assert (trajectory.steps, trajectory.batch, report.steps) == (10, 3, 30)
    count = trajectory.observation["blstats"][..., 0] - np.array([[0, 10 % 5, 20 % 5]])
    for b in range(3):
        for t in range(10):
            # Episode k of the environment has its own seed, which the observation shows as an offset.
            shown = trajectory.observation["blstats"][t, b, 0]
            pressed_even = trajectory.action[t, b] == 1 and (t % 7) % 2 == 0
            assert trajectory.reward[t, b] == float(pressed_even)
            assert shown == t % 7 + (10 * b + t // 7) % 5
            assert trajectory.terminated[t, b] == (t % 7 == 6)
            assert trajectory.start[t, b] == (t % 7 == 0)
    assert count.shape == (11, 3)
    assert not trajectory.truncated.any() and len(trajectory.final_index) == 0
    assert [e.t for e in report.episodes] == [6, 6, 6]
    assert all(e.end.success and e.end.length == 7 for e in report.episodes)


def test_behaviour_log_probs_are_those_of_the_policy():
    rollout = make_rollout(length=8)
    trajectory, _ = rollout.collect()
    observation = {k: torch.from_numpy(v) for k, v in trajectory.observation.items()}
    with torch.no_grad():
        output = rollout.policy(observation, torch.from_numpy(trajectory.start), torch.zeros(3, 256))
    log_probs = torch.log_softmax(output.logits[:-1], -1).gather(2, torch.from_numpy(trajectory.action).unsqueeze(2))
    np.testing.assert_allclose(log_probs.squeeze(2).numpy(), trajectory.log_prob, atol=1e-5)
    np.testing.assert_allclose(output.value[:-1].numpy(), trajectory.value, atol=1e-5)


def test_the_recurrent_state_of_the_next_call_is_carried_on():
    one = make_rollout(length=12).collect()[0]
    rollout = make_rollout(length=6)
    first, second = rollout.collect()[0], rollout.collect()[0]
    np.testing.assert_array_equal(np.concatenate([first.action, second.action]), one.action)
    np.testing.assert_allclose(np.concatenate([first.value, second.value]), one.value, atol=1e-6)


def test_a_cut_episode_keeps_its_last_observation():
    trajectory, _ = make_rollout(length=10, limit=4).collect()
    assert trajectory.truncated[3].all() and not trajectory.terminated.any()
    assert [tuple(i) for i in trajectory.final_index] == [(t, b) for t in (3, 7) for b in range(3)]
    np.testing.assert_array_equal(
        trajectory.final_observation["blstats"][:, 0], [4 + (10 * b + k) % 5 for k in (0, 1) for b in range(3)]
    )


def test_captions_travel_once_and_are_counted_by_episode():
    rollout = make_rollout(length=14)
    first, report = rollout.collect()
    pressed = first.action == 1
    assert report.new_captions == ((caption_id("You press."), "You press."),)
    np.testing.assert_array_equal(first.caption_id, np.where(pressed, caption_id("You press."), 0))
    expected = np.zeros_like(first.caption_count)
    for b in range(3):
        for begin in (0, 7):
            expected[begin : begin + 7, b] = np.cumsum(pressed[begin : begin + 7, b]) * pressed[begin : begin + 7, b]
    np.testing.assert_array_equal(first.caption_count, expected)
    assert rollout.collect()[1].new_captions == ()
    rollout.tell_again([caption_id("You press."), 5])
    assert rollout.collect()[1].new_captions == report.new_captions


def test_an_environment_that_raises_is_cut_there():
    trajectory, report = make_rollout(length=6, envs=2, fail_at=2).collect()
    # Each fresh one breaks at its third step again.
    assert len(report.failures) == 4 and all("the toy broke" in failure.error for failure in report.failures)
    assert np.argwhere(trajectory.truncated[:, 0]).flatten().tolist() == [2, 5]
    assert trajectory.start[3].all() and trajectory.start[6].all()
    assert report.episodes == ()


def test_a_resumed_rollout_equals_one_that_was_not():
    whole, resumed = make_rollout(length=5), make_rollout(length=5)
    whole.collect()
    resumed.load_state_dict(whole.state_dict())
    for _ in range(3):
        (a, report_a), (b, report_b) = whole.collect(), resumed.collect()
        np.testing.assert_array_equal(a.action, b.action)
        np.testing.assert_array_equal(a.value, b.value)
        np.testing.assert_array_equal(a.caption_count, b.caption_count)
        assert report_a.new_captions == report_b.new_captions
        assert report_a.episodes == report_b.episodes


def test_columns_and_concatenate_are_inverse():
    trajectory, _ = make_rollout(envs=5, length=9, limit=4).collect()
    back = concatenate([trajectory.columns(0, 2), trajectory.columns(2, 5)])
    state = trajectory_state(back)
    for key, value in trajectory_state(trajectory).items():
        if key == "final_index":
            assert {tuple(x) for x in value.tolist()} == {tuple(x) for x in state[key].tolist()}
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, state[key]), key
    assert trajectory_from_state(state).batch == 5
