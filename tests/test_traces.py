"""Traces: what is written comes back, whatever is left of a file, and nothing wrong passes for right."""

import dataclasses
import itertools
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.observer import EpisodeFinish
from envs.captions import caption_id
from orchestration.errors import TraceError
from orchestration.traces.codec import decode, encode
from orchestration.traces.hashes import observation_hash
from orchestration.traces.reader import Trace, read_lines, read_outline, read_trace, records_of, trace_files
from orchestration.traces.schema import (
    Annotation,
    EnvStep,
    LlmCall,
    Message,
    Reward,
    Text,
    ToolCall,
    ToolResult,
    WeightsUpdate,
    text_ref,
)
from orchestration.traces.selection import is_sampled
from orchestration.traces.validate import RULES, validate_file
from tests.full_disk import no_file_larger_than
from tests.trace_support import ACTIONS, CAPTIONS, Played, observation, record, recorder


@st.composite
def episodes(draw: st.DrawFn) -> Played:
    length = draw(st.integers(0, 30))
    lists = {
        "actions": st.integers(0, len(ACTIONS) - 1),
        "captions": st.sampled_from(CAPTIONS),
        "rewards": st.sampled_from([0.0, 1.0, -0.01, 1e-7, 50.0]),
    }
    drawn = {name: draw(st.lists(values, min_size=length, max_size=length)) for name, values in lists.items()}
    versions = sorted(draw(st.lists(st.integers(3, 6), min_size=length, max_size=length)))
    return Played("actor-00-env000-ep000001", versions=versions, **drawn)


def check_same(trace: Trace, played: Played, steps: int) -> None:
    """The first `steps` steps of `played` are in `trace`, exactly."""
    assert trace.header.seeds["core"] == "18446744073709551615"
    assert trace.header.action_names == ACTIONS
    assert len(trace.steps) == steps
    for at, step in enumerate(trace.steps):
        assert (step.step, step.action, step.action_name) == (at, played.actions[at], ACTIONS[played.actions[at]])
        assert (step.reward, step.policy_version) == (played.rewards[at], played.versions[at])
        assert trace.captions.get(step.caption_id, "") == played.captions[at]
        assert step.caption_id == str(caption_id(played.captions[at]))
        assert step.observation_hash == observation_hash(observation(at + 1))
        assert (step.screen, step.grounded, step.log_prob) == (f"@ {at}\n.", at % 2 == 0, -0.5 * at)
        assert step.value == (None if at == 3 else 0.25)
        assert step.id == trace.events[step.seq].id


# Whole traces.


@settings(max_examples=40, deadline=None)
@given(episodes(), st.integers(1, 20))
def test_an_episode_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, played: Played, lines: int) -> None:
    folder = tmp_path_factory.mktemp("traces")
    record(recorder(folder, frame_lines=lines), played)
    (path,) = trace_files(folder)
    assert path.name == "actor-00-env000-ep000001.jsonl.zst"
    trace = read_trace(path)
    check_same(trace, played, len(played.actions))
    assert trace.end is not None
    assert trace.end.episode_return == sum(played.rewards)
    assert trace.cut is None
    assert validate_file(path) == []
    assert read_outline(path).end == trace.end
    rewards = [(event.target, event.value) for event in trace.events if isinstance(event, Reward)]
    assert rewards == [(step.id, step.reward) for step in trace.steps if step.reward]
    versions = [event.to_version for event in trace.events if isinstance(event, WeightsUpdate)]
    assert versions == sorted(set(played.versions) - {3})


