"""NetHack and MiniHack behind our interface, against the games themselves."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nle.env.tasks import NetHackScore

import envs
from envs.nle_env import Crop, NleEnv
from tests.envs_support import KeyRoomPlayer


def make(env_id: str, **options: Any) -> NleEnv:
    env = envs.make(env_id, **options)
    assert isinstance(env, NleEnv)
    return env


def actions_of(env: envs.YendorEnv, count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(len(env.env_spec.action_names), size=count).tolist()


def press_before(env: NleEnv, change: Any) -> list[int]:
    """Lets `change(key)` alter the game's arrays after every key press; returns the list in which the keys collect."""
    keys: list[int] = []
    original = env.game.nethack.step

    def step(key: int) -> Any:
        outcome = original(key)
        keys.append(int(key))
        change(int(key))
        return outcome

    env.game.nethack.step = step
    return keys


# The crop


@given(st.integers(1, 24), st.integers(1, 90), st.integers(1, 30), st.integers(1, 90), st.data())
@settings(max_examples=200)
def test_crop_against_padding(rows: int, columns: int, height: int, width: int, data: st.DataObject) -> None:
    y, x = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    source = np.random.default_rng(rows * columns).integers(33, 120, size=(rows, columns), dtype=np.uint8)
    out, blank_out = np.zeros((height, width), np.uint8), np.ones((height, width), np.uint8)
    Crop(height, width)(y, x, (source, 32, out), (source, 0, blank_out))
    for blank, crop in ((32, out), (0, blank_out)):
        padded = np.pad(source, ((height, height), (width, width)), constant_values=blank)
        top, left = y + height - height // 2, x + width - width // 2
        np.testing.assert_array_equal(crop, padded[top : top + height, left : left + width])


