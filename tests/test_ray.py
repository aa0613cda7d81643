"""The distributed runtime with real Ray and real NLE; the judge is an HTTP server that answers by rules and can misbehave."""

import signal
import time
from pathlib import Path

import pytest

from benchmarks.rule_judge import RuleServer
from orchestration.cli.main import run as yendor
from orchestration.traces.reader import read_outline, read_trace, run_traces, trace_files
from orchestration.traces.schema import Return, Spawn, Stop
from orchestration.traces.validate import validate_file
from tests.processes import Command, summary


def small(folder: Path, url: str, *more: str) -> list[str]:
    return [
        "train", "demo", f"run.dir={folder}", "run.name=run", "actors.envs=8", "actors.rollout_length=16",
        "learner.batch_size=128", "log.interval_s=0.5", "judge.engine=openai", f"judge.url={url}", "judge.model=rules",
        "distiller.steps_per_update=4", "distiller.interval_s=0.5", "annotator.timeout_s=2.0",
        "annotator.probe_interval_s=1.0", "--plain", *more,
    ]  # fmt: skip


@pytest.mark.long
def test_a_judge_that_misbehaves_never_stops_training(tmp_path):
    """Errors, nonsense, silence: steps go on, the status says so, and labels resume by themselves."""
    run = tmp_path / "run"
    # NetHack brings new captions all the time.
    arguments = small(tmp_path, "", "env.id=nethack/Score", "train.env_steps=100000000")
    with RuleServer() as server:
        arguments = [f"judge.url={server.url}" if a == "judge.url=" else a for a in arguments]
        with Command(*arguments) as command:
            command.until(lambda: summary(run).get("reward_model_version", 0) >= 1)
            for mode, status in (("error", "down"), ("garbage", "unreadable"), ("hang", "down")):
                server.mode = mode
                command.until(lambda status=status: summary(run)["judge_status"] == status)
                stuck = summary(run)
                assert stuck["judge_error"]
                command.until(lambda stuck=stuck: summary(run)["env_steps"] > stuck["env_steps"] + 1500)
                assert summary(run)["captions_labelled"] <= stuck["captions_labelled"] + 64  # on their way before
                server.mode = "ok"
                command.until(lambda: summary(run)["judge_status"] == "ready")
                command.until(lambda stuck=stuck: summary(run)["captions_labelled"] > stuck["captions_labelled"])
            command.process.send_signal(signal.SIGINT)
            assert command.wait() == 130
            assert command.left_behind(10.0) == []


@pytest.mark.long
def test_processes_that_are_killed_are_replaced_or_named(tmp_path):
    """A crash of the actor and kill -9 of the reward server, in one run."""
    run = tmp_path / "run"
    with RuleServer() as server, Command(*small(tmp_path, server.url, "train.env_steps=100000000")) as command:
        command.until(lambda: summary(run).get("reward_model_version", 0) >= 1)

        (worker,) = command.named("ray::RolloutWorker")
        worker.send_signal(signal.SIGSEGV)
        command.until(lambda: summary(run)["actor_restarts"] == 1)
        steps = summary(run)["env_steps"]
        command.until(lambda: summary(run)["env_steps"] > steps + 2000)
        assert summary(run)["actors"] == 1
        assert "actor-00 died and is replaced" in command.text()
        # What a part prints is in its file: both processes' beginnings, and where the first one was when it crashed.
        printed = (run / "logs" / "actor-00.log").read_text()
        assert printed.count("--- actor-00, process ") == 2 and "Segmentation fault" in printed
        assert {path.name for path in (run / "logs").iterdir()} >= {"actor-00.log", "learner.log", "reward-server.log"}

        before, asked = summary(run), len(server.asked)
        command.named("ray::RewardServerWorker")[0].kill()
        command.until(lambda: "the reward server died and is restarted" in command.text())
        told = time.time()
        command.until(lambda: summary(run)["updated"] > told + 2 and summary(run)["judge_status"] != "down")
        assert summary(run)["captions_labelled"] >= before["captions_labelled"]
        assert summary(run)["reward_server_restarts"] == 1
        assert summary(run)["reward_model_version"] >= before["reward_model_version"]
        # What was labelled is on disk and not asked again.
        assert not set(server.asked[asked:]) & set(server.asked[:asked])

        command.until(lambda: begun(run).count("reward-server") == 2)
        command.process.send_signal(signal.SIGINT)
        assert command.wait() == 130
        assert command.left_behind(10.0) == []
    # The run's trace tells of both, and of those that took their places.
    (path,) = run_traces(run)
    assert validate_file(path) == []
    events = read_trace(path).events
    died = [event.target for event in events if isinstance(event, Stop) and event.reason == "died"]
    assert died == ["actor-00", "reward-server"]
    assert begun(run) == ["learner", "actor-00", "reward-server", "actor-00.1", "reward-server"]


