"""The trace of a run itself: who was asked to do what, what came of it, what died and what was published."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents.report import RolloutReport
from learner.update import Update
from orchestration.configuration import load_config
from orchestration.results import FeedResult
from orchestration.rundir import RunDir
from orchestration.traces.checks.order import Check
from orchestration.traces.reader import read_trace, run_traces, trace_files
from orchestration.traces.run_record import RunRecord
from orchestration.traces.run_trace import JudgeUse, RunTrace
from orchestration.traces.schema import (
    Aggregate,
    Delegate,
    Error,
    LlmCall,
    Message,
    Return,
    Spawn,
    Stop,
    Text,
    ToolCall,
    WeightsUpdate,
)
from orchestration.traces.validate import validate_file
from reward_server.annotator_status import AnnotatorStatus
from reward_server.status import RewardServerStatus
from reward_server.types import JudgeStatus
from tests.full_disk import no_file_larger_than


def run_trace(folder: Path, clock: Callable[[], float]) -> RunTrace:
    return RunTrace(
        folder, run="demo", env_id="minihack/X", env_options={}, seed=7, policy="fast", policy_version=5,
        reward_model_version=2, code_revision=None, count_exponent=3.0, on_trouble=pytest.fail, clock=clock,
    )  # fmt: skip


def test_the_run_has_a_trace_of_its_own(tmp_path: Path) -> None:
    now = iter(range(1000))
    trace = run_trace(tmp_path, lambda: float(next(now)))
    trace.spawned("actor-00", "actor")
    trace.weights(5)
    trace.weights(6)
    trace.weights(6)
    trace.lost("actor-00", "killed by signal 9")
    trace.spawned("actor-00.1", "actor")
    trace.judged(JudgeUse(2, 60, 4), "judge-model", 0.5, 40)
    trace.judged(JudgeUse(2, 60, 4), "judge-model", 0.5, 40)
    trace.judged(JudgeUse(3, 100, 7), "judge-model", 0.5, 60)
    trace.judge_changed("down", "connection refused", away=True)
    trace.judge_changed("ready", None, away=False)
    trace.reward_model(2)
    trace.reward_model(3)
    trace.checkpoint("000100", 100)
    trace.end("done", 200, None)
    (path,) = run_traces(tmp_path)
    assert trace_files(tmp_path) == []
    assert validate_file(path) == []
    read = read_trace(path)
    assert (read.header.scope, read.header.seeds) == ("run", {"run": "7"})
    kinds = [type(event) for event in read.events]
    assert kinds.count(Spawn) == 3
    updates = [
        (event.what, event.from_version, event.to_version) for event in read.events if isinstance(event, WeightsUpdate)
    ]
    assert updates == [("policy", 5, 6), ("reward_model", 2, 3)]
    assert (read.header.policy_version, read.header.reward_model_version) == (5, 2)
    (message,) = [event for event in read.events if isinstance(event, Message)]
    assert message.to == "coordinator" and read.texts[message.content_ref or ""] == "judge is ready"
    assert [kinds.count(kind) for kind in (LlmCall, ToolCall, Error, Stop)] == [2, 1, 2, 2]
    calls = [event for event in read.events if isinstance(event, LlmCall)]
    assert [(c.calls, c.prompt_tokens, c.output_tokens) for c in calls] == [(2, 60, 4), (1, 40, 3)]
    assert read.end is not None
    assert (read.end.length, read.end.costs["llm_calls"], read.end.costs["tokens"]) == (200, 3, 107)
    run_trace(tmp_path, lambda: math.inf)
    assert len(run_traces(tmp_path)) == 2


def told(requests: int) -> AnnotatorStatus:
    names = [each.name for each in dataclasses.fields(AnnotatorStatus)]
    counts = {"requests": requests, "prompt_tokens": requests * 10, "output_tokens": requests}
    state: dict[str, Any] = {"judge_status": JudgeStatus.READY, "last_error": None}
    return AnnotatorStatus(**dict.fromkeys(names, 1) | counts | state)


def test_a_reward_server_that_died_is_told_and_counts_on_from_less(tmp_path: Path) -> None:
    config = load_config("demo", [f"run.dir={tmp_path}", "run.name=x"])
    rundir = RunDir(tmp_path / "x")
    rundir.traces.mkdir(parents=True)
    record = RunRecord(config, rundir, pytest.fail, policy_version=0, reward_model_version=0)
    before: RewardServerStatus | None = None
    for requests, version in ((2, 0), (5, 1), (0, None), (3, 1), (7, 2)):
        if version is None:
            record.reward_server_lost("killed by signal 9")
            record.reward_server_lost("killed by signal 9")
            continue
        status = RewardServerStatus(told(requests), version, None, 0.0)
        record.judged(before, status)
        before = status
    record.learned("actor-00", FeedResult((), {}, 0, 2, 0, (), (), {}, 0.0, 0.0))
    record.end("done", 0, None)
    (path,) = run_traces(rundir.path)
    assert validate_file(path) == []
    read = read_trace(path)
    server = [event for event in read.events if "reward-server" in (event.agent, getattr(event, "child", ""))]
    assert [event.type for event in server] == [
        "spawn", "llm_call", "llm_call", "message", "error", "spawn", "llm_call", "message"
    ]  # fmt: skip
    assert [event.calls for event in server if isinstance(event, LlmCall)] == [2, 3, 4]
    made = [event for event in server if isinstance(event, Message)]
    assert [read.texts[event.content_ref or ""] for event in made] == ["reward model v1", "reward model v2"]
    (adopted,) = [event for event in read.events if isinstance(event, WeightsUpdate)]
    assert (adopted.what, adopted.to_version) == ("reward_model", 2) and made[1].id in adopted.parents


def report(source: str, steps: int = 64, *, captions: int = 0) -> RolloutReport:
    return RolloutReport(
        source, 5, steps, tuple((at, f"caption {at}") for at in range(captions)), (), (), 0, 0.25, 0.5, 0.0
    )


def feed(policy_version: int, *updates: Update) -> FeedResult:
    return FeedResult(updates, {}, policy_version, 0, 0, (), (), {}, 0.0, 0.0)


def test_a_runs_trace_tells_who_was_asked_and_what_an_update_is_made_of(tmp_path: Path) -> None:
    config = load_config("demo", [f"run.dir={tmp_path}", "run.name=x"])
    rundir = RunDir(tmp_path / "x")
    rundir.traces.mkdir(parents=True)
    record = RunRecord(config, rundir, pytest.fail, policy_version=5, reward_model_version=0)
    for actor in ("actor-00", "actor-01"):
        record.spawned(actor)
        record.called(actor)
        record.called(actor)
    record.rolled_out(report("actor-01", captions=2))
    record.rolled_out(report("actor-00"))
    record.learned("actor-01", feed(5))
    update = Update(6, 128, {}, 0.0, 0, 0.25, 0.5)
    record.learned("actor-00", feed(6, update))
    record.called("actor-00")
    record.called("actor-00")
    record.lost("actor-00", "killed by signal 9")
    record.rolled_out(report("actor-01"))
    record.called("actor-01", 3)
    record.called("actor-01", 4)
    record.rolled_out(report("actor-01"), 4)
    record.end("stopped", 256, None)

    (path,) = run_traces(rundir.path)
    # The calls of the actor that died, and group 3, have no answer: who was asked is gone.
    assert validate_file(path) == []
    read = read_trace(path)
    named = {event.id: event for event in read.events}
    asked = [event for event in read.events if isinstance(event, Delegate)]
    returned = [event for event in read.events if isinstance(event, Return)]
    assert [event.to for event in asked] == ["actor-00"] * 2 + ["actor-01"] * 2 + ["actor-00"] * 2 + ["actor-01"] * 2
    assert [(event.agent, event.call) for event in returned] == [
        ("actor-01", asked[2].id), ("actor-00", asked[0].id), ("actor-01", asked[3].id), ("actor-01", asked[7].id)
    ]  # fmt: skip
    assert all(event.call in event.parents for event in returned)
    assert returned[0].details == {"steps": 64, "episodes": 0, "policy_version": 5}
    (made,) = [event for event in read.events if isinstance(event, Aggregate)]
    assert set(made.parents) >= {returned[0].id, returned[1].id}
    assert made.details == {"updates": 1, "samples": 128}
    (published,) = [event for event in read.events if isinstance(event, WeightsUpdate)]
    assert made.id in published.parents
    # Only what an actor is given first after it is what the new weights caused.
    assert [published.id in event.parents for event in asked] == [False] * 4 + [True, False] + [True, False]
    (message,) = [event for event in read.events if isinstance(event, Message)]
    assert (message.agent, message.to, read.texts[message.content_ref or ""]) == (
        "actor-01", "reward-server", "2 captions"
    )  # fmt: skip
    assert all(named[parent].seq < event.seq for event in read.events for parent in event.parents)

    # Nobody is excused who was not stopped.
    check = Check(finished=True)
    records = [read.header, *(Text(ref, text) for ref, text in read.texts.items()), *read.events, read.end]
    for number, one in enumerate(records, start=1):
        if one is not None and not isinstance(one, Stop):
            check.take(number, one)
    check.conclude()
    unanswered = {asked[at].id for at in (1, 4, 5, 6)}
    assert {fault.message for fault in check.faults if fault.rule == "pair"} == {
        f"event {identity}: the delegate has no result" for identity in unanswered
    }


def test_a_run_goes_on_where_its_trace_cannot_be_written(tmp_path: Path) -> None:
    told: list[str] = []
    with no_file_larger_than(1000):
        trace = RunTrace(
            tmp_path, run="demo", env_id="x", env_options={}, seed=0, policy="fast", policy_version=0,
            reward_model_version=None, code_revision=None, count_exponent=None, on_trouble=told.append,
        )  # fmt: skip
        for number in range(50):
            trace.spawned(f"actor-{number * 7919:x}", "actor")
            trace.checkpoint(str(number), number)
        (part,) = tmp_path.glob("*.part")
        assert part.stat().st_size <= 1000 and read_trace(part).events, "whole frames alone"
    assert len(told) == 1
    assert told[0].endswith("cannot be written: File too large")
    # There is room again: nothing is lost.
    trace.end("done", 50, None)
    (path,) = run_traces(tmp_path)
    assert validate_file(path) == [] and not path.name.endswith(".part")
    assert sum(isinstance(event, Spawn) for event in read_trace(path).events) == 51, "and the learner"
    assert len(told) == 1
