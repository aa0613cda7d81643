"""A learner of several workers on a real cluster: it trains, resumes with another number, and loses a worker to kill -9."""

import itertools
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from learner.checkpoint import latest_checkpoint, load_state
from orchestration.cluster import start_patiently
from orchestration.config import Config
from orchestration.configuration import load_config
from orchestration.elastic import room
from orchestration.errors import ConfigError, ResourceError
from orchestration.preflight import check_cluster, check_cpus
from tests.language_agents_support import tiny_model
from tests.processes import Command, summary, titled
from tests.test_ray import small
from tests.test_ray_learner import accounts_for_all, never_fell
from tests.text_worlds_support import GAMES, make_games

_NO_JUDGE = ("judge.", "distiller.", "annotator.")
FOLLOWER = "ray::LearnerFollower"


# What is asked of configuration and cluster.


@pytest.mark.parametrize(
    ("preset", "keys", "message"),
    [
        ("demo", ["runtime=serial"], "learner.workers=4: runtime=serial has one process, so one learner"),
        (
            "demo",
            ["learner.batch_size=96", "actors.rollout_length=32"],
            "learner.workers=4: learner.batch_size=96 is 3 trajectories of actors.rollout_length=32",
        ),
        (
            "textworld_ppo",
            ["language.batch_episodes=3", "agent.group_size=1"],
            "learner.workers=4: each worker needs an episode",
        ),
    ],
)
def test_what_several_workers_cannot_do_is_refused(preset: str, keys: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match="^" + re.escape(message)):
        load_config(preset, ["learner.workers=4", *keys])


def test_there_is_a_learner_at_least() -> None:
    with pytest.raises(ConfigError, match=r"^learner.workers=0: must be at least 1"):
        load_config("demo", ["learner.workers=0"])


def three(*more: str) -> Config:
    return load_config("demo", ["learner.workers=3", "learner.threads=2", "actors.count=2", *more])


def test_each_worker_needs_its_processors_and_its_place() -> None:
    check_cpus(three(), 8.0, "this machine")
    with pytest.raises(
        ResourceError, match=r"learner.workers=3 with learner.threads=2 each need 8, this machine has 7"
    ):
        check_cpus(three(), 7.0, "this machine")
    with pytest.raises(ResourceError, match=r"this machine has 4; learner.workers=1 needs fewer"):
        check_cpus(three(), 4.0, "this machine")
    grouped, there = three("cluster.groups=true"), {"CPU": 8.0, "actor": 2.0, "learner": 3.0}
    check_cluster(grouped, there)
    with pytest.raises(ResourceError, match="the learner needs 3 of the resource 'learner', the Ray cluster has 2"):
        check_cluster(grouped, {**there, "learner": 2.0})
    cuda = load_config("demo", ["learner.workers=3", "learner.device=cuda"])
    check_cluster(cuda, {"CPU": 8.0, "GPU": 3.0})
    with pytest.raises(ResourceError, match=r"learner.workers=3: each needs a GPU, and the Ray cluster has 2"):
        check_cluster(cuda, {"CPU": 8.0, "GPU": 2.0})
    assert room(three(), [{"Alive": True, "Resources": {"CPU": 9.0}}]) == 9 - 3 * 2


# On a real cluster.


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of one with more processors than the machine may have."""
    started = Cluster()
    try:
        start_patiently(lambda: started.add_node(num_cpus=6, object_store_memory=2**28, include_dashboard=False))
        yield started.address
    finally:
        started.shutdown()


@pytest.fixture
def address(cluster: str) -> str:
    """Of the cluster, when nothing of another test's run is left there."""
    deadline = time.monotonic() + 30
    while found(FOLLOWER) or found("LearnerWorker"):
        assert time.monotonic() < deadline, "a run of another test is still there"
        time.sleep(0.1)
    return cluster


def found(name: str) -> list[psutil.Process]:
    """Workers of the cluster, which this process started."""
    return titled(psutil.Process().children(recursive=True), name)


def arguments(folder: Path, *more: str) -> list[str]:
    given = small(folder, "http://unused", "reward.model=none", *more)
    return [a for a in given if not a.startswith(_NO_JUDGE)]


