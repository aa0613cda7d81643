"""Records of traces: all kinds come back, hostile texts too; old files are read; the published schema is current."""

import subprocess
import sys
import time
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import numpy as np
import orjson
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jsonschema import Draft202012Validator

from agents.observer import EpisodeFinish
from envs.captions import caption_id
from orchestration.errors import TraceError
from orchestration.traces.cells import CellPacker, CellUnpacker, colors_of, text_of
from orchestration.traces.codec import decode, encode, hints_of
from orchestration.traces.json_schema import line_schema, schema_text
from orchestration.traces.reader import read_lines, read_trace
from orchestration.traces.schema import EVENTS, OTHERS, SCHEMA, Record, clean, text_ref
from orchestration.traces.validate import RULES, validate_file
from tests.trace_support import CAPTIONS, Played, begin, record, recorder, steps_of

KINDS = (*EVENTS.values(), *OTHERS.values())
LINES = Draft202012Validator(line_schema())

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
number = st.floats(allow_nan=False, allow_infinity=False)
integer = st.integers(-(2**53), 2**53)


def values(hint: Any, name: str) -> st.SearchStrategy[Any]:
    """Values of a declared type, by the types alone."""
    if name in ("t", "duration"):
        return st.floats(0, 1e9)
    if name == "seq":
        return st.integers(0, 2**53)
    if name == "schema":
        return st.just(SCHEMA)
    plain = {str: text, int: integer, float: number, bool: st.booleans(), type(None): st.none()}
    if hint in plain:
        return plain[hint]
    if hint is Any:
        return st.one_of(text, integer, number, st.booleans(), st.none(), st.lists(integer, max_size=3))
    parts = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return st.one_of([values(part, "") for part in parts])
    if get_origin(hint) is Mapping:
        return st.dictionaries(text, values(parts[1], ""), max_size=3)
    assert get_origin(hint) is tuple
    return st.lists(values(parts[0], ""), max_size=3).map(tuple)


@st.composite
def records(draw: st.DrawFn) -> Record:
    kind = draw(st.sampled_from(KINDS))
    return kind(**{name: draw(values(hint, name)) for name, hint in hints_of(kind).items()})


@settings(max_examples=150, deadline=None)
@given(records())
def test_every_kind_of_record_comes_back_and_fits_the_published_schema(each: Record) -> None:
    line = encode(each)
    assert line.count(b"\n") == 1
    assert decode(line) == each
    assert encode(decode(line)) == line
    LINES.validate(orjson.loads(line))


def test_the_published_schema_is_current() -> None:
    published = Path(__file__).parents[1] / "docs" / "trace.schema.json"
    assert published.read_text() == schema_text(), "yendor trace schema > docs/trace.schema.json"
    Draft202012Validator.check_schema(line_schema())


def test_the_schema_accepts_what_is_recorded_and_refuses_what_is_not(tmp_path: Path) -> None:
    record(recorder(tmp_path), Played("e1", [0, 1], ["", CAPTIONS[3]], [0.0, 1.0], [3, 4]))
    for line in read_lines(tmp_path / "e1.jsonl.zst").lines:
        tree = orjson.loads(line)
        LINES.validate(tree)
        assert not LINES.is_valid({**tree, "surprise": 1})
        assert not LINES.is_valid({**tree, "record": "what"})