@settings(max_examples=60, deadline=None)
@given(episodes(), st.integers(1, 10), st.floats(0, 1))
def test_whatever_is_left_of_a_file_is_read(
    tmp_path_factory: pytest.TempPathFactory, played: Played, lines: int, share: float
) -> None:
    folder = tmp_path_factory.mktemp("traces")
    record(recorder(folder, frame_lines=lines), played)
    (path,) = trace_files(folder)
    whole = path.read_bytes()
    cut = whole[: int(len(whole) * share)]
    path.write_bytes(cut)
    # How many records lie in whole frames, by an independent reading: frame after frame.
    kept, rest = b"", cut
    while rest:
        frame = zstandard.ZstdDecompressor().decompressobj()
        text = frame.decompress(rest)
        if not frame.eof:
            break
        kept, rest = kept + text, frame.unused_data
    records = [orjson.loads(line) for line in kept.splitlines()]
    if not records:
        with pytest.raises(TraceError):
            read_trace(path)
        return
    steps = sum(each.get("type") == "env_step" for each in records)
    trace = read_trace(path)
    assert len(trace.steps) >= steps
    check_same(trace, played, len(trace.steps))
    if len(cut) < len(whole):
        assert trace.end is None or trace.cut is not None
        assert any("end record" in fault or "cut" in fault for fault in validate_file(path))


def test_a_killed_process_leaves_a_readable_part(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "sys.path.insert(0, sys.argv[2])\nfrom tests.trace_support import Played, record, recorder\n"
        "played = Played('e1', [0] * 100, [''] * 100, [1.0] * 100, [3] * 100)\n"
        "record(recorder(Path(sys.argv[1]), frame_lines=10), played, finish=False)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parents[1])]
    process = subprocess.run(command, check=False)
    assert process.returncode == -signal.SIGKILL
    (path,) = trace_files(tmp_path)
    assert path.name == "e1.jsonl.zst.part"
    trace = read_trace(path)
    assert 95 <= len(trace.steps) <= 100
    assert (trace.end, trace.cut) == (None, None)
    assert validate_file(path) == []
    path = path.rename(tmp_path / "e1.jsonl.zst")
    assert validate_file(path) == ["has no end record [end]"]


def test_damage_in_the_middle_ends_the_reading_there(tmp_path: Path) -> None:
    played = Played("e1", [0] * 90, [""] * 90, [0.0] * 90, [3] * 90)
    record(recorder(tmp_path, frame_lines=10), played)
    (path,) = trace_files(tmp_path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    path.write_bytes(data)
    try:
        trace = read_trace(path)
    except TraceError as error:
        assert str(error).startswith(str(path))
    else:
        assert trace.cut is not None
        check_same(trace, played, len(trace.steps))


# The recorder.


def test_a_finished_trace_is_never_written_again(tmp_path: Path) -> None:
    played = Played("e1", [0], [""], [0.0], [3])
    tracing = recorder(tmp_path)
    assert tracing.wants("e1")
    record(tracing, played)
    before = (tmp_path / "e1.jsonl.zst").read_bytes()
    assert not recorder(tmp_path).wants("e1")  # as a run that was resumed has it
    assert (tmp_path / "e1.jsonl.zst").read_bytes() == before


def test_an_episode_that_a_killed_runs_writer_still_finished_stays_as_it_is(tmp_path: Path) -> None:
    """The resumed run began before that: it plays the episode again, and finds it finished at its end."""
    first, resumed = recorder(tmp_path), recorder(tmp_path)
    assert resumed.wants("e1")
    record(first, Played("e1", [0, 1], ["", ""], [0.0, 1.0], [3, 3]))
    before = (tmp_path / "e1.jsonl.zst").read_bytes()
    record(resumed, Played("e1", [0], [""], [0.0], [3]))
    assert [path.name for path in trace_files(tmp_path)] == ["e1.jsonl.zst"]
    assert (tmp_path / "e1.jsonl.zst").read_bytes() == before and resumed.take_trouble() == ()


def test_close_keeps_what_was_recorded(tmp_path: Path) -> None:
    tracing = recorder(tmp_path)
    for env in range(3):
        record(tracing, Played(f"e{env}", [0, 1], ["", CAPTIONS[3]], [0.0, 1.0], [3, 3]), env=env, finish=env == 1)
    tracing.close()
    assert [path.name for path in trace_files(tmp_path)] == [
        "e0.jsonl.zst.part",
        "e1.jsonl.zst",
        "e2.jsonl.zst.part",
    ]
    assert all(len(read_trace(path).steps) == 2 for path in trace_files(tmp_path))


def test_an_environment_that_raised_is_told(tmp_path: Path) -> None:
    tracing = recorder(tmp_path)
    record(tracing, Played("e1", [0], [""], [1.0], [3]), finish=False)
    tracing.finish(0, EpisodeFinish(0.0, 1, False, None, {}, "ValueError: the game is broken"))
    trace = read_trace(tmp_path / "e1.jsonl.zst")
    assert trace.end is not None
    assert (trace.end.error, trace.end.truncated) == ("ValueError: the game is broken", False)
    assert validate_file(trace.path) == []


@pytest.mark.parametrize("episode_id", ["../up", "a/b", "", ".hidden", "a b"])
def test_an_episode_id_that_is_no_file_name(tmp_path: Path, episode_id: str) -> None:
    with pytest.raises(TraceError, match="cannot be the name of a file"):
        recorder(tmp_path).wants(episode_id)


def test_a_folder_that_cannot_be_written_is_told_and_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    tracing = recorder(tmp_path / "file")
    record(tracing, Played("e1", [0], [""], [0.0], [3]))
    (told,) = tracing.take_trouble()
    assert "cannot be written" in told
    assert tracing.take_trouble() == ()


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.3, 1.0])
def test_the_share_of_traced_episodes(rate: float) -> None:
    count = sum(is_sampled(0, f"e{n}", rate) for n in range(20_000))
    # Three standard deviations of a binomial distribution.
    assert abs(count - 20_000 * rate) <= 3 * (20_000 * rate * (1 - rate)) ** 0.5


