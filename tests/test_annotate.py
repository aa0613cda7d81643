"""`yendor annotate`: captions from all kinds of places, labels that are paid for once and survive whatever happens."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.rule_judge import RuleServer
from envs.captions import caption_id
from orchestration.captions import read_captions
from orchestration.cli.main import run
from orchestration.errors import UsageError
from reward_server.embedded.rules import RuleBook
from reward_server.store import AnnotationStore
from tests.processes import YENDOR
from tests.trace_view_support import header, trace, write_trace

CAPTIONS = ["You see here a key.", "It's a wall.", "You kill the newt!", "Never mind."]


def keys(server: RuleServer) -> list[str]:
    return ["judge.engine=openai", f"judge.url={server.url}", "judge.model=rules", "annotator.backoff_s=0.01"]


def labels(path: Path) -> dict[str, int]:
    with AnnotationStore(path, read_only=True) as store:
        (key,) = store.keys()
        return {row.text: row.label for row in store.labels_since(0, key)[0]}


def test_captions_come_from_texts_jsonl_stores_and_keep_their_order(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("You see  here a key.\n\nIt's a wall.\nYou see here a key.\n")
    (tmp_path / "b.jsonl").write_text('{"caption": "You kill the newt!"}\n"Never mind."\n{"text": "It\'s a wall."}\n')
    with AnnotationStore(tmp_path / "c.sqlite") as store:
        store.add_captions([(caption_id("Stored."), "Stored.")])
    sources = [str(tmp_path / name) for name in ("a.txt", "b.jsonl", "c.sqlite")]
    found = read_captions(sources, tmp_path)
    assert list(found.values()) == [*CAPTIONS, "Stored."]
    assert list(found) == [caption_id(text) for text in found.values()]
    (tmp_path / "bad.jsonl").write_text('"fine"\n{"other": 1}\n')
    with pytest.raises(UsageError, match=r"bad.jsonl:2: expected a string"):
        read_captions([str(tmp_path / "bad.jsonl")], tmp_path)


def test_labels_are_given_once_exported_and_the_rest_is_gone_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out, table = tmp_path / "captions.txt", tmp_path / "labels.sqlite", tmp_path / "labels.parquet"
    file.write_text("\n".join(CAPTIONS))
    with RuleServer() as server:
        command = ["annotate", str(file), *keys(server), "--out", str(out), "--json"]
        assert run([*command, "annotator.max_labels=2"]) == 0
        first = json.loads(capsys.readouterr().out)["annotation"]
        assert (first["labelled"], first["left"]) == (2, 2)
        assert list(labels(out)) == CAPTIONS[1::-1] or set(labels(out)) == set(CAPTIONS[:2]), (
            "the first ones come first"
        )
        assert run([*command, "--export", str(table)]) == 0
        second = json.loads(capsys.readouterr().out)
        assert (second["annotation"]["labelled"], second["annotation"]["known_before"]) == (2, 2)
        assert sorted(server.asked) == sorted(CAPTIONS), "nothing is asked twice"
    rules = RuleBook.load()
    assert labels(out) == {text: rules.label(text).label for text in CAPTIONS}
    rows = pq.read_table(table).to_pylist()
    assert second["exported"] == len(rows) == 4
    assert {row["text"]: row["label"] for row in rows} == labels(out)
    assert rows[0]["model"] == "rules" and rows[0]["state"] == "labelled"


def test_a_judge_that_is_down_is_an_error_that_says_so_and_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS))
    out = tmp_path / "labels.sqlite"
    with RuleServer() as server:
        command = ["annotate", str(tmp_path / "captions.txt"), *keys(server), "--out", str(out)]
        server.mode = "error"
        assert run([*command, "--patience", "1", "annotator.timeout_s=0.3"]) == 1
        error = capsys.readouterr().err
        assert "did not answer within 0.3 s" in error and "the 4 left" in error
        server.mode = "ok"
        assert run(command) == 0
    assert len(labels(out)) == 4


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_paid_for(tmp_path: Path) -> None:
    texts = [f"You see here {n} daggers." for n in range(400)]
    (tmp_path / "captions.txt").write_text("\n".join(texts))
    out = tmp_path / "labels.sqlite"
    with RuleServer(latency_s=0.02) as server:
        command = [
            YENDOR, "annotate", str(tmp_path / "captions.txt"), *keys(server), "--out", str(out), "annotator.batch=4",
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while len(server.asked) < 20 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        printed, error = process.communicate(timeout=60)
        assert process.returncode == 130, error
        kept = labels(out)
        assert "left" in printed and 0 < len(kept) < 400
        assert set(kept) == set(server.asked), "whatever was asked was answered, and is there"
        before = len(server.asked)
        assert run(command[1:]) == 0
        assert len(server.asked) - before == 400 - len(kept)
    assert len(labels(out)) == 400


def test_traces_are_a_source(tmp_path: Path) -> None:
    write_trace(tmp_path, trace([], {str(caption_id(text)): text for text in CAPTIONS}))
    write_trace(tmp_path, trace([], {"1": CAPTIONS[0], "2": "The door opens."}, of=header("later")))
    assert list(read_captions([str(tmp_path)], tmp_path).values()) == [*CAPTIONS, "The door opens."]
    one = next(tmp_path.glob("later*"))
    assert list(read_captions([str(one)], tmp_path).values()) == [CAPTIONS[0], "The door opens."]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["annotate"], "name what to label"),
        (["annotate", "nowhere"], "nowhere: no such run"),
        (["annotate", "--judge", "nowhere/at/all", "pyproject.toml"], "no such folder"),
        (["annotate", "pyproject.toml", "judge.replicas=2"], "judge.replicas has no effect"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) in (1, 2)
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_module_is_loaded_only_when_it_is_used() -> None:
    code = "import sys, orchestration.cli.main; sys.exit(any(m in sys.modules for m in ('torch', 'pyarrow', 'httpx')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pairs_are_compared_and_train_an_offline_ranking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from reward_server.models.offline import train_model
    from reward_server.settings import DistillerSettings

    (tmp_path / "captions.txt").write_text("\n".join(["You unlock the door.", "It's a wall.", "You kill the newt!"]))
    out = tmp_path / "pairs.sqlite"
    with RuleServer() as server:
        command = ["annotate", str(tmp_path / "captions.txt"), *keys(server), "judge.pairs=pointwise", "--pairs"]
        assert run([*command, "--out", str(out), "--json"]) == 0
        done = json.loads(capsys.readouterr().out)["annotation"]
        assert (done["asked_for"], done["labelled"], done["known_before"]) == (3, 3, 0)
        assert len(server.asked) == len(set(server.asked)) == 3, "each caption once, though it is in two pairs"
        assert run([*command, "--out", str(out), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["annotation"]["known_before"] == 3
    with AnnotationStore(out, read_only=True) as store:
        labels, _ = store.pairs.labels_since(0, store.keys()[0])
    assert {frozenset((row.first, row.second)): row.label for row in labels}[
        frozenset(("You unlock the door.", "You kill the newt!"))
    ] == 0
    assert train_model(out, DistillerSettings(min_labels=3, patience=1, steps_per_update=1)).artifact.kind == "ranking"
