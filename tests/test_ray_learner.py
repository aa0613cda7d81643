"""The learner's process is killed while a run goes on: real Ray, real MiniHack, kill -9."""

import itertools
import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.rule_judge import RuleServer
from learner.checkpoint import latest_checkpoint, load_state
from orchestration.traces.reader import read_trace, run_traces
from orchestration.traces.schema import Spawn, Stop, WeightsUpdate
from orchestration.traces.validate import validate_file
from tests.processes import Command, summary
from tests.test_ray import small

pytestmark = pytest.mark.long

_NO_JUDGE = ("judge.", "distiller.", "annotator.")


def kill_learner(command: Command, name: str = "ray::LearnerWorker") -> psutil.Process:
    (learner,) = command.named(name)
    learner.kill()
    return learner


def never_fell(run: Path, *names: str) -> None:
    """Each of these numbers of `metrics.jsonl` only ever rose."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = [{"env_steps": line["env_steps"], **line["metrics"], **line["time"]} for line in lines]
    for name in names:
        values = [line[name] for line in told if line.get(name) is not None]
        assert values and values == sorted(values), name


def accounts_for_all(run: Path) -> None:
    """Every step that was counted is in the policy, waits for it, or is counted as lost."""
    newest = latest_checkpoint(run / "checkpoints")
    assert newest is not None
    state = load_state(newest)
    learner, counters = state["learner"]["learner"], state["session"]
    waiting = sum(part["action"].numel() for part in learner["queue"])
    lost = counters["faults"]["samples_lost"]
    assert counters["env_steps"] == learner["trained_samples"] + learner["dropped_samples"] + waiting + lost
    # The learner may have read what its last answers, which nobody awaited, were about: demo has three calls in flight.
    assert 0 <= learner["version"] - summary(run)["policy_version"] <= 3


def test_a_learner_that_is_killed_goes_on_from_its_newest_checkpoint_and_the_run_after_an_interrupt(tmp_path):
    run = tmp_path / "run"
    options = ["train.env_steps=100000000", "checkpoint.interval_s=2", "trace.rate=0.05"]
    server = RuleServer()
    with server, Command(*small(tmp_path, server.url, *options)) as command:
        command.until(lambda: summary(run).get("reward_model_version", 0) >= 1 and bool(summary(run)["checkpoint"]))
        for restarts in (1, 2):
            before = summary(run)
            kill_learner(command)
            killed = time.monotonic()
            command.until(lambda n=restarts: command.text().count("died and is replaced") == n)
            assert time.monotonic() - killed < 5.0
            command.until(lambda n=restarts: summary(run)["learner_restarts"] == n)
            version = before["policy_version"]
            command.until(lambda version=version: summary(run)["policy_version"] > version + 10)
        after = summary(run)
        assert after["actor_restarts"] == 0 and after["status"] == "running"
        assert after["reward_model_version"] >= before["reward_model_version"] >= 1
        command.until(lambda: summary(run)["captions_labelled"] >= after["captions_labelled"])
        command.process.send_signal(signal.SIGINT)
        assert command.wait() == 130
        assert command.left_behind(10.0) == []
    done, asked = summary(run), len(server.asked)
    assert done["status"] == "interrupted" and Path(done["checkpoint"]).name == f"{done['env_steps']:012d}"
    lost = [int(n.replace(",", "")) for n in re.findall(r"learned from\s+([\d,]+)\s+steps is lost", command.text())]
    assert len(lost) == 2 and sum(lost) == done["samples_lost"]
    # Of the two seconds between checkpoints, and of those that it takes to write one on a busy machine.
    assert done["samples_lost"] < done["env_steps"] / 2
    assert re.search(r"the learner \(LearnerWorker\) died and is replaced: .*(connection|SIGKILL|exit)", command.text())
    accounts_for_all(run)
    never_fell(
        run, "env_steps", "episodes", "policy/version", "samples_dropped", "reward_model/version", "samples_lost",
        "learner_restarts", "captions/labelled",
    )  # fmt: skip
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["time"]["learner_restarts"] == 2
    trace = read_trace(run_traces(run)[0])
    spawned = [event for event in trace.events if isinstance(event, Spawn) and event.role == "learner"]
    stopped = [event for event in trace.events if isinstance(event, Stop) and event.target == "learner"]
    assert len(spawned) == 3 and [event.reason for event in stopped] == ["died", "died"]
    weights = [event for event in trace.events if isinstance(event, WeightsUpdate) and event.what == "policy"]
    assert all(event.to_version > event.from_version for event in weights)
    assert all(one.to_version == other.from_version for one, other in itertools.pairwise(weights))
    assert validate_file(trace.path) == []
    target = done["env_steps"] + 3000
    with RuleServer() as another:
        arguments = [*small(tmp_path, another.url, *options[1:]), f"train.env_steps={target}", "--resume"]
        with Command(*arguments) as command:
            assert command.wait() == 0, command.text()
    resumed = summary(run)
    assert resumed["status"] == "done" and resumed["env_steps"] >= target and resumed["wall_s"] > done["wall_s"]
    assert resumed["policy_version"] > done["policy_version"]
    assert resumed["captions_labelled"] >= done["captions_labelled"]
    assert resumed["learner_restarts"] == 2 and resumed["samples_lost"] == done["samples_lost"]
    assert not set(another.asked) & set(server.asked[:asked]), "a label that was paid for was asked for again"
    accounts_for_all(run)


def test_a_learner_that_dies_again_and_again_ends_the_run_with_the_root_cause(tmp_path):
    """Before there is a checkpoint: the first one in its place begins where the run began."""
    run = tmp_path / "run"
    arguments = small(tmp_path, "http://unused", "train.env_steps=100000000", "reward.model=none")
    with Command(*[a for a in arguments if not a.startswith(_NO_JUDGE)]) as command:
        command.until(lambda: summary(run).get("policy_version", 0) >= 3)
        before = summary(run)
        kill_learner(command)
        command.until(lambda: summary(run)["policy_version"] > before["policy_version"] + 5)
        told = summary(run)
        assert told["learner_restarts"] == 1 and "goes on from the beginning" in command.text()
        assert 0 < told["samples_lost"] <= told["env_steps"]
        dead = {0}
        while command.process.poll() is None:
            for learner in command.named("ray::LearnerWorker"):
                if learner.pid not in dead and len(dead) < 5:
                    dead.add(learner.pid)
                    learner.kill()
            time.sleep(0.02)
        assert command.wait() == 1
        assert re.search(
            r"^yendor: error: the learner \(LearnerWorker\) died 3 times without an update in between: .*--resume",
            command.text(),
            re.MULTILINE,
        )
        assert summary(run)["status"] == "failed" and "LearnerWorker" in summary(run)["error"]
        assert command.left_behind(10.0) == []
