"""The index of a run's traces, and the questions that it answers."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.observer import EpisodeFinish
from orchestration.errors import UsageError
from orchestration.traces import index as index_module
from orchestration.traces.index import ALIASES, FILE, Index, load_index, table_of, write_index
from orchestration.traces.where import parse_where
from tests.trace_support import Played, record, recorder

pytest.importorskip("pyarrow")

ROWS = [
    {"name": "a", "length": 10, "success": True, "episode_return": 1.0, "error": None},
    {"name": "b", "length": 50, "success": False, "episode_return": -2.5, "error": None},
    {"name": "c", "length": 70, "success": None, "episode_return": None, "error": "ValueError: broken"},
]
QUESTIONS = [
    ("success and length < 50", "a"),
    ("success or length >= 70", "ac"),
    ("not success", "bc"),
    ("not (success or length == 50)", "c"),
    ("return > -3", "ab"),
    ("return < 1e1 and return > -2.4", "a"),
    ("error == null", "ab"),
    ("error != null", "c"),
    ("success == false", "b"),
    ("length in [10, 70]", "ac"),
    ("length not in [10, 70]", "b"),
    ("error ~ 'broken'", "c"),
    ("name = \"b\" or name = 'c'", "bc"),
    ("steps != 10 and not success == true", "bc"),
    ("true", "abc"),
]


@pytest.mark.parametrize(("question", "expected"), QUESTIONS)
def test_questions(question: str, expected: str) -> None:
    asked = parse_where(question, list(ROWS[0]), ALIASES)
    assert "".join(str(row["name"]) for row in ROWS if asked(row)) == expected


@pytest.mark.parametrize(
    ("question", "told"),
    [
        ("lenght < 5", "did you mean 'length'"),
        ("length <", "a column or a value is missing at its end"),
        ("length < 5 6", "at character 12"),
        ("(length < 5", "closing bracket is missing"),
        ("length < 5)", "was expected"),
        ("", "is missing"),
        ("and", "is missing"),
        ("length ; 5", "cannot be read from character 7"),
        ("__import__('os').system('true')", "cannot be read from character 17"),
        ("__import__('os')", "no column '__import__'"),
        ("length.__class__ == 1", "no column"),
        ("length < 'x'", "cannot be compared"),
        ("length in 5", "needs a list"),
        ("(" * 200 + "true" + ")" * 200, "deeper than"),
        ("not " * 900 + "true", "deeper than"),
        ("true and " * 2000 + "true", "longer than"),
    ],
)
def test_questions_that_ask_nothing(question: str, told: str) -> None:
    with pytest.raises(UsageError, match="--where") as caught:
        any([parse_where(question, list(ROWS[0]), ALIASES)(row) for row in ROWS])  # noqa: C419 - all of them
    assert told in str(caught.value)


@given(
    st.integers(-100, 100), st.integers(-100, 100), st.booleans(), st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
)
def test_questions_mean_what_python_means(one: int, other: int, flag: bool, sign: str) -> None:
    row: dict[str, Any] = {"x": one, "f": flag}
    asked = parse_where(f"not f and x {sign} {other} or f and not x {sign} {other}", ["x", "f"], {})
    assert asked(row) == eval(f"not f and x {sign} {other} or f and not x {sign} {other}", {"x": one, "f": flag})


def test_the_index_follows_the_files(tmp_path: Path) -> None:
    tracing = recorder(tmp_path)
    record(tracing, Played("e1", [0], [""], [1.0], [3]))
    record(tracing, Played("e2", [0, 1], ["", ""], [2.0, 3.0], [3, 3]))
    record(tracing, Played("e3", [0], [""], [0.0], [3]), env=1, finish=False)
    index = load_index(tmp_path)
    assert index.column("episode_id") == ["e1", "e2", "e3"]
    assert index.column("episode_return") == [1.0, 5.0, None]
    assert index.column("complete") == [True, True, False]
    assert index.column("metric_depth") == [2.0, 2.0, None]
    assert index.select("complete", "return", descending=True) == [1, 0]
    assert index.select(None, "return") == [0, 1, 2]
    tracing.finish(1, EpisodeFinish(0.0, 1, True, False, {}, None))
    (tmp_path / "e1.jsonl.zst").unlink()
    index = load_index(tmp_path)
    assert index.column("episode_id") == ["e2", "e3"]
    assert index.column("success") == [True, False]
    (tmp_path / FILE).write_bytes(b"damaged")
    assert load_index(tmp_path).column("file") == ["e2.jsonl.zst", "e3.jsonl.zst"]


@pytest.mark.slow
def test_a_hundred_thousand_episodes_are_asked(tmp_path: Path) -> None:
    rows = [
        {
            "episode_id": f"e{number:06d}", "file": f"e{number:06d}.jsonl.zst", "complete": True,
            "success": number % 3 == 0, "length": number % 500, "episode_return": float(number * 7919 % 10007),
        }
        for number in range(100_000)
    ]  # fmt: skip
    write_index(tmp_path / FILE, Index(table_of(rows)))
    for row in rows:
        (tmp_path / row["file"]).touch()
    index = load_index(tmp_path)
    chosen = index.rows(index.select("success and length < 50", "return"))
    expected = sorted((r for r in rows if r["success"] and r["length"] < 50), key=lambda r: r["episode_return"])
    assert [r["episode_id"] for r in chosen] == [r["episode_id"] for r in expected]


IDS = st.integers(0, 30).map(lambda number: f"e{number:02d}")


@given(st.sets(IDS), st.sets(IDS), st.sets(IDS), st.booleans())
def test_rows_that_come_and_go_stand_where_they_would_in_an_index_made_anew(
    before: set[str], gone: set[str], new: set[str], many: bool
) -> None:
    def row(name: str, **more: Any) -> dict[str, Any]:
        return {"episode_id": name, "file": f"{name}.jsonl.zst", "complete": True, "length": len(more), **more}

    old = {name: row(name, metric_depth=1.0) for name in before}
    fresh = [row(name, cost_tokens=2.0) for name in sorted(new)]
    known = Index(table_of(list(old.values())))
    numbers = [at for at, name in enumerate(known.column("episode_id")) if name in gone | new]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "_FEW", 0 if many else 500)
        merged = index_module._merged(known, numbers, fresh)  # pyright: ignore[reportPrivateUsage]
    expected = Index(table_of([*(each for name, each in old.items() if name not in gone | new), *fresh]))
    filled = [{name: row.get(name) for name in merged.names} for row in expected.rows(range(len(expected)))]
    assert merged.rows(range(len(merged))) == filled


def test_the_index_of_a_run_that_goes_on_is_written_only_for_what_finished(tmp_path: Path) -> None:
    tracing = recorder(tmp_path)
    record(tracing, Played("e1", [0], [""], [1.0], [3]))
    record(tracing, Played("e0", [0], [""], [0.0], [3]), env=1, finish=False)
    assert load_index(tmp_path).column("complete") == [False, True]
    before = (tmp_path / FILE).stat().st_ino
    assert load_index(tmp_path).column("episode_id") == ["e0", "e1"]
    assert (tmp_path / FILE).stat().st_ino == before
    tracing.finish(1, EpisodeFinish(0.0, 1, True, False, {}, None))
    assert load_index(tmp_path).column("complete") == [True, True]
    assert (tmp_path / FILE).stat().st_ino != before
    assert load_index(tmp_path, write=False).column("file") == ["e0.jsonl.zst", "e1.jsonl.zst"]


def test_the_command_loads_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    """What makes it slow to start: learning, clusters, games, and what Arrow has beyond files."""
    record(recorder(tmp_path), Played("e1", [0], [""], [1.0], [3]))
    load_index(tmp_path)
    code = (
        "import sys; from orchestration.cli.main import app; app(sys.argv[1:], standalone_mode=False); "
        "print(*sorted({name for name in sys.modules if not name.startswith('_')}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "trace", "ls", str(tmp_path), "--where", "success", "--sort", "return"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    *shown, loaded = done.stdout.rstrip("\n").split("\n")
    assert any("e1" in line for line in shown)
    heavy = {"torch", "ray", "pandas", "pyarrow.dataset", "pyarrow.compute", "gymnasium", "nle", "transformers"}
    assert heavy & set(loaded.split()) == set()


def test_names_of_episodes_are_not_folded(tmp_path: Path) -> None:
    """They are copied, or read by a script."""
    name = "actor-00-env000-ep000000-fork120-random-s1"
    record(recorder(tmp_path), Played(name, [0], [""], [1.0], [3]))
    command = [sys.executable, "-m", "orchestration.cli.main", "trace", "ls", str(tmp_path)]
    shown = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "COLUMNS": "70"}
    ).stdout
    assert name in shown
