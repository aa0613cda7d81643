"""Replay: what was recorded comes out again, what was changed is found at its step, and what cannot be says why."""

import ctypes
import dataclasses
import hashlib
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.networks import NETWORKS
from envs import make, registry
from envs.clock import birth_of, pin_birth
from envs.registry import register_text_family
from envs.text import SimpleTextEnv, TextEnvSpec
from orchestration.errors import UsageError
from orchestration.traces.hashes import observation_hash
from orchestration.traces.reader import Trace, read_trace, trace_files
from orchestration.traces.replay import AT_RESET, Outcome, command, isolate, replay, replay_trace, worlds
from orchestration.traces.replay.command import run_replay
from orchestration.traces.replay.verdict import exit_code
from orchestration.traces.replay.worlds import hash_like, open_world
from orchestration.traces.schema import EnvStep
from tests import trace_replay_support as support
from tests.trace_replay_support import FAMILIES, WORDS, record_arrays, record_words
from tests.trace_view_support import read_page

STEPS = 20


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few short episodes of MiniHack and NetHack."""
    folder = tmp_path_factory.mktemp("recorded")
    record_arrays(folder, "minihack/KeyRoom-S5", {}, envs=2, steps=STEPS)
    record_arrays(folder, "nethack/Score", {}, envs=2, steps=STEPS)
    return folder


def finished(folder: Path, begin: str) -> list[Trace]:
    return [read_trace(path) for path in trace_files(folder) if path.name.startswith(begin) and path.suffix != ".part"]


@pytest.fixture
def keyroom(recorded: Path) -> Trace:
    return finished(recorded, "KeyRoom")[0]


# What matches.


@pytest.mark.slow
def test_twenty_episodes_of_each_family_recorded_by_one_process_match_in_another(tmp_path: Path) -> None:
    python = [sys.executable, "-W", "ignore", "-m", "tests.trace_replay_support"]
    root = Path(__file__).parents[1]
    subprocess.run([*python, "record", str(tmp_path), "20", "40"], check=True, cwd=root)
    # Another seed of Python's hashes, another time zone and another place.
    other = {**os.environ, "PYTHONHASHSEED": "77", "TZ": "Asia/Tokyo"}
    done = subprocess.run([*python, "replay", str(tmp_path)], check=True, cwd=root, env=other, stdout=subprocess.PIPE)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["line"] for result in results if result["outcome"] != "MATCH"] == []
    whole = [result for result in results if result["finished"]]
    counted = Counter(result["family"] for result in whole)
    assert set(counted) == set(FAMILIES) and min(counted.values()) >= 20
    assert sum(result["steps"] for result in whole if result["family"] == "nethack") > 700
    clocks = {result["family"]: result["clock"] for result in results}
    assert clocks == {"nethack": "pinned", "minihack": "pinned", "textworld": "none", "alfworld": "none"}


def test_what_was_recorded_here_matches_in_a_fresh_process(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = finished(recorded, "Score")[0]
    verdict = replay(trace.path)
    assert verdict.line == f"MATCH ({len(trace.steps)} steps, clock: pinned)"
    assert (verdict.exit_code, verdict.divergence, verdict.env_id) == (0, None, "nethack/Score")
    assert trace.header.clock == f"pinned:{trace.header.seeds['birth']}"


def test_a_file_with_a_planted_action_diverges_in_a_fresh_process(recorded: Path, tmp_path: Path) -> None:
    trace = finished(recorded, "KeyRoom")[0]
    names = trace.header.action_names
    moved = next(step for step in trace.steps if step.step and step.screen != trace.steps[step.step - 1].screen)
    other = next(name for name in names if name != moved.action_name)
    edited = plant(trace, moved.step, action=names.index(other), action_name=other)
    verdict = replay(support.write(edited, tmp_path, "planted"))
    assert verdict.outcome is Outcome.DIVERGED and verdict.divergence is not None
    assert verdict.divergence.step == moved.step
    assert verdict.divergence.recorded_screen == moved.screen
    page = tmp_path / "page.html"
    assert run_replay([trace.path, tmp_path / "planted.jsonl.zst"], page=page) == 1
    _, (whole, planted), _ = read_page(page)
    assert whole["divergences"] == []
    (mark,) = planted["divergences"]
    assert mark["frame"] == moved.step + 1 and mark["reason"] == "; ".join(
        f"{one.key}: recorded {one.recorded}, replayed {one.replayed}" for one in verdict.divergence.differences
    )


def test_an_episode_that_was_cut_matches_as_far_as_it_goes(recorded: Path) -> None:
    trace = finished(recorded, "Score")[1]
    events = tuple(event for event in trace.events if event.seq < 12)
    cut = dataclasses.replace(trace, events=events, end=None, cut="the last frame")
    verdict = replay_trace(cut)
    assert verdict.outcome is Outcome.MATCH
    assert 0 < verdict.steps == len(cut.steps) < len(trace.steps)
    assert verdict.notes[0] == f"the episode was cut after {verdict.steps} steps: the last frame"


@pytest.mark.parametrize("family", sorted(WORDS))
@pytest.mark.slow
def test_a_planted_command_reward_or_seed_of_a_text_world_is_found(tmp_path: Path, family: str) -> None:
    env_id, options, _ = WORDS[family]
    if family == "alfworld":
        options = {**options, "games": 2}  # of one game every seed is the same episode
    path = record_words(tmp_path, env_id, {**options, "max_episode_steps": 12}, 1, random.Random(5), "words")
    trace = read_trace(path)
    assert replay_trace(trace).line == f"MATCH ({len(trace.steps)} steps, clock: none)"
    # A recorded command may have come to nothing as well, and then another that does makes no difference.
    told = [at for at, step in enumerate(trace.steps) if "Nothing happens" not in (step.screen or "")]
    for at in (told[0], told[-1]):
        edited = plant(trace, at, action_name="tw-cheat")
        verdict = replay_trace(edited)
        assert (verdict.outcome, place(verdict)) == (Outcome.DIVERGED, (at, "observation"))
        assert trace.steps[at].screen in verdict.divergence.recorded_screen  # type: ignore[union-attr]
        verdict = replay_trace(plant(trace, at, reward=trace.steps[at].reward + 0.25))
        assert (verdict.outcome, place(verdict)) == (Outcome.DIVERGED, (at, "reward"))
    # The world that another seed names is told apart by its first words, and by all that the seed sets besides.
    for seeds in (
        ({"seed": "2"}, {"seed": "2", "game_seed": "2"}) if "game_seed" in trace.header.seeds else ({"seed": "2"},)
    ):
        verdict = replay_trace(seeded(trace, **seeds))
        assert verdict.divergence is not None and verdict.outcome is Outcome.DIVERGED
        assert verdict.divergence.step == AT_RESET and "DIVERGED at the reset" in verdict.line
        keys = [difference.key for difference in verdict.divergence.differences]
        assert "observation" in keys and ("seeds.game_seed" in keys) == (
            "game_seed" in trace.header.seeds.keys() - seeds.keys()
        )


@pytest.mark.parametrize("size", [4, 8, 16])
def test_hashes_of_another_length_are_compared_as_long_as_they_are(keyroom: Trace, size: int) -> None:
    """As the first version of the schema kept them (128 bits), computed here from the arrays as documented."""
    env = make(keyroom.header.env_id, NETWORKS["fast"].view, **keyroom.header.env_options)
    observation, _ = env.reset(seed=int(keyroom.header.seeds["seed"]))
    text = b"".join(
        f"{name}:{array.dtype.str}:{array.shape};".encode() + array.tobytes()
        for name, array in sorted(observation.items())
    )
    env.close()
    digest = hashlib.blake2b(text, digest_size=size).hexdigest()
    assert hash_like(digest, observation) == digest
    assert hash_like("", observation) == observation_hash(observation)


# What was changed.


def plant(trace: Trace, step: int, **fields: Any) -> Trace:
    events = tuple(
        dataclasses.replace(event, **fields) if isinstance(event, EnvStep) and event.step == step else event
        for event in trace.events
    )
    return dataclasses.replace(trace, events=events)


def seeded(trace: Trace, **seeds: str) -> Trace:
    header = dataclasses.replace(trace.header, seeds={**trace.header.seeds, **seeds})
    return dataclasses.replace(trace, header=header)


def place(verdict: Any) -> tuple[int, str]:
    assert verdict.divergence is not None, verdict
    return verdict.divergence.step, verdict.divergence.differences[0].key


@pytest.mark.parametrize("begin", ["KeyRoom", "Score"])
def test_a_planted_action_is_found_where_the_game_first_goes_another_way(recorded: Path, begin: str) -> None:
    """Beside a slow reference: the game stepped with the changed action, its observations compared one by one."""
    trace = finished(recorded, begin)[0]
    names = trace.header.action_names
    found = 0
    for at in (0, 7, len(trace.steps) - 1):
        action = (trace.steps[at].action + 1) % len(names)
        edited = plant(trace, at, action=action, action_name=names[action])
        verdict = replay_trace(edited)
        expected, arrays = first_other(edited, trace)
        if expected is None:
            assert verdict.outcome is Outcome.MATCH or place(verdict)[1] in ("caption", "grounded", "reward")
        else:
            step, key = place(verdict)
            assert step <= expected
            if step == expected:
                assert verdict.divergence is not None
                named = {one.key for one in verdict.divergence.differences if one.key.startswith("observation")}
                # Two digits: one array in 256 that differs is not named.
                assert key in named and {f"observation.{name}" for name in arrays} >= named
                assert len(named) >= len(arrays) - 1
            found += step == at
    assert found


def first_other(edited: Trace, trace: Trace) -> tuple[int | None, set[str]]:
    """The first step that the edited actions bring another observation at, and the arrays in which."""
    world, other = (open_world(trace.header) for _ in range(2))
    world.reset(int(trace.header.seeds["seed"]))
    other.reset(int(trace.header.seeds["seed"]))
    try:
        for step, changed in zip(trace.steps, edited.steps, strict=True):
            seen = world.step(step.action, step.action_name)
            new = other.step(changed.action, changed.action_name)
            arrays = {n for n, array in seen.observation.items() if not np.array_equal(array, new.observation[n])}
            if arrays:
                return step.step, arrays
            if seen.ended or new.ended:
                break
        return None, set()
    finally:
        world.close()
        other.close()


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"reward": 0.5}, "reward"),
        ({"observation_hash": "0" * 12}, "observation"),
        ({"action_name": "DANCE"}, "action"),
        ({"caption_id": "5", "caption_count": 1}, "caption"),
        ({"caption_count": 77}, "caption_count"),
        ({"screen": "an empty\nscreen"}, "screen line 1"),
        ({"colors": "7\n0123"}, "colours line 1"),
    ],
)
def test_a_planted_value_is_found_at_its_step(keyroom: Trace, fields: dict[str, Any], key: str) -> None:
    for at in (0, 9):
        verdict = replay_trace(plant(keyroom, at, **fields))
        assert (verdict.outcome, place(verdict), verdict.steps) == (Outcome.DIVERGED, (at, key), at)
        assert verdict.line.startswith(f"DIVERGED at step {at} ({key}: recorded ")
        assert verdict.exit_code == 1


def test_a_planted_grounding_is_found(keyroom: Trace) -> None:
    edited = plant(keyroom, 4, grounded=not keyroom.steps[4].grounded)
    assert place(replay_trace(edited)) == (4, "grounded")


def test_a_planted_reward_event_is_found(keyroom: Trace) -> None:
    paid = next(event for event in keyroom.events if event.type == "reward")

    events = tuple(
        dataclasses.replace(event, value=event.value + 1.0) if event is paid else event  # type: ignore[call-arg]
        for event in keyroom.events
    )
    verdict = replay_trace(dataclasses.replace(keyroom, events=events))
    step = next(step for step in keyroom.steps if step.id in paid.parents)
    assert place(verdict) == (step.step, "reward")


@pytest.mark.parametrize(
    ("seeds", "key"),
    [({"seed": "1"}, "seeds.seed"), ({"core": "1"}, "seeds.core"), ({"birth": "1700000000"}, "seeds.birth")],
)
def test_a_planted_seed_is_found_at_the_reset(keyroom: Trace, seeds: dict[str, str], key: str) -> None:
    verdict = replay_trace(seeded(keyroom, **seeds))
    assert verdict.divergence is not None
    assert verdict.outcome is Outcome.DIVERGED and verdict.divergence.step == AT_RESET
    keys = [difference.key for difference in verdict.divergence.differences]
    # A changed `seed` is set as it stands, so what follows from it differs.
    assert key in keys or (seeds == {"seed": "1"} and {"seeds.core", "observation.chars"} <= set(keys))
    assert "DIVERGED at the reset" in verdict.line


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"terminated": True, "truncated": False}, "terminated"),
        ({"truncated": False}, "truncated"),
        ({"success": True}, "success"),
        ({"length": 3}, "length"),
        ({"episode_return": 9.0}, "episode_return"),
        ({"error": "ValueError: it broke"}, "error"),
    ],
)
def test_a_planted_end_is_found_at_the_last_step(recorded: Path, fields: dict[str, Any], key: str) -> None:
    trace = next(t for t in finished(recorded, "KeyRoom") if t.end is not None and t.end.truncated)

    assert trace.end is not None
    verdict = replay_trace(dataclasses.replace(trace, end=dataclasses.replace(trace.end, **fields)))
    assert place(verdict) == (len(trace.steps) - 1, key)


# What cannot be played.


class Dice(SimpleTextEnv):
    """A world that its seed does not determine, from its third step on."""

    def begin(self, seed: int) -> str:
        self.thrown = 0
        return f"Throw the dice, player {seed}."

    def respond(self, command: str) -> tuple[str, float, bool | None]:
        self.thrown += 1
        return (f"A {os.urandom(8).hex()}." if self.thrown > 2 else "The cup is shaken."), 0.0, None


class Trap(SimpleTextEnv):
    """A world that breaks at a step that an option names."""

    breaks_at = 3

    def begin(self, seed: int) -> str:
        self.taken = 0
        return f"A corridor, {seed} paces long."

    def respond(self, command: str) -> tuple[str, float, bool | None]:
        self.taken += 1
        if self.taken == self.breaks_at:
            raise RuntimeError("the floor gives way")
        return f"Step {self.taken}.", 1.0, None


@pytest.fixture
def odd_worlds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_families", dict(registry._families))  # pyright: ignore[reportPrivateUsage]
    register_text_family("dice", lambda name: Dice(TextEnvSpec(f"dice/{name}", 6, True)), lambda: ["dice/one"])
    register_text_family("trap", lambda name: Trap(TextEnvSpec(f"trap/{name}", 6, True)), lambda: ["trap/one"])


@pytest.mark.usefixtures("odd_worlds")
def test_a_world_that_is_not_deterministic_is_said_to_be_so(tmp_path: Path) -> None:
    trace = read_trace(record_words(tmp_path, "dice/one", {}, 3, random.Random(0), "dice"))
    verdict = replay_trace(trace)
    assert verdict.outcome is Outcome.UNREPLAYABLE and verdict.exit_code == 3
    assert verdict.reason == (
        "the environment is not deterministic: two replays with the same seed differ at step 2 (observation)"
    )


@pytest.mark.usefixtures("odd_worlds")
def test_a_world_that_raised_raises_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = read_trace(record_words(tmp_path, "trap/one", {}, 3, random.Random(0), "trap"))
    assert trace.end is not None and trace.end.error == "RuntimeError: the floor gives way"
    assert replay_trace(trace).outcome is Outcome.MATCH
    monkeypatch.setattr(Trap, "breaks_at", 2)
    assert place(replay_trace(trace)) == (1, "error")
    monkeypatch.setattr(Trap, "breaks_at", 9)
    verdict = replay_trace(trace)
    assert place(verdict) == (2, "error")
    assert "recorded RuntimeError: the floor gives way, replayed none" in verdict.line


def test_another_version_of_the_game_is_the_reason_where_it_came_out_otherwise(keyroom: Trace) -> None:
    header = dataclasses.replace(keyroom.header, versions={**keyroom.header.versions, "nle": "0.9.0"})
    same = replay_trace(dataclasses.replace(keyroom, header=header))
    assert same.outcome is Outcome.MATCH
    assert same.notes[0].startswith("recorded with nle 0.9.0, here is 1.")
    edited = plant(keyroom, 4, observation_hash="0" * 12)
    other = replay_trace(dataclasses.replace(edited, header=header))
    assert other.outcome is Outcome.UNREPLAYABLE and other.divergence is not None
    assert other.reason == f"{same.notes[0]}; the observation differs from step 4 on"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"env_id": "minihack/KeyRoom-S55"}, "did you mean 'minihack/KeyRoom-S5'?"),
        ({"env_options": {"fish": 1}}, "has no option 'fish'"),
        ({"seeds": {"core": "1", "disp": "2"}}, "its header has no seed to reset with, only core, disp"),
        ({"scope": "run"}, "it is the trace of a run, not of an episode"),
        ({"action_names": ("N", "S")}, "minihack/KeyRoom-S5 has other actions here than in the recording"),
    ],
)
def test_what_cannot_be_played_says_why(keyroom: Trace, fields: dict[str, Any], reason: str) -> None:
    verdict = replay_trace(dataclasses.replace(keyroom, header=dataclasses.replace(keyroom.header, **fields)))
    assert verdict.outcome is Outcome.UNREPLAYABLE and verdict.reason is not None
    assert reason in verdict.reason


def test_a_package_that_is_missing_is_named(keyroom: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "find_spec", lambda name: None if name == "minihack" else object())
    assert replay_trace(keyroom).reason == f"not installed here: minihack=={keyroom.header.versions['minihack']}"


def test_a_process_that_dies_is_told(keyroom: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolate, "_replay", support.die)
    verdict = replay(keyroom.path)
    assert (verdict.outcome, verdict.episode_id) == (Outcome.UNREPLAYABLE, keyroom.header.episode_id)
    assert verdict.reason == "the process that played it died (signal 9)"


def test_the_command_prints_and_ends_with_its_codes(
    keyroom: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edited = Path("planted.jsonl.zst")
    planted = plant(keyroom, 4, reward=0.5, caption_count=9)
    monkeypatch.setattr(command, "replay", lambda path: replay_trace(planted) if path == edited else replay_here(path))
    broken = tmp_path / "broken.jsonl.zst"
    broken.write_bytes(b"no trace")
    assert run_replay([keyroom.path]) == 0
    assert capsys.readouterr().out.startswith(f"{keyroom.path}: MATCH")
    assert run_replay([keyroom.path, broken]) == 3
    assert run_replay([broken, edited, keyroom.path]) == 1
    out = capsys.readouterr().out
    assert "DIVERGED at step 4 (reward: recorded 0.5, replayed " in out
    assert "  also caption_count: recorded 9, replayed " in out
    assert "--- recorded\n" in out and "--- replayed\n" in out
    assert run_replay([edited], as_json=True) == 1
    (tree,) = json.loads(capsys.readouterr().out)
    assert (tree["outcome"], tree["divergence"]["step"], tree["exit_code"]) == ("DIVERGED", 4, 1)
    assert tree["divergence"]["recorded_screen"] == keyroom.steps[4].screen


def replay_here(path: Path) -> Any:
    """As `replay`, without a process for each."""
    from orchestration.errors import TraceError
    from orchestration.traces.replay.play import unreadable

    try:
        return replay_trace(read_trace(path))
    except TraceError as error:
        return unreadable(str(path), error)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 3}, "--from has no effect without --fork"),
        ({"seed": 3}, "--seed has no effect without --fork"),
        ({"fork": True, "policy": "random"}, "--fork needs --from"),
        ({"fork": True, "start": 3}, "--fork needs --policy"),
        ({"fork": True, "start": 3, "policy": "random", "reward_model": "1"}, "one at a time"),
        ({"reward_model": "1", "page": Path("page.html")}, "--view shows where a replay diverged"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run_replay([Path("x")], **options)


def test_of_several_verdicts_the_worst_counts(keyroom: Trace) -> None:
    verdict = replay_trace(keyroom)
    lost, wrong = (dataclasses.replace(verdict, outcome=o) for o in (Outcome.UNREPLAYABLE, Outcome.DIVERGED))
    assert [exit_code(v) for v in ([], [verdict], [verdict, lost], [lost, wrong, verdict])] == [0, 0, 3, 1]


# The clock.


def symbol(env: Any, name: bytes) -> int:
    """The address of a symbol of the game's own library."""
    linker = ctypes.CDLL(None)
    linker.dlopen.restype, linker.dlsym.restype = ctypes.c_void_p, ctypes.c_void_p
    handle = linker.dlopen(env.game.nethack.dlpath.encode(), os.RTLD_LAZY | os.RTLD_NOLOAD)
    address = linker.dlsym(ctypes.c_void_p(handle), name)
    linker.dlclose(ctypes.c_void_p(handle))
    return address