@pytest.mark.parametrize(("height", "width"), [(9, 9), (12, 12), (1, 1), (40, 200)])
def test_the_agent_is_in_the_middle_of_its_crop(height: int, width: int) -> None:
    env = make("minihack/Room-5x5")
    other = envs.make("minihack/Room-5x5", envs.View(height, width, 300))
    env.reset(seed=5)
    observation, _ = other.reset(seed=5)
    assert {name: (array.shape, str(array.dtype)) for name, array in observation.items()} == {
        "chars": ((height, width), "uint8"),
        "colors": ((height, width), "uint8"),
        "blstats": ((27,), "int32"),
        "message": ((300,), "uint8"),
    }
    assert {name: (spec.shape, spec.dtype) for name, spec in other.env_spec.observation.items()} == {
        name: (array.shape, str(array.dtype)) for name, array in observation.items()
    }
    assert chr(observation["chars"][height // 2, width // 2]) == "@"
    assert observation["colors"][height // 2, width // 2] == 15  # a white @
    assert bytes(observation["message"]).startswith(b"Hello Agent, welcome to NetHack!")


# The rules, against NLE and MiniHack as they come

REFERENCES = [
    ("nethack/Score", {"actions": "task"}, NetHackScore),
    ("minihack/KeyRoom-S5", {}, "MiniHack-KeyRoom-S5-v0"),
    ("minihack/Room-Ultimate-5x5", {}, "MiniHack-Room-Ultimate-5x5-v0"),
    ("minihack/River", {}, "MiniHack-River-v0"),
    ("minihack/LavaCross-Levitate-Potion-Inv-Restricted", {}, "MiniHack-LavaCross-Levitate-Potion-Inv-Restricted-v0"),
    ("minihack/Eat-Distr", {}, "MiniHack-Eat-Distr-v0"),
    ("minihack/WoD-Medium-Restricted", {}, "MiniHack-WoD-Medium-Restricted-v0"),
    ("minihack/Sokoban2a", {}, "MiniHack-Sokoban2a-v1"),
    ("minihack/ExploreMaze-Easy", {}, "MiniHack-ExploreMaze-Easy-v0"),
    ("minihack/Corridor-R3", {}, "MiniHack-Corridor-R3-v0"),
]


@pytest.mark.parametrize(("env_id", "options", "reference"), REFERENCES, ids=[line[0] for line in REFERENCES])
def test_observations_rewards_and_ends_are_those_of_the_reference(env_id: str, options: Any, reference: Any) -> None:
    ours = make(env_id, **options)
    if isinstance(reference, str):
        theirs = gym.make(reference, fix_moon_phase=True).unwrapped
    else:
        # Without `screen_descriptions`: describing a square lets the hero know what lies there, and messages differ.
        theirs = reference(fix_moon_phase=True, observation_keys=("chars", "colors", "blstats", "message"))
    for seed in range(3):
        observation, _ = ours.reset(seed=seed)
        core, disp = int(ours.seeds["core"]), int(ours.seeds["disp"])
        type(theirs.nethack).set_initial_seeds(theirs.nethack, core, disp, False, None)
        theirs_observation, _ = theirs.reset()
        for action in actions_of(ours, 150, seed):
            observation, reward, terminated, truncated, info = ours.step(action)
            theirs_observation, theirs_reward, done, _, theirs_info = theirs.step(action)
            assert reward == theirs_reward
            assert (terminated or truncated) == done
            if done:
                assert truncated == (theirs_info["end_status"] == theirs.StepStatus.ABORTED)
                if ours.env_spec.has_success:
                    assert info["success"] == (theirs_info["end_status"] == theirs.StepStatus.TASK_SUCCESSFUL)
                break
            assert observation["blstats"].tolist() == theirs_observation["blstats"].tolist()
            assert bytes(observation["message"]) == bytes(theirs_observation["message"])
            y, x = theirs_observation["blstats"][1], theirs_observation["blstats"][0]
            for name, blank in (("chars", 32), ("colors", 0)):
                padded = np.pad(theirs_observation[name], 9, constant_values=blank)
                expected = padded[y + 5 : y + 14, x + 5 : x + 14]
                np.testing.assert_array_equal(observation[name], expected)
    ours.close()
    theirs.close()


def test_the_doors_that_keyroom_looks_for_are_those_that_minihack_describes() -> None:
    theirs: Any = gym.make("MiniHack-KeyRoom-S5-v0", fix_moon_phase=True).unwrapped
    ours = make("minihack/KeyRoom-S5")
    found = 0
    for seed in (0, 2, 3, 4, 5):
        ours.reset(seed=seed)
        player = KeyRoomPlayer(ours)
        player.fetch_key_and_face_door()
        core, disp = int(ours.seeds["core"]), int(ours.seeds["disp"])
        type(theirs.nethack).set_initial_seeds(theirs.nethack, core, disp, False, None)
        theirs.reset()
        for name, _ in player.log:
            theirs.step(player.names.index(name))
        game: Any = ours.game
        assert game.get_object_direction("closed door") == theirs.get_object_direction("closed door") is not None
        assert game.key_in_inventory("key") == theirs.key_in_inventory("key") is not None
        found += 1
    assert found == 5


# Ends


def test_the_time_limit_truncates_and_leaves_the_last_observation_as_it_was() -> None:
    short, long = make("nethack/Score", max_episode_steps=20), make("nethack/Score", max_episode_steps=21)
    short.reset(seed=7)
    long.reset(seed=7)
    for step in range(20):
        ours, theirs = short.step(19), long.step(19)  # WAIT
        assert ours[1] == theirs[1]
        for name in ours[0]:
            np.testing.assert_array_equal(ours[0][name], theirs[0][name])
        assert ours[2:4] == (False, step == 19)
    assert theirs[2:4] == (False, False)
    assert ours[4]["success"] is None
    assert ours[0]["blstats"][10] > 0  # hit points: NLE, which quits the game, would show zeros
    assert short.screen() == long.screen()


def test_a_game_cut_off_is_no_part_of_the_next() -> None:
    env, fresh = make("nethack/Score", max_episode_steps=5), make("nethack/Score")
    for seed in range(4):
        env.reset(seed=seed)
        for action in actions_of(env, 5):
            env.step(action)
    a, b = env.reset(seed=9)[0], fresh.reset(seed=9)[0]
    assert all((a[name] == b[name]).all() for name in a)
    assert env.screen() == fresh.screen()


def test_winning_with_the_last_step_allowed_is_winning() -> None:
    env = make("minihack/KeyRoom-S5")
    env.reset(seed=0)
    player = KeyRoomPlayer(env)
    player.solve()
    steps = len(player.log)
    for limit, expected in ((steps, (1.0, True, False)), (steps - 1, (0.0, False, True))):
        limited = make("minihack/KeyRoom-S5", max_episode_steps=limit)
        limited.reset(seed=0)
        for name, _ in player.log[:limit]:
            outcome = limited.step(player.names.index(name))
        assert outcome[1:4] == expected
        assert outcome[4]["success"] is expected[1]


def test_death_terminates_and_the_metrics_are_those_of_the_living() -> None:
    env = make("nethack/Score")
    env.reset(seed=3)
    alive: dict[str, Any] = {}
    for action in actions_of(env, 3000):
        observation, _, terminated, truncated, info = env.step(action)
        if terminated:
            break
        alive = {"blstats": observation["blstats"].tolist()}
    assert terminated and not truncated
    assert observation["blstats"].tolist() == [0] * 27  # a game that is over shows nothing
    blstats = alive["blstats"]
    assert info["metrics"]["gold"] == blstats[13]
    assert info["metrics"]["experience_level"] == blstats[18]
    assert info["metrics"]["score"] == blstats[9]
    assert info["metrics"]["dungeon_level"] >= 1
    assert info["metrics"]["scout"] > 20
    assert "die" in info["caption"]


def test_scout_sums_the_squares_seen_over_levels_and_depth_is_the_deepest() -> None:
    env = make("nethack/Score", max_episode_steps=4)
    env.reset(seed=1)
    first = 21 * 79 - env._chars.tobytes().count(b" ")

    def change(key: int) -> None:
        # The second step leads to a level with 100 squares in sight, the third back up, where nothing new is seen.
        step = len(keys)
        env._chars[:] = ord(" ")
        env._chars.reshape(-1)[: 100 if step == 2 else first] = ord(".")
        env._blstats[24] = env._blstats[12] = 2 if step == 2 else 1
        env._blstats[13] = 77

    keys = press_before(env, change)
    for _ in range(4):
        info = env.step(19)[4]
    assert info["metrics"]["scout"] == first + 100
    assert info["metrics"]["dungeon_level"] == 2
    assert info["metrics"]["gold"] == 77


def test_numbers_beyond_32_bits_are_clipped() -> None:
    env = make("nethack/Score")
    env.reset(seed=1)

    def change(key: int) -> None:
        env._blstats[9], env._blstats[13] = 2**40, -(2**40)

    press_before(env, change)
    blstats = env.step(19)[0]["blstats"]
    assert (blstats[9], blstats[13]) == (2**31 - 1, -(2**31))


# Seeds

WALK = """
import hashlib, numpy as np, envs
def walk(env, seed):
    digest = hashlib.blake2b(digest_size=16)
    observation, info = env.reset(seed=seed)
    for action in np.random.default_rng(seed).integers(len(env.env_spec.action_names), size=120).tolist():
        digest.update(b"".join(observation[name].tobytes() for name in sorted(observation)))
        observation, reward, terminated, truncated, info = env.step(action)
        digest.update(repr((reward, terminated, truncated, info)).encode())
        if terminated or truncated:
            break
    return digest.hexdigest()
"""
SEEDED = ["nethack/Score", "nethack/Challenge", "minihack/Room-Monster-5x5", "minihack/Eat-Distr"]


def test_a_seed_gives_the_same_game_in_another_process_and_after_other_games() -> None:
    code = WALK + f"print([walk(envs.make(env_id), 2**64 - 1) for env_id in {SEEDED}])"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    scope: dict[str, Any] = {}
    exec(WALK, scope)
    here: list[str] = []
    for env_id in SEEDED:
        env = envs.make(env_id)
        others = {scope["walk"](env, seed) for seed in range(3)}
        here.append(scope["walk"](env, 2**64 - 1))
        assert len(others | {here[-1]}) == 4
    assert done.stdout.strip() == repr(here)


def test_the_scores_of_other_games_are_not_in_the_last_screen() -> None:
    def last_screen(seed: int) -> str:
        env.reset(seed=seed)
        for action in actions_of(env, 3000):
            if env.step(action)[2]:
                break
        return env.screen()

    env = make("nethack/Score")
    first = last_screen(3)
    assert "No  Points" in first
    assert "30  Agent" in last_screen(1)  # with points, so it is on NetHack's list
    assert last_screen(3) == first


def test_the_seeds_that_were_set_are_told_and_can_be_set_again() -> None:
    env, other = make("nethack/Score"), make("nethack/Score")
    env.reset()
    drawn = env.seeds
    other.reset(seed=int(drawn["seed"]))
    assert other.seeds == drawn
    assert other.screen() == env.screen()
    env.reset(seed=2**64 - 1)
    assert env.seeds["seed"] == str(2**64 - 1)
    assert all(isinstance(value, str) for value in env.seeds.values())
    with pytest.raises(ValueError, match="between 0 and 2\\^64 - 1, not -1"):
        env.reset(seed=-1)
    with pytest.raises(ValueError, match="reset takes no options, but was given fish"):
        env.reset(options={"fish": 1})


def test_boxobans_levels_follow_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "unfiltered" / "train"
    folder.mkdir(parents=True)
    level = "; 0\n##########\n#{}#\n#        #\n##########\n\n"
    (folder / "000.txt").write_text(level.format("@ $.    ") + level.format("    .$ @"))
    monkeypatch.setattr("minihack.envs.boxohack.LEVELS_PATH", str(tmp_path))
    env = make("minihack/Boxoban-Unfiltered")
    state = random.getstate()
    screens = [(env.reset(seed=seed), env.screen())[1] for seed in (1, 2, 3, 4, 5, 6, 1, 2, 3)]
    assert random.getstate() == state
    assert screens[:3] == screens[6:]
    assert len({screen.index("@") < screen.index("`") for screen in screens}) == 2  # both levels came up


def test_multiroom_follows_the_seed() -> None:
    pytest.importorskip("minigrid")
    env, other = make("minihack/MultiRoom-N4"), make("minihack/LavaCrossingS9N1")
    for each in (env, other):
        screens = [(each.reset(seed=seed), each.screen())[1] for seed in (1, 2, 3, 1)]
        assert screens[0] == screens[3]
        assert len(set(screens)) == 3


# Captions


def test_keyroom_tells_that_the_door_was_unlocked_and_opened() -> None:
    env = make("minihack/KeyRoom-S5")
    env.reset(seed=0)
    player = KeyRoomPlayer(env)
    door = player.fetch_key_and_face_door()
    assert any("a key named" in caption for caption in player.captions)
    before = env.screen()
    observation, reward, terminated, _, info = player.act("APPLY")
    assert info == {"caption": "You succeed in unlocking the door. The door opens.", "grounded": True}
    assert bytes(observation["message"]).startswith(b"Never mind.\0")
    assert reward == pytest.approx(-0.01) and not terminated
    assert env.screen() != before
    player.act("APPLY")  # there is no closed door any more
    assert player.log[-1][1][4] == {"caption": "Never mind.", "grounded": False}
    player.act(door)
    assert player.log[-1][1][4]["grounded"]


def test_what_was_said_is_told_once_and_again_only_when_it_is_said_again() -> None:
    env = make("minihack/Room-5x5", max_episode_steps=50)
    env.reset(seed=5)
    names = env.env_spec.action_names
    said: list[tuple[str, bool]] = []
    for name in ["N", "N", "N", "N", "N", "N", "S", "N", "N"]:
        _, _, _, _, info = env.step(names.index(name))
        said.append((info["caption"], info["grounded"]))
    stone = ("It's solid stone.", False)
    moved = ("", True)
    assert said == [stone] * 6 + [moved, moved, stone]


def test_a_game_that_never_comes_back_from_a_step_is_given_up() -> None:
    env = make("minihack/KeyRoom-S5")
    env.reset(seed=0)
    player = KeyRoomPlayer(env)
    player.fetch_key_and_face_door()
    game: Any = env.game
    game.get_object_direction = lambda name, observation=None: ord("h")  # a door that is always closed

    def say(key: int) -> None:
        env._message[: len(b"It's a wall.")] = np.frombuffer(b"It's a wall.", np.uint8)

    press_before(env, say)
    with pytest.raises(RuntimeError, match=r"has not come back from one step after 2000 messages"):
        for _ in range(2):
            player.act("APPLY")
