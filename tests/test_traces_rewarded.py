"""What each step was paid where credit is attributed: made out where the trace says enough, and otherwise said why not."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestration.cli.main import app
from orchestration.traces.complete import Late
from orchestration.traces.index import load_index
from orchestration.traces.reader import Trace, read_trace, trace_files
from orchestration.traces.schema import COMPONENT, TOTAL, Reward
from orchestration.traces.validate import validate_file
from orchestration.traces.view import render
from tests.trace_support import Played, record, recorder
from tests.trace_view_support import read_page

REWARDS = [1.0, 0.0, -2.0, 1.0]


def recorded(run: Path, method: str, *, w_prog: float = 0.0, w_ground: float = 0.0) -> Path:
    """A run with one trace of four steps, the first and third of which were executed; rewards are clipped at 1."""
    (run / "traces").mkdir(parents=True)
    reward = f"{{model: none, clip: 1.0, w_prog: {w_prog}, w_ground: {w_ground}}}"
    (run / "config.yaml").write_text(f"credit: {{method: {method}}}\nreward: {reward}\n")
    record(recorder(run / "traces"), Played("e1", [0] * 4, [""] * 4, REWARDS, [3] * 4))
    (path,) = trace_files(run)
    return path


def paid(trace: Trace, part: str, source: str) -> list[float]:
    found = {e.target: e.value for e in trace.events if isinstance(e, Reward) and (e.part, e.source) == (part, source)}
    return [found.get(step.id, 0.0) for step in trace.steps]


@pytest.mark.parametrize(
    ("method", "w_ground", "extrinsic", "grounding"),
    [
        ("turn", 0.0, [1.0, 0.0, -1.0, 1.0], [0.0] * 4),
        ("outcome", 0.0, [0.0, 0.0, 0.0, 1.0], [0.0] * 4),
        ("spa+grounding", 0.25, [1.0, 0.0, -1.0, 1.0], [0.25, 0.0, 0.25, 0.0]),
    ],
)
def test_credit_that_needs_no_estimator_is_made_out(
    tmp_path: Path, method: str, w_ground: float, extrinsic: list[float], grounding: list[float]
) -> None:
    """By hand: all on the last turn; or where it came, and β for what was executed."""
    path = recorded(tmp_path, method, w_ground=w_ground)
    done = Late.beside(path.parent).complete(read_trace(path))
    assert (done.known, done.why) == (True, None)
    assert paid(done.trace, COMPONENT, "environment") == extrinsic
    assert paid(done.trace, COMPONENT, "grounding") == grounding
    assert paid(done.trace, TOTAL, "fusion") == [a + b for a, b in zip(extrinsic, grounding, strict=True)]
    assert validate_file(path) == []
    (row,) = load_index(path.parent).rows([0])
    assert (row["component_environment"], row.get("component_grounding", 0.0)) == (sum(extrinsic), sum(grounding))
    assert row["unrewarded"] is None


def test_credit_of_an_estimator_is_said_not_to_be_known(tmp_path: Path) -> None:
    path = recorded(tmp_path, "spa", w_prog=1.0)
    why = "credit.method=spa paid by a progress estimator, as it was at that update; yendor trace show FILE --credit"
    done = Late.beside(path.parent).complete(read_trace(path))
    assert not done.known and done.why is not None and done.why.startswith(why)
    assert validate_file(path) == []
    (row,) = load_index(path.parent).rows([0])
    assert "component_environment" not in row and row["unrewarded"] == done.why
    runner = CliRunner()
    listed = runner.invoke(app, ["trace", "ls", str(tmp_path), "--where", "unrewarded ~ 'estimator'", "--json"])
    assert [row["unrewarded"] for row in json.loads(listed.output)] == [done.why]
    shown = runner.invoke(app, ["trace", "show", str(path)], env={"COLUMNS": "240"})
    assert f"not known: {done.why}" in shown.output
    render([path], tmp_path / "page.html")
    _, (episode,), _ = read_page(tmp_path / "page.html")
    assert episode["end"]["components"] == done.why


def test_what_lies_in_no_run_or_did_not_end_says_so(tmp_path: Path) -> None:
    path = recorded(tmp_path / "run", "turn")
    lonely = recorded(tmp_path / "other", "turn")
    (tmp_path / "other" / "config.yaml").unlink()
    record(recorder(path.parent), Played("e2", [0], [""], [1.0], [3]), finish=False)
    cut = next(file for file in trace_files(path.parent) if file.suffix == ".part")
    reasons = [Late.beside(each.parent).complete(read_trace(each)).why for each in (path, cut, lonely)]
    assert reasons == [None, "it did not end", "its rewards lie in no run: there is no config.yaml"]