def test_which_episodes_are_traced_depends_on_the_seed_alone() -> None:
    def chosen(seed: int) -> list[bool]:
        return [is_sampled(seed, f"e{n}", 0.5) for n in range(64)]

    assert chosen(1) == chosen(1) != chosen(2)
    assert all(not is_sampled(0, f"e{n}", 0.2) or is_sampled(0, f"e{n}", 0.3) for n in range(999))


def test_the_observation_hash_sees_every_part() -> None:
    base = {"a": np.zeros((2, 3), np.uint8), "b": np.zeros(2, np.float32)}
    others = [
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"].reshape(3, 2), "b": base["b"]},
        {"a": base["a"].astype(np.int8), "b": base["b"]},
        {"a": base["a"], "b": np.array([0, -0.0], np.float32)},
        {"a": base["a"]},
    ]
    hashes = [observation_hash(each) for each in [base, *others]]
    assert len(set(hashes)) == len(hashes)
    assert observation_hash({"b": base["b"], "a": np.asfortranarray(base["a"])}) == hashes[0]
    assert len(hashes[0]) == 12


# Faults that validation finds.


def rewrite(path: Path, change: Any) -> None:
    """Applies `change` to the list of complete records of a trace, as JSON objects."""
    records = change([orjson.loads(encode(each)) for _, each in records_of(path, read_lines(path).lines)])
    lines = b"".join(orjson.dumps(each) + b"\n" for each in records)
    path.write_bytes(zstandard.ZstdCompressor().compress(lines))


