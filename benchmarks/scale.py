"""Do steps/s follow when a run is scaled while it goes, and nodes join and leave? 2, 8, 3 and 6 actors, with no stall.

The real coordinator over stand-ins that sleep (`benchmarks.standins`): eight actors that play would share two cores, and
then no number of them is faster. A node joins for the eight, is killed under them, and another joins for the six.
"""

import argparse
import contextlib
import io
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from agents.report import RolloutReport
from agents.settings import ActorSettings
from benchmarks.growth import Case, ray_cluster
from benchmarks.standins import IdleLearnerWorker, IdleRolloutWorker, Load
from learner.settings import LearnerSettings, RewardSettings
from orchestration.config import CheckpointSettings, Config, EnvSettings, RunSettings, TraceSettings, TrainSettings
from orchestration.live import LiveView
from orchestration.rundir import RunDir
from orchestration.scaling import ScaleWish
from orchestration.session import Session

SIZES = (2, 8, 3, 6)
LOAD = Load(rollout_s=0.5, trajectory_bytes=256_000, weights_bytes=256_000)
_START_S = 120.0
_HEALTH = {"health_check_period_ms": 400, "health_check_timeout_ms": 1000, "health_check_failure_threshold": 3}
"""As `cluster.yaml` has it."""


@dataclass(frozen=True, slots=True)
class Phase:
    """What was measured while the run had so many actors."""

    actors: int
    reached_s: float
    """From the wish until so many actors had answered, and none else."""
    steps_per_second: float
    steps_per_second_per_actor: float
    longest_gap_s: float
    """Between two answers, from the wish on."""


class Scaled(Session):
    """A session whose run is led by a script, which goes on at each report."""

    script: Iterator[None]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.came: list[tuple[float, str, int]] = []
        """When each rollout came, from whom, and its steps."""

    def rolled_out(self, report: RolloutReport, group: int | None = None) -> None:
        super().rolled_out(report, group)
        self.came.append((time.monotonic(), report.source, report.steps))

    def report(self, *, due: bool) -> None:
        if next(self.script, "over") == "over":
            self.stop_requested = True
        super().report(due=due)


def main(folder: Path, *options: str) -> None:
    """`--seconds S` of measurement at each size (15). Prints a table, writes `scale.json`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks scale", description=main.__doc__)
    parser.add_argument("--seconds", type=float, default=15.0)
    seconds: float = parser.parse_args(options).seconds
    config = _config(folder)
    rundir = RunDir(folder / config.run.name).open_for_training(config, overwrite=True)
    phases: list[Phase] = []
    view = LiveView(Console(file=io.StringIO()), plain=True)
    with contextlib.ExitStack() as stack:
        stack.callback(rundir.close)
        from orchestration.ray_runtime import Hosts, RayRuntime

        cluster = stack.enter_context(ray_cluster(Case(actors=3, nodes=1, load=LOAD), **_HEALTH))
        stack.enter_context(view)
        session = Scaled(config, rundir, view, resumed=None)
        stack.callback(session.metrics.close)
        runtime = RayRuntime(config, session, resumed=None, hosts=Hosts(IdleRolloutWorker, IdleLearnerWorker))
        stack.callback(runtime.close)
        session.script = _script(session, cluster, ScaleWish(rundir), seconds, phases)
        runtime.run()
        unread = session.env_steps - session.learning.policy_version * _STEPS - session.faults.samples_lost
    report = {
        "phases": [asdict(phase) for phase in phases],
        "env_steps": session.env_steps,
        "samples_lost": session.faults.samples_lost,
        "on_their_way_at_the_end": unread,
    }
    (folder / "scale.json").write_text(json.dumps(report, indent=1))
    print("| actors | reached after, s | steps/s | steps/s an actor | longest gap, s |\n|---|---|---|---|---|")
    for p in phases:
        print(
            f"| {p.actors} | {p.reached_s:.1f} | {p.steps_per_second:,.0f} | {p.steps_per_second_per_actor:,.0f} | "
            f"{p.longest_gap_s:.1f} |"
        )
    print(f"\n{session.env_steps:,} steps, {session.faults.samples_lost:,} lost with the node, {unread:,} on their way")


_STEPS = ActorSettings().envs * ActorSettings().rollout_length
"""Of one call."""


def _config(folder: Path) -> Config:
    return Config(
        run=RunSettings(name="scale", dir=str(folder)),
        env=EnvSettings(id="stand-in", options=asdict(LOAD)),
        train=TrainSettings(env_steps=10**15),
        actors=ActorSettings(count=SIZES[0]),
        learner=LearnerSettings(device="cpu"),
        reward=RewardSettings(model="none", w_int=0.0),
        trace=TraceSettings(rate=0.0),
        checkpoint=CheckpointSettings(interval_s=1e9),
    )


def _script(session: Scaled, cluster: Any, wish: ScaleWish, seconds: float, phases: list[Phase]) -> Iterator[None]:
    """What happens while the run goes; each step is one report of it."""
    node: Any = None
    for actors in SIZES:
        wished = time.monotonic()
        if actors == 3:
            cluster.remove_node(node, allow_graceful=False)
        elif actors > 3:
            node = cluster.add_node(num_cpus=6, object_store_memory=1 << 28)
        if phases:
            wish.make(actors)
        while len(_sources(session, time.monotonic() - 2.0)) != actors or session.actors != actors:
            if time.monotonic() - wished > _START_S:
                raise TimeoutError(f"{_sources(session, time.monotonic() - 2.0)} answer; {actors} were wished for")
            yield
        reached = time.monotonic()
        while time.monotonic() < reached + seconds:
            yield
        steps = sum(steps for at, _, steps in session.came if at >= reached)
        rate = steps / (time.monotonic() - reached)
        times = [at for at, _, _ in session.came if at >= wished]
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)] if phases else [0.0]
        phases.append(Phase(actors, reached - wished, rate, rate / actors, max(gaps)))


def _sources(session: Scaled, since: float) -> set[str]:
    return {source for at, source, _ in session.came if at >= since}
