"""Runs whose machine is lost: what is at the URL is all that there is to go on from."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from benchmarks.rule_judge import RuleServer
from learner.checkpoint import checkpoints, load_state
from orchestration.configuration import load_config
from orchestration.live import LiveView
from orchestration.offsite.resuming import fetch_config
from orchestration.offsite.runs import open_offsite
from orchestration.rundir import RunDir
from orchestration.train import train as run_training
from reward_server.store import AnnotationStore
from tests.processes import YENDOR, Command, summary
from tests.test_language_runs import KEYS, _corridor, model
from tests.test_ray import small
from tests.test_serial import arguments, metrics, run, weights

__all__ = ["_corridor", "model"]


def newest(far: Path, name: str) -> Path | None:
    """Folder of the newest complete checkpoint at the URL."""
    found = sorted((far / name / "checkpoints").glob("*/complete.json"))
    return found[-1].parent if found else None


def labels(path: Path) -> int:
    with AnnotationStore(path, read_only=True) as store:
        return store.counts().labelled


@pytest.mark.long
def test_a_run_that_only_its_url_is_left_of_equals_one_that_nothing_happened_to(tmp_path):
    """kill -9, and the machine's disk is gone; the newest copy is damaged, too. Serial, so that all can be compared."""
    far = tmp_path / "far"
    with RuleServer() as server:
        run(arguments(tmp_path / "runs", "whole", server.url, 3200))
        whole = tmp_path / "runs" / "whole"
        asked = len(server.asked)
        more = ["checkpoint.interval_s=0.2", f"checkpoint.url={far}"]
        command = arguments(tmp_path / "lost", "run", server.url, 3200, *more)
        assert command[0] == YENDOR
        with Command(*command[1:]) as lost:
            lost.until(lambda: (at := newest(far, "run")) is not None and int(at.name) >= 1200)
            # The processes beside it end with the machine, too.
            for process in [lost.process, *lost.left_behind()]:
                process.kill()
            lost.wait()
            assert lost.left_behind(10.0) == []
        shutil.rmtree(tmp_path / "lost")
        at = newest(far, "run")
        assert at is not None
        state = at / "state.pt"
        state.write_bytes(state.read_bytes()[:-1] + b"?")
        before = newest(far, "run")
        paid = len(server.asked) - asked

        resumed = subprocess.run(
            [*arguments(tmp_path / "found", "run", server.url, 3200, *more), "--resume"],
            capture_output=True, text=True, timeout=280,
        )  # fmt: skip
        assert resumed.returncode == 0, resumed.stdout[-2000:] + resumed.stderr[-2000:]
    found = tmp_path / "found" / "run"
    assert f"{far}/run/checkpoints/{before.name} is damaged (state.pt differs" in resumed.stdout
    assert (before / "damaged.json").is_file() or not before.exists()
    # From the step that it went on from it is the run that nothing happened to.
    rest = metrics(found)
    first = rest[0][0]
    assert 0 < first < 1600 and rest == [line for line in metrics(whole) if line[0] >= first]
    assert weights(found) == weights(whole)
    # Labels came along: only what was asked after the copy of them is asked again.
    assert labels(found / "annotations.sqlite") == labels(whole / "annotations.sqlite")
    assert paid > 0 and len(server.asked) - asked - paid < asked
    told = summary(found)
    assert told["uploads"] > 0 and told["upload_errors"] == 0 and told["uploaded"].startswith(str(far))


def test_language_models_go_on_from_a_url(tmp_path, model):
    url = f"memory://yendor-{os.getpid()}"

    def train(folder: Path, name: str, steps: int, *more: str, resume: bool = False):
        keys = [f"agent.model={model}", f"run.dir={folder}", f"run.name={name}", f"train.env_steps={steps}"]
        config = load_config(None, [*KEYS, *keys, "reward.w_int=0", "language.learning_rate=1e-3", *more])
        with RunDir(folder / name).open_for_training(config, resume=resume) as rundir, LiveView(plain=True) as view:
            return run_training(config, rundir, resume=resume, view=view)

    def model_bytes(folder: Path) -> bytes:
        return (checkpoints(folder / "checkpoints")[-1] / "model" / "model.safetensors").read_bytes()

    train(tmp_path, "whole", 48)
    parts = train(tmp_path, "parts", 24, f"checkpoint.url={url}")
    assert parts.uploads == 1 and parts.uploaded == f"{url}/parts/checkpoints/{Path(parts.checkpoint or '').name}"
    there = tmp_path / "there"
    fetch_config(open_offsite(url, "parts"), there / "parts", lambda message, warning=False: pytest.fail(message))
    done = train(there, "parts", 48, f"checkpoint.url={url}", resume=True)
    assert done.uploads == 1  # a checkpoint does not know of its own upload
    assert model_bytes(there / "parts") == model_bytes(tmp_path / "whole")


