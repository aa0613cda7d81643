"""TextWorld: played beside TextWorld's own environment, won, lost, cut off, and fed with nonsense."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import textworld

import envs
from envs.registry import make_text
from envs.textworld import SPLITS, GameFileError, game_seed
from envs.textworld.games import Recipe, story_of
from envs.textworld.interpreter import caption_of
from envs.textworld.tasks import parse
from tests.text_worlds_support import GAMES, game, win

pytestmark = pytest.mark.filterwarnings("ignore::jericho.UnsupportedGameWarning")  # stock's own

ROUND_TRIP = ("go north", "go south", "take type J keycard from mantle", "drop type J keycard", "go north", "go south")


def flat(text: str) -> str:
    return " ".join(text.split())


def stock_of(name: str, seed: int, **infos: bool) -> Any:
    """TextWorld's own environment of the same game."""
    task = parse(name)
    assert task is not None
    return textworld.start(str(story_of(Recipe(task, seed), GAMES)), textworld.EnvInfos(**infos))


@pytest.mark.parametrize("seed", [1, 2])
def test_it_tells_what_textworld_tells(seed: int) -> None:
    """Two hundred random commands, admissible and not, in both: facts, commands, texts, points, rewards."""
    wanted = ("admissible_commands", "facts", "description", "inventory", "objective", "intermediate_reward")
    stock = stock_of("w2-o3-q4", seed, policy_commands=True, **dict.fromkeys(wanted, True))
    env = game(reward="dense", facts=True, walkthrough=True, max_episode_steps=10**6)
    draw = random.Random(seed)
    _, info = env.reset(seed=seed)
    state = stock.reset()
    assert info["walkthrough"] == tuple(state.policy_commands)
    assert info["objective"] == state.objective
    for _ in range(200):
        assert list(info["admissible"]) == state.admissible_commands
        assert info["facts"] == tuple(sorted(f"{f.name}({', '.join(f.names)})" for f in state.facts))
        command = draw.choice([*info["admissible"], "take all", "open nothing", "GO NORTH", "xyzzy"])
        text, reward, terminated, _, info = env.step(command)
        state, score, done = stock.step(command)
        assert (terminated, info["score"]) == (done, score)
        assert reward == state.intermediate_reward
        assert flat(state.description) in flat(text) and flat(state.inventory) in flat(text)
        feedback = re.split(r"\s*>? {20,}-= |Would you like to RESTART", state.feedback)[0].rstrip(" \n>")
        assert flat(feedback) in flat(text)
        if done:
            _, info = env.reset(seed=seed)
            state = stock.reset()
    env.close()
    stock.close()


def test_the_walkthrough_wins_and_each_reward_adds_up() -> None:
    for reward, total in (("sparse", 1.0), ("score", 1.0), ("dense", 4.0)):
        env = game(reward=reward, walkthrough=True, split="test")
        outcomes, first = win(env, 0)
        assert env.seeds["game_seed"] == "1"
        assert sum(outcome[1] for outcome in outcomes) == pytest.approx(total)
        assert [outcome[2] for outcome in outcomes] == [False] * 3 + [True]
        info = outcomes[-1][4]
        assert info["success"] is True and info["metrics"] == {"score": 1.0, "max_score": 1.0}
        assert all(outcome[4]["grounded"] for outcome in outcomes)
        assert "walkthrough" not in info and info["facts"] == ()
        assert first["objective"] == info["objective"] != ""
        with pytest.raises(RuntimeError, match="call reset first"):
            env.step("look")
        env.close()


def test_the_first_text_is_the_room_and_what_one_carries() -> None:
    env = game()
    text, info = env.reset(seed=1)
    assert text.startswith("-= Studio =-\n") and text.endswith("You are carrying nothing.")
    assert "$$" not in text and "\n\n\n" not in text and ">" not in text and "walkthrough" not in info
    assert info["objective"] in env.screen() and text in env.screen()
    assert env.step("look")[0] == text