@pytest.mark.long
def test_two_learners_train_lose_one_and_go_on_as_one(tmp_path: Path, address: str) -> None:
    """Recurrent states are gathered, components have critics of their own, and the reward model is the leader's."""
    run = tmp_path / "run"
    credit = ["credit.method=spa", "reward.w_prog=0.5", "credit.advantage=separate"]

    def given(*more: str) -> list[str]:
        keys = arguments(tmp_path, *credit, *more)
        return ["reward.model=counts" if key == "reward.model=none" else key for key in keys]

    options = ["learner.workers=2", "train.env_steps=100000000", "checkpoint.interval_s=2"]
    with Command(*given(*options), address=address) as command:
        command.until(lambda: summary(run).get("policy_version", 0) >= 5 and bool(summary(run)["checkpoint"]))
        for restarts in (1, 2):
            before = summary(run)
            (follower,) = found(FOLLOWER)
            (leader,) = found("ray::LearnerWorker")
            victim = follower if restarts == 1 else leader
            os.kill(victim.pid, signal.SIGKILL)
            killed = time.monotonic()
            command.until(lambda n=restarts: command.text().count("died and is replaced") == n)
            assert time.monotonic() - killed < 5.0
            version = before["policy_version"]
            command.until(lambda version=version: summary(run)["policy_version"] > version + 10)
            assert summary(run)["learner_restarts"] == restarts and summary(run)["actor_restarts"] == 0
            (another,), (first,) = found(FOLLOWER), found("ray::LearnerWorker")
            assert another.pid != follower.pid and first.pid != leader.pid, "the group is another as a whole"
        command.process.send_signal(signal.SIGINT)
        assert command.wait() == 130
    deaths = re.findall(r"the learner \((\w+)\) died and is replaced", command.text())
    assert deaths == ["LearnerFollower", "LearnerWorker"], command.text()
    accounts_for_all(run)
    never_fell(run, "env_steps", "policy/version", "samples_lost", "learner_restarts")
    assert "learner-1, process" in (run / "logs/learner-1.log").read_text()
    lines = [json.loads(line)["time"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    # A share may be above one, of a step that began in the window before; all of them together are not.
    walls = [0.0, *(line["wall_s"] for line in lines)]
    exchanged = sum(
        (line.get("learner/exchange") or 0.0) * (b - a)
        for line, (a, b) in zip(lines, itertools.pairwise(walls), strict=True)
    )
    assert 0 < exchanged <= walls[-1]
    for workers in (1, 3):
        target = summary(run)["env_steps"] + 2000
        version = summary(run)["policy_version"]
        again = given(f"learner.workers={workers}", f"train.env_steps={target}", "--resume")
        with Command(*again, address=address) as command:
            assert command.wait() == 0, command.text()
        assert summary(run)["policy_version"] > version and summary(run)["learner_restarts"] == 2
        accounts_for_all(run)


@pytest.mark.long
def test_a_worker_that_dies_before_the_group_met(tmp_path: Path, address: str) -> None:
    run = tmp_path / "run"
    with Command(*arguments(tmp_path, "learner.workers=3", "train.env_steps=2000"), address=address) as command:
        command.until(lambda: bool(found(FOLLOWER)))
        found(FOLLOWER)[0].kill()
        assert command.wait() == 0, command.text()
    assert summary(run)["learner_restarts"] == 1
    assert "the learner (LearnerFollower) died and is replaced" in command.text()
    accounts_for_all(run)


@pytest.mark.long
def test_a_worker_that_is_stopped_is_named_and_replaced(tmp_path: Path, address: str) -> None:
    run = tmp_path / "run"
    options = ["learner.workers=2", "train.env_steps=100000000", "cluster.still_s=4"]
    with Command(*arguments(tmp_path, *options), address=address) as command:
        command.until(lambda: summary(run).get("policy_version", 0) >= 5)
        assert "stands still" not in command.text(), "a learner that waits for its workers was taken for dead"
        found(FOLLOWER)[0].suspend()
        command.until(lambda: "learner-1 stands still" in " ".join(command.text().split()))
        command.until(lambda: summary(run)["learner_restarts"] == 1)
        version = summary(run)["policy_version"]
        command.until(lambda: summary(run)["policy_version"] > version + 5)
        command.process.send_signal(signal.SIGINT)
        assert command.wait() == 130
    accounts_for_all(run)


@pytest.mark.long
def test_two_learners_of_a_language_model_lose_one_and_go_on(tmp_path: Path, address: str) -> None:
    make_games("w2-o3-q4", [0, 1], split="test")
    run = tmp_path / "run"
    keys = [
        "train", f"run.dir={tmp_path}", "run.name=run", "env.id=textworld/w2-o3-q4", "env.options.split=test",
        f"env.options.cache_dir={GAMES}", "env.tasks=2", f"agent.model={tiny_model(tmp_path / 'model')}",
        "agent.engine=transformers", "agent.answer=command", "agent.max_new_tokens=4", "agent.context=2048",
        "agent.history=window", "learner.algorithm=ppo", "language.batch_episodes=4", "language.minibatches=2",
        "actors.envs=8", "actors.cpus=0.5", "reward.w_int=0", "log.interval_s=0.2", "checkpoint.interval_s=2",
        "learner.workers=2", "--plain",
    ]  # fmt: skip
    with Command(*keys, "train.env_steps=100000000", address=address) as command:
        command.until(lambda: summary(run).get("policy_version", 0) >= 2 and bool(summary(run)["checkpoint"]))
        version = summary(run)["policy_version"]
        found(FOLLOWER)[0].kill()
        command.until(lambda: summary(run)["learner_restarts"] == 1)
        command.until(lambda: summary(run)["policy_version"] >= version + 4)
        command.process.send_signal(signal.SIGINT)
        assert command.wait() == 130, command.text()
    assert "the learner (LearnerFollower) died and is replaced" in command.text()
    told = summary(run)
    checkpoint = latest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    learner = load_state(checkpoint)["learner"]
    learned = learner["trained_samples"] + learner["dropped_samples"] + learner["waiting_samples"]
    assert told["env_steps"] == learned + told["samples_lost"]
    lines = [json.loads(line)["time"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any((line.get("learner/exchange") or 0.0) > 0 for line in lines)
