"""Processes that are stopped, idle or busy; what is told of parts; and a real run whose parts are stopped one after the other."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from benchmarks.rule_judge import RuleServer
from orchestration.cluster import start_patiently
from orchestration.faults import Faults
from orchestration.traces.reader import read_trace, run_traces
from orchestration.traces.schema import Error, Message
from orchestration.traces.validate import validate_file
from orchestration.watch import ray_state
from orchestration.watch.processes import ProcessLook, ProcessWatch, kill
from orchestration.watch.run_watch import RunWatch
from orchestration.watch.watchdog import Unreachable, Watchdog, Watched, What
from tests.processes import Command, summary
from tests.test_ray import small

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        for each in (*psutil.Process(process.pid).children(recursive=True), process):
            each.kill()
        process.wait()


def start(started: list[subprocess.Popen[bytes]], code: str) -> int:
    process = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE)
    started.append(process)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process.pid


READY = "import time, subprocess, sys; print('ready', flush=True);"


@linux
def test_what_sleeps_is_idle_and_what_works_is_not(started: list[subprocess.Popen[bytes]], tmp_path: Path) -> None:
    asleep = start(started, f"{READY} time.sleep(60)")
    busy = start(started, f"{READY}\nwhile True: pass")
    thread = start(
        started, f"import threading; {READY}\ndef f():\n while True: pass\nthreading.Thread(target=f).start()"
    )
    child = start(
        started, f"{READY} subprocess.run([sys.executable, '-S', '-c', 'while True: pass'])"
    )  # as an engine in a process of its own
    writing = (
        f"{READY} import os; f = os.open({str(tmp_path / 'x')!r}, os.O_WRONLY | os.O_CREAT)\n"
        "while True: os.pwrite(f, bytes(1 << 20), 0); os.fsync(f)"
    )
    writes = start(started, writing)
    watch = ProcessWatch()
    pids = (asleep, busy, thread, child, writes)
    assert all(look.idle_s == 0 for look in watch.look(pids).values())
    idle: dict[int, list[float]] = {pid: [] for pid in pids}
    for _ in range(5):
        time.sleep(0.4)
        for pid, look in watch.look(pids).items():
            idle[pid].append(look.idle_s)
            assert look.stopped == () and look.writer_stopped is None
    assert idle[asleep][-1] > 1.0
    for pid in (busy, thread, child, writes):
        assert max(idle[pid]) < 1.0, pids.index(pid)


@linux
def test_a_stopped_process_is_seen_at_once_wherever_it_is(started: list[subprocess.Popen[bytes]]) -> None:
    alone = start(started, f"{READY} time.sleep(60)")
    parent = start(started, f"{READY} subprocess.run(['sleep', '60'])")
    writer = "import time; time.sleep(60); 'from orchestration.traces.writers import main'"
    records = start(started, f"{READY} subprocess.run([sys.executable, '-S', '-c', {writer!r}])")
    while len(children := [psutil.Process(pid).children() for pid in (parent, records)]) and not all(children):
        time.sleep(0.01)
    (below,), (writes,) = ([each.pid for each in some] for some in children)
    while "sleep(60)" not in " ".join(psutil.Process(writes).cmdline()):  # until it is no longer its parent's copy
        time.sleep(0.01)
    for pid in (alone, below, writes):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(0.05)
    watch = ProcessWatch()
    looks = watch.look((alone, parent, records, 2**22 + 1))
    assert looks[alone].stopped == (alone,) and looks[parent].stopped == (below,)
    assert looks[records].stopped == () and looks[records].writer_stopped == writes
    assert len(looks) == 3, "a process that is not there is left out"
    os.kill(below, signal.SIGCONT)
    time.sleep(0.05)
    assert watch.look((parent,))[parent].stopped == ()
    kill([alone, 2**22 + 1])
    time.sleep(0.1)
    assert psutil.Process(alone).status() == psutil.STATUS_ZOMBIE


class Parts:
    """A watchdog with a clock that is set."""

    def __init__(self, too_long_s: float | None = 60.0) -> None:
        self.now = 1000.0
        self.dog = Watchdog(too_long_s, lambda: self.now)

    def look(
        self, silent_s: float, look: ProcessLook | Unreachable | None, *, owes: bool = True, passes: float = 0.5
    ) -> list[tuple[What, str]]:
        self.now += passes
        parts = [Watched("actor-00", silent_s, owes)]
        suspects = self.dog.suspects(parts)
        looks = {part.name: look for part in suspects if look is not None}
        return [(finding.what, finding.name) for finding in self.dog.look(parts, looks)]


def test_what_answers_is_not_looked_at() -> None:
    parts = Parts()
    assert parts.look(0.5, ProcessLook(9.0, (1,))) == []
    assert parts.dog.suspects([Watched("x", 0.5, True)]) == []


def test_slow_work_is_no_stillness_however_long() -> None:
    parts = Parts()
    for silent in range(2, 1000, 7):
        assert parts.look(silent, ProcessLook(0.0)) == []
    # Nothing to do: an actor that waits for the learner.
    assert parts.look(500.0, ProcessLook(400.0), owes=False) == []


def test_a_stopped_part_is_named_goes_on_and_is_ended_in_the_end() -> None:
    parts, stopped = Parts(too_long_s=60.0), ProcessLook(0.0, (7,))
    assert parts.look(2.0, stopped) == [(What.STANDS_STILL, "actor-00")]
    assert parts.look(2.5, stopped) == []
    assert list(parts.dog.still) == ["actor-00"]
    assert parts.look(0.1, ProcessLook(0.0)) == [(What.GOES_ON, "actor-00")]
    assert parts.dog.still == {}
    assert parts.look(2.0, stopped) == [(What.STANDS_STILL, "actor-00")]
    assert parts.look(50.0, stopped, passes=59.0) == []
    assert parts.look(62.0, stopped, passes=2.0) == [(What.TOO_LONG, "actor-00")]
    parts.dog.forget("actor-00")
    assert parts.dog.still == {}


def test_without_a_bound_it_is_only_named() -> None:
    parts = Parts(too_long_s=None)
    assert parts.look(2.0, ProcessLook(0.0, (7,))) == [(What.STANDS_STILL, "actor-00")]
    assert parts.look(1e6, ProcessLook(0.0, (7,)), passes=1e6) == []


def test_a_part_that_hangs_is_named_and_its_writer_apart() -> None:
    parts = Parts()
    assert parts.look(2.0, ProcessLook(0.0)) == []
    assert parts.look(4.0, ProcessLook(2.0), passes=2.0) == []
    assert parts.look(5.0, ProcessLook(3.0), passes=1.0) == [(What.STANDS_STILL, "actor-00")]
    # Its writer is why: that is what stands still.
    found = parts.look(9.0, ProcessLook(7.0, (), 12))
    assert found == [(What.GOES_ON, "actor-00"), (What.STANDS_STILL, "trace writer of actor-00")]


def test_what_had_nothing_to_do_before_gets_its_time() -> None:
    parts = Parts()
    for silent in range(2, 30):
        assert parts.look(silent, ProcessLook(silent - 2.0), owes=False, passes=1.0) == []
    assert parts.look(30.0, ProcessLook(28.0)) == []
    assert parts.look(32.0, ProcessLook(30.0), passes=2.0) == []
    assert parts.look(33.0, ProcessLook(31.0), passes=1.0) == [(What.STANDS_STILL, "actor-00")]


def test_a_machine_that_does_not_answer_is_named_and_left_to_ray() -> None:
    parts = Parts(too_long_s=10.0)
    assert parts.look(4.0, Unreachable("two (10.0.0.2)")) == [(What.STANDS_STILL, "actor-00")]
    assert "two (10.0.0.2)" in parts.dog.still["actor-00"].why
    assert parts.look(40.0, Unreachable("two (10.0.0.2)"), passes=40.0) == []


def test_a_replica_that_went_with_its_machine_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """One dies with its machine, which Ray no longer knows, so that nothing there can be looked at; one is let go."""
    told: list[str] = []
    session: Any = SimpleNamespace(
        config=SimpleNamespace(cluster=SimpleNamespace(still_s=None)),
        view=SimpleNamespace(event=lambda text, warning=False: told.append(text)),
        faults=Faults(),
    )
    watch = RunWatch(session, then=lambda *_: None, parts=list, judge=lambda: "judge")
    lost, kept, left = (ray_state.Place(f"node-{n}", 10 + n) for n in range(3))
    there = [lost, kept, left]
    monkeypatch.setattr(ray_state, "replicas_of", lambda app: list(there))
    monkeypatch.setattr(ray_state, "let_go", lambda place: place == left)
    assert set(watch._judges(0.0).values()) == {lost, kept, left} and told == []
    watch._seen_replicas.update(there)
    there[:] = [kept]
    watch._look_at_replicas()
    assert told == [], "nothing is known of these machines"
    assert set(watch._judges(100.0).values()) == {kept}
    assert told == ["a replica of the judge died (process 10); Ray Serve replaces it"]
    assert session.faults.judge_restarts == 1
    there.append(ray_state.Place("node-3", 20))
    assert set(watch._judges(102.0).values()) == set(there)
    assert told[1:] == ["a replica of the judge is there again"]


def stop(command: Command, title: str) -> psutil.Process:
    (process,) = command.named(title)
    process.suspend()
    return process


def named(command: Command, run: Path, part: str) -> float:
    """Seconds until a part is said to stand still, everywhere."""
    began = time.monotonic()
    events = run / "logs" / "events.log"
    command.until(lambda: events.exists() and f"{part} stands still: " in events.read_text())
    took = time.monotonic() - began
    command.until(lambda: part in summary(run)["standing_still"], 5.0)
    return took


@pytest.mark.long
@linux
def test_parts_of_a_run_that_are_stopped_are_named_and_replaced(tmp_path: Path) -> None:
    """Real Ray, NLE and an HTTP judge. The run's first minute, with all that is slow in it, raises no alarm."""
    run = tmp_path / "run"
    options = ["train.env_steps=100000000", "checkpoint.interval_s=2", "trace.rate=0.5", "cluster.still_s=8"]
    with RuleServer() as server, Command(*small(tmp_path, server.url, *options)) as command:
        command.until(lambda: summary(run).get("reward_model_version", 0) >= 1 and bool(summary(run)["checkpoint"]))
        command.until(lambda: bool(command.named("orchestration.traces.writers")))
        assert "stands still" not in command.text()

        worker = stop(command, "ray::RolloutWorker")
        assert named(command, run, "actor-00") < 5.0
        worker.resume()
        command.until(lambda: "actor-00 goes on, after" in command.text())
        command.until(lambda: summary(run)["standing_still"] == {})
        assert summary(run)["actor_restarts"] == 0

        stop(command, "ray::RolloutWorker")
        assert named(command, run, "actor-00") < 5.0
        command.until(lambda: summary(run)["actor_restarts"] == 1, 30.0)
        ended = re.search(r"actor-00 has stood still for (\d+) s and is ended", command.text().replace("\n", " "))
        assert ended is not None and 8 <= int(ended[1]) < 13, "at the bound, or as soon as a busy machine looks"

        command.until(lambda: bool(command.named("orchestration.traces.writers")))
        (writer, *_) = command.named("orchestration.traces.writers")
        writer.suspend()
        assert named(command, run, "trace writer of actor-00.1") < 5.0
        command.until(lambda: "trace writer of actor-00.1 has stood still" in (run / "logs" / "events.log").read_text())
        command.until(lambda: "the process that writes traces died (killed by signal 9)" in command.text(), 30.0)
        assert summary(run)["actor_restarts"] == 1, "the actor goes on"

        before = summary(run)["policy_version"]
        command.until(lambda: summary(run)["policy_version"] > before + 5)
        stop(command, "ray::LearnerWorker")
        assert named(command, run, "learner") < 5.0
        command.until(lambda: summary(run)["learner_restarts"] == 1, 30.0)
        before = summary(run)["policy_version"]
        command.until(lambda: summary(run)["policy_version"] > before + 5)

        server_process = stop(command, "ray::RewardServerWorker")
        assert named(command, run, "reward server") < 5.0
        command.until(lambda: "the reward server died and is restarted" in command.text().replace("\n", " "), 30.0)
        assert not server_process.is_running()

        steps = summary(run)["env_steps"]
        command.until(lambda: summary(run)["env_steps"] > steps + 1000)
        command.until(lambda: summary(run)["standing_still"] == {})
        command.process.send_signal(signal.SIGINT)
        assert command.wait() == 130
        assert command.left_behind(10.0) == []
    told = [json.loads(line)["time"]["standing_still"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(told) >= 1 and told[-1] == 0
    trace = read_trace(run_traces(run)[0])
    still = [event.source for event in trace.events if isinstance(event, Error) and "stands still" in event.message]
    assert still[:5] == ["actor-00", "actor-00", "actor-00.1", "learner", "reward-server"]
    assert [event.agent for event in trace.events if isinstance(event, Message) and event.to == "coordinator"]
    assert validate_file(trace.path) == []


@pytest.mark.long
@linux
def test_an_actor_on_another_machine_is_watched_there(tmp_path: Path) -> None:
    """Two Ray nodes; the actor is on the one that the coordinator is not on."""
    from benchmarks.standins import IdleLearnerWorker
    from tests.test_elastic import STEPS, running

    with running(tmp_path, IdleLearnerWorker, 1) as (session, runtime, cluster):
        still = session.faults

        def named(*pids: int) -> Iterator[str]:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            began = time.monotonic()
            while "actor-00" not in still.still:
                assert time.monotonic() - began < 30.0
                yield ""
            yield runtime._watch._watchdog.still["actor-00"].why
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            while still.still:
                yield ""

        def script() -> Iterator[None]:
            start_patiently(lambda: cluster.add_node(num_cpus=1, object_store_memory=2**27))
            while session.env_steps < 2 * STEPS:
                yield
            place = ray_state.place_of(runtime._actors[0].handle)
            assert place is not None and place.node != ray_state.here()
            while (machine := runtime._watch._machines.known[place.node]).look is None:
                yield
            assert not still.still and not still.running_out
            reasons = []
            for why in named(place.pid):
                reasons += [why] if why else []
                yield
            host = ray_state.place_of(machine.host)
            assert host is not None and host.node == place.node
            for why in named(place.pid, host.pid):
                reasons += [why] if why else []
                yield
            assert reasons == [
                f"process {place.pid} is stopped (SIGSTOP, a debugger)", f"its machine, {machine.name}, does not answer"
            ]  # fmt: skip
            runtime._watch._watchdog._too_long_s = 1.0
            os.kill(place.pid, signal.SIGSTOP)
            while session.actor_restarts == 0:
                yield
            before = session.env_steps
            while session.env_steps < before + STEPS or still.still:
                yield

        session.script = script()
        runtime.run()
    assert session.actor_restarts == 1 and session.faults.still == {}
