"""ALFWorld without its stock environment: names, rooms, scenes, grammar, progress, cache, data folders, one game played."""

import importlib.metadata
import json
import os
import random
import signal
import threading
from pathlib import Path

import pytest

from envs import cache
from envs.alfworld import package
from envs.alfworld.compiled import GameFileError, compile_game
from envs.alfworld.data import FOLDERS, find_games
from envs.alfworld.engine import NOTHING
from envs.alfworld.generate import GAME_FILE, TRAJ_FILE, essential, game_of, prepare
from envs.alfworld.grammar import Entity, Grammar, GrammarError, World
from envs.alfworld.ids import TASK_TYPES, accepts, alfworld_ids, tasks_of
from envs.alfworld.planner import Planner, PlannerError, TranslationError, shared_planner
from envs.alfworld.problem import mangle
from envs.alfworld.progress import Progress
from envs.alfworld.rooms import KINDS, MAX_OF_A_TYPE, UNSEEN_PLANS, plans_of, room
from envs.alfworld.scenes import MAX_THINGS, TREATMENTS, draw
from envs.base import EnvironmentIdError
from envs.registry import EnvironmentOptionError, EnvironmentUnavailableError, make_text, validate_id


def scenes(task, unseen=False, count=12):
    drawn = (draw(task, unseen, random.Random(f"{task} {n}")) for n in range(200))
    return [scene for scene in drawn if scene is not None][:count]


# Names


def test_ids_are_the_six_task_types_and_all():
    assert len(TASK_TYPES) == 6
    assert alfworld_ids() == ["alfworld/all", *(f"alfworld/{task}" for task in TASK_TYPES)]
    assert set(TASK_TYPES) <= package.goals().keys()


def test_mixes_are_taken_in_alfworlds_order():
    assert tasks_of("pick_two_obj_and_place+look_at_obj_in_light") == ("look_at_obj_in_light", "pick_two_obj_and_place")
    assert tasks_of("all") == TASK_TYPES
    assert accepts("pick_and_place_simple+look_at_obj_in_light")
    assert accepts("./somewhere") and accepts("/some/where") and not accepts("pick_and_place")


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("alfworld/pick_and_place_simpel", "did you mean 'alfworld/pick_and_place_simple'"),
        ("alfworld/pick_and_place_simple+look_at_obj_in_ligth", "did you mean 'look_at_obj_in_light'"),
        ("alfworld/look_at_obj_in_light+look_at_obj_in_light", "twice"),
    ],
)
def test_an_unknown_task_type_names_the_near_miss(env_id, message):
    with pytest.raises(EnvironmentIdError, match=message):
        validate_id(env_id, "language")


def test_a_seed_names_a_task_in_turn_and_a_number():
    mix = TASK_TYPES[:2]
    assert [game_of(mix, seed, 2) for seed in range(6)] == [
        (mix[0], 0), (mix[1], 0), (mix[0], 1), (mix[1], 1), (mix[0], 0), (mix[1], 0),
    ]  # fmt: skip


# Rooms and scenes


def test_no_room_of_the_unseen_split_is_one_of_training():
    for kind, plans in KINDS.items():
        train, unseen = set(plans_of(kind, False)), set(plans_of(kind, True))
        assert train | unseen == set(plans) and not train & unseen and len(unseen) == 6
    assert set(package.constants().TEST_SCENE_NUMBERS) == UNSEEN_PLANS


def test_every_room_can_be_read_and_is_bounded():
    for plans in KINDS.values():
        for plan in plans:
            place = room(plan)
            ids = [receptacle.id for receptacle in place.receptacles]
            types = [receptacle.type for receptacle in place.receptacles]
            assert ids and len(set(ids)) == len(ids)
            assert max(types.count(kind) for kind in types) <= MAX_OF_A_TYPE
            assert set(types) <= package.constants().RECEPTACLES | {"Bathtub", "Sink"}
            assert place.start not in {receptacle.location for receptacle in place.receptacles}


