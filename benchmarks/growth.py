"""What the runtime itself costs as it grows: the real coordinator's loop over actors that play nothing.

Actors and learner are stand-ins (`benchmarks.standins`) that answer with bytes. Everything between them is what a run
has: `RayRuntime.run`, `Session` with its metrics and summary, Ray's calls, its object store and reference counts.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from agents.report import RolloutReport
from agents.settings import ActorSettings
from benchmarks.standins import IdleLearnerWorker, IdleRolloutWorker, Load
from learner.settings import LearnerSettings, RewardSettings
from orchestration.cluster import start_patiently
from orchestration.config import CheckpointSettings, Config, EnvSettings, RunSettings, TraceSettings, TrainSettings
from orchestration.live import LiveView
from orchestration.results import FeedResult
from orchestration.rundir import RunDir
from orchestration.session import Session

COUNTS = (1, 4, 16, 64, 128, 256)
PACED = Load(rollout_s=2.0, trajectory_bytes=256_000, weights_bytes=256_000)
"""2,048 steps in 2 s: about what one CPU actor does. 256 of them leave two cores time to sleep."""
SATURATED = Load(rollout_s=0.0, trajectory_bytes=256_000, weights_bytes=256_000)
"""No wait at all: every process calls and answers as fast as the machine lets it."""

_STARTS_AT_ONCE = 8
"""Ray would start as many workers at once as there are declared CPUs: hundreds of processes that start on two cores time out."""
_OBJECT_STORE_BYTES = 1 << 30
_START_TIMEOUT_S = 900.0


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement."""

    actors: int
    nodes: int = 1
    """Ray nodes, all of them on this machine."""
    load: Load = PACED
    seconds: float = 20.0
    warm_up_s: float = 5.0
    """From the first answer of the last actor to the beginning of the measurement."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What was measured. Times are means for each rollout call (a rollout, its feed, its renewal) unless said otherwise."""

    actors: int
    nodes: int
    mode: str
    start_s: float
    """Until every actor had answered once."""
    calls: int
    calls_per_second: float
    steps_per_second_per_actor: float
    loop_cpu_ms: float
    """CPU time of the coordinator's thread, what it spends inside Ray's calls included."""
    loop_wall_ms: float
    """Wall time of the coordinator's thread that it did not wait for answers."""
    process_cpu_ms: float
    """CPU time of all threads of the coordinator's process: the loop and Ray's own threads."""
    turnaround_ms: float
    """Median, from the coordinator hearing of a trajectory to hearing that it was learned, the learner's queue included."""
    actor_wait: float
    """Share of their time that actors waited for a call."""
    machine_busy: float
    """Share of all cores that was busy, whoever kept them so."""
    coordinator_mb: float


@dataclass(frozen=True, slots=True)
class _Moment:
    """Clocks and counters at one time."""

    wall: float
    thread_cpu: float
    process_cpu: float
    busy: float
    calls: int
    steps: int
    waited: float
    actors_waited: float


