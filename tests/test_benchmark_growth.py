"""The benchmark of the runtime itself: its stand-ins keep to the workers' interface, and it measures a small real cluster."""

import argparse
import inspect
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from agents.report import RolloutReport
from benchmarks import growth
from benchmarks.growth import Case, parse_counts
from benchmarks.standins import IdleLearnerWorker, IdleRolloutWorker, Load
from orchestration.results import FeedResult

LOAD = Load(rollout_s=0.1, trajectory_bytes=150_000, weights_bytes=120_000)


def test_stand_ins_have_the_interface_of_the_workers():
    from orchestration.ray_workers import LearnerWorker, RolloutWorker

    for stand_in, worker in ((IdleRolloutWorker, RolloutWorker), (IdleLearnerWorker, LearnerWorker)):
        for name, method in vars(stand_in).items():
            if inspect.isfunction(method):
                assert list(inspect.signature(method).parameters) == list(
                    inspect.signature(getattr(worker, name)).parameters
                ), f"{stand_in.__name__}.{name}"


def test_answers_arrive_as_the_real_ones(tmp_path):
    config = growth._config(Case(3, load=LOAD), tmp_path)
    rollout = IdleRolloutWorker(config, tmp_path, 2, 0)
    learner = IdleLearnerWorker(config, tmp_path, None)
    version, weights = learner.begin()
    trajectory, answer = rollout.collect(weights, version, None)
    report, waited = pickle.loads(pickle.dumps(answer))
    assert isinstance(report, RolloutReport) and waited >= 0.0
    assert (report.source, report.steps, report.trajectory_bytes) == ("actor-02", 64 * 32, 150_000)
    assert trajectory.nbytes == 150_000
    result, weights = learner.feed(report.source, trajectory, report.new_captions)
    result = pickle.loads(pickle.dumps(result))
    assert isinstance(result, FeedResult) and result.policy_version == 1 and result.updates[0].samples == 2048
    assert weights["weights"].nbytes == 120_000


def test_stand_ins_do_not_load_torch():
    """Hundreds of them have to fit on one machine."""
    code = "import sys, benchmarks.standins; print('torch' in sys.modules)"
    root = Path(growth.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "False"


def test_counts_are_read():
    assert parse_counts("16,1, 4") == (1, 4, 16)
    for wrong in ("", "0", "two", "4,-1"):
        with pytest.raises(argparse.ArgumentTypeError, match="whole numbers from 1"):
            parse_counts(wrong)


@pytest.mark.long
def test_two_actors_on_two_nodes_are_measured(tmp_path, monkeypatch):
    # A place of its own, as other tests make such folders too; a short one, as Ray's sockets lie below it.
    place = Path(tempfile.mkdtemp(prefix="yt-"))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    cost = growth.measure(Case(2, nodes=2, load=LOAD, seconds=2.0, warm_up_s=0.5), tmp_path)
    assert (cost.actors, cost.nodes, cost.mode) == (2, 2, "paced")
    # A call lasts 0.1 s at least, so neither actor makes more than ten a second; each brings 64 x 32 steps.
    assert 4 < cost.calls <= 2 * 10 * 2.5
    assert cost.steps_per_second_per_actor * 2 == pytest.approx(cost.calls_per_second * 64 * 32, rel=1e-6)
    assert 0.0 < cost.loop_cpu_ms <= cost.process_cpu_ms
    assert cost.turnaround_ms > 0.0 and 0.0 <= cost.actor_wait < 1.0
    assert "| 2 (2) | paced |" in growth.table([cost])
    assert list(place.iterdir()) == [], "Ray's folder was left behind"
    place.rmdir()
    assert not [p for p in psutil.Process().children(recursive=True) if "ray" in p.name()]