@pytest.mark.parametrize("task", TASK_TYPES)
def test_a_scene_has_what_its_task_needs_and_is_not_solved_yet(task):
    lists = package.constants()
    found = scenes(task)
    assert found
    for scene in found:
        types = {receptacle.id: receptacle.type for receptacle in scene.room.receptacles}
        targets = [thing for thing in scene.things if thing.type == scene.target]
        assert len(targets) >= (2 if task == "pick_two_obj_and_place" else 1)
        assert len(scene.things) <= MAX_THINGS
        assert all(types[thing.receptacle] != scene.parent for thing in targets)
        for thing in scene.things:
            if thing.type != scene.toggle:
                assert thing.type in lists.VAL_RECEPTACLE_OBJECTS[types[thing.receptacle]]
        if task in TREATMENTS:
            ability, device = TREATMENTS[task]
            assert scene.target in lists.VAL_ACTION_OBJECTS[ability] and device in types.values()
        if task == "look_at_obj_in_light":
            assert scene.toggle in {thing.type for thing in scene.things}
        else:
            assert scene.target in lists.VAL_RECEPTACLE_OBJECTS[scene.parent]
        assert (scene.room.plan in UNSEEN_PLANS) is False


@pytest.mark.parametrize("task", TASK_TYPES)
def test_unseen_scenes_lie_in_unseen_rooms(task):
    assert all(scene.room.plan in UNSEEN_PLANS for scene in scenes(task, unseen=True))


def test_what_a_task_is_about_is_a_part_of_its_scene():
    for scene in scenes("pick_heat_then_place_in_recep"):
        part = essential(scene)
        assert set(part.things) <= set(scene.things) and set(part.room.receptacles) <= set(scene.room.receptacles)
        assert {thing.type for thing in part.things} == {scene.target}
        assert {"Microwave", scene.parent} <= set(part.room.receptacle_types())


def test_names_are_spelt_as_alfworld_spells_them():
    assert mangle("Mug|-01.57|+00.9,0 # object") == "Mug_bar__minus_01_dot_57_bar__plus_00_dot_9_comma_0 - object"


# Grammar

BASE = {"list_empty": [([], [["text", "nothing"]])], "list_separator": [([], [["text", ", "]])]}
BASE["list_last_separator"] = [([], [["text", ", and "]])]


def grammar(**rules):
    return Grammar({"rules": {**BASE, **rules}, "actions": {}, "intro": [["rule", "intro"]]})


def world():
    objects = {"mug_1": "object", "pan_1": "object", "pot_1": "object", "desk_1": "receptacle", "bed_1": "receptacle"}
    facts = [("in", "pot_1", "desk_1"), ("in", "mug_1", "desk_1"), ("in", "pan_1", "desk_1"), ("open", "desk_1")]
    made = World(facts, objects, {kind: ["object"] for kind in ("object", "receptacle")})
    made.entities = {thing: Entity(thing, kind, thing.replace("_", " ")) for thing, kind in objects.items()}
    return made


IN = [["in", [["o", "object"], ["r", "receptacle"]]]]
LIST = ["list", ["each", ["value", "o.indefinite + ' ' + o.name "], IN]]


def test_lists_are_sorted_and_joined_and_follow_the_facts():
    told, now = grammar(intro=[([], [["text", "You see "], LIST, ["text", "."]])]), world()
    assert told.intro(now) == "You see a mug 1, a pan 1, and a pot 1."
    now.change("in", ("mug_1", "desk_1"), False)
    assert told.intro(now) == "You see a pan 1, and a pot 1."
    now.change("in", ("pot_1", "desk_1"), False)
    assert told.intro(now) == "You see a pan 1."
    now.change("in", ("pan_1", "desk_1"), False)
    assert told.intro(now) == "You see nothing."
    now.change("in", ("mug_1", "desk_1"), True)
    assert told.intro(now) == "You see a mug 1."


def test_the_first_rule_whose_condition_holds_is_taken():
    is_open, never = [["open", [["r", "receptacle"]]]], [["not_open", [["r", "receptacle"]]]]
    told = grammar(intro=[(never, [["text", "shut"]]), (is_open, [["text", "open"]]), ([], [["text", "else"]])])
    now = world()
    assert told.intro(now) == "open"
    now.change("open", ("desk_1",), False)
    assert told.intro(now) == "shut"  # that which was true and is not any more
    assert told.say("intro", now, {("r", "receptacle"): "bed_1"}) == "else"


