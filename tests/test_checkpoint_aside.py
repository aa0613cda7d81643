"""Checkpoints written beside the training: the same bytes, one at a time, told where they fail, whole after kill -9."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from learner.background import BackgroundWriter
from learner.checkpoint import checkpoints, load_state, newest_sound_checkpoint
from orchestration.configuration import load_config
from orchestration.parts import LearnerPart, action_count, build_rollout
from orchestration.results import Floor
from tests.processes import Command, summary
from tests.test_checkpoint import save
from tests.test_ray import small

SETTINGS = [
    "runtime=serial", "env.id=minihack/KeyRoom-S5", "reward.model=counts", "actors.envs=4", "actors.rollout_length=8",
    "learner.batch_size=48", "credit.method=spa", "reward.w_prog=1.0",
]  # fmt: skip


def trained(updates: int = 3) -> tuple[LearnerPart, list]:
    """A learner with some updates, with a trajectory that waits; and trajectories to go on with."""
    config = load_config("demo", SETTINGS)
    part = LearnerPart(config, action_count(config))
    rollout = build_rollout(config, 0, observer=None)
    rollout.set_weights(part.weights(), 0)
    fed = [rollout.collect() for _ in range(12)]
    rollout.close()
    while part.learner.version < updates:
        feed(part, fed.pop(0))
    return part, fed


def feed(part: LearnerPart, collected) -> None:
    trajectory, report = collected
    part.feed(report.source, trajectory, report.new_captions, report.episodes)


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_what_is_written_while_training_goes_on_has_the_bytes_of_before(tmp_path):
    part, more = trained()
    assert part.learner.state_dict()["queue"]
    synchronous = part.checkpoint(tmp_path / "one", 96, {"rest": [1, 2]}, "a: 1\n", 3)
    write = part.snapshot(tmp_path / "other", 96, {"rest": [1, 2]}, "a: 1\n", 3)
    version = part.learner.version
    for collected in more:
        feed(part, collected)
    assert part.learner.version > version
    writer = BackgroundWriter()
    writer.start(write)
    writer.wait()
    path, error, _ = writer.outcome()
    assert error is None and path is not None
    assert content(path) == content(synchronous)


def test_a_learner_that_takes_over_counts_on_above_and_knows_what_it_has(tmp_path):
    part, more = trained()
    waiting = sum(each["action"].numel() for each in part.learner.state_dict()["queue"])
    assert waiting
    counters = {"session": {"env_steps": 500, "faults": {"samples_lost": 40}}}
    part.checkpoint(tmp_path, 500, counters, "", 3)
    config = load_config("demo", SETTINGS)
    other = LearnerPart(config, action_count(config))
    captions = [(caption, "told") for caption in range(1, 4)]
    taken = other.take_over(tmp_path, Floor(policy_version=9, reward_model_version=7, samples_dropped=5), captions)
    assert (taken.policy_version, taken.samples) == (10, 500 - 40 - waiting)
    assert taken.checkpoint == str(tmp_path / f"{500:012d}")
    state = other.learner.state_dict()
    assert state["dropped_samples"] == 5 and state["queue"] == [] and state["credit"]["slots"]["slots"] == {}
    for name, weight in part.weights().items():
        assert (other.weights()[name] == weight).all(), name
    assert other.scorer is not None and other.scorer.texts([1, 2, 3]) == ["told"] * 3
    for collected in more:
        feed(other, collected)
    assert other.learner.version > 10
    # Without any checkpoint: the beginning.
    fresh = LearnerPart(config, action_count(config))
    assert fresh.take_over(tmp_path / "none", Floor(4, 0, 0), ()).samples == 0 and fresh.learner.version == 5


def test_a_write_that_fails_is_told_and_the_next_is_its_own(tmp_path):
    writer = BackgroundWriter()
    (tmp_path / "file").write_text("")
    writer.start(lambda: save(tmp_path / "file", 1))
    writer.wait()
    path, error, _ = writer.outcome()
    assert path is None and isinstance(error, OSError) and "file" in str(error)
    writer.start(lambda: save(tmp_path / "folder", 2))
    writer.wait()
    assert writer.outcome()[:2] == (tmp_path / "folder" / f"{2:012d}", None)


def test_at_most_one_write_is_on_its_way(tmp_path):
    writer, going, most, threads = BackgroundWriter(), [0], [0], set()
    lock = threading.Lock()

    def write() -> Path:
        threads.add(threading.get_native_id())
        with lock:
            going[0] += 1
            most[0] = max(most[0], going[0])
        time.sleep(0.05)
        with lock:
            going[0] -= 1
        return tmp_path

    for _ in range(5):
        writer.start(write)
        assert writer.busy
    writer.wait()
    assert most == [1] and not writer.busy
    assert len(threads) == 1, "each new one would leave memory of the C library behind"


WRITER = """
import sys
from pathlib import Path
import torch
from learner.background import BackgroundWriter
from learner.checkpoint import save_checkpoint

