"""What each kind of fault does, and when a run has recovered from it."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from benchmarks.chaos.cluster import HEAD, LEARNER_NODE, LocalCluster, Node
from benchmarks.chaos.schedule import Fault, Kind
from benchmarks.chaos.training import Training
from benchmarks.rule_judge import RuleServer

ACTOR, LEARNER, REWARD_SERVER = "ray::RolloutWorker", "ray::LearnerWorker", "ray::RewardServerWorker"
_WRITER = "orchestration.traces"
_RECOVERY_S = 90.0
_NOTICE_S = 30.0
_JUDGE = {
    Kind.JUDGE_HANGS: "hang",
    Kind.JUDGE_GARBAGE: "garbage",
    Kind.JUDGE_ERRORS: "error",
    Kind.JUDGE_SLOW: "slow",
}
_OF_THE_REWARD_SERVER = {*_JUDGE, Kind.KILL_REWARD_SERVER, Kind.STOP_REWARD_SERVER, Kind.DAMAGE_STORE}
_OF_THE_DRIVER = {Kind.KILL_DRIVER, Kind.KILL_HEAD}
_OF_THE_LEARNER = {Kind.KILL_LEARNER, Kind.KILL_LEARNER_NODE}
_SAID = {
    Kind.KILL_ACTOR: "died and is replaced",
    Kind.KILL_NODE: "died and is replaced",
    Kind.LOSE_NODE: "died and is replaced",
    Kind.KILL_LEARNER: "died and is replaced",
    Kind.KILL_LEARNER_NODE: "died and is replaced",
    Kind.KILL_REWARD_SERVER: "the reward server died",
}
"""What the run says when it has noticed."""
_TARGETS = {
    Kind.KILL_ACTOR: ACTOR,
    Kind.STOP_ACTOR: ACTOR,
    Kind.KILL_LEARNER: LEARNER,
    Kind.STOP_LEARNER: LEARNER,
    Kind.KILL_REWARD_SERVER: REWARD_SERVER,
    Kind.STOP_REWARD_SERVER: REWARD_SERVER,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One fault that was caused."""

    number: int
    kind: str
    at_s: float
    """Since the campaign began."""
    target: str
    """What it met; empty where there was nothing to meet."""
    held_s: float
    recovered_s: float | None
    """From its end until steps were counted and learned from again; null where that took too long, or the run had ended."""
    noticed_s: float | None = None
    """From its begin until the run said what had died; null for other faults, and where what died did nothing for the run."""
    ended_run: str | None = None
    """What the driver said where the run ended of it though it should not."""