def test_two_placeholders_never_stand_for_one_thing():
    both = [["in", [["o", "object"], ["r", "receptacle"]]], ["in", [["p", "object"], ["r", "receptacle"]]]]
    told = grammar(intro=[([], [["each", ["value", "o.name + '/' + p.name + ' '"], both]])])
    assert told.intro(world()).split() == [
        "mug", "1/pan", "1", "mug", "1/pot", "1", "pan", "1/mug", "1",
        "pan", "1/pot", "1", "pot", "1/mug", "1", "pot", "1/pan", "1",
    ]  # fmt: skip


@pytest.mark.parametrize("expression", ["__import__('os')", "o.__class__", "[x for x in o]", "o.name * 9", "o.name +"])
def test_a_game_file_runs_no_code(expression):
    with pytest.raises(GrammarError, match="expression"):
        grammar(intro=[([], [["value", expression]])])


def test_a_rule_that_is_missing_is_named():
    with pytest.raises(GrammarError, match="'nowhere'"):
        grammar(intro=[([], [["rule", "nowhere"]])]).intro(world())


# Progress


def house(task):
    objects = dict.fromkeys(("mug_1", "mug_2", "lamp_1", "pan_1"), "object") | {
        "desk_1": "receptacle",
        "me": "agent",
    }
    facts = [("objecttype", "mug_1", "mugtype"), ("objecttype", "mug_2", "mugtype"), ("objecttype", "pan_1", "pantype")]
    facts += [("objecttype", "lamp_1", "desklamptype"), ("receptacletype", "desk_1", "desktype")]
    names = {"object_target": "Mug", "parent_target": "Desk", "toggle_target": "DeskLamp"}
    return World(facts, objects, {}), {"task_type": task, "pddl_params": names}


@pytest.mark.parametrize(
    ("task", "changes", "rewards"),
    [
        ("pick_and_place_simple", [("holds", "me", "pan_1"), ("holds", "me", "mug_1")], [0, 1 / 2, 1 / 2]),
        ("look_at_obj_in_light", [("istoggled", "lamp_1"), ("holds", "me", "mug_1")], [1 / 3, 1 / 3, 1 / 3]),
        ("pick_clean_then_place_in_recep", [("holds", "me", "mug_1"), ("isclean", "mug_1")], [1 / 3, 1 / 3, 1 / 3]),
        ("pick_heat_then_place_in_recep", [("ishot", "pan_1"), ("ishot", "mug_2")], [0, 2 / 3, 1 / 3]),
        ("pick_cool_then_place_in_recep", [("holds", "me", "mug_1"), ("iscool", "mug_1")], [1 / 3, 1 / 3, 1 / 3]),
        (
            "pick_two_obj_and_place",
            [("holds", "me", "mug_1"), ("inreceptacle", "mug_1", "desk_1"), ("inreceptacle", "pan_1", "desk_1")],
            [1 / 4, 1 / 2, 0, 1 / 4],
        ),
    ],
)
def test_dense_rewards_pay_each_subgoal_once_and_sum_to_one(task, changes, rewards):
    now, traj = house(task)
    progress = Progress(traj, now, won=False)
    paid = []
    for predicate, *things in changes:
        now.change(predicate, tuple(things), True)
        paid.append(progress.update(False))
    now.change(changes[0][0], tuple(changes[0][1:]), False)
    assert progress.update(False) == 0  # what is undone costs nothing, and pays nothing when it is done again
    now.change(changes[0][0], tuple(changes[0][1:]), True)
    assert progress.update(False) == 0 and sum(paid) < 1
    paid.append(progress.update(True))
    assert paid == pytest.approx(rewards) and sum(paid) == pytest.approx(1) and progress.share == 1


def test_what_is_done_at_the_start_is_not_paid_for():
    now, traj = house("pick_two_obj_and_place")
    now.change("inreceptacle", ("mug_1", "desk_1"), True)
    progress = Progress(traj, now, won=False)
    now.change("holds", ("me", "mug_2"), True)
    assert [progress.update(False), progress.update(True)] == pytest.approx([1 / 2, 1 / 2])