class MeasuredSession(Session):
    """The session of a run, which also reads the clocks and ends the run when it has seen enough."""

    def __init__(self, config: Config, rundir: RunDir, view: LiveView, case: Case) -> None:
        super().__init__(config, rundir, view, resumed=None)
        self._case = case
        self._heard: set[str] = set()
        self._calls = 0
        self._waited = self._actors_waited = 0.0
        self._came: dict[int, float] = {}
        self._turnarounds: list[float] = []
        self._built_at = time.perf_counter()
        self._complete_at: float | None = None
        self._first: _Moment | None = None
        self._last: _Moment | None = None

    def rolled_out(self, report: RolloutReport) -> None:
        super().rolled_out(report)
        self._calls += 1
        self._came[id(report)] = time.perf_counter()
        if self._complete_at is None:
            self._heard.add(report.source)
            if len(self._heard) == self._case.actors:
                self._complete_at = time.perf_counter()

    def learned(self, report: RolloutReport, result: FeedResult, env_steps: int) -> None:
        super().learned(report, result, env_steps)
        self._turnarounds.append(time.perf_counter() - self._came.pop(id(report)))

    def waited(self, part: str, what: str, seconds: float) -> None:
        super().waited(part, what, seconds)
        if part == "coordinator":
            self._waited += seconds
            self._watch()
        elif part == "actor":
            self._actors_waited += seconds

    def _watch(self) -> None:
        """Called once a pass: begins and ends the measurement."""
        now = time.perf_counter()
        if self._complete_at is None:
            if now - self._built_at > _START_TIMEOUT_S:
                raise TimeoutError(
                    f"{len(self._heard)} of {self._case.actors} actors answered within {_START_TIMEOUT_S:.0f} s; "
                    "give fewer --actors"
                )
        elif self._first is None:
            if now - self._complete_at >= self._case.warm_up_s:
                self._first = self._moment()
                self._turnarounds.clear()
        elif self._last is None and now - self._first.wall >= self._case.seconds:
            self._last = self._moment()
            self.stop_requested = True

    def _moment(self) -> _Moment:
        cpu = psutil.cpu_times()
        return _Moment(
            wall=time.perf_counter(),
            thread_cpu=time.thread_time(),
            process_cpu=time.process_time(),
            busy=sum(cpu) - cpu.idle - getattr(cpu, "iowait", 0.0),
            calls=self._calls,
            steps=self.env_steps,
            waited=self._waited,
            actors_waited=self._actors_waited,
        )

    def cost(self) -> Cost:
        """What was measured. Raises RuntimeError where the run ended before the measurement did."""
        first, last = self._first, self._last
        if first is None or last is None or self._complete_at is None or last.calls == first.calls:
            raise RuntimeError(f"nothing was measured of {self._case}: {self._calls} calls came back")
        wall, calls = last.wall - first.wall, last.calls - first.calls
        waited = last.waited - first.waited
        return Cost(
            actors=self._case.actors,
            nodes=self._case.nodes,
            mode="paced" if self._case.load.rollout_s else "saturated",
            start_s=self._complete_at - self._built_at,
            calls=calls,
            calls_per_second=calls / wall,
            steps_per_second_per_actor=(last.steps - first.steps) / wall / self._case.actors,
            loop_cpu_ms=(last.thread_cpu - first.thread_cpu) / calls * 1e3,
            loop_wall_ms=(wall - waited) / calls * 1e3,
            process_cpu_ms=(last.process_cpu - first.process_cpu) / calls * 1e3,
            turnaround_ms=statistics.median(self._turnarounds) * 1e3,
            actor_wait=(last.actors_waited - first.actors_waited) / wall / self._case.actors,
            machine_busy=(last.busy - first.busy) / wall / (psutil.cpu_count() or 1),
            coordinator_mb=psutil.Process().memory_full_info().pss / 2**20,
        )


def measure(case: Case, folder: Path) -> Cost:
    """Runs the real loop over stand-ins, on a Ray cluster of its own that is gone afterwards.

    Raises TimeoutError where not all actors come up.
    """
    from orchestration.ray_runtime import Hosts, RayRuntime

    config = _config(case, folder)
    rundir = RunDir(folder / config.run.name).open_for_training(config, overwrite=True)
    view = LiveView(Console(file=io.StringIO()), plain=True)
    with contextlib.ExitStack() as stack:
        stack.callback(rundir.close)
        stack.enter_context(ray_cluster(case))
        stack.enter_context(view)
        session = MeasuredSession(config, rundir, view, case)
        stack.callback(session.metrics.close)
        runtime = RayRuntime(config, session, resumed=None, hosts=Hosts(IdleRolloutWorker, IdleLearnerWorker))
        stack.callback(runtime.close)
        runtime.run()
        return session.cost()


def _config(case: Case, folder: Path) -> Config:
    """No judge, no traces, no checkpoints; a full batch with every trajectory."""
    mode = "paced" if case.load.rollout_s else "saturated"
    return Config(
        run=RunSettings(name=f"growth-{mode}-{case.actors}-{case.nodes}", dir=str(folder)),
        env=EnvSettings(id="stand-in", options=asdict(case.load)),
        train=TrainSettings(env_steps=10**15),
        actors=ActorSettings(count=case.actors),
        learner=LearnerSettings(device="cpu"),
        reward=RewardSettings(model="none", w_int=0.0),
        trace=TraceSettings(rate=0.0),
        checkpoint=CheckpointSettings(interval_s=1e9),
    )


