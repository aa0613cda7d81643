"""Exports: what is asked for is written, whole and nowhere else; everything else is refused in one clear line."""

import json
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from orchestration.errors import TraceError, UsageError
from orchestration.traces.export import FORMATS, asciicast, chrome, export, otel, perfetto, survey
from orchestration.traces.export.text import finite, plain, printable, unicode
from tests.trace_export_support import HOSTILE, end, events, header, mysterious, rich_trace, write_trace

PLAIN_FORMATS = ("survey", "perfetto", "chrome", "otel", "asciicast")
"""Those that need no further package."""


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


# Errors.


@pytest.mark.parametrize(("wrong", "meant"), [("perfeto", "perfetto"), ("Survey", "survey"), ("dataset", "datasets")])
def test_a_format_that_does_not_exist_names_the_near_miss(tmp_path: Path, wrong: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"no format '{wrong}'; did you mean {meant}"):
        export([rich_trace(tmp_path)], wrong, tmp_path / "out")


def test_a_format_that_is_like_no_other_lists_them(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are survey, perfetto, chrome, otel, asciicast, parquet, datasets"):
        export([rich_trace(tmp_path)], "xyzzy", tmp_path / "out")


def test_a_pace_is_refused_where_it_has_no_effect(tmp_path: Path) -> None:
    path = rich_trace(tmp_path)
    with pytest.raises(UsageError, match="a pace is for asciicast"):
        export([path], "chrome", tmp_path / "out", pace=10)
    with pytest.raises(UsageError, match="must be above 0"):
        export([path], "asciicast", tmp_path / "out", pace=0)


@pytest.mark.parametrize("form", PLAIN_FORMATS)
def test_a_damaged_trace_is_refused_and_nothing_is_left(tmp_path: Path, form: str) -> None:
    whole = rich_trace(tmp_path).read_bytes()
    folder = tmp_path / "in"
    folder.mkdir()
    damages = {
        "cut": (whole[:-20], "the last frame is cut|no whole record|damaged"),
        "garbage": (b"no trace at all", "damaged|no whole record"),
        "empty": (b"", "no whole record"),
        "text": (zstandard.compress(b'{"record":"header"}\n'), "written as None"),
        "bytes": (zstandard.compress(zstandard.decompress(whole).replace(b'"a plan"', b'"\xff\xfe"')), ":2: not JSON"),
        "nan": (zstandard.compress(zstandard.decompress(whole).replace(b'"t":3.0', b'"t":NaN')), "not JSON"),
        "time": (zstandard.compress(zstandard.decompress(whole).replace(b'"t":3.0', b'"t":1e300')), "e9: t 1e.300"),
        "twice": (zstandard.compress(zstandard.decompress(whole).replace(b'"id":"e9"', b'"id":"e8"')), "used twice"),
    }
    for name, (data, why) in damages.items():
        path = folder / f"{name}.jsonl.zst"
        path.write_bytes(data)
        before = left_in(tmp_path)
        with pytest.raises(TraceError, match=why) as caught:
            export([path], form, tmp_path / "out")
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert left_in(tmp_path) == before


def test_a_finished_trace_without_its_end_is_damaged_but_a_part_is_exported(tmp_path: Path) -> None:
    path = write_trace(tmp_path, [header(), *events()])
    with pytest.raises(TraceError, match=r"has no end record; rename it to ep1.jsonl.zst.part"):
        export([path], "survey", tmp_path / "out")
    part = path.rename(tmp_path / "ep1.jsonl.zst.part")
    for form in PLAIN_FORMATS:
        exported = export([part], form, tmp_path / form)
        assert exported.unfinished == (f"{part}: has no end record",)
        assert exported.files == (tmp_path / form,)


# Where it writes.


def test_several_episodes_become_a_folder_or_one_file(tmp_path: Path) -> None:
    paths = [rich_trace(tmp_path, name=name) for name in ("a", "b")]
    exported = export(paths, "survey", tmp_path / "folder")
    assert exported.files == (tmp_path / "folder" / "a.json", tmp_path / "folder" / "b.json")
    assert [json.loads(path.read_bytes())["trace_id"] for path in exported.files] == ["a", "b"]
    assert export(paths, "chrome", tmp_path / "one.json").files == (tmp_path / "one.json",)
    assert left_in(tmp_path) == {"a.jsonl.zst", "b.jsonl.zst", "folder", "a.json", "b.json", "one.json"}


@pytest.mark.parametrize("evil", ["../evil", "/tmp/evil", "a/b", "..", "x\0y", "", "-rf", "a" * 300])
def test_an_episode_id_cannot_lead_out_of_the_folder(tmp_path: Path, evil: str) -> None:
    made = events()
    paths = [rich_trace(tmp_path), write_trace(tmp_path, [header(evil), *made, end(len(made))], "other")]
    before = left_in(tmp_path.parent)
    with pytest.raises(TraceError, match="cannot be the name of a file"):
        export(paths, "survey", tmp_path / "out")
    assert left_in(tmp_path.parent) == before


def test_what_is_there_is_kept_until_the_whole_export_is(tmp_path: Path) -> None:
    good, bad = rich_trace(tmp_path), tmp_path / "bad.jsonl.zst"
    bad.write_bytes(b"?")
    out = tmp_path / "out.json"
    out.write_text("precious")
    with pytest.raises(TraceError):
        export([good, bad], "chrome", out)
    assert out.read_text() == "precious"
    export([good], "chrome", out)
    assert "traceEvents" in json.loads(out.read_bytes())
    assert left_in(tmp_path) == {"ep1.jsonl.zst", "bad.jsonl.zst", "out.json"}


def test_a_link_is_replaced_and_never_written_through(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.write_text("precious")
    (tmp_path / "out.json").symlink_to(target)
    planted = tmp_path / f".other.json.{os.getpid()}.tmp"
    planted.symlink_to(target)
    path = rich_trace(tmp_path)
    export([path], "chrome", tmp_path / "out.json")
    with pytest.raises(TraceError, match="left by another export"):
        export([path], "chrome", tmp_path / "other.json")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(TraceError, match="exists"):
        export([path, path], "survey", tmp_path / "link")
    assert target.read_text() == "precious"


def test_paths_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    path = rich_trace(tmp_path)
    before = path.read_bytes()
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").touch()
    refused: list[tuple[list[Path], Path, str]] = [
        ([path], path, "is a trace that is exported"),
        ([path], tmp_path / "x" / ".." / path.name, "is a trace that is exported"),
        ([path], full, "is a folder"),
        ([path, path], full, "exists; remove it"),
        ([path, path], tmp_path / "out", "two traces of the same episode"),
        ([path], tmp_path / "none" / "out", "no such folder"),
        ([], tmp_path / "out", "no traces"),
    ]
    (tmp_path / "x").mkdir()
    for paths, out, why in refused:
        with pytest.raises(TraceError, match=why):
            export(paths, "survey", out)
    assert path.read_bytes() == before
    assert left_in(tmp_path) == {path.name, "x", "full", "precious"}


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path; from orchestration.traces.export import export;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "export([Path(sys.argv[1])], sys.argv[2], Path(sys.argv[3]))"
    )
    path = rich_trace(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", code, path, "chrome", tmp_path / "out"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert f"TraceError: {tmp_path / 'out'}: cannot be written: File too large" in done.stderr
    assert left_in(tmp_path) == {path.name}


# Texts and numbers.


@given(st.text(st.characters()) | st.sampled_from(HOSTILE[:3]) | st.just("\ud800 alone"))
def test_any_text_becomes_valid_and_harmless_to_a_terminal(text: str) -> None:
    unicode(text).encode()
    shown = printable(text)
    assert not any((ord(c) < 0x20 and c != "\n") or 0x7F <= ord(c) < 0xA0 or c in "\u2028\u202e\u2066" for c in shown)
    assert len(shown) == len(unicode(text))


@given(st.recursive(st.none() | st.floats() | st.integers() | st.binary(), lambda x: st.lists(x) | st.tuples(x)))
def test_any_value_becomes_strict_json(value: Any) -> None:
    strict = json.dumps(plain({"k": value}), allow_nan=False)
    assert json.loads(strict) == plain({"k": value})


def test_numbers_are_finite_or_none() -> None:
    assert [finite(x) for x in (1, 2.5, True, "3", float("nan"), float("-inf"), 10**400)] == [1, 2.5, *[None] * 5]
    assert plain([2**53, 2**53 + 1, b"\xff"]) == [2**53, str(2**53 + 1), "\ufffd"]
    assert unicode("x" * 10, 4) == "xxxx… (10 characters)"


# All formats.


@pytest.mark.parametrize("form", PLAIN_FORMATS)
def test_an_export_is_the_same_twice(tmp_path: Path, form: str) -> None:
    path = rich_trace(tmp_path)
    first, second = (export([path], form, tmp_path / name).out.read_bytes() for name in ("1", "2"))
    assert first == second


@pytest.mark.parametrize("module", [survey, chrome, perfetto, otel, asciicast])
def test_events_of_unknown_kinds_do_no_harm(tmp_path: Path, module: Any) -> None:
    file = BytesIO()
    module.write(iter([mysterious(tmp_path)]), file)
    written = file.getvalue()
    assert module is asciicast or b"sphinx" in written
    assert b"NaN" not in written
    assert b"Infinity" not in written


@pytest.mark.parametrize("said", HOSTILE, ids=["script", "controls", "unicode", "1MB"])
@pytest.mark.parametrize("form", PLAIN_FORMATS)
def test_hostile_texts_stay_small_and_valid(tmp_path: Path, form: str, said: str) -> None:
    written = export([rich_trace(tmp_path, said)], form, tmp_path / "out").out.read_bytes()
    assert len(written) < 500_000
    if form != "perfetto":
        for line in [written] if form in ("survey", "chrome") else written.splitlines():
            json.loads(line.decode("utf-8", "strict"), parse_constant=pytest.fail)


def test_every_format_has_its_module() -> None:
    assert set(FORMATS) == {*PLAIN_FORMATS, "parquet", "datasets"}