# The cache


def test_what_is_kept_is_made_once_and_again_when_it_is_broken(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"a": [1, 2]}

    assert cache.keep_json(tmp_path, "abcd", make) == cache.keep_json(tmp_path, "abcd", make) == {"a": [1, 2]}
    assert len(made) == 1
    path = tmp_path / "ab" / "abcd.json.zst"
    path.write_bytes(path.read_bytes()[:9])
    assert cache.keep_json(tmp_path, "abcd", make) == {"a": [1, 2]} and len(made) == 2
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_of_many_writers_of_a_folder_one_wins_whole(tmp_path):
    def write(number):
        cache.keep_folder(tmp_path / "game", {name: f"{number}".encode() * 10_000 for name in ("one", "two")})

    writers = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [folder.name for folder in tmp_path.iterdir()] == ["game"]
    one, two = ((tmp_path / "game" / name).read_bytes() for name in ("one", "two"))
    assert one == two and len(one) == 10_000


def test_the_cache_is_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv("YENDOR_CACHE", str(tmp_path))
    assert cache.cache_folder("alfworld") == tmp_path / "alfworld"
    monkeypatch.delenv("YENDOR_CACHE")
    assert cache.cache_folder("alfworld") == Path(".cache/alfworld")


# Folders of data


def lay_out(root, split, name, task="pick_and_place_simple", solvable=True):
    folder = root / split / name / "trial_T1"
    folder.mkdir(parents=True)
    (folder / GAME_FILE).write_text(json.dumps({"solvable": solvable}))
    (folder / TRAJ_FILE).write_text(json.dumps({"task_type": task}))
    return folder


def test_games_of_a_download_are_found_by_split_and_task(tmp_path):
    root = tmp_path / "json_2.1.1"
    simple = lay_out(root, "train", "pick_and_place_simple-Mug-None-Desk-301")
    light = lay_out(root, "train", "look_at_obj_in_light-Mug-None-DeskLamp-301", "look_at_obj_in_light")
    lay_out(root, "train", "pick_and_place_simple-Cup-None-Desk-301", solvable=False)
    lay_out(root, "train", "pick_and_place_simple-AppleSliced-None-Desk-301")
    lay_out(root, "train", "pick_and_place_with_movable_recep-Cup-Pan-Desk-301")
    seen = lay_out(root, "valid_seen", "pick_and_place_simple-Mug-None-Desk-302")
    lay_out(root, "valid_unseen", "pick_and_place_simple-Mug-None-Desk-303")

    def found(path, split=None, tasks=TASK_TYPES):
        return find_games("alfworld/x", str(path), split, tasks, tmp_path / "cache")

    for path in (tmp_path, root):
        assert found(path) == found(path, "train") == (light, simple)
        assert found(path, "seen") == (seen,)
        assert found(path, "train", ["look_at_obj_in_light"]) == (light,)
    assert found(root / "valid_seen") == found(root / "valid_seen", "seen") == (seen,)
    assert found(simple / GAME_FILE) == (simple,) and found(simple) == (simple,)
    with pytest.raises(EnvironmentOptionError, match="split=train"):
        found(root / "valid_seen", "train")
    with pytest.raises(EnvironmentOptionError, match="split=seen has no effect"):
        found(simple / GAME_FILE, "seen")
    with pytest.raises(EnvironmentUnavailableError, match="no solvable game of pick_two_obj_and_place"):
        found(root, "seen", ["pick_two_obj_and_place"])
    with pytest.raises(GameFileError, match="the files of games are called"):
        found(simple / TRAJ_FILE)


@pytest.mark.parametrize("there", [False, True])
def test_missing_data_says_the_command_and_the_choice(tmp_path, there):
    path = tmp_path / "data"
    if there:
        path.mkdir()
    with pytest.raises(EnvironmentUnavailableError) as raised:
        make_text(f"alfworld/{path}", cache_dir=str(tmp_path / "cache"))
    message = str(raised.value)
    assert f"ALFWORLD_DATA={path} alfworld-download" in message and "alfworld/all" in message and "\n" not in message


