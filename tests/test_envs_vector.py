"""The stepper of many environments: resets, ends, failures, and going on after a restart."""

import json
from typing import Any

import numpy as np
import pytest

import envs
from envs import VectorEnv
from tests.envs_support import CountingEnv

STAY, GO, RAISE = 0, 1, 2


def seed_of(env_index: int, episode_index: int) -> int:
    return 1000 * env_index + episode_index


def vector(count: int = 3, **kwargs: Any) -> VectorEnv:
    env = VectorEnv(lambda: CountingEnv(**kwargs), count, seed_of)
    env.reset()
    return env


def actions(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_every_episode_has_its_seed_and_ends_as_its_environment_says() -> None:
    env = vector()
    assert env.observation["count"].tolist() == [[0, 0], [1000, 0], [2000, 0]]
    for step in range(1, 3):
        outcome = env.step(actions(GO, STAY, GO if step == 1 else STAY))
        assert outcome.captions == [f"step {step}"] * 3
        assert outcome.grounded.tolist() == [True, False, step == 1]
        assert not outcome.episodes and not outcome.failures and not outcome.final_observation
    outcome = env.step(actions(GO, STAY, STAY))  # the first wins with its third GO
    assert outcome.reward.tolist() == [1.0, 0.0, 0.0] and outcome.reward.dtype == np.float32
    assert outcome.terminated.tolist() == [True, False, False]
    assert outcome.truncated.tolist() == [False, False, False]
    assert outcome.captions[0] == "step 3"  # of the episode that ended, not of the new one
    assert outcome.observation["count"].tolist() == [[1, 0], [1000, 3], [2000, 3]]
    assert outcome.final_observation == {}
    (end,) = outcome.episodes
    assert end == envs.EpisodeEnd(0, 0, {"seed": "0"}, 3.0, 3, True, {"gone": 3.0}, True)
    env.step(actions(STAY, STAY, STAY))
    outcome = env.step(actions(STAY, STAY, STAY))  # the others reach their limit of 5
    assert outcome.truncated.tolist() == [False, True, True]
    assert not outcome.terminated.any()
    assert {index: final["count"].tolist() for index, final in outcome.final_observation.items()} == {
        1: [1000, 5],
        2: [2000, 5],
    }
    assert outcome.observation["count"].tolist() == [[1, 2], [1001, 0], [2001, 0]]
    assert [(end.env_index, end.length, end.success, end.terminated) for end in outcome.episodes] == [
        (1, 5, False, False),
        (2, 5, False, False),
    ]
    assert env.seeds(1) == {"seed": "1001"}
    assert env.env(0).screen() == "2"


def test_an_environment_that_raises_is_replaced_and_counted_and_the_others_go_on() -> None:
    made: list[CountingEnv] = []

    def make() -> CountingEnv:
        made.append(CountingEnv())
        return made[-1]

    env = VectorEnv(make, 2, seed_of)
    env.reset()
    env.step(actions(GO, GO))
    outcome = env.step(actions(RAISE, GO))
    assert outcome.truncated.tolist() == [True, False]
    assert not outcome.terminated.any()
    assert outcome.reward.tolist() == [0.0, 1.0]
    assert outcome.captions == ["", "step 2"]
    assert outcome.final_observation[0]["count"].tolist() == [0, 1]  # the last good one
    assert outcome.observation["count"].tolist() == [[1, 0], [1000, 2]]
    assert outcome.episodes == ()
    (failure,) = outcome.failures
    assert (failure.env_index, failure.episode_index) == (0, 0)
    assert failure.error == "KeyError: 'a game that crashed'"
    assert "envs_support.py" in failure.traceback
    assert env.failures == 1
    assert len(made) == 3 and made[0].closed and not made[1].closed
    assert env.step(actions(GO, GO)).episodes[0].env_index == 1


def test_failures_in_a_row_name_the_root_cause() -> None:
    env = vector(2)
    for _ in range(2):
        env.step(actions(RAISE, GO))
    with pytest.raises(envs.ReplacementError, match=r"^KeyError: 'a game that crashed' \(environment 0, toy"):
        env.step(actions(RAISE, GO))


def test_a_good_step_between_failures_forgives_them() -> None:
    env = vector(1)
    for _ in range(5):
        env.step(actions(RAISE))
        env.step(actions(GO))
    assert env.failures == 5


def test_an_environment_that_cannot_even_start_is_an_error_that_says_why() -> None:
    with pytest.raises(envs.ReplacementError, match=r"^OSError: the disk is full \(environment 0"):
        vector(2, reset_raises=True)


def test_a_start_that_fails_once_is_reported_with_the_next_step() -> None:
    made: list[CountingEnv] = []

    def make() -> CountingEnv:
        made.append(CountingEnv(reset_raises=not made))
        return made[-1]

    env = VectorEnv(make, 1, seed_of)
    assert env.reset()["count"].tolist() == [[1, 0]]  # the second episode
    outcome = env.step(actions(GO))
    assert [failure.error for failure in outcome.failures] == ["OSError: the disk is full"]
    assert not outcome.truncated.any()
    assert env.step(actions(GO)).failures == ()


def test_misuse_is_said() -> None:
    with pytest.raises(ValueError, match="count must be at least 1, not 0"):
        VectorEnv(CountingEnv, 0, seed_of)
    with pytest.raises(RuntimeError, match="reset must be called before the first step"):
        VectorEnv(CountingEnv, 1, seed_of).step(actions(GO))
    with pytest.raises(ValueError, match=r"actions must have shape \(2,\), not \(3,\)"):
        vector(2).step(actions(0, 0, 0))
    saved = vector(2).state_dict()
    with pytest.raises(ValueError, match="the state is of 2 x toy/Count, these environments are 3 x toy/Count"):
        vector(3).load_state_dict(saved)


def same(a: envs.VectorStep, b: envs.VectorStep) -> None:
    for name in a.observation:
        np.testing.assert_array_equal(a.observation[name], b.observation[name])
    for field in ("reward", "terminated", "truncated", "grounded"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field))
    assert (a.captions, a.episodes, a.failures) == (b.captions, b.episodes, b.failures)
    assert a.final_observation.keys() == b.final_observation.keys()


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("minihack/Room-Ultimate-5x5", {}),
        ("nethack/Score", {"max_episode_steps": 60}),
        ("minihack/KeyRoom-S5", {"max_episode_steps": 70}),
    ],
)
def test_a_restart_goes_on_bit_for_bit(env_id: str, options: dict[str, Any]) -> None:
    def fresh() -> VectorEnv:
        return VectorEnv(lambda: envs.make(env_id, **options), 3, seed_of)

    env, restarted = fresh(), fresh()
    env.reset()
    chance = np.random.default_rng(1)
    choices = chance.integers(len(env.env_spec.action_names), size=(190, 3))
    ends = 0
    for choice in choices[:100]:
        ends += len(env.step(choice).episodes)
    assert ends
    state = json.loads(json.dumps(env.state_dict()))  # plain data
    observation = restarted.load_state_dict(state)
    for name, array in env.observation.items():
        np.testing.assert_array_equal(observation[name], array)
    for choice in choices[100:]:
        same(env.step(choice), restarted.step(choice))
    assert env.state_dict() == restarted.state_dict()