def at(index: int, **fields: Any) -> Any:
    def change(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        records[index].update(fields)
        return records

    return change


def renumbered(records: list[dict[str, Any]], at: int, *events: dict[str, Any]) -> list[dict[str, Any]]:
    """With `events` before record `at`, and all numbered as the schema wants it."""
    base = {"record": "event", "t": records[at]["t"], "agent": "a"}
    changed = [*records[:at], *({**base, **event} for event in events), *records[at:]]
    numbers = itertools.count()
    changed = [{**each, "seq": next(numbers)} if each["record"] == "event" else each for each in changed]
    changed[-1]["events"] = next(numbers)
    return changed


def model_updates(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    records[0]["reward_model_version"] = 2
    update = {"type": "weights_update", "id": "u", "parents": ["e4"], "from_version": 1, "to_version": 3}
    return renumbered(records, 7, {**update, "what": "reward_model"})


def fatal(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    error = {"type": "error", "id": "boom", "parents": ["e4"], "message": "it broke", "source": "x", "fatal": True}
    return renumbered(records, 7, error)


# Records of the trace that is planted with faults: 0 header, 1 reset, 2 step 0, 3 caption, 4 step 1, 5 its reward,
# 6 weights, 7 step 2, 8 text, 9 tool call, 10 its result, 11 message, 12 llm call, 13 annotation, 14 to 16 rewards' parts
# and total, 17 end.
STOP = {
    "type": "stop", "id": "s", "agent": "actor/0", "target": "actor/0", "reason": "context", "parents": ["e1"]
}  # fmt: skip

PLANTED = [
    ("form", at(0, schema="yendor-trace/99"), "written as yendor-trace/99, this version reads"),
    ("form", at(0, surprise=1), "missing or unknown fields: surprise"),
    ("header", at(0, scope="galaxy"), "scope 'galaxy'"),
    ("seq", at(2, seq=7), "line 3: event e1: seq 7 at position 1"),
    ("id", at(2, id="e0"), "line 3: event e0: the id is used twice"),
    ("acyclic", at(2, parents=["e9"]), "line 3: event e1: parents e9 are not before it"),
    ("acyclic", at(2, parents=["e1"]), "parents e1 are not before it"),
    ("acyclic", at(2, parents=[]), "has no parent"),
    ("time", at(2, t=-1.0), "time goes back"),
    ("time", at(2, duration=-1.0), "took -1.0 s"),
    ("time", at(-1, t=0.0), "the end is at 0.0"),
    ("step", at(2, step=1), "step 1 where 0 is due"),
    ("form", at(2, step="0"), "line 3: EnvStep.step: '0' is not of its type"),
    ("step", at(2, action=1), "action 1 is not called north"),
    ("step", at(2, action=77), "action 77 is not called north"),
    ("count", at(4, caption_count=2), "caption count 2, counted 1"),
    ("version", at(2, policy_version=9), "acted with v9 while v3"),
    ("version", at(6, from_version=9), "the policy was v3, not v9"),
    ("reward", at(2, reward=2.0), "do not match the rewards of the steps"),
    ("reward", at(5, value=2.0), "do not match the rewards of the steps"),
    ("reward", at(5, targets=["e77"]), "the target e77 is not before it"),
    ("reward", at(5, targets=[]), "names no event"),
    ("reward", at(5, family="luck"), "family 'luck' is none of"),
    ("reward", at(5, unit="galaxy"), "unit 'galaxy' is none of"),
    ("reward", at(5, part="half"), "part 'half' is none of"),
    ("pair", at(10, call="e77"), "its tool_call e77 is not before it"),
    ("pair", at(10, call="e1"), "its tool_call e1 is a env_step"),
    ("pair", lambda records: [each for each in records if each.get("type") != "tool_result"], "has no result"),
    ("text", at(11, content_ref="0" * 16), "of content_ref is missing"),
    ("cost", at(12, prompt_tokens=4), "3 in prompt, counted 4"),
    ("cost", at(12, calls=0), "cannot be"),
    ("cost", at(-1, costs={"tokens": 9, "llm_calls": 1, "tool_calls": 1, "messages": 1}), "tells of 9 tokens"),
    ("cost", at(-1, costs={"tokens": 5, "llm_calls": 1, "messages": 1}), "tells of 0 tool_calls"),
    ("components", at(14, value=0.7), "sum to 0.95, the total is 0.75"),
    ("components", at(16, value=9.0), "the total is 9"),
    ("components", at(-1, components={"environment": 0.5}), "tells of 0 of reward_model"),
    ("totals", at(-1, episode_return=9.0), "tells of a return of 9, the rewards sum to 1"),
    ("totals", at(-1, length=9), "counts 9 steps, there are 3"),
    ("totals", at(-1, events=9), "counts 9 events"),
    ("totals", at(-1, truncated=True), "both by termination and by truncation"),
    ("seed", at(0, seeds={"core": "0x12"}), "line 1: the seed core is '0x12'"),
    ("seed", at(0, seeds={"core": "-1"}), "the seed core is '-1'"),
    ("seed", at(0, seeds={"core": "007"}), "the seed core is '007'"),
    ("seed", at(0, seeds={"core": str(2**64)}), f"the seed core is '{2**64}'"),
    ("seed", at(0, seeds={"game": "w2/x", "core": ""}), "the seed core is ''"),
    ("clock", at(0, clock="Tuesday"), "line 1: the clock is 'Tuesday', by the seeds it was 'unpinned'"),
    ("clock", at(0, clock="pinned:1700000000"), "by the seeds it was 'unpinned'"),
    ("clock", at(0, seeds={"birth": "1700000000"}), "'unpinned', by the seeds it was 'pinned:1700000000'"),
    ("clock", at(0, seeds={"birth": "1700000000"}, clock="pinned:1700000001"), "was 'pinned:1700000000'"),
    (
        "clock",
        at(0, seeds={"core": "7", "birth": "1700000000"}, clock="pinned:1700000000"),
        "line 1: the hero was born at 1700000000, by the seed core at 1700000007",
    ),
    ("time", at(0, recorded_at=-1.0), "line 1: was recorded at -1 s since 1970"),
    ("time", at(0, recorded_at=1e13), "line 1: was recorded at 1e+13 s since 1970"),
    ("time", at(2, skew=-1e11), "line 3: event e1: happened -"),
    (
        "end",
        lambda records: renumbered(records, 4, STOP),
        "line 6: event e2: a step of actor/0, which was stopped before",
    ),
    ("versions", at(0, versions={"minihack": "1.0.2"}), "line 1: the versions lack nle"),
    ("versions", at(0, env_id="alfworld/x", versions={"textworld": None}), "the versions lack alfworld"),
    ("header", at(0, forked_from="e0"), "line 1: names a parent without the step"),
    ("header", at(0, forked_from="e0", forked_at=4), "line 1: was forked at step 4, has 3"),
    ("header", at(0, forked_from="e0", forked_at=-1), "was forked at step -1"),
    ("observation", at(1, observation_hash="gallop"), "line 2: event e0: the hash 'gallop' is not hexadecimal"),
    ("observation", at(4, observation_hash=""), "line 5: event e2: has no hash, but is not the last step"),
    ("observation", at(1, colors="77"), "line 2: event e0: the colours of line 1 do not fit to it: '77'"),
    ("observation", at(1, colors="z"), "the colours of line 1 do not fit to it: 'z'"),
    ("observation", at(1, colors="7\n7"), "colours of 2 lines, the screen has 1"),
    ("text", at(3, caption_id="seven"), "line 4: the caption 'seven' is not named by a number of 64 bits"),
    ("text", at(3, caption_id=str(2**63)), "is not named by a number of 64 bits"),
    ("text", at(3, caption_id="7"), f"line 4: the caption 7 is called {caption_id(CAPTIONS[1])} by its text"),
    ("text", lambda records: [*records[:4], *records[3:]], "line 5: the caption"),
    ("text", at(8, ref="0" * 16), "line 9: the text 0000000000000000 is called"),
    ("text", lambda records: [*records[:9], *records[8:]], "line 10: the text"),
    ("probability", at(2, log_prob=0.5), "line 3: event e1: a log-probability of 0.5"),
    ("probability", at(12, log_probs=[-1.0, 2.0]), "line 13: event l: a log-probability of 2"),
    ("form", at(12, log_probs=[-1.0, None]), "line 13: LlmCall.log_probs: not all of it are of type float"),
    ("probability", at(13, probability=1.5), "line 14: event n: a probability of 1.5"),
    ("label", at(13, caption_id="0"), "line 14: event n: is about nothing"),
    ("call", at(12, prompt=None), "line 13: event l: tells no prompt"),
    ("call", at(12, output=None), "line 13: event l: tells no output"),
    ("call", at(12, output=[4, -5]), "line 13: event l: a token called -5"),
    ("time", at(12, latency_s=-0.5), "line 13: event l: answered after -0.5 s"),
    ("step", at(12, step=1), "line 13: event l: chose the action of step 1, the next is 3"),
    ("pair", at(10, tool="hammer"), "line 11: event r: a result of hammer, called was map"),
    ("version", at(6, what="weather"), "line 7: event e4: 'weather' is neither policy nor reward_model"),
    ("version", model_updates, "line 8: event u: the reward model was v2, not v1"),
    ("reward", at(5, version=3), "line 6: event e3: the environment's, but of version 3 of a model"),
    ("cost", at(-1, costs={"wall_clock_s": 7.0}), "tells of 7 s, it came after 0.003 s"),
    ("end", at(-1, kept="luck"), "line 18: was kept as 'luck', which is no reason for the trace of a episode"),
    ("end", at(-1, kept="run"), "was kept as 'run'"),
    ("end", fatal, "line 9: event e5: a step after the fatal error boom"),
    ("totals", fatal, "line 19: the end tells of no error, boom was fatal"),
    ("totals", at(-1, terminated=False), "line 18: ended neither by termination, nor by truncation, nor by an error"),
    ("end", lambda records: records[:-1], "has no end record"),
    ("end", lambda records: [*records, records[-1]], "a record of kind 'end' after the end"),
    ("form", lambda records: [*records, records[2]], "a record of kind 'event' after the end"),
    ("header", lambda records: records[1:], "begins with a record of kind 'event'"),
    ("header", lambda records: [records[0], *records], "a record of kind 'header' where none can be"),
    ("text", lambda records: [each for each in records if each["record"] != "caption"], "is missing"),
    ("reset", lambda records: [each for each in records if each.get("type") != "env_reset"], "does not begin with"),
    ("reset", lambda records: [*records[:2], records[1], *records[2:]], "more than one env_reset"),
    ("form", lambda records: [records[0], {"record": "what"}, *records[1:]], "line 2: unknown record 'what'"),
]


def plant(path: Path) -> None:
    """Adds to a recorded trace of three steps what only other kinds of episodes have."""

    def add(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        *rest, end = records
        seq = end["events"]
        base: dict[str, Any] = {"t": end["t"], "agent": "a"}
        text = Text(text_ref("a map"), "a map")
        call = ToolCall(**base, id="c", seq=seq, parents=("e1",), tool="map")
        result = ToolResult(**base, id="r", seq=seq + 1, parents=("c",), call="c", tool="map", content_ref=text.ref)
        message = Message(**base, id="m", seq=seq + 2, parents=("r",), to="b")
        llm = LlmCall(
            **base, id="l", seq=seq + 3, parents=("m",), model="x", prompt=(1, 2, 3), output=(4, 5), prompt_tokens=3,
            output_tokens=2, log_probs=(-1.0, -2.0), latency_s=0.1,
        )  # fmt: skip
        note = Annotation(
            **base, id="n", seq=seq + 4, parents=("e2",), caption_id=str(caption_id(CAPTIONS[1])), label=1, probability=0.5,
            judge="x",
        )  # fmt: skip
        parts = [
            Reward(
                **base, id=f"p{n}", seq=seq + 5 + n, parents=("e1",), family="hybrid", value=value, source=source,
                version=None, targets=("e1",), part=part,
            )
            for n, (value, source, part) in enumerate(
                [(0.5, "environment", "component"), (0.25, "reward_model", "component"), (0.75, "fusion", "total")]
            )
        ]  # fmt: skip
        end |= {"events": seq + 8, "components": {"environment": 0.5, "reward_model": 0.25}}
        end["costs"] = {"tokens": 5, "llm_calls": 1, "tool_calls": 1, "messages": 1}
        return [*rest, *(orjson.loads(encode(each)) for each in (text, call, result, message, llm, note, *parts)), end]

    rewrite(path, add)


@pytest.mark.parametrize(("rule", "change", "fault"), PLANTED)
def test_validation_finds_what_is_wrong(tmp_path: Path, rule: str, change: Any, fault: str) -> None:
    record(
        recorder(tmp_path, frame_lines=1),
        Played("e1", [0, 1, 2], ["", CAPTIONS[1], CAPTIONS[1]], [0.0, 1.0, 0.0], [3, 3, 4]),
    )
    path = tmp_path / "e1.jsonl.zst"
    plant(path)
    assert validate_file(path) == []
    rewrite(path, change)
    faults = validate_file(path)
    assert any(fault in each and each.endswith(f"[{rule}]") for each in faults), faults


def test_every_rule_is_planted() -> None:
    elsewhere = {"cut", "name", "finite", "late"}
    assert {rule for rule, _, _ in PLANTED} | elsewhere == set(RULES)


def test_validation_finds_numbers_that_are_none(tmp_path: Path) -> None:
    record(recorder(tmp_path), Played("e1", [0], [""], [0.0], [3]))
    path = tmp_path / "e1.jsonl.zst"
    lines = read_lines(path).lines
    lines[1] = lines[1].replace(b'"t":', b'"skew":1e999,"t":')
    path.write_bytes(zstandard.compress(b"\n".join(lines) + b"\n"))
    assert any("skew" in fault or "not JSON" in fault for fault in validate_file(path))


def test_validation_finds_a_file_with_another_name(tmp_path: Path) -> None:
    record(recorder(tmp_path), Played("e1", [0], [""], [0.0], [3]))
    path = (tmp_path / "e1.jsonl.zst").rename(tmp_path / "e2.jsonl.zst")
    assert validate_file(path) == ["line 1: the file is called e2, its episode e1 [name]"]


def test_a_file_that_is_something_else(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.zst"
    for data in (b"", b"not zstd at all", zstandard.compress(b"hello\n"), zstandard.compress(b"[1]\n")):
        path.write_bytes(data)
        with pytest.raises(TraceError) as caught:
            read_trace(path)
        assert str(caught.value).startswith(str(path))


def test_records_of_the_wrong_kind_are_refused() -> None:
    step = EnvStep(
        id="e1", seq=1, t=0.0, agent="a", parents=("e0",), step=0, action=0, action_name="north", log_prob=-1.0,
        value=0.0, reward=0.0, caption_id="0", caption_count=0, grounded=True, policy_version=0,
        observation_hash="", screen="",
    )  # fmt: skip
    assert decode(encode(step)) == step
    with pytest.raises(TraceError, match=r"EnvStep.grounded: 1 is not of its type"):
        decode(encode(dataclasses.replace(step, grounded=1)))  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [2000, 5000])
def test_a_disk_that_gets_full_is_told_and_what_was_written_is_readable(tmp_path: Path, limit: int) -> None:
    """The kernel's bound on the size of files acts as a full disk does: first a part is written, then nothing."""
    rng = np.random.default_rng(0)
    texts = ["".join(chr(65 + letter) for letter in rng.integers(0, 26, 40)) for _ in range(400)]
    played = Played("e1", [0] * 400, texts, [0.0] * 400, [3] * 400)
    with no_file_larger_than(limit):
        tracing = recorder(tmp_path, frame_lines=10)
        record(tracing, played)
        (told,) = tracing.take_trouble()
        assert told.endswith("e1.jsonl.zst.part: cannot be written: File too large")
    (path,) = trace_files(tmp_path)
    trace = read_trace(path)
    assert trace.cut is None and trace.end is None, "what was written of a frame that did not fit is gone"
    check_same(trace, played, len(trace.steps))
    assert len(trace.steps) > 0
