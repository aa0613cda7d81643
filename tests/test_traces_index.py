"""The index of a run's traces, and the questions that it answers."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.observer import EpisodeFinish
from orchestration.errors import UsageError
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