def ants(env: Any) -> bytes:
    """What NetHack would now put into an anthole, asked of its own function."""
    found = ctypes.CFUNCTYPE(ctypes.c_void_p)(symbol(env, b"antholemon"))()
    return ctypes.cast(ctypes.c_void_p.from_address(found).value or 0, ctypes.c_char_p).value or b""


def test_the_hero_is_born_when_the_seed_says_and_the_ants_follow() -> None:
    env, other = make("nethack/Score"), make("minihack/Room-5x5")
    for seed in range(3):
        env.reset(seed=seed)
        other.reset(seed=seed + 100)
        for each in (env, other):
            birth = ctypes.c_long.from_address(symbol(each, b"ubirthday")).value
            assert each.seeds["birth"] == str(birth) == str(birth_of(int(each.seeds["core"])))
    pinned = ants(env)
    # The fault that pinning removes: a second later, other ants.
    birth = int(env.seeds["birth"])
    kinds: set[bytes] = set()
    for seconds in range(3):
        assert pin_birth(env.game.nethack.dlpath, birth + seconds)  # type: ignore[attr-defined]
        kinds.add(ants(env))
    assert len(kinds) == 3 and pinned in kinds
    env.reset(seed=2)
    assert ants(env) == pinned
    env.close()
    other.close()


def test_what_has_no_such_clock_cannot_be_pinned(tmp_path: Path) -> None:
    assert not pin_birth(str(tmp_path / "libnethack.so"), 0)


def test_a_trace_of_an_unpinned_game_says_so(keyroom: Trace) -> None:
    seeds = {name: value for name, value in keyroom.header.seeds.items() if name != "birth"}
    verdict = replay_trace(dataclasses.replace(keyroom, header=dataclasses.replace(keyroom.header, seeds=seeds)))
    assert (verdict.outcome, verdict.clock) == (Outcome.MATCH, "wall")
    assert verdict.notes == ("the game could read the time of day: antholes and shopkeepers' names may differ",)
