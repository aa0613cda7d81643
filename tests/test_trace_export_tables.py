"""Parquet and datasets: what is exported is read with pyarrow, and with `datasets`."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from orchestration.errors import ResourceError, TraceError
from orchestration.traces.export import export
from tests.trace_export_support import HOSTILE, end, events, header, rich_trace, write_trace
from tests.trace_support import CAPTIONS, Played, record, recorder


def rows_of(paths: list[Path], out: Path) -> list[dict[str, Any]]:
    return parquet.read_table(export(paths, "parquet", out).out).to_pylist()


def test_a_step_is_a_row_with_what_was_seen_before_and_after(tmp_path: Path) -> None:
    first, second = rows_of([rich_trace(tmp_path)], tmp_path / "out.parquet")
    assert (first["run"], first["episode_id"], first["env_id"], first["agent"]) == ("demo", "ep1", "minihack/X", "lead")
    assert (first["screen"], first["next_screen"], second["screen"]) == ("@.\n..", ".@\na plan", ".@\na plan")
    assert (first["observation_hash"], first["next_observation_hash"]) == ("aa", "bb")
    assert (second["action"], second["action_name"], second["reward"], second["value"]) == (1, "kick", 1.5, 0.5)
    assert (first["value"], first["caption"], first["caption_count"]) == (None, "a plan", 1)
    assert first["total_reward"] == 0.25
    assert second["total_reward"] is None
    assert [(r["part"], r["source"], r["version"], r["value"]) for r in first["rewards"]] == [
        ("component", "reward_model", 2, 0.25),
        ("total", "fusion", 2, 0.25),
    ]
    assert first["annotations"] == [
        {"question": "a plan", "answer": "a plan", "label": 1, "probability": 0.875, "judge": "judge-1"}
    ]
    assert [(row["terminated"], row["truncated"]) for row in (first, second)] == [(False, False), (True, False)]


def test_columns_are_typed(tmp_path: Path) -> None:
    schema = parquet.read_schema(export([rich_trace(tmp_path)], "parquet", tmp_path / "out").out)
    types = {name: schema.field(name).type for name in schema.names}
    assert types["step"] == types["action"] == types["policy_version"] == pa.int64()
    assert types["reward"] == types["log_prob"] == types["t"] == pa.float64()
    assert types["grounded"] == types["terminated"] == pa.bool_()
    assert types["action_name"] == pa.string()
    assert types["rewards"].value_type.field("value").type == pa.float64()


def test_recorded_episodes_come_back_as_they_were(tmp_path: Path) -> None:
    played = Played("ep", [0, 1, 2, 0], list(CAPTIONS), [0.0, 1.0, -0.5, 0.0], [3, 3, 4, 4])
    record(recorder(tmp_path), played)
    rows = rows_of([tmp_path / "ep.jsonl.zst"], tmp_path / "out")
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    assert columns["action"] == played.actions
    assert columns["caption"] == played.captions
    assert columns["reward"] == played.rewards
    assert columns["policy_version"] == played.versions
    assert columns["caption_count"] == played.counts()
    assert columns["value"] == [0.25, 0.25, 0.25, None]
    assert columns["step"] == [0, 1, 2, 3]


def test_an_unfinished_episode_is_cut_not_ended(tmp_path: Path) -> None:
    path = write_trace(tmp_path, [header(), *events()]).rename(tmp_path / "ep1.jsonl.zst.part")
    rows = rows_of([path], tmp_path / "out")
    assert [(row["terminated"], row["truncated"]) for row in rows] == [(False, False), (False, True)]


def test_many_episodes_and_none_with_steps(tmp_path: Path) -> None:
    paths = [rich_trace(tmp_path, name=name) for name in ("a", "b")]
    empty = write_trace(tmp_path, [header("c"), end(0)], "c")
    assert [row["episode_id"] for row in rows_of([*paths, empty], tmp_path / "out")] == ["a", "a", "b", "b"]
    assert rows_of([empty], tmp_path / "none") == []


@pytest.mark.parametrize("said", HOSTILE, ids=["script", "controls", "unicode", "1MB"])
def test_hostile_texts_come_back_whole(tmp_path: Path, said: str) -> None:
    (row, _) = rows_of([rich_trace(tmp_path, said)], tmp_path / "out")
    assert row["caption"] == said
    assert row["annotations"][0]["answer"] == said


def test_a_number_that_does_not_fit_is_said(tmp_path: Path) -> None:
    path = rich_trace(tmp_path, policy_version=2**63)
    with pytest.raises(TraceError, match="does not fit into the columns"):
        export([path], "datasets", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_pyarrow_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = rich_trace(tmp_path)
    with pytest.raises(ResourceError, match="this format needs pyarrow"):
        export([path], "parquet", tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


# datasets.


def test_the_folder_holds_both_tables_and_says_so(tmp_path: Path) -> None:
    paths = [rich_trace(tmp_path, name=name) for name in ("a", "b")]
    exported = export(paths, "datasets", tmp_path / "folder")
    assert [path.name for path in exported.files] == ["README.md", "episodes.parquet", "transitions.parquet"]
    assert parquet.read_table(tmp_path / "folder" / "transitions.parquet").num_rows == 4
    episodes = parquet.read_table(tmp_path / "folder" / "episodes.parquet").to_pylist()
    assert [episode["episode_id"] for episode in episodes] == ["a", "b"]
    assert episodes[0]["seeds"] == [{"name": "core", "seed": "18446744073709551615"}]
    assert (episodes[0]["length"], episodes[0]["episode_return"], episodes[0]["success"]) == (2, 1.5, True)
    assert episodes[0]["metrics"] == [{"name": "depth", "value": 2.0}]


READ = """
import sys
import datasets
where, cache = sys.argv[1:]
transitions = datasets.load_dataset(where, split="train", cache_dir=cache)
assert transitions["action_name"][:] == ["north", "kick"]
assert transitions[0]["rewards"][0]["value"] == 0.25
assert transitions.features["reward"].dtype == "float64"
episodes = datasets.load_dataset(where, "episodes", split="train", cache_dir=cache)
assert episodes[0]["success"] is True
"""


def test_datasets_opens_the_folder(tmp_path: Path) -> None:
    """In a process that finds the library where `make setup` puts it, apart from what runs need."""
    export([rich_trace(tmp_path)], "datasets", tmp_path / "folder")
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(sys.prefix) / "datasets"),
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-c", READ, str(tmp_path / "folder"), str(tmp_path / "cache")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
