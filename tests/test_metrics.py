"""Metrics, summaries, and statistics of episodes."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.errors import MetricsError
from orchestration.metrics import MetricsWriter, read_metrics, write_summary
from orchestration.statistics import RECENT, EpisodeResult, EpisodeStatistics
from orchestration.summary import CaptionScore, Status, Summary, read_summary
from tests.full_disk import no_file_larger_than

REQUIRED = {
    *("status", "env", "env_steps", "wall_s", "steps_per_second", "episodes", "return_mean", "success_rate"),
    *("intrinsic_return_mean", "captions_unique", "captions_labelled", "captions_failed", "labels_per_second"),
    *("reward_model_version", "policy_version", "policy_lag_mean", "policy_lag_max"),
    *("actors", "actor_restarts", "judge_status"),
}
"""What others read, by name."""


def writer(folder: Path, resume_step: int | None = None) -> MetricsWriter:
    return MetricsWriter(folder / "metrics.jsonl", None, resume_step=resume_step, clock=lambda: 7.0)


# metrics.jsonl


def test_lines_hold_numbers_or_null_and_never_nan(tmp_path: Path) -> None:
    with writer(tmp_path) as metrics:
        metrics.log(64, {"a": np.float32(0.5), "b": math.nan, "c": None, "d": math.inf}, {"rate": np.float64(3)})  # type: ignore[dict-item]
    line = (tmp_path / "metrics.jsonl").read_text()
    assert line == '{"env_steps":64,"metrics":{"a":0.5,"b":null,"c":null,"d":null},"time":{"unix":7.0,"rate":3.0}}\n'


def test_a_resumed_file_equals_one_that_was_never_interrupted(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "resumed").mkdir()
    with writer(tmp_path / "whole") as metrics:
        for step in range(0, 100, 10):
            metrics.log(step, {"x": step / 3})
    with writer(tmp_path / "resumed") as metrics:
        for step in range(0, 80, 10):
            metrics.log(step, {"x": step / 3 if step <= 50 else -1.0})
    with (tmp_path / "resumed" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"env_steps": 80, "met')  # killed while it wrote
    with writer(tmp_path / "resumed", resume_step=50) as metrics:
        for step in range(60, 100, 10):
            metrics.log(step, {"x": step / 3})
    assert (tmp_path / "resumed/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


def test_a_fresh_run_starts_the_file_anew(tmp_path: Path) -> None:
    for _ in range(2):
        with writer(tmp_path) as metrics:
            metrics.log(1, {"x": 1.0})
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


def test_whole_lines_survive_kill_9(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom orchestration.metrics import MetricsWriter\n"
        "metrics = MetricsWriter(Path(sys.argv[1]), None)\n"
        "for step in range(100): metrics.log(step, {'x': 1.0})\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "metrics.jsonl")], check=False)
    assert [line.env_steps for line in read_metrics(tmp_path / "metrics.jsonl")] == list(range(100))


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"env_steps":1,"metrics":{},"time":{}}\n{"what":1}\n')
    with pytest.raises(MetricsError, match=r"metrics.jsonl:2: not a line of metrics"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_due_comes_once_in_an_interval(tmp_path: Path) -> None:
    now = [0.0]
    metrics = MetricsWriter(tmp_path / "metrics.jsonl", None, interval_s=2.0, clock=lambda: now[0])
    said: list[bool] = []
    for now[0] in (0.0, 0.5, 1.9, 2.0, 3.9, 4.5):
        said.append(metrics.due())
    assert said == [True, False, False, True, False, True]
    metrics.close()


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "tensorboard"
    with MetricsWriter(tmp_path / "metrics.jsonl", folder) as metrics:
        for step in range(4):
            metrics.log(step, {"episode/success": step / 4, "unknown": None}, {"steps_per_second": 100.0})
    with MetricsWriter(tmp_path / "metrics.jsonl", folder, resume_step=1) as metrics:
        metrics.log(2, {"episode/success": 0.9})
    events = EventAccumulator(str(folder))
    events.Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("episode/success")]
    assert scalars == [(0, 0.0), (1, 0.25), (2, pytest.approx(0.9))]
    assert set(events.Tags()["scalars"]) == {"episode/success", "time/steps_per_second"}


def test_metrics_load_neither_torch_nor_tensorflow(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom orchestration.metrics import MetricsWriter\n"
        f"MetricsWriter(Path({str(tmp_path / 'm')!r}), Path({str(tmp_path / 't')!r})).close()\n"
        "print(sorted({'torch', 'tensorflow', 'ray'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(MetricsError, match="cannot be written"):
        writer(tmp_path / "missing")


def test_what_cannot_be_written_is_written_later(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path, events = tmp_path / "metrics.jsonl", tmp_path / "tensorboard"
    with MetricsWriter(path, events) as metrics:
        metrics.log(0, {"episode/success": 0.0})
        assert metrics.trouble is None
        whole = path.read_bytes()
        with no_file_larger_than(len(whole) + 10):
            for step in (1, 2):
                metrics.log(step, {"episode/success": 0.5})
                assert (
                    metrics.trouble is not None
                    and "metrics.jsonl: cannot be written: File too large" in metrics.trouble
                )
                assert path.read_bytes() == whole, "no half line"
        metrics.log(3, {"episode/success": 1.0})
        assert metrics.trouble is None
    assert [line.env_steps for line in read_metrics(path)] == [0, 1, 2, 3]
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    assert [(e.step, e.value) for e in accumulator.Scalars("episode/success")] == [(0, 0), (1, 0.5), (2, 0.5), (3, 1)]


# summary.json


def test_the_summary_has_all_promised_fields(tmp_path: Path) -> None:
    write_summary(tmp_path / "summary.json", Summary("demo", "minihack/X"))
    assert orjson.loads((tmp_path / "summary.json").read_bytes()).keys() >= REQUIRED


def test_a_summary_survives_the_way_through_its_file(tmp_path: Path) -> None:
    summary = Summary(
        "demo",
        "minihack/X",
        status=Status.FAILED,
        success_rate=0.25,
        waits={"actor": {"env": 0.5}},
        liked=(CaptionScore("You see a key.", 0.99, 3),),
        error="RuntimeError: gone",
    )
    for durable in (False, True):
        write_summary(tmp_path / "summary.json", summary, durable=durable)
        assert read_summary(tmp_path / "summary.json") == summary
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_a_reader_never_sees_half_a_summary(tmp_path: Path) -> None:
    """A process rewrites the summary without pause and is killed; whatever moment it was, the file is whole."""
    path = tmp_path / "summary.json"
    script = (
        "import sys\nfrom pathlib import Path\nfrom orchestration.metrics import write_summary\n"
        "from orchestration.summary import Summary\n"
        "path = Path(sys.argv[1])\nwrite_summary(path, Summary('a', 'b'))\nprint('ready', flush=True)\n"
        "while True: write_summary(path, Summary('a' * 9999, 'b'))"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    seen = [read_summary(path) for _ in range(300)]
    process.kill()
    process.wait()
    assert all(summary is not None and summary.env == "b" for summary in [*seen, read_summary(path)])


def test_no_summary_and_a_broken_one(tmp_path: Path) -> None:
    assert read_summary(tmp_path / "summary.json") is None
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(MetricsError, match=r"summary.json: not a summary"):
        read_summary(tmp_path / "summary.json")


# Episodes.

EPISODES = st.lists(
    st.tuples(st.integers(0, 3_000_000), st.floats(-5, 5), st.one_of(st.none(), st.booleans())), min_size=1, max_size=60
)


def statistics(episodes: list[tuple[int, float, bool | None]]) -> EpisodeStatistics:
    collected = EpisodeStatistics()
    for steps, extrinsic, success in episodes:
        collected.add(EpisodeResult(steps, extrinsic, 0.5, 10, success))
    return collected


def test_first_and_last_tenth_of_a_run_that_learns() -> None:
    """Success rises linearly with the steps: the tenths have means 0.05 and 0.95 but for one bin's width."""
    collected = EpisodeStatistics()
    rng = np.random.default_rng(0)
    for step in range(0, 1_000_000, 20):
        collected.add(EpisodeResult(step, step / 1e6, 0.0, 20, bool(rng.random() < step / 1e6)))
    tenths = collected.tenths(1_000_000)
    assert tenths.return_first == pytest.approx(0.05, abs=0.005)
    assert tenths.return_last == pytest.approx(0.95, abs=0.005)
    assert tenths.success_first == pytest.approx(0.05, abs=0.02)
    assert tenths.success_last == pytest.approx(0.95, abs=0.02)