@contextlib.contextmanager
def ray_cluster(case: Case, **settings: Any) -> Generator[Any]:
    """A Ray cluster (`ray.cluster_utils.Cluster`) with a processor declared for each actor, in a folder and with ports of its
    own; `settings`: of Ray's system."""
    import ray
    from ray.cluster_utils import Cluster

    # Short, because Ray's sockets lie below it and their paths may have 107 characters. Ray also notes there which
    # cluster was started last: in the common folder the next run of anybody on this machine would join this one.
    folder = tempfile.mkdtemp(prefix="yg-")
    before = {name: os.environ.get(name) for name in ("RAY_TMPDIR", "RAY_ADDRESS", "RAY_USAGE_STATS_ENABLED")}
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.update(RAY_TMPDIR=folder, RAY_USAGE_STATS_ENABLED="0")
    cluster = Cluster(shutdown_at_exit=True)
    common: dict[str, Any] = {"object_store_memory": _OBJECT_STORE_BYTES // case.nodes, "include_dashboard": False}
    system = {
        "worker_maximum_startup_concurrency": _STARTS_AT_ONCE,
        "enable_worker_prestart": False,
        # Hundreds of processes that report to one agent would measure the agent.
        "enable_metrics_collection": False,
        **settings,
    }
    share, rest = divmod(case.actors, case.nodes)
    try:
        # The learner's processor is on the first node.
        start_patiently(lambda: cluster.add_node(num_cpus=share + rest + 1, _system_config=system, **common))
        for _ in range(case.nodes - 1):
            start_patiently(lambda: cluster.add_node(num_cpus=share, **common))
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        shutil.rmtree(folder, ignore_errors=True)


def parse_counts(text: str) -> tuple[int, ...]:
    """`1,16,256`, in ascending order. Raises argparse.ArgumentTypeError for anything else."""
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        counts = [0]
    if counts[0] < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give whole numbers from 1 with commas between them, such as 1,16,256"
        )
    return tuple(counts)


def cases(counts: Sequence[int] = COUNTS) -> list[Case]:
    """Paced at every count; with the largest one also on four nodes; saturated at every count."""
    most = max(counts)
    several = [Case(most, nodes=4)] if most >= 4 else []
    return [*(Case(n) for n in counts), *several, *(Case(n, load=SATURATED) for n in counts)]


def main(folder: Path, *options: str) -> None:
    """Measures each case, prints a table as it goes and writes `growth.json`. `--actors 1,16,64`: how many."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks growth", description=__doc__)
    parser.add_argument("--actors", type=parse_counts, default=COUNTS)
    counts: Sequence[int] = parser.parse_args(options).actors
    found: list[Cost] = []
    for case in cases(counts):
        found.append(measure(case, folder))
        print(json.dumps(asdict(found[-1])), flush=True)
        (folder / "growth.json").write_text(json.dumps([asdict(cost) for cost in found], indent=2))
    print(table(found))


def table(found: Sequence[Cost]) -> str:
    """One row a case."""
    titles = [
        "actors (Ray nodes)", "mode", "calls/s", "steps/s per actor", "coordinator: CPU ms a call", "wall ms a call",
        "with Ray's threads: CPU ms a call", "turnaround, ms", "actors wait", "machine busy", "start, s",
    ]  # fmt: skip
    rows = [
        [
            f"{c.actors} ({c.nodes})", c.mode, f"{c.calls_per_second:,.1f}", f"{c.steps_per_second_per_actor:,.0f}",
            f"{c.loop_cpu_ms:.2f}", f"{c.loop_wall_ms:.2f}", f"{c.process_cpu_ms:.2f}", f"{c.turnaround_ms:.1f}",
            f"{c.actor_wait:.1%}", f"{c.machine_busy:.0%}", f"{c.start_s:.0f}",
        ]
        for c in found
    ]  # fmt: skip
    return "\n".join(f"| {' | '.join(row)} |" for row in [titles, ["---"] * len(titles), *rows])