HOSTILE = {
    "script": "</script><script>alert(1)</script><!-- --> ]]>",
    "control": "".join(map(chr, range(32))) + "\x7f\x85\u2028\u2029\u202e\ufeff",
    "megabyte": "x" * 2**20,
    "no UTF-8": b"caf\xe9 \xff\xfe".decode("utf-8", "surrogateescape"),
    "half a pair": "\ud83d and \ude00",
    "NUL": "a\0b",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_captions_are_kept_and_break_nothing(tmp_path: Path, name: str) -> None:
    hostile = HOSTILE[name]
    record(recorder(tmp_path), Played("e1", [0, 1, 2], [hostile, "", hostile], [0.0] * 3, [3] * 3))
    path = tmp_path / "e1.jsonl.zst"
    assert validate_file(path) == []
    trace = read_trace(path)
    (kept,) = trace.captions.values()
    assert kept == clean(hostile)
    assert kept == hostile or "UTF-8" in name or "pair" in name
    # Once, whatever its size, and never a line of its own making.
    assert sum(line.count(b"caption_id") for line in read_lines(path).lines) == 1
    assert path.stat().st_size < 20_000


@given(st.text(st.characters(), max_size=20) | st.text("a\ud800\udfff\ud83d\ude00", max_size=5))
def test_clean_changes_only_what_is_no_unicode(given_text: str) -> None:
    cleaned = clean(given_text)
    cleaned.encode()
    assert len(cleaned) == len(given_text)
    assert all(
        a == b or ("\ud800" <= a <= "\udfff" and b == "\ufffd") for a, b in zip(given_text, cleaned, strict=True)
    )
    assert len(text_ref(given_text)) == 16


def test_a_file_cut_at_every_byte_of_its_last_frames_is_read(tmp_path: Path) -> None:
    record(recorder(tmp_path, frame_lines=4), Played("e1", [0] * 14, ["x"] * 14, [1.0] * 14, [3] * 14))
    path = tmp_path / "e1.jsonl.zst"
    whole = path.read_bytes()
    frames, rest = [0], whole
    while rest:
        frame = zstandard.ZstdDecompressor().decompressobj()
        frame.decompress(rest)
        rest = frame.unused_data
        frames.append(len(whole) - len(rest))
    full = read_trace(path)
    assert len(frames) >= 5
    part = tmp_path / "e1.jsonl.zst.part"
    path.rename(part)
    steps_before = 0
    for size in range(frames[-4], len(whole)):
        part.write_bytes(whole[:size])
        trace = read_trace(part)
        assert list(trace.events) == list(full.events[: len(trace.events)])
        assert (trace.cut is None) == (size in frames)
        assert len(trace.steps) >= steps_before
        if size in frames:
            steps_before = len(trace.steps)
        assert validate_file(part) == []
    assert steps_before > 0


def test_a_small_file_that_unpacks_to_very_much_is_refused_in_time(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jsonl.zst"
    with path.open("wb") as file, zstandard.ZstdCompressor(level=1).stream_writer(file) as writer:
        for _ in range(160):
            writer.write(bytes(2**24))  # 2.5 GiB of zeros
    assert path.stat().st_size < 2**20
    # In a process of its own: what it took of memory is seen afterwards.
    code = f"""
import pathlib
from orchestration.errors import TraceError
from orchestration.traces import reader
reader.TEXT_LIMIT = 2**26
try:
    reader.read_trace(pathlib.Path({str(path)!r}))
except TraceError as error:
    print(error)
status = pathlib.Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said, kilobytes = done.stdout.splitlines()
    assert said == f"{path}: unpacks to more than 67,108,864 bytes, which no trace of an episode does"
    assert int(kilobytes) < 700 * 1024


VERSIONS = {"nle": "1.1.0", "minihack": "1.0.0"}
WALL = str(caption_id("It's a wall."))


def test_files_of_the_first_version_are_read(tmp_path: Path) -> None:
    event = {"record": "event", "agent": "actor/0"}
    lines: list[dict[str, Any]] = [
        {
            "record": "header", "schema": "yendor-trace/1", "episode_id": "old", "run": "r", "env_id": "minihack/X",
            "env_options": {}, "action_names": ["north"], "seeds": {"core": "1"}, "policy_version": 2, "versions": VERSIONS,
            "code_revision": None, "clock": "unpinned", "recorded_at": 1.0, "count_exponent": 3.0,
        },
        {**event, "type": "env_reset", "id": "e0", "seq": 0, "t": 0.0, "parents": [], "observation_hash": "a", "screen": "@"},
        {"record": "caption", "caption_id": WALL, "text": "It's a wall."},
        {
            **event, "type": "env_step", "id": "e1", "seq": 1, "t": 0.1, "parents": ["e0"], "step": 0, "action": 0,
            "action_name": "north", "log_prob": -1.0, "value": 0.5, "reward": 1.0, "caption_id": WALL, "caption_count": 1,
            "grounded": True, "policy_version": 2, "observation_hash": "b", "screen": "@",
        },
        {
            **event, "type": "reward", "id": "e2", "seq": 2, "t": 0.1, "parents": ["e1"], "family": "outcome", "value": 1.0,
            "source": "environment", "version": None, "target": "e1",
        },
        {
            "record": "end", "t": 0.2, "events": 3, "length": 1, "episode_return": 1.0, "terminated": True,
            "truncated": False, "success": True, "metrics": {}, "error": None,
        },
    ]  # fmt: skip
    path = tmp_path / "old.jsonl.zst"
    path.write_bytes(zstandard.compress(b"".join(orjson.dumps(line) + b"\n" for line in lines)))
    before = path.read_bytes()
    trace = read_trace(path)
    assert (trace.header.schema, trace.header.scope, trace.end is not None) == (SCHEMA, "episode", True)
    assert [event.type for event in trace.events] == ["env_reset", "env_step", "reward"]
    assert trace.events[2].targets == (trace.events[2].target,) == ("e1",)  # type: ignore[union-attr]
    assert validate_file(path) == []
    assert path.read_bytes() == before


def test_files_of_the_second_version_are_read(tmp_path: Path) -> None:
    header = {
        "record": "header", "schema": "yendor-trace/2", "episode_id": "old", "run": "r", "env_id": "minihack/X",
        "env_options": {}, "action_names": ["north"], "seeds": {"core": "1"}, "policy_version": 2, "versions": VERSIONS,
        "code_revision": None, "clock": "unpinned", "recorded_at": 1.0, "count_exponent": 3.0,
    }  # fmt: skip
    event = {
        "record": "event",
        "type": "env_step",
        "action": 0,
        "log_prob": -1.0,
        "value": 0.5,
        "observation_hash": "b",
    }
    end = {
        "record": "end", "t": 0.3, "events": 5, "length": 3, "episode_return": 1.0, "terminated": True,
        "truncated": False, "success": True, "metrics": {}, "error": None,
    }  # fmt: skip
    lines: list[dict[str, Any]] = [
        header,
        {
            "record": "event", "type": "env_reset", "id": "e0", "seq": 0, "t": 0.0, "agent": "a", "parents": [],
            "observation_hash": "a", "screen": "@.\n..",
        },
        {**event, "t": 0.1, "reward": 1.0, "paid": True, "rows": [[0, ".@"]]},
        {**event, "t": 0.2, "reward": 0.0, "rows": [[2, "new"]], "height": 3},
        {**event, "t": 0.3, "reward": 0.0, "screen": ""},
        end,
    ]  # fmt: skip
    path = tmp_path / "old.jsonl.zst"
    path.write_bytes(zstandard.compress(b"".join(orjson.dumps(line) + b"\n" for line in lines)))
    assert validate_file(path) == []
    trace = read_trace(path)
    assert trace.header.schema == SCHEMA
    assert [step.screen for step in trace.steps] == [".@\n..", ".@\n..\nnew", ""]
    assert [event.id for event in trace.events] == ["e0", "e1", "e2", "e3", "e4"]
    assert trace.events[2].targets == ("e1",)  # type: ignore[union-attr]


# Screens of terminals.


terminals = st.tuples(st.integers(1, 12), st.sampled_from([5, 8])).flatmap(
    lambda shape: st.tuples(
        arrays(np.uint8, (shape[0], 3, shape[1]), elements=st.sampled_from(b" .@d|\xe9")),
        arrays(np.uint8, (shape[0], 3, shape[1]), elements=st.integers(0, 15)),
    )
)


@settings(max_examples=150, deadline=None)
@given(terminals, st.integers(1, 5))
def test_cells_and_their_colours_come_back(shown: tuple[Any, Any], at_once: int) -> None:
    chars, colors = shown
    texts = ["\n".join(bytes(row).decode("latin-1").rstrip() for row in screen) for screen in chars]
    inks = [
        "\n".join(
            "".join("0" if sign == " " else f"{ink:x}" for sign, ink in zip(line, row, strict=False))
            for line, row in zip(text.split("\n"), screen, strict=True)
        )
        for text, screen in zip(texts, colors, strict=True)
    ]
    planes = np.stack([chars, colors], axis=1)
    assert (text_of(planes[0]), colors_of(planes[0])) == (texts[0], inks[0])
    packer, unpacker = CellPacker(planes[0]), CellUnpacker(texts[0], inks[0])
    found: list[tuple[str, str]] = []
    for low in range(0, len(chars) - 1, at_once * 2):
        for part in (low, low + at_once):
            if part < len(planes) - 1:
                packer.add(planes[part : part + at_once + 1])
        columns = packer.columns()
        found += unpacker.unpack(orjson.loads(orjson.dumps(columns, option=orjson.OPT_SERIALIZE_NUMPY)))
    assert found == list(zip(texts[1:], inks[1:], strict=True))


def test_lines_that_do_not_follow_are_refused(tmp_path: Path) -> None:
    record(recorder(tmp_path, frame_lines=1), Played("e1", [0, 1], ["", ""], [0.0, 0.0], [3, 3]))
    path = tmp_path / "e1.jsonl.zst"
    lines = read_lines(path).lines
    for old, new in (
        (b'"action":[1]', b'"action":[99]'),
        (b'"action":[1]', b'"action":[1,1]'),
        (b'"rows":[[2,[[0,', b'"rows":[[2,[[70,'),
        (b'"rows":[[2,[[0,', b'"rows":[[2,[['),
    ):
        planted = [lines[0], lines[1], lines[2], lines[3].replace(old, new), *lines[4:]]
        assert planted != lines
        path.write_bytes(zstandard.compress(b"\n".join(planted) + b"\n"))
        with pytest.raises(TraceError, match=r"e1.jsonl.zst:4: "):
            read_trace(path)


def test_the_documentation_names_every_rule_and_kind() -> None:
    page = (Path(__file__).parents[1] / "docs" / "traces.md").read_text()
    for rule, meaning in RULES.items():
        assert f"| `{rule}` | {meaning} |" in page
    for kind in (*EVENTS, *OTHERS, SCHEMA):
        assert f"`{kind}`" in page


# The wall clock.


def test_the_wall_clock_of_events_follows_what_it_was_set_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set forward by an hour while an episode runs: header and first events have the old time, the others the new one."""
    moved, wall = 0.0, time.time
    monkeypatch.setattr(time, "time", lambda: wall() + moved)
    played = Played("e1", [0, 1, 2, 0], [""] * 4, [0.0, 1.0, 0.0, 0.0], [3, 3, 4, 4])
    tracing = recorder(tmp_path, frame_lines=1)
    begin(tracing, played)
    tracing.steps(0, steps_of(played, 0, 2))
    moved = 3600.0
    tracing.steps(0, steps_of(played, 2, 4))
    tracing.finish(0, EpisodeFinish(1.0, 4, False, None, {}, "the roof fell in"))
    trace = read_trace(tmp_path / "e1.jsonl.zst")
    assert [(event.type, event.skew) for event in trace.events] == [
        ("env_reset", 0.0), ("env_step", 0.0), ("env_step", 0.0), ("reward", 0.0),
        ("weights_update", 3600.0), ("env_step", 3600.0), ("env_step", 3600.0), ("error", 3600.0),
    ]  # fmt: skip
    assert trace.wall(trace.events[-1]) == pytest.approx(trace.header.recorded_at + 3600.004, abs=0.01)
    assert validate_file(trace.path) == []
    for line in read_lines(trace.path).lines:
        LINES.validate(orjson.loads(line))