writer, root, steps = BackgroundWriter(), Path(sys.argv[1]), int(sys.argv[2])
while True:
    steps += 1
    state = {"n": steps, "t": torch.full((1 << 20,), float(steps))}
    writer.start(lambda: save_checkpoint(root, steps, policy={"w": state["t"]}, state=state, config="", keep=2))
    writer.wait()
    print(steps, flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_whole_one(tmp_path):
    """kill -9 at random moments of writing: the newest checkpoint is never older than the last that was told, nor torn."""
    random.seed(0)
    steps = 0
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(steps)], stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).parents[1],
        )  # fmt: skip
        assert process.stdout is not None
        for _ in range(3):
            steps = int(process.stdout.readline())
        time.sleep(random.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
        process.wait()
        steps = int(rest[-1]) if rest else steps
        newest = newest_sound_checkpoint(tmp_path, pytest.fail)
        assert newest is not None and steps <= int(newest.name) <= steps + 1
        state = load_state(newest)
        assert state["n"] == int(newest.name) and bool((state["t"] == state["n"]).all())
        steps = state["n"]


def test_a_damaged_one_is_put_aside_and_the_one_before_it_is_taken(tmp_path):
    first, second, third = (save(tmp_path, steps) for steps in (100, 200, 300))
    os.truncate(third / "state.pt", 10)
    (second / "manifest.json").unlink()
    told: list[str] = []
    assert newest_sound_checkpoint(tmp_path, told.append) == first
    assert checkpoints(tmp_path) == [first] and (tmp_path / "000000000300.damaged").is_dir()
    assert len(told) == 2 and "state.pt differs" in told[0] and "no manifest.json" in told[1]


@pytest.mark.long
def test_a_run_goes_on_where_checkpoints_cannot_be_written_unless_the_last_cannot(tmp_path):
    run = tmp_path / "run"
    folder, away = run / "checkpoints", run / "away"
    arguments = small(
        tmp_path, "http://unused", "train.env_steps=100000000", "reward.model=none", "checkpoint.interval_s=0.5"
    )
    arguments = [word for word in arguments if not word.startswith(("judge.", "distiller.", "annotator."))]
    with Command(*arguments) as command:
        command.until(lambda: bool(summary(run).get("checkpoint")))
        folder.rename(away)
        folder.write_text("in the way")
        command.until(lambda: summary(run)["checkpoint_errors"] >= 2)
        assert command.text().count("checkpoint not written: ") == 1
        steps = summary(run)["env_steps"]
        command.until(lambda: summary(run)["env_steps"] > steps + 500)
        folder.unlink()
        away.rename(folder)
        command.until(lambda: "checkpoints are written again" in command.text())
        folder.rename(away)
        folder.write_text("in the way")
        command.process.send_signal(signal.SIGINT)
        assert command.wait() == 1
        assert "the last checkpoint was not written: " in command.text() and "the newest is " in command.text()
        assert command.left_behind(10.0) == []
    assert summary(run)["status"] == "failed"
