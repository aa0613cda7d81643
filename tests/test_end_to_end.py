"""The main job with everything real: Ray, NLE, and the embedded judge on vLLM behind Ray Serve."""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.processes import YENDOR, Command, summary

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_train_kill_the_judge_interrupt_evaluate(tmp_path):
    """kill -9 of the judge's replica with its engine, in the middle of a run."""
    run = tmp_path / "run"
    arguments = [
        "train", "demo", f"run.dir={tmp_path}", "run.name=run", "train.env_steps=100000000", "trace.rate=0.2", "--plain",
    ]  # fmt: skip
    with Command(*arguments) as command:
        # Training does not wait for the judge.
        command.until(lambda: summary(run).get("env_steps", 0) > 0)
        assert summary(run)["captions_labelled"] == 0
        # The judge comes up, labels come, and a reward model is distilled and rewards.
        command.until(lambda: summary(run)["reward_model_version"] >= 1, timeout_s=400)
        steps = summary(run)["env_steps"]
        command.until(lambda: summary(run)["env_steps"] > steps + 15_000)
        standing = summary(run)
        assert standing["judge_status"] == "ready" and standing["captions_failed"] == 0
        assert standing["intrinsic_return_mean"] > 0
        assert standing["policy_lag_max"] <= 3
        # It is killed: training goes on, and another comes.
        (replica,) = command.named("ray::ServeReplica:judge")
        replica.kill()
        command.until(lambda: summary(run)["env_steps"] > standing["env_steps"] + 5000)
        command.until(lambda: any(p.pid != replica.pid for p in command.named("ray::ServeReplica:judge")))
        assert summary(run)["captions_labelled"] >= standing["captions_labelled"] > 0
        command.process.send_signal(signal.SIGINT)
        assert command.wait() == 130, command.text()
        assert command.left_behind(15.0) == []
    liked = {caption["text"]: caption["probability"] for caption in summary(run)["liked"]}
    assert any("key" in text for text in liked) and all(p > 0.5 for p in liked.values())
    done = subprocess.run(
        [YENDOR, "eval", str(run), "--episodes", "4", "--json"], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["episodes"] == 4 and 0.0 <= result["success_rate"] <= 1.0
    traces = list((run / "traces").glob("*.jsonl.zst"))
    assert traces
    checked = subprocess.run([YENDOR, "trace", "validate", str(traces[0])], capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_checkpoints_hold_what_evaluation_needs(tmp_path: Path):
    """A checkpoint alone, moved away from its run, can be evaluated. The run has a cluster of its own, whatever the note says
    that `ray start` leaves on a machine."""
    with Command(
        "train", "demo", f"run.dir={tmp_path}", "run.name=run", "train.env_steps=512", "reward.w_int=0",
        "actors.envs=8", "actors.rollout_length=16", "learner.batch_size=128", "--plain", started="127.0.0.1:1",
    ) as command:  # fmt: skip
        assert command.wait() == 0, command.text()
    assert summary(tmp_path / "run")["status"] == "done"
    moved = tmp_path / "moved"
    Path(summary(tmp_path / "run")["checkpoint"]).rename(moved)
    done = subprocess.run(
        [YENDOR, "eval", str(moved), "--episodes", "2", "--json"], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["env"] == "minihack/KeyRoom-S5"