def test_a_download_without_the_split_says_so(tmp_path):
    lay_out(tmp_path, FOLDERS["train"], "pick_and_place_simple-Mug-None-Desk-301")
    with pytest.raises(EnvironmentUnavailableError, match="has no folder valid_unseen"):
        make_text(f"alfworld/{tmp_path}", split="unseen")


def test_a_corrupt_game_file_is_named(tmp_path):
    folder = lay_out(tmp_path, "train", "pick_and_place_simple-Mug-None-Desk-301")
    (folder / GAME_FILE).write_bytes(b"\x00 no json")
    with pytest.raises(EnvironmentUnavailableError, match=f"{GAME_FILE} is no ALFWorld game"):
        make_text(f"alfworld/{tmp_path}", cache_dir=str(tmp_path / "cache"))


def test_a_game_file_without_a_problem_is_named(tmp_path):
    lay_out(tmp_path, "train", "pick_and_place_simple-Mug-None-Desk-301")
    env = make_text(f"alfworld/{tmp_path}", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(EnvironmentUnavailableError, match="is no ALFWorld game: it has no 'pddl_domain'"):
        env.reset(seed=0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("all", {"splitt": "train"}, "did you mean 'split'"),
        ("all", {"split": "unsen"}, "did you mean 'unseen'"),
        ("all", {"reward": "dens"}, "did you mean 'dense'"),
        ("all", {"facts": 1}, "true or false"),
        ("all", {"games": 0}, "at least 1"),
        ("all", {"max_episode_steps": 0}, "at least 1"),
        ("all", {"tasks": "all"}, "no option 'tasks'"),
        ("./x", {"games": 3}, "no option 'games'"),
        ("all", {"split": "seen", "domain_randomization": True}, "for split=train"),
        ("all", {"cache_dir": ""}, "cache_dir must be a folder"),
    ],
)
def test_wrong_options_are_named(name, options, message):
    with pytest.raises(EnvironmentOptionError, match=message):
        make_text(f"alfworld/{name}", **options)