def test_a_command_is_read_without_regard_to_case_and_full_stop() -> None:
    env = game()
    env.reset(seed=1)
    *_, info = env.step("TAKE TYPE J KEYCARD FROM MANTLE.")
    assert info["grounded"] and info["caption"] == "You take the type J keycard from the mantle."


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("", "I beg your pardon?"),
        ("\x00", "I beg your pardon?"),
        ("loo\x00k\n\r\x1b", "That's not a verb I recognise."),
        ("漢字 \U0001f600 é", "That's not a verb I recognise."),
        ("x" * 100_000, "That is too long for one command."),
        ("look. open type J chest", "One command at a time, please."),
        ("look then go north", "One command at a time, please."),
        ("go north; look", "One command at a time, please."),
        *((f"{word} now", f'"{word}" is no command of this world.') for word in ("restart", "SAVE", "undo", "quit")),
        ("tw-trace-actions", '"tw-trace-actions" is no command of this world.'),
        ("print_state", '"print_state" is no command of this world.'),
        ("*** The End ***", "That's not a verb I recognise."),
    ],
)
def test_hostile_commands_are_answered_and_change_nothing(command: str, answer: str) -> None:
    env = game()
    _, before = env.reset(seed=1)
    files = sorted(GAMES.rglob("*"))
    text, reward, terminated, truncated, info = env.step(command)
    assert answer.lower() in text.lower()
    assert (reward, terminated, truncated, info["grounded"]) == (0.0, False, False, False)
    assert info["admissible"] == before["admissible"]
    assert env.step("look")[4]["caption"] == "-= Studio =-"
    assert sorted(GAMES.rglob("*")) == files
    env.close()


def test_the_limit_truncates_and_is_no_win() -> None:
    env = game(max_episode_steps=3)
    env.reset(seed=1)
    outcomes = [env.step("look") for _ in range(3)]
    assert [(outcome[2], outcome[3]) for outcome in outcomes] == [(False, False)] * 2 + [(False, True)]
    assert outcomes[-1][4]["success"] is False
    for name, limit in (("w2-o3-q4", 12), ("w4-o6-q8", 24), ("coin_collector-10", 30), ("treasure_hunter-1", 12)):
        task = parse(name)
        assert task is not None and task.max_episode_steps == limit


def test_a_lost_game_ends_and_is_no_win() -> None:
    env = game("treasure_hunter-1", reward="dense", max_episode_steps=500)
    won = [outcome for seed in range(1, 3) for outcome in [wander(env, seed)] if outcome[4]["success"]]
    lost = [outcome for seed in range(1, 3) for outcome in [wander(env, seed, lose=True)]]
    assert lost and all(outcome[2] and not outcome[4]["success"] and outcome[1] == -1.0 for outcome in lost)
    assert all(outcome[1] == 1.0 for outcome in won)
    env.close()


def wander(env: Any, seed: int, lose: bool = False) -> Any:
    """Plays at random to the end; with `lose`, never takes what the walkthrough takes."""
    draw = random.Random(seed)
    _, info = env.reset(seed=seed)
    wanted = env._rules.walkthrough[-1]
    while True:
        choices = [command for command in info["admissible"] if not (lose and command == wanted)]
        outcome = env.step(draw.choice(choices))
        info = outcome[4]
        if outcome[2] or outcome[3]:
            return outcome


def test_the_same_seed_gives_the_same_transcript_in_any_process() -> None:
    code = (
        "import hashlib, random\nfrom tests.text_worlds_support import game\n"
        "env, draw = game(facts=True, reward='dense', walkthrough=True), random.Random(3)\n"
        "told = [env.reset(seed=2)]\n"
        "for _ in range(12):\n"
        "    told.append(env.step(draw.choice(told[-1][-1]['admissible'])))\n"
        "    if told[-1][2]: break\n"
        "print(hashlib.sha256(repr(told).encode()).hexdigest())"
    )
    root = str(Path(__file__).resolve().parent.parent)
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": root},
            capture_output=True,
            text=True,
            check=True,
            cwd=root,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


def test_splits_never_overlap() -> None:
    seeds = [set(split) for split in SPLITS.values()]
    assert [len(split) for split in seeds] == [5000, 101, 100]
    assert sum(len(split) for split in seeds) == len(set.union(*seeds))
    for split, expected in SPLITS.items():
        assert {game_seed(seed, split) for seed in range(len(expected))} == set(expected)
        assert game_seed(2**64 - 1, split) in expected
    assert game_seed(2**32 + 7, None) == 7


