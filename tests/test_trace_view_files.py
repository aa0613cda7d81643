"""The page of traces as a file: what is read for it, what is left out, and rewriting it while a run goes."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import zstandard

from orchestration.errors import RunDirError, TraceError, UsageError
from orchestration.traces.view import default_page, follow, render, render_traces
from orchestration.traces.view.command import run_view
from reward_server.store import AnnotationStore, LabelRecord
from reward_server.types import Answer, JudgeKey
from tests.trace_support import Played, record, recorder
from tests.trace_view_support import HOSTILE, Script, header, long_episode, read_page, trace, write_trace


def test_files_that_are_no_traces_are_told_of(tmp_path: Path) -> None:
    good = write_trace(tmp_path, long_episode(3))
    bad = tmp_path / "bad.jsonl.zst"
    bad.write_bytes(b"\xff\xfe\x00")
    page = render([bad, good, tmp_path / "gone.jsonl.zst"], tmp_path / "out.html")
    index, trees, _ = read_page(tmp_path / "out.html")
    assert (page.episodes, len(trees)) == (1, 1)
    assert [str(bad) in page.unreadable[0], "gone" in page.unreadable[1]] == [True, True]
    assert index["unreadable"] == list(page.unreadable)
    with pytest.raises(TraceError, match=re.escape(str(bad))):
        render([bad], tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()


def test_bytes_that_are_no_utf_8_spoil_only_their_own_trace(tmp_path: Path) -> None:
    good = write_trace(tmp_path, long_episode(3))
    spoilt = tmp_path / "spoilt.jsonl.zst"
    lines = zstandard.ZstdDecompressor().decompress(good.read_bytes(), max_output_size=1 << 20)
    spoilt.write_bytes(zstandard.ZstdCompressor().compress(lines.replace(b"thing number 0", b"\xff\xfe\xc3(")))
    page = render([spoilt, good], tmp_path / "out.html")
    assert page.episodes == 1
    assert "spoilt.jsonl.zst:" in page.unreadable[0]


def test_a_trace_that_was_cut_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    played = Played("ep-1", [0] * 30, [""] * 30, [0.0] * 30, [3] * 30)
    writer = recorder(tmp_path, frame_lines=4)
    record(writer, played, finish=False)
    writer.close()
    (part,) = tmp_path.glob("*.part")
    part.write_bytes(part.read_bytes()[:-3])
    render([part], tmp_path / "out.html")
    index, (tree,), _ = read_page(tmp_path / "out.html")
    assert index["episodes"][0]["ending"] == "unfinished"
    assert tree["end"] is None and "cut" in tree["cut"]
    assert 20 < len(tree["frames"]) < 31


def test_no_traces_no_folder_no_page(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no traces to view"):
        render([], tmp_path / "out.html")
    with pytest.raises(TraceError, match="no such folder"):
        follow(tmp_path / "gone", tmp_path / "out.html")
    with pytest.raises(TraceError, match="cannot be written"):
        render_traces([trace(())], tmp_path / "gone" / "out.html")


def test_of_too_many_the_newest_are_taken(tmp_path: Path) -> None:
    paths = [write_trace(tmp_path, trace((), of=header(f"ep-{at}"))) for at in range(5)]
    for at, path in enumerate(paths):
        os.utime(path, (at % 3, at % 3))
    page = render(paths, tmp_path / "out.html", limit=3)
    index, _, _ = read_page(tmp_path / "out.html")
    assert page.left_out == index["left_out"] == 2
    assert [row["episode"] for row in index["episodes"]] == ["ep-1", "ep-2", "ep-4"]


def test_where_a_page_goes_by_default(tmp_path: Path) -> None:
    assert default_page(tmp_path) == tmp_path / "trace.html"
    assert default_page(tmp_path / "a.b.jsonl.zst.part") == tmp_path / "a.b.html"


def test_following_rewrites_the_page_when_an_episode_finishes_and_ends_with_the_run(tmp_path: Path) -> None:
    out = tmp_path / "page" / "out.html"
    out.parent.mkdir()
    looks, pages = iter(range(5)), list[tuple[int, Any]]()
    calls = 0

    def look(_: float) -> None:
        at = next(looks)
        if at in (1, 3):
            write_trace(tmp_path, trace((), of=header(f"ep-{at}")))
        (tmp_path / f"ep-9{at}.jsonl.zst.part").write_bytes(b"running")

    def going() -> bool:
        nonlocal calls
        calls += 1
        return calls < 6

    page = follow(
        tmp_path,
        out,
        going=going,
        sleep=look,
        on_page=lambda page: pages.append((page.episodes, read_page(out)[0]["reload_s"])),
    )
    assert pages == [(0, 5.0), (1, 5.0), (2, 5.0), (2, None)]
    assert page.episodes == 2

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow(tmp_path, out, going=lambda: True, sleep=interrupt)
    assert read_page(out)[0]["reload_s"] is None, "the page that Ctrl-C leaves does not wait for more"
    assert [path.name for path in out.parent.iterdir()] == ["out.html"], "no temporary file is left"


def test_the_answers_of_the_run_are_shown_with_its_traces(tmp_path: Path) -> None:
    key = JudgeKey("direct@1", "win the game", "judge-7b", "direct", "{}")
    answers = [Answer(1, 0.875, "yes", 0.25), Answer(None, None, HOSTILE[0], 0.5)]
    said = [2**63 - 1, -(2**62), 5]
    with AnnotationStore(tmp_path / "annotations.sqlite") as store:
        records = [LabelRecord(caption, answer) for caption, answer in zip(said, answers, strict=False)]
        store.write(key, records, [(caption, f"text {caption}") for caption in said])
        script = Script()
        script.reset()
        for at, caption in enumerate((said[0], 0, said[1], said[0], said[2])):
            script.step(at, "a", caption_id=str(caption))
        (tmp_path / "traces").mkdir()
        captions = {str(caption): f"text {caption}" for caption in said}
        render([write_trace(tmp_path / "traces", trace(script.events, captions))], tmp_path / "out.html")
    _, (tree,), _ = read_page(tmp_path / "out.html")
    first, second = tree["labels"]
    assert (first["frames"], second["frames"]) == ([1, 4], [3])
    (_, _, _, _, _, fields, texts), (_, _, _, _, _, unreadable, answer) = (
        tree["events"][at["event"]] for at in (first, second)
    )
    assert [fields[name] for name in ("label", "probability", "judge")] == [1, 0.875, "judge-7b"]
    assert [tree["texts"][texts[name]] for name in ("question", "answer")] == [
        "direct@1, goal win the game, mode direct", "yes",
    ]  # fmt: skip
    assert (unreadable["label"], tree["texts"][answer["answer"]]) == (None, HOSTILE[0])
    (tmp_path / "annotations.sqlite").write_bytes(b"no database" * 100)
    page = render(list((tmp_path / "traces").iterdir()), tmp_path / "out.html")
    assert page.episodes == 1, "an episode is shown without them"
    assert "the labels cannot be read" in page.unreadable[0]


def test_a_trace_in_the_survey_s_schema_is_shown(tmp_path: Path) -> None:
    events = [
        {"id": "a", "t": 0, "type": "orchestrator_decision", "agent": "lead"},
        {"id": "b", "t": 1, "type": "message", "agent": "lead", "to": "worker", "content_ref": "plan"},
        {"id": "c", "t": 2, "type": "return", "agent": "worker", "to": "lead"},
    ]
    edges = [{"src": "b", "dst": "c", "type": "message"}]
    survey = {"trace_id": "demo", "task_id": "task", "events": events, "edges": edges, "rewards": {"team": 1.0}}
    (tmp_path / "demo.json").write_text(json.dumps({**survey, "costs": {"tokens": 1, "wall_clock_s": 2}}))
    render([tmp_path / "demo.json"], tmp_path / "out.html")
    index, (tree,), _ = read_page(tmp_path / "out.html")
    assert index["episodes"][0]["env"] == "task"
    assert {"lead", "worker"} <= set(tree["agents"])
    assert len(tree["frames"]) == len(tree["events"]) >= 3
    assert tree["lanes"][0]["points"][0][1] == 1.0


def test_the_command_finds_runs_folders_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "runs" / "demo"
    (run / "traces").mkdir(parents=True)
    (run / "config.yaml").write_text("{}")
    with pytest.raises(TraceError, match="no traces in it"):
        run_view(["demo"], root=tmp_path / "runs")
    file = write_trace(run / "traces", trace((), of=header("ep-1")))
    write_trace(run / "traces", trace((), of=header("run-0", scope="run")))
    assert run_view(["demo"], root=tmp_path / "runs") == run.resolve() / "trace.html"
    assert [row["episode"] for row in read_page(run / "trace.html")[0]["episodes"]] == ["run-0", "ep-1"]
    assert run_view([str(file)]) == run / "traces" / "ep-1.html"
    assert run_view([str(file), str(run)], out=tmp_path / "out.html") == tmp_path / "out.html"
    assert "out.html: 3 traces" in capsys.readouterr().out.replace("\n", "")
    with pytest.raises(UsageError, match="one run"):
        run_view([str(file)], following=True)
    with pytest.raises(RunDirError, match="no such run"):
        run_view(["dem"], root=tmp_path / "runs")
    with pytest.raises(UsageError, match="name a run"):
        run_view([])