def begun(run: Path) -> list[str]:
    """The parts that the run's trace says have come, in order."""
    (path,) = run_traces(run)
    return [event.child for event in read_trace(path).events if isinstance(event, Spawn)]


@pytest.mark.slow
def test_a_run_is_scaled_while_it_goes(tmp_path):
    """1, 3, 1, 2 actors: each starts, those that are let go end, and every sample is learned from once."""
    run, sizes = tmp_path / "run", {"actors.cpus": 0.25, "trace.rate": 1.0}
    options = [f"{key}={value}" for key, value in sizes.items()]
    arguments = small(tmp_path, "http://unused", "train.env_steps=100000000", *options)
    arguments = [word for word in arguments if not word.startswith(("judge.", "distiller.", "annotator."))]
    with Command(*arguments, "reward.model=none") as command:
        command.until(lambda: summary(run).get("env_steps", 0) > 500)
        for actors in (3, 1, 2):
            assert yendor(["scale", "run", "--dir", str(tmp_path), "--actors", str(actors)]) == 0
            steps = summary(run)["env_steps"]
            command.until(lambda actors=actors: len(command.named("ray::RolloutWorker")) == actors)
            command.until(lambda steps=steps: summary(run)["env_steps"] > steps + 1000)
        command.process.send_signal(signal.SIGINT)
        assert command.wait() == 130
        assert command.left_behind(10.0) == []
    done = summary(run)
    assert (done["actors"], done["actor_restarts"]) == (2, 0)
    assert "died" not in command.text()
    # In updates, in the batch that fills, and on their way when the run was stopped; 128 steps a call, 128 a batch.
    unlearned = done["env_steps"] - 128 * done["policy_version"] - done["samples_dropped"]
    assert 0 <= unlearned <= 128 * (1 + 2 * 3)
    # The actors that came later play other episodes than those before.
    seeds = [tuple(read_outline(path).header.seeds.items()) for path in trace_files(run)]
    assert seeds and len(set(seeds)) == len(seeds)
    trace = read_trace(run_traces(run)[0])
    spawned = [event.child for event in trace.events if isinstance(event, Spawn) and event.role == "actor"]
    assert spawned == ["actor-00", "actor-01", "actor-02", "actor-01.1"]
    assert [event.target for event in trace.events if isinstance(event, Stop)][:2] == ["actor-02", "actor-01"]
    assert validate_file(trace.path) == []
    returned = [event for event in trace.events if isinstance(event, Return)]
    assert {event.agent for event in returned} <= set(spawned)
    assert sum(event.details["steps"] for event in returned) == done["env_steps"]


@pytest.mark.slow
def test_what_cannot_be_scaled_says_so(tmp_path, capsys):
    assert yendor(["scale", "run", "--dir", str(tmp_path), "--actors", "2"]) == 1
    assert "run: no such run" in capsys.readouterr().err
    serial = ["train", "demo", f"run.dir={tmp_path}", "run.name=run", "runtime=serial", "actors.envs=4"]
    sizes = ["actors.rollout_length=8", "learner.batch_size=32", "train.env_steps=64", "reward.model=none", "--plain"]
    assert yendor([*serial, *sizes]) == 0
    capsys.readouterr()
    assert yendor(["scale", "run", "--dir", str(tmp_path), "--actors", "2"]) == 2
    assert "runtime=serial has no actors to scale" in capsys.readouterr().err
    assert yendor(["scale", "run", "--dir", str(tmp_path), "--actors", "0"]) == 2


@pytest.mark.slow
def test_too_few_cpus_are_said_at_once(tmp_path):
    begun = time.monotonic()
    with Command("train", "demo", f"run.dir={tmp_path}", "reward.w_int=0", "actors.count=500", "--plain") as command:
        assert command.wait(60) in (1, 2)
        assert "too few CPUs: actors.count=500" in command.text().splitlines()[-1]
    assert time.monotonic() - begun < 30