def test_a_room_is_captioned_by_its_name_and_no_points_are_told() -> None:
    assert caption_of("-= Spare Room =-\nWell, here we are.\nYou see a chair.") == "-= Spare Room =-"
    assert caption_of("(first opening the door)\n-= Den =-\nA den.") == "(first opening the door) -= Den =-"
    ended = "You win.\nYour score has just gone up by one point.\n*** The End ***\nYou scored 1 out of a possible 1, in 6 turns."
    assert caption_of(ended) == "You win. *** The End ***"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "tran"}, "split must be one of train, sft, test, not 'tran'; did you mean 'train'?"),
        ({"reward": "dens"}, "reward must be one of sparse, score, dense, not 'dens'; did you mean 'dense'?"),
        ({"fact": True}, "has no option 'fact'; did you mean 'facts'?"),
        ({"facts": 1}, "facts must be true or false, not 1"),
        ({"goal": "brief"}, "textworld/w2-o3-q4 has no option 'goal'"),
        ({"max_episode_steps": 0}, "max_episode_steps must be a whole number of at least 1, not 0"),
    ],
)
def test_an_option_that_is_wrong_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(envs.EnvironmentOptionError, match=re.escape(message)):
        make_text("textworld/w2-o3-q4", **options)


def test_a_game_file_is_played_and_one_that_is_none_is_said(tmp_path: Path) -> None:
    task = parse("w2-o3-q4")
    assert task is not None
    story = story_of(Recipe(task, 1), GAMES)
    data, about = story.read_bytes(), story.with_suffix(".json").read_bytes()
    mine = tmp_path / "mine.z8"
    mine.write_bytes(data)
    with pytest.raises(envs.EnvironmentIdError, match=r"its mine\.json is missing"):
        make_text(f"textworld/{mine}")
    mine.with_suffix(".json").write_bytes(about)
    env, other = make_text(f"textworld/{mine}", max_episode_steps=12), game()
    assert env.reset(seed=9)[0] == other.reset(seed=1)[0]
    assert env.seeds["seed"] == "9" and len(env.seeds["game"]) == 40
    with pytest.raises(envs.EnvironmentOptionError, match="has no option 'split'"):
        make_text(f"textworld/{mine}", split="test")
    for spoilt, cause in (
        (b"hello" * 100, "is no Z-machine game"),
        (data[:2000], "is cut off: 2000 bytes of"),
        (data[:5000] + b"\xff\xfe" + data[5002:], "is damaged: its checksum does not match"),
    ):
        mine.write_bytes(spoilt)
        with pytest.raises(GameFileError, match=cause):
            make_text(f"textworld/{mine}")
    mine.write_bytes(data)
    for spoilt, cause in ((b"{", "is no JSON"), (json.dumps({"a": 1}).encode(), "is not what TextWorld writes")):
        mine.with_suffix(".json").write_bytes(spoilt)
        with pytest.raises(GameFileError, match=cause):
            make_text(f"textworld/{mine}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("w8-o12-q4", {}),
        ("w4-o6-q8", {}),
        ("coin_collector-5", {}),
        ("treasure_hunter-12", {}),
        ("cooking-recipe1+take1+open+cook+cut+go6", {}),
        ("simple", {"rewards": "dense", "goal": "brief"}),
    ],
)
def test_every_kind_is_generated_and_won_by_its_walkthrough(name: str, options: dict[str, Any]) -> None:
    env = game(name, walkthrough=True, reward="score", **options)
    for seed in (1, 2):
        outcomes, first = win(env, seed)
        assert first["walkthrough"] and outcomes[-1][4]["success"] is True
        assert sum(outcome[1] for outcome in outcomes) == pytest.approx(1.0)
        assert len(outcomes) <= env.env_spec.max_episode_steps
    env.close()


def test_only_the_story_that_is_played_is_kept() -> None:
    """Jericho keeps every story that it ever loaded, 400 kB each; a split has thousands."""
    env = game()
    for seed in (1, 2, 1):
        env.reset(seed=seed)
    assert len(env._interpreter._frotz._cache) == 1
    env.close()
    with pytest.raises(RuntimeError, match="call reset first"):
        env.step("look")
    assert env.reset(seed=1)[0].startswith("-= Studio =-")


def test_states_that_are_forgotten_are_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from envs.textworld import tracking

    plain = game(facts=True)
    told = [plain.reset(seed=1)[1], *(plain.step(command)[4] for command in ROUND_TRIP)]
    monkeypatch.setattr(tracking, "MAX_STATES", 2)
    monkeypatch.setattr(tracking, "_rules", type(tracking._rules)())
    small = game(facts=True)
    assert [small.reset(seed=1)[1], *(small.step(command)[4] for command in ROUND_TRIP)] == told
    assert len(small._rules._states) <= 2
