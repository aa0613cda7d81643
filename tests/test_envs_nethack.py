"""The tasks of ONI and their actions."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import envs
from envs.nethack import oracle_glyph
from envs.nethack_actions import first_choice
from envs.nle_env import NleEnv


def make(env_id: str, **options: Any) -> NleEnv:
    env = envs.make(env_id, **options)
    assert isinstance(env, NleEnv)
    env.reset(seed=5)
    return env


def after_each_key(env: NleEnv, change: Callable[[int], None] = lambda key: None) -> list[int]:
    """Lets `change(key)` alter what the game shows after every key; returns the list in which the keys collect."""
    keys: list[int] = []
    original = env.game.nethack.step

    def step(key: int) -> Any:
        outcome = original(key)
        keys.append(int(key))
        change(int(key))
        return outcome

    env.game.nethack.step = step
    return keys


def act(env: NleEnv, name: str) -> tuple[Any, ...]:
    return env.step(env.env_spec.action_names.index(name))


def test_the_actions_are_the_28_of_oni() -> None:
    names = make("nethack/Score").env_spec.action_names
    assert len(names) == 28
    assert names[23:] == ("CAST", "QUAFF", "PRAY", "PICKUP", "PAY")
    assert names[0] == "MORE" and set(names[17:23]) == {"UP", "DOWN", "WAIT", "KICK", "EAT", "SEARCH"}
    assert names[1:17] == tuple(p + d for p in ("", "FAR_") for d in ("N", "E", "S", "W", "NE", "SE", "SW", "NW"))


@pytest.mark.parametrize(("actions", "count"), [("oni", 28), ("task", 23), ("full", 121)])
def test_action_sets(actions: str, count: int) -> None:
    spec = make("nethack/Score", actions=actions).env_spec
    assert len(set(spec.action_names)) == count
    assert spec.max_episode_steps == 5000
    assert spec.options == {"actions": actions}


def test_challenge_has_the_whole_keyboard_and_a_random_character() -> None:
    env = envs.make("nethack/Challenge", max_episode_steps=30)
    assert len(env.env_spec.action_names) == 121
    roles: set[str] = set()
    for seed in range(4):
        env.reset(seed=seed)
        roles.add(env.screen().splitlines()[0].split()[-1])
    assert len(roles) > 1
    for step in range(30):
        outcome = env.step(env.env_spec.action_names.index("SEARCH"))
        assert outcome[2:4] == (False, step == 29) or outcome[2]
    assert outcome[4]["success"] is False


# Rewards. What the game shows is altered after each key, so that the rules are tested on what they look at.


def test_score_is_the_change_of_the_score_and_a_penalty_where_time_stood_still() -> None:
    env = make("nethack/Score")
    assert act(env, "WAIT")[1] == 0.0
    assert act(env, "MORE")[1] == -0.01  # an unknown command
    shown = iter([(100, 7), (125, 8), (125, 8), (120, 8)])

    def change(key: int) -> None:
        env._blstats[9], env._blstats[20] = next(shown)  # score, time

    after_each_key(env, change)
    rewards = [act(env, "WAIT")[1] for _ in range(4)]
    assert rewards[1:] == [25.0, -0.01, -5.01]
    assert env.env_spec.has_success is False


@pytest.mark.parametrize(("env_id", "level"), [("nethack/StaircaseLvl3", 3), ("nethack/StaircaseLvl4", 4)])
def test_staircase_pays_once_on_reaching_its_level(env_id: str, level: int) -> None:
    env = make(env_id)
    shown = iter(range(2, level + 1))

    def change(key: int) -> None:
        env._blstats[12] = env._blstats[24] = next(shown)

    after_each_key(env, change)
    for _ in range(2, level):
        assert act(env, "MORE")[1:4] == (0.0, False, False)  # no penalty either
    observation, reward, terminated, truncated, info = act(env, "WAIT")
    assert (reward, terminated, truncated, info["success"]) == (50.0, True, False, True)
    assert observation["blstats"][12] == level
    assert info["metrics"]["dungeon_level"] == level


NEAR, FAR = [(-1, -1), (-1, 0), (0, 1), (1, 1)], [(0, 2), (-2, 0), (2, -2)]


@pytest.mark.parametrize("offset", NEAR + FAR)
@pytest.mark.parametrize("hallucinating", [0, 512])
@pytest.mark.parametrize("env_id", ["Oracle", "OracleSober"])
def test_oracle_pays_beside_the_oracle(env_id: str, hallucinating: int, offset: tuple[int, int]) -> None:
    env = make(f"nethack/{env_id}")
    glyphs: np.ndarray = env.game.nethack._obs_buffers["glyphs"]

    def change(key: int) -> None:
        env._blstats[0], env._blstats[1] = 40, 10
        env._blstats[25] |= hallucinating
        glyphs[10 + offset[0], 40 + offset[1]] = oracle_glyph()

    after_each_key(env, change)
    reached = offset in NEAR and not (env_id == "OracleSober" and hallucinating)
    _, reward, terminated, truncated, info = act(env, "WAIT")
    assert (reward, terminated, truncated) == ((50.0, True, False) if reached else (0.0, False, False))
    assert info.get("success") is (True if reached else None)


def test_the_oracle_at_the_edge_of_the_map_is_seen() -> None:
    env = make("nethack/Oracle")

    def change(key: int) -> None:
        env._blstats[0] = env._blstats[1] = 0
        env.game.nethack._obs_buffers["glyphs"][0, 1] = oracle_glyph()

    after_each_key(env, change)
    assert act(env, "WAIT")[1] == 50.0


def test_dying_and_running_out_of_time_pay_nothing_and_are_no_success() -> None:
    env = make("nethack/Oracle", max_episode_steps=2)
    act(env, "WAIT")
    _, reward, terminated, truncated, info = act(env, "WAIT")
    assert (reward, terminated, truncated, info["success"]) == (0.0, False, True, False)


# Macros


@pytest.mark.parametrize(
    ("question", "letter"),
    [
        (b"What do you want to eat? [fgh or ?*] ", "f"),
        (b"What do you want to drink? [*]", None),
        (b"There is a newt corpse here; eat it? [ynq] (n)", "y"),
        (b"Drink from the fountain? [yn] (n)", "y"),
        (b"What do you want to eat? [$a-d or ?*]", "a"),
        (b"In what direction? ", None),
        (b"What do you want to eat? [- or ?*]", None),
    ],
)
def test_the_first_letter_that_a_question_lists(question: bytes, letter: str | None) -> None:
    assert first_choice(question.ljust(256, b"\0")) == (None if letter is None else ord(letter))


def test_eating_takes_the_first_food_that_is_listed() -> None:
    env = make("nethack/Score")
    keys = after_each_key(env)
    info = act(env, "EAT")[4]
    assert keys[0] == ord("e") and chr(keys[1]).isalpha()
    assert info["grounded"]
    assert "What do you want to eat" not in info["caption"]


def test_casting_takes_the_first_spell_and_leaves_the_direction_to_the_agent() -> None:
    spells = 0
    for seed in range(4):
        env = make("nethack/Score")
        env.reset(seed=seed)
        keys = after_each_key(env)
        caption = act(env, "CAST")[4]["caption"]
        assert keys == [ord("Z"), ord("a")]
        if caption == "In what direction?":
            act(env, "W")
            assert keys[2] == ord("h")
            assert not env.game.nethack._obs_buffers["internal"][1]
            spells += 1
    assert spells


def test_praying_asks_first_and_nw_says_yes() -> None:
    env = make("nethack/Score")
    info = act(env, "PRAY")[4]
    assert info == {"caption": "Are you sure you want to pray? [yn] (n)", "grounded": False}
    assert act(env, "NW")[4]["caption"].startswith("You begin praying to ")


def test_other_questions_are_escaped() -> None:
    env = make("nethack/Score")
    internal: np.ndarray = env.game.nethack._obs_buffers["internal"]

    def change(key: int) -> None:
        if key == ord("."):  # a question comes up that no macro knows
            text = b"Really step into that pit? [yn] (n) "
            env._message[:] = 0
            env._message[: len(text)] = np.frombuffer(text, np.uint8)
            internal[1] = 1

    keys = after_each_key(env, change)
    act(env, "WAIT")
    assert keys == [ord("."), 0x1B]


def test_a_skill_is_enhanced_when_the_game_says_that_it_can_be() -> None:
    env = make("nethack/Score")

    def change(key: int) -> None:
        if key == ord("."):
            text = b"You feel more confident in your martial arts skills."
            env._message[: len(text)] = np.frombuffer(text, np.uint8)
            env.game.ear.statements.append(env._message.tobytes())

    keys = after_each_key(env, change)
    caption = act(env, "WAIT")[4]["caption"]
    assert keys[:2] == [ord("."), 0x80 | ord("e")]
    assert keys[2:] and keys[2] == ord("a")  # the menu of skills opened, and its first line was tried
    assert "You feel more confident in your martial arts skills." in caption
    keys.clear()
    act(env, "MORE")
    assert keys == [13]


def test_challenge_is_cut_off_where_time_stands_still() -> None:
    env = envs.make("nethack/Challenge", no_progress_timeout=10)
    env.reset(seed=1)
    name = env.env_spec.action_names.index("MORE")  # an unknown command, which takes no time
    outcomes = [env.step(name)[2:4] for _ in range(10)]
    assert outcomes == [(False, False)] * 9 + [(False, True)]