@settings(deadline=None)
@given(EPISODES)
def test_bins_lose_no_episode(episodes: list[tuple[int, float, bool | None]]) -> None:
    sums = statistics(episodes).state_dict()["sums"].sum(axis=0)
    judged = [success for _, _, success in episodes if success is not None]
    assert sums[0] == len(episodes)
    assert sums[1] == pytest.approx(math.fsum(extrinsic for _, extrinsic, _ in episodes), abs=1e-9)
    assert list(sums[2:]) == [len(judged), sum(judged)]


@settings(deadline=None)
@given(EPISODES, st.integers(0, 60))
def test_statistics_go_on_where_they_were(episodes: list[tuple[int, float, bool | None]], at: int) -> None:
    whole, first, second = statistics(episodes), statistics(episodes[:at]), EpisodeStatistics()
    second.load_state_dict(first.state_dict())
    for steps, extrinsic, success in episodes[at:]:
        second.add(EpisodeResult(steps, extrinsic, 0.5, 10, success))
    assert second.recent() == whole.recent()
    assert second.tenths(3_000_000) == whole.tenths(3_000_000)
    assert second.episodes == len(episodes)


def test_recent_means_forget_what_is_old() -> None:
    collected = statistics([(0, 100.0, False)] * RECENT + [(1, 1.0, True)] * RECENT)
    recent = collected.recent()
    assert (recent.extrinsic, recent.success, recent.length, recent.intrinsic) == (1.0, 1.0, 10, 0.5)


def test_a_task_without_success_has_none() -> None:
    collected = statistics([(0, 1.0, None)] * 3)
    assert collected.recent().success is None
    assert collected.tenths(10).success_first is None
    assert EpisodeStatistics().tenths(0) == dataclasses.replace(
        collected.tenths(10), return_first=None, return_last=None
    )