def test_a_game_that_comes_out_differently_is_reported_and_the_others_are_kept() -> None:
    env, restarted = vector(2), VectorEnv(CountingEnv, 2, seed_of)
    env.step(actions(GO, GO))
    state = env.state_dict()
    state["slots"][0]["actions"] = [GO, GO]
    assert restarted.load_state_dict(state)["count"].tolist() == [[1, 0], [1000, 1]]
    outcome = restarted.step(actions(GO, GO))
    assert [(failure.env_index, failure.error) for failure in outcome.failures] == [
        (0, "RuntimeError: the game came out differently when 2 steps were replayed")
    ]


def test_the_state_before_the_first_reset_can_be_loaded() -> None:
    state = VectorEnv(CountingEnv, 1, seed_of).state_dict()
    env = VectorEnv(CountingEnv, 1, seed_of)
    env.load_state_dict(state)
    assert env.reset()["count"].tolist() == [[0, 0]]


def test_real_games_survive_one_that_crashes() -> None:
    env = VectorEnv(lambda: envs.make("minihack/Room-5x5"), 2, seed_of)
    env.reset()
    env.step(actions(1, 1))
    before = env.observation["blstats"][0].copy()
    env._slots[0].env.close()  # the C library is gone, so that the next key press raises
    outcome = env.step(actions(1, 1))
    assert env.failures == 1 and outcome.failures[0].env_index == 0
    np.testing.assert_array_equal(outcome.final_observation[0]["blstats"], before)
    for _ in range(20):
        assert not env.step(actions(1, 1)).failures
    env.close()
