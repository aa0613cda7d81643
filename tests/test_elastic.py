"""The number of actors follows the cluster: by itself, and with Ray nodes that join and leave."""

import contextlib
import io
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from agents.report import RolloutReport
from agents.settings import ActorSettings
from benchmarks.growth import Case, ray_cluster
from benchmarks.standins import BusyLearnerWorker, IdleLearnerWorker, IdleRolloutWorker, Load
from learner.settings import LearnerSettings, RewardSettings
from orchestration import calls, elastic, recovery
from orchestration.cli.main import run as yendor
from orchestration.cluster import start_patiently
from orchestration.config import (
    CheckpointSettings,
    ClusterSettings,
    Config,
    EnvSettings,
    RunSettings,
    TraceSettings,
    TrainSettings,
)
from orchestration.configuration import load_config
from orchestration.elastic import room, wanted
from orchestration.live import LiveView
from orchestration.rundir import RunDir
from orchestration.session import Session
from orchestration.traces.run_record import RunRecord


def node(cpus: float, *, alive: bool = True, **others: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": cpus, **others}}


@pytest.mark.parametrize(
    ("actors", "nodes", "fits"),
    [
        ({}, [], 0),
        ({}, [node(1)], 0),
        ({}, [node(4)], 3),
        ({"cpus": 0.1}, [node(1.3)], 3),
        # What is left over on two machines is no place for an actor.
        ({"cpus": 2.0}, [node(4), node(3), node(1)], 1 + 1),
        ({}, [node(4), node(8, alive=False)], 3),
    ],
)
def test_actors_fit_on_single_machines(actors: dict[str, float], nodes: list[dict[str, Any]], fits: int) -> None:
    assert room(Config(actors=ActorSettings(**actors)), nodes) == fits  # type: ignore[arg-type]


def test_groups_keep_actors_to_their_machines() -> None:
    config = Config(actors=ActorSettings(cpus=0.5), cluster=ClusterSettings(groups=True))
    assert room(config, [node(64, learner=1), node(4, actor=4), node(4, actor=1)]) == 8 + 2


@pytest.mark.parametrize(
    ("actors", "there", "waited", "most", "number"),
    [
        (1, 8, 0.9, None, 2),
        (4, 8, 0.9, None, 6),
        (6, 8, 0.9, None, 8),
        (6, 8, 0.9, 7, 7),
        (8, 8, 0.9, None, 8),
        # The learner is what holds things up.
        (4, 8, 0.05, None, 4),
        # Machines left.
        (8, 3, 0.05, None, 3),
        (8, 0, 0.9, None, 1),
    ],
)
def test_more_while_the_learner_waits_and_fewer_where_there_is_no_room(
    actors: int, there: int, waited: float, most: int | None, number: int
) -> None:
    assert wanted(actors, there, waited, most) == number


def test_what_the_autoscaler_is_asked_for_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the run that asked, and, as Ray forgets no request of a driver that was killed, by every run that begins."""
    asked: list[list[dict[str, float]]] = []
    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", lambda bundles: asked.append(bundles))
    monkeypatch.setattr(elastic, "_LOOK_S", 0.0)
    monkeypatch.setattr(elastic.ray, "nodes", lambda: [node(4)])

    class Waiting:
        learner_waited_s = 0.0

    config = load_config("demo", ["actors.auto=true", "actors.cpus=0.5", "cluster.autoscaling=true"])
    session: Any = Waiting()
    scaler = elastic.Elastic(config, session)
    assert asked == [[]]
    for actors in (1, 1, 1):
        Waiting.learner_waited_s += 100.0  # all of the time
        scaler.look(actors, settled=True)
    assert asked[-1] == [{"CPU": 0.5}] * 3
    scaler.close()
    assert asked[-1] == [] and len(asked) < 6
    elastic.Elastic(load_config("demo"), session)
    assert len(asked) < 6, "where no machines are asked for"


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        (["actors.max=3"], "actors.auto=false"),
        (["actors.auto=true", "runtime=serial"], "runtime=serial has one process"),
        (["actors.auto=true", "actors.max=0"], "actors.max=0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    keys: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert yendor(["config", "show", "demo", *keys]) == 2
    assert word in capsys.readouterr().err


STEPS = 64 * 32
"""Of one call."""


class Steered(Session):
    """A session whose run is led by a script, which goes on at each report."""

    script: Iterator[None]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.sources: set[str] = set()

    def rolled_out(self, report: RolloutReport, group: int | None = None) -> None:
        super().rolled_out(report, group)
        self.sources.add(report.source)

    def report(self, *, due: bool) -> None:
        if next(self.script, "over") == "over":
            self.stop_requested = True
        super().report(due=due)


@contextlib.contextmanager
def running(folder: Path, learner: type[Any], cpus: int) -> Generator[tuple[Steered, Any, Any]]:
    """Session, runtime and cluster, whose first node has so many processors, of which the learner takes one."""
    from orchestration.ray_runtime import Hosts, RayRuntime

    load = Load(rollout_s=0.2, trajectory_bytes=200_000, weights_bytes=1000)
    config = Config(
        run=RunSettings(name="x", dir=str(folder)),
        env=EnvSettings(id="stand-in", options=asdict(load)),
        train=TrainSettings(env_steps=10**15),
        actors=ActorSettings(count=1, auto=True),
        learner=LearnerSettings(device="cpu"),
        reward=RewardSettings(model="none", w_int=0.0),
        trace=TraceSettings(rate=0.0),
        checkpoint=CheckpointSettings(interval_s=1e9),
    )
    rundir = RunDir(folder / "x").open_for_training(config, overwrite=True)
    view = LiveView(Console(file=io.StringIO()), plain=True)
    with contextlib.ExitStack() as stack:
        stack.callback(rundir.close)
        cluster = stack.enter_context(ray_cluster(Case(actors=cpus - 1, nodes=1, load=load)))
        stack.enter_context(view)
        session = Steered(config, rundir, view, resumed=None)
        stack.callback(session.metrics.close)
        runtime = RayRuntime(config, session, resumed=None, hosts=Hosts(IdleRolloutWorker, learner))
        stack.callback(runtime.close)
        yield session, runtime, cluster


@pytest.mark.long
def test_actors_come_and_go_with_the_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic, "_LOOK_S", 1.0)
    gone: set[str] = set()
    lost, retired = RunRecord.lost, RunRecord.retired
    monkeypatch.setattr(RunRecord, "lost", lambda self, actor, why: (gone.add(actor), lost(self, actor, why)))
    monkeypatch.setattr(RunRecord, "retired", lambda self, actor: (gone.add(actor), retired(self, actor)))
    with running(tmp_path, IdleLearnerWorker, 2) as (session, runtime, cluster):

        def script() -> Iterator[None]:
            while session.env_steps < 4 * STEPS:
                assert session.actors == 1
                yield
            joined = start_patiently(lambda: cluster.add_node(num_cpus=2, object_store_memory=2**27))
            while len(session.sources) < 3:
                yield
            assert session.actors == 3
            cluster.remove_node(joined)
            while session.actors > 1:
                yield
            before = session.env_steps
            while session.env_steps < before + 4 * STEPS:
                yield

        session.script = script()
        runtime.run()
    # Each sample was learned from, was lost with the machine that it lay on, or was on its way; none was learned from twice.
    unread = session.env_steps - session.learning.policy_version * STEPS - session.faults.samples_lost
    assert 0 <= unread <= 2 * 3 * STEPS
    # Both actors on it are told as dead, or as let go where it is noticed first that there is no room for them any more.
    assert len(gone) >= 2, gone


@pytest.mark.long
def test_no_actors_are_added_to_a_learner_that_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A tenth of it, from which on an actor is added, is longer than what a busy machine holds an answer up.
    monkeypatch.setattr(elastic, "_LOOK_S", 3.0)
    with running(tmp_path, BusyLearnerWorker, 8) as (session, runtime, _):

        def script() -> Iterator[None]:
            while session.learning.policy_version < 25:
                yield

        session.script = script()
        runtime.run()
    assert session.actors == 1
    assert session.learner_waited_s < 0.5 * 25 * BusyLearnerWorker.UPDATE_S


@pytest.mark.long
def test_actors_wait_for_weights_that_were_lost_and_are_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights whose only copy lay on a machine that went."""
    import ray

    from orchestration.ray_runtime import RayRuntime

    told: list[str] = []
    monkeypatch.setattr(LiveView, "event", lambda self, message, *, warning=False: told.append(message))
    gone: list[ray.ObjectRef] = []
    grant = RayRuntime._grant

    def grant_by_what_is_gone(self: RayRuntime, actor: Any) -> None:
        if gone:
            self._weights = gone.pop()
        grant(self, actor)

    monkeypatch.setattr(RayRuntime, "_grant", grant_by_what_is_gone)
    with running(tmp_path, IdleLearnerWorker, 3) as (session, runtime, cluster):
        # Small objects would travel with the call.
        make = ray.remote(num_cpus=1, resources={"away": 1}, max_retries=0)(lambda: np.zeros(1_000_000, np.uint8))

        def lose() -> ray.ObjectRef:
            away = start_patiently(
                lambda: cluster.add_node(num_cpus=1, resources={"away": 1}, object_store_memory=2**27)
            )
            weights = make.remote()
            ray.wait([weights], fetch_local=False)
            cluster.remove_node(away)
            return weights

        def script() -> Iterator[None]:
            lost = lose()
            for calls in (1, 3):
                before, heard = session.env_steps, len(told)
                gone.extend([lost] * calls)
                while gone or session.env_steps < before + 4 * STEPS:
                    yield
                said = [
                    m for m in told[heard:] if "the weights for actor-" in m and "were lost with their machine" in m
                ]
                assert said, told

        session.script = script()
        runtime.run()
    assert session.actor_restarts == 0


def test_actors_that_wait_for_a_machine_are_counted_and_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those that have a process and are only slow to start."""
    told: list[str] = []

    class View:
        def event(self, text: str, *, warning: bool = False) -> None:
            told.append(text)

    class Session:
        config = load_config("demo", ["actors.cpus=1", "learner.threads=1"])
        view, actors_waiting = View(), 0

    session: Any = Session()
    now = time.monotonic()
    actors = [calls.Actor(index, 0, index, None, spawned_at=now - 100.0, answered=index == 0) for index in range(4)]
    monkeypatch.setattr(recovery.ray, "available_resources", lambda: {"CPU": 0.5})
    wait = recovery.ActorWait(session)
    for cpus, placed in ((5, {1, 2, 3}), (4, {1, 2}), (4, {1, 2}), (2, set[int]()), (5, {1, 2, 3}), (5, {1, 3})):
        monkeypatch.setattr(recovery.ray, "nodes", lambda cpus=cpus: [node(cpus)])
        monkeypatch.setattr(
            recovery.ray_state, "place_of", lambda handle, placed=placed: handle if handle in placed else None
        )
        monkeypatch.setattr(wait, "_look_at", 0.0)
        wait.look(actors)
        assert session.actors_waiting == 3 - len(placed)
    assert told[:2] == [
        "1 of 4 actors wait for a machine: the cluster has room for 3",
        "3 of 4 actors wait for a machine: the cluster has room for 1",
    ]
    assert len(told) == 3 and "of which {'CPU': 0.5} is free" in told[-1]


def test_the_learners_gpus_are_no_room_for_engines() -> None:
    def fits(gpus: float, share: float, workers: int = 1) -> int:
        actors, learner = ActorSettings(cpus=1, gpus=share), LearnerSettings(device="cuda", workers=workers, threads=1)
        machine = {"Alive": True, "Resources": {"CPU": 64.0, "GPU": gpus}}
        return room(Config(actors=actors, learner=learner), [machine])

    assert [fits(1, 0.5), fits(2, 0.5), fits(2, 1), fits(4, 1, workers=2)] == [1, 3, 1, 2]