def test_a_package_that_is_missing_is_named(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    package.versions.cache_clear()
    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(EnvironmentUnavailableError, match="need the package alfworld: pip install"):
        make_text("alfworld/all")
    monkeypatch.undo()
    assert "alfworld==" in package.versions()


# The translator


def test_a_problem_that_is_none_is_refused_and_the_translator_lives_on():
    with Planner() as planner:
        for problem in ("", "(define (problem x) (:domain alfred))", "nonsense ("):
            with pytest.raises(TranslationError) as raised:
                planner.problem(package.domain(), problem)
            assert "\n" not in str(raised.value)


def test_a_translator_that_dies_is_named_and_replaced():
    with Planner() as planner:
        with pytest.raises(TranslationError):
            planner.plan(package.domain(), "")
        process = planner._process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(PlannerError, match=r"died \(exit code -9\)"):
            planner.plan(package.domain(), "")
        with pytest.raises(TranslationError):
            planner.plan(package.domain(), "")


# One game


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A cache with one small game: the first of `pick_and_place_simple` in the unseen rooms."""
    folder = tmp_path_factory.mktemp("alfworld")
    calls = []
    prepare("pick_and_place_simple", "unseen", [0], cache_dir=folder, progress=lambda *call: calls.append(call))
    assert calls == [(1, 1)]
    return folder


def play(kept, **options):
    return make_text("alfworld/pick_and_place_simple", split="unseen", games=1, cache_dir=str(kept), **options)


def test_the_walkthrough_wins_and_dense_rewards_sum_to_one(kept):
    for reward, total in (("sparse", 1.0), ("dense", 1.0)):
        env = play(kept, reward=reward, facts=True)
        text, info = env.reset(seed=3)
        assert text.startswith("-= Welcome to TextWorld, ALFRED! =-") and text.endswith(info["objective"])
        assert info["objective"].startswith("Your task is to: ") and "success" not in info
        assert info["caption"] == " ".join(text.split()) and info["walkthrough"]
        rewards, won = [], False
        for command in info["walkthrough"]:
            assert command in info["admissible"] and not won
            text, reward_now, won, cut, info = env.step(command)
            rewards.append(reward_now)
            assert info["grounded"] and not cut and info["caption"] == " ".join(text.split())
        assert won and info["success"] is True and info["metrics"] == {"progress": 1.0, "grounded": 1.0}
        assert sum(rewards) == pytest.approx(total)
        assert [r for r in rewards if r] == ([1.0] if reward == "sparse" else pytest.approx([0.5, 0.5]))
        assert any(fact.startswith("inreceptacle(") for fact in info["facts"])
        assert list(info["facts"]) == sorted(info["facts"])
        with pytest.raises(RuntimeError, match="call reset first"):
            env.step("look")
        env.close()


def test_gymnasium_makes_it_by_its_id(kept):
    import gymnasium

    env = gymnasium.make("alfworld/pick_and_place_simple", split="unseen", games=1, cache_dir=str(kept))
    text, info = env.reset(seed=0)
    plain = play(kept)
    assert (text, info) == plain.reset(seed=0)
    names = plain.seeds
    assert names["seed"] == "0" and names["game"].startswith("pick_and_place_simple/unseen/0-")
    env.close()
    plain.close()


def test_a_command_that_is_not_admissible_changes_nothing(kept):
    env = play(kept)
    _, before = env.reset(seed=0)
    text, reward, won, cut, info = env.step("dance")
    assert (text, reward, won, cut, info["grounded"]) == (NOTHING, 0.0, False, False, False)
    assert info["admissible"] == before["admissible"] and info["facts"] == ()
    assert env.step("  look ")[4]["grounded"] is True
    env.close()


def test_an_episode_is_cut_at_its_limit_and_is_no_success(kept):
    env = play(kept, max_episode_steps=3)
    env.reset(seed=0)
    ends = [env.step(command)[2:4] for command in ("look", "nonsense")]
    _, _, won, cut, info = env.step("inventory")
    assert ends == [(False, False)] * 2 and (won, cut, info["success"]) == (False, True, False)
    assert info["metrics"]["grounded"] == pytest.approx(2 / 3)
    env.close()


def test_two_environments_play_side_by_side(kept):
    one, two = play(kept), play(kept)
    info = one.reset(seed=0)[1]
    two.reset(seed=0)
    first = info["walkthrough"][0]
    assert one.step(first)[0] == two.step(first)[0]
    one.step(info["walkthrough"][1])
    assert info["walkthrough"][1] in two.step("look")[4]["admissible"]
    one.close()
    two.close()


def test_domain_randomization_is_seeded_and_off_by_default(kept):
    folder = next((kept / "games" / "pick_and_place_simple" / "unseen").iterdir())
    plain, shuffled = (
        make_text(f"alfworld/{folder}", cache_dir=str(kept), domain_randomization=flag) for flag in (False, True)
    )
    as_it_is = {plain.reset(seed=seed)[1]["walkthrough"] and plain.reset(seed=seed)[0] for seed in range(3)}
    assert len(as_it_is) == 1
    numbered = {seed: [shuffled.reset(seed=seed)[1]["walkthrough"] for _ in range(2)] for seed in range(8)}
    assert all(first == again for first, again in numbered.values())
    assert len({first for first, _ in numbered.values()}) > 1
    for seed in range(3):  # the walkthrough is told with the numbers of its episode
        _, info = shuffled.reset(seed=seed)
        for command in info["walkthrough"]:
            *_, won, _, info = shuffled.step(command)
        assert won
    plain.close()
    shuffled.close()


def test_a_task_that_means_something_to_the_grammar_is_parsed_as_it_stands(kept):
    folder = next((kept / "games" / "pick_and_place_simple" / "unseen").iterdir())
    data = json.loads((folder / GAME_FILE).read_text())
    data["grammar"] = data["grammar"].replace('"Your task is to: ', '"Your task, #nobody#, is to: ')
    game = compile_game("odd", data, shared_planner(), kept)
    with pytest.raises(GrammarError, match="nobody"):
        game.grammar.say("task", world(), {})
    data["grammar"] = "action look {"
    with pytest.raises(GameFileError, match="odd can't be played"):
        compile_game("odd", data, shared_planner(), kept)