class _Notice:
    """Watches for what a run says, from the moment that it is entered."""

    def __init__(self, training: Training, words: str | None) -> None:
        """`words`: None where nothing need be said."""
        self._log, self._words = training.path / "logs" / "events.log", words
        self._began, self._after = time.monotonic(), len(self._text())
        self._found: float | None = None
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def _text(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def _watch(self) -> None:
        while self._words is not None and not self._over.wait(0.05):
            if self._words in self._text()[self._after :]:
                self._found = time.monotonic() - self._began
                return

    def wait(self) -> float | None:
        """Seconds from the begin until it was said; None where that took longer than half a minute, or nothing need be said."""
        self._watcher.join(max(0.0, self._began + _NOTICE_S - time.monotonic()))
        return self._found

    def __enter__(self) -> Self:
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._watcher.join()


class Injector:
    """Causes faults, one after the other."""

    def __init__(self, cluster: LocalCluster, training: Training, judge: RuleServer, disk: Path) -> None:
        """`disk`: a folder of the file system that the run lies on, which is its own and small."""
        self._cluster, self._training, self._judge = cluster, training, judge
        self._filler = disk / "filler"
        self._began = time.monotonic()

    def cause(self, fault: Fault) -> Outcome:
        """Waits, causes the fault, ends it, and waits until the run has recovered."""
        time.sleep(fault.wait_s)
        at, before = time.monotonic(), self._training.summary()
        with _Notice(self._training, _SAID.get(fault.kind)) as notice:
            target = self._do(fault, notice)
            held = time.monotonic() - at
            recovered = self._recovered(fault, before, replaced=target != "" and fault.kind in _OF_THE_LEARNER)
            noticed = notice.wait() if target else None
        ended = None
        if not self._training.running:
            ended = self._training.text()[-400:]
            self._training.start(resume=True)
            self._training.until(lambda told: told.get("status") == "running", _RECOVERY_S)
        return Outcome(fault.number, str(fault.kind), at - self._began, target, held, recovered, noticed, ended)

    def _recovered(self, fault: Fault, before: dict[str, Any], *, replaced: bool) -> float | None:
        """The counters go back with a driver that was killed, so what they are then is what has to rise. `replaced`: the learner
        must be, too; what it had answered before it died would seem a recovery."""
        told = self._training.summary() if fault.kind in _OF_THE_DRIVER else before
        steps, version = told.get("env_steps", 0), told.get("policy_version", 0)
        restarts = told.get("learner_restarts", 0) + 1 if replaced else 0
        annotates = fault.kind in _OF_THE_REWARD_SERVER

        def on_its_way(now: dict[str, Any]) -> bool:
            learns = now.get("env_steps", 0) > steps and now.get("policy_version", 0) > version
            learns = learns and now.get("learner_restarts", 0) >= restarts
            judged = not annotates or (
                now["judge_status"] not in ("down", "unreadable") and bool(self._cluster.ray_processes(REWARD_SERVER))
            )
            return now.get("status") == "running" and learns and judged

        return self._training.until(on_its_way, _RECOVERY_S)

    def _do(self, fault: Fault, notice: "_Notice") -> str:
        kind = fault.kind
        if kind is Kind.LOSE_NODE:
            return self._lose_node(notice)
        if kind in _TARGETS:
            return self._strike(fault, _TARGETS[kind])
        if kind in _JUDGE:
            return self._judge_in(_JUDGE[kind], fault.hold_s)
        other: dict[Kind, Callable[[Fault], str]] = {
            Kind.KILL_WRITER: self._kill_writer,
            Kind.KILL_NODE: self._kill_node,
            Kind.KILL_LEARNER_NODE: self._kill_learner_node,
            Kind.CUT: self._cut,
            Kind.SLOW_NETWORK: self._slow,
            Kind.DISK_FULL: self._fill_disk,
            Kind.DAMAGE_STORE: self._damage_store,
            Kind.KILL_DRIVER: self._kill_driver,
            Kind.KILL_HEAD: self._kill_head,
        }
        return other[kind](fault)

    def _strike(self, fault: Fault, title: str) -> str:
        """kill -9, or SIGSTOP and SIGCONT, of one of the processes with this title."""
        there = self._cluster.ray_processes(title)
        if not there:
            return ""
        node, process = there[int(fault.choice * len(there))]
        with contextlib.suppress(psutil.NoSuchProcess):
            if fault.hold_s == 0.0:
                process.kill()
            else:
                process.send_signal(signal.SIGSTOP)
                time.sleep(fault.hold_s)
                process.send_signal(signal.SIGCONT)
        return f"{title.removeprefix('ray::')} on {node}"

    def _kill_writer(self, fault: Fault) -> str:
        writers = [p for _, actor in self._cluster.ray_processes(ACTOR) for p in _children(actor)]
        if not writers:
            return ""
        writer = writers[int(fault.choice * len(writers))]
        with contextlib.suppress(psutil.NoSuchProcess):
            writer.kill()
        return "trace writer"

    def _judge_in(self, mode: str, hold_s: float) -> str:
        self._judge.mode = mode
        time.sleep(hold_s)
        self._judge.mode = "ok"
        return "judge"

    def _node(self, fault: Fault) -> Node | None:
        """Of those for actors, one that has one, if any has."""
        busy = sorted({name for name, _ in self._cluster.ray_processes(ACTOR)})
        others = set(self._cluster.nodes) - {HEAD, LEARNER_NODE}
        names = busy or sorted(name for name in others if self._cluster.running(name))
        return self._cluster.nodes[names[int(fault.choice * len(names))]] if names else None

    def _kill_node(self, fault: Fault) -> str:
        node = self._node(fault)
        if node is None:
            return ""
        return self._restart(node.name, fault)

    def _kill_learner_node(self, fault: Fault) -> str:
        """Unlike an actor's nodes there is but one, so its coming back is waited for."""
        if not self._cluster.running(LEARNER_NODE):
            return ""
        self._restart(LEARNER_NODE, fault)
        self._cluster.await_up(LEARNER_NODE)
        return LEARNER_NODE

    def _restart(self, name: str, fault: Fault) -> str:
        self._cluster.kill(name)
        time.sleep(fault.hold_s)
        self._cluster.start(name)
        return name

    def _lose_node(self, notice: "_Notice") -> str:
        """As where a machine loses power: no connection is closed, and nothing answers. It is never in reach again."""
        link, name = self._cluster.link, "node-0"
        if link is None or not any(node == name for node, _ in self._cluster.ray_processes(ACTOR)):
            return ""
        link.cut(True)
        notice.wait()
        self._cluster.kill(name)
        link.cut(False)
        self._cluster.start(name)
        return name

    def _cut(self, fault: Fault) -> str:
        link = self._cluster.link
        if link is None:
            return ""
        link.cut(True)
        time.sleep(fault.hold_s)
        link.cut(False)
        return "node-0"

    def _slow(self, fault: Fault) -> str:
        link = self._cluster.link
        if link is None or not link.slow(True):
            return ""
        time.sleep(fault.hold_s)
        link.slow(False)
        return "node-0"

    def _fill_disk(self, fault: Fault) -> str:
        """Leaves no byte of the run's file system."""
        with self._filler.open("wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(1 << 20))
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(1 << 10))
            time.sleep(fault.hold_s)
        self._filler.unlink()
        return "run.dir"

    def _damage_store(self, fault: Fault) -> str:
        """The reward server dies, and its file is no longer what it wrote when the next one opens it."""
        store = self._training.path / "annotations.sqlite"
        if not store.exists():
            return ""
        self._strike(Fault(0, Kind.KILL_REWARD_SERVER, 0.0, 0.0, 0.0), REWARD_SERVER)
        size = store.stat().st_size
        with store.open("r+b") as file:
            if fault.choice < 1 / 3:
                file.write(os.urandom(100))
                return "its header"
            if fault.choice < 2 / 3:
                # A page in the middle: pages have 4096 bytes.
                file.seek(size // 2 // 4096 * 4096)
                file.write(os.urandom(4096))
                return "a page of it"
            file.truncate(size // 2 // 4096 * 4096)
            return "its second half"

    def _kill_driver(self, fault: Fault) -> str:
        process = self._training.process
        if process is None:
            return ""
        process.kill()
        process.wait()
        self._resume()
        return "driver"

    def _kill_head(self, fault: Fault) -> str:
        """What Ray knows of its cluster goes with it: the Ray of the other machines gives up after a while, with all that the run
        had there, and they join the next head."""
        process = self._training.process
        if process is None:
            return ""
        process.kill()
        self._cluster.kill(HEAD)
        process.wait()
        for name in self._cluster.nodes:
            self._cluster.await_down(name)
        for name in self._cluster.nodes:
            self._cluster.start(name)
            self._cluster.await_up(name)
        self._resume()
        return HEAD

    def _resume(self) -> None:
        self._training.start(resume=True)
        self._training.until(lambda told: told.get("status") == "running", _RECOVERY_S)


def _children(actor: psutil.Process) -> list[psutil.Process]:
    """Processes that write an actor's traces."""
    found: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in actor.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if _WRITER in " ".join(child.cmdline()):
                    found.append(child)
    return found
