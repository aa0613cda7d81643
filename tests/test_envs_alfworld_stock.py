"""Made games against ALFWorld's own environment: the same texts, commands and ends, and the same bytes everywhere."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.alfworld import stock_env
from envs.alfworld.data import read_game
from envs.alfworld.engine import name_entities
from envs.alfworld.generate import GAME_FILE, TRAJ_FILE, prepare
from envs.alfworld.ids import TASK_TYPES
from envs.registry import EnvironmentUnavailableError, make_text

pytestmark = pytest.mark.slow

RANDOM_STEPS = 6


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A cache with one game of each task type in the unseen rooms."""
    folder = tmp_path_factory.mktemp("alfworld")
    prepare("all", "unseen", range(len(TASK_TYPES)), workers=2, cache_dir=folder)
    return folder


@pytest.fixture(scope="module")
def stock():
    argv = list(sys.argv)
    yield stock_env()
    sys.argv = argv  # the planner's Python side sets it


def assert_same(env, stock, commands, rng, extra):
    """Plays `commands`, then `extra` random admissible ones; both must say the same and admit the same."""
    text, info = env.reset(seed=0)
    stock.load(str(env.folder / GAME_FILE))
    state = stock.reset()
    assert text == state.feedback
    played, won = list(commands), False
    while not won and (played or extra > 0):
        assert list(info["admissible"]) == sorted(state["admissible_commands"])
        if played:
            command = played.pop(0)
        else:
            extra -= 1
            told = [command for command in info["admissible"] if not command.startswith("go to")]
            command = rng.choice(told if rng.random() < 0.5 else list(info["admissible"]))
        text, reward, won, _, info = env.step(command)
        state, _, done = stock.step(command)
        assert text == state.feedback, command
        assert won == done == state["won"] == bool(reward)
    return won


@pytest.mark.parametrize("task", TASK_TYPES)
def test_it_says_what_alfworld_says_and_the_walkthrough_wins(kept, stock, task):
    env = make_text(f"alfworld/{task}", split="unseen", games=1, cache_dir=str(kept))
    # `all` of six numbers made number 0 of each type.
    walkthrough = env.reset(seed=0)[1]["walkthrough"]
    half = len(walkthrough) // 2
    assert_same(env, stock, walkthrough[:half], random.Random(task), RANDOM_STEPS)
    assert assert_same(env, stock, ["hello", *walkthrough], random.Random(task), 0)
    env.close()


def test_shuffled_numbers_are_those_of_alfworld(kept):
    from alfworld.agents.utils.misc import Demangler
    from textworld.generator.game import EntityInfo

    env = make_text("alfworld/look_at_obj_in_light", split="unseen", games=1, cache_dir=str(kept))
    env.reset(seed=0)
    objects = env._player.world.objects
    facts = [("fact", *objects)]
    infos = {name: EntityInfo(name, kind) for name, kind in objects.items()}
    for seed in (None, 0, 1):
        state = random.getstate()
        random.seed(seed)
        theirs = Demangler(game_infos=infos, shuffle=seed is not None)
        random.setstate(state)
        ours = name_entities(facts, objects, None if seed is None else random.Random(seed))
        assert {name: entity.name for name, entity in ours.items()} == {
            name: theirs.demangle_alfred_name(name) for name in objects
        }
    env.close()


MAKE = """
import sys
from envs.alfworld.generate import prepare
for folder in prepare("pick_cool_then_place_in_recep", "train", [5], cache_dir=sys.argv[1]):
    print(folder)
"""


def test_a_game_is_the_same_bytes_in_every_process_and_they_do_not_disturb_each_other(tmp_path):
    """Three processes at once, with other hashes each; two of them share a cache."""
    makers = [
        subprocess.Popen(
            [sys.executable, "-c", MAKE, str(tmp_path / cache)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for cache, seed in (("one", "1"), ("two", "77"), ("two", "5"))
    ]
    folders = [Path(maker.communicate(timeout=200)[0].strip()) for maker in makers]
    assert [maker.returncode for maker in makers] == [0, 0, 0]
    assert folders[1] == folders[2] and folders[0].name == folders[1].name
    for folder in folders[:2]:
        assert sorted(path.name for path in folder.iterdir()) == [GAME_FILE, TRAJ_FILE]
        assert list(folder.parent.iterdir()) == [folder]
    for name in (GAME_FILE, TRAJ_FILE):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_splits_share_neither_rooms_nor_games(tmp_path, kept):
    made = {"unseen": kept, "train": tmp_path, "seen": tmp_path}
    plans, texts = {}, {}
    for split, cache in made.items():
        (folder,) = prepare("look_at_obj_in_light", split, [0], cache_dir=cache)
        game, traj = read_game(folder)
        plans[split], texts[split] = traj["scene"]["scene_num"], game["pddl_problem"]
    assert plans["unseen"] not in (plans["train"], plans["seen"])
    assert len(set(texts.values())) == 3


def test_the_layout_of_the_download_is_played_by_the_same_class(kept, tmp_path):
    root = tmp_path / "json_2.1.1"
    for task in TASK_TYPES:
        (folder,) = (kept / "games" / task / "unseen").iterdir()
        shutil.copytree(folder, root / "valid_unseen" / f"{task}-X-None-Y-301" / "trial_T1")
    downloaded = make_text(f"alfworld/{tmp_path}", split="unseen", cache_dir=str(kept))
    made = make_text("alfworld/all", split="unseen", games=1, cache_dir=str(kept))
    assert type(downloaded) is type(made)
    by_path = sorted(TASK_TYPES)
    for seed, task in enumerate(TASK_TYPES):
        text, info = made.reset(seed=seed)
        assert (text, info) == downloaded.reset(seed=by_path.index(task))
        for command in info["walkthrough"]:
            assert made.step(command) == (last := downloaded.step(command))
        assert last[2] and last[4]["success"]
    # A game file that breaks after it was listed.
    broken = root / "valid_unseen" / f"{by_path[0]}-X-None-Y-301" / "trial_T1" / GAME_FILE
    broken.write_text(json.dumps({**json.loads(broken.read_text()), "pddl_problem": "(define"}))
    with pytest.raises(EnvironmentUnavailableError, match="can't be played"):
        downloaded.reset(seed=0)
    downloaded.close()
    made.close()