@pytest.mark.long
def test_a_distributed_run_goes_on_without_its_url_and_from_its_url(tmp_path):
    """The place goes away and comes back while it trains; then the run's own folder is gone."""
    far, away, folder = tmp_path / "far", tmp_path / "away", tmp_path / "run"
    options = [f"checkpoint.url=file://{far}", "checkpoint.interval_s=0.5", "checkpoint.upload_wait_s=20"]
    with RuleServer() as server:
        with Command(*small(tmp_path, server.url, "train.env_steps=100000000", *options)) as command:
            command.until(lambda: summary(folder).get("uploads", 0) >= 2)
            far.rename(away)
            far.write_text("in the way")
            command.until(lambda: summary(folder)["upload_errors"] >= 2)
            assert command.text().count("not uploaded to") == 1
            steps, written = summary(folder)["env_steps"], summary(folder)["checkpoint"]
            command.until(lambda: summary(folder)["env_steps"] > steps + 500)
            command.until(lambda: summary(folder)["checkpoint"] != written)
            far.unlink()
            away.rename(far)
            command.until(lambda: "checkpoints are uploaded again" in command.text())
            command.until(lambda: summary(folder).get("reward_model_version", 0) >= 1)
            command.process.send_signal(signal.SIGINT)
            assert command.wait() == 130
            assert command.left_behind(10.0) == []
        before = summary(folder)
        assert Path(before["uploaded"].removeprefix("file://")).name == Path(before["checkpoint"]).name
        kept = labels(folder / "annotations.sqlite")
        # A checkpoint does not know of its own upload, nor of one that was on its way when it was taken.
        known = load_state(checkpoints(folder / "checkpoints")[-1])["session"]["faults"]["uploads"]
        assert before["uploads"] - 2 <= known < before["uploads"]
        shutil.rmtree(folder)
        target = before["env_steps"] + 1000
        with Command(*small(tmp_path, server.url, f"train.env_steps={target}", *options), "--resume") as command:
            assert command.wait() == 0, command.text()
            assert "was fetched from file://" in " ".join(command.text().split())
    after = summary(folder)
    assert after["env_steps"] >= target and after["status"] == "done"
    for counter in ("episodes", "policy_version", "captions_labelled", "upload_errors", "reward_model_version"):
        assert after[counter] >= before[counter], counter
    assert after["uploads"] > known
    assert labels(folder / "annotations.sqlite") >= kept > 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["env_steps"] >= before["env_steps"]
    state = load_state(checkpoints(folder / "checkpoints")[-1])
    assert known <= state["session"]["faults"]["uploads"] < after["uploads"]


@pytest.mark.long
def test_a_place_that_is_gone_at_the_end_is_waited_for_and_told_and_does_not_fail_the_run(tmp_path):
    far, folder = tmp_path / "far", tmp_path / "run"
    options = [f"checkpoint.url={far}", "checkpoint.interval_s=0.3", "checkpoint.upload_wait_s=2", "reward.w_int=0"]
    words = [w for w in small(tmp_path, "", "train.env_steps=4000", *options) if "judge" not in w]
    with Command(*[w for w in words if not w.startswith(("distiller.", "annotator."))]) as command:
        command.until(lambda: summary(folder).get("uploads", 0) >= 1)
        far.rename(tmp_path / "away")
        far.write_text("in the way")
        assert command.wait() == 0, command.text()
        said = " ".join(command.text().split())
        assert "was not uploaded within checkpoint.upload_wait_s=2; the newest there is" in said
    done = summary(folder)
    assert done["status"] == "done" and done["upload_errors"] >= 1 and done["checkpoint"]
