"""The serial runtime: deterministic for a seed, and a killed run that is resumed equals one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.resumes import metrics_of as metrics
from benchmarks.resumes import weights_of as weights
from benchmarks.rule_judge import RuleServer
from learner.checkpoint import checkpoints

YENDOR = str(Path(sys.executable).parent / "yendor")


def arguments(folder: Path, name: str, url: str, steps: int, *more: str) -> list[str]:
    return [
        YENDOR, "train", "demo", "runtime=serial", f"run.dir={folder}", f"run.name={name}", f"train.env_steps={steps}",
        "actors.count=2", "actors.envs=4", "actors.rollout_length=16", "learner.batch_size=128", "trace.rate=0.2",
        "judge.engine=openai", f"judge.url={url}", "judge.model=rules", "distiller.batch_size=16",
        "distiller.steps_per_update=4", "distiller.min_labels=4", "annotator.in_flight=1", "--plain", *more,
    ]  # fmt: skip


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupts, and the judge that it asked."""
    folder = tmp_path_factory.mktemp("serial")
    with RuleServer() as server:
        run(arguments(folder, "whole", server.url, 3200))
        yield folder, server


@pytest.mark.slow
def test_one_seed_gives_one_run(whole):
    folder, server = whole
    run(arguments(folder, "again", server.url, 3200))
    first, second = metrics(folder / "whole"), metrics(folder / "again")
    assert len(first) == 25 and first == second
    assert weights(folder / "whole") == weights(folder / "again")
    # The run is no empty one: labels came, the reward model was trained and rewarded.
    assert first[-1][1]["captions/labelled"] >= 8 and first[-1][1]["reward_model/version"] >= 1
    assert any(line["reward/intrinsic"] for _, line in first)


@pytest.mark.slow
def test_an_offline_model_rewards_and_says_how_good_it_is(whole):
    """From the labels that another run's judge gave."""
    folder, _ = whole
    labels = folder / "whole" / "annotations.sqlite"
    command = arguments(folder, "offline", "", 640, "reward.model=offline", f"reward.offline_path={labels}")
    run([part for part in command if not part.startswith(("judge.", "annotator."))])
    (_, line) = metrics(folder / "offline")[-1]
    assert line["reward_model/version"] == 1 and line["reward_model/labels"] >= 8
    assert line["reward_model/accuracy"] is not None and line["reward_model/unseen"] >= 1


@pytest.mark.slow
def test_another_seed_gives_another_run(whole):
    folder, server = whole
    run(arguments(folder, "other", server.url, 640, "run.seed=1"))
    assert metrics(folder / "other")[:5] != metrics(folder / "whole")[:5]


@pytest.mark.long
def test_a_killed_and_resumed_run_equals_one_that_was_not(whole):
    """kill -9 at random moments, again and again, until the run is through."""
    folder, server = whole
    command = arguments(folder, "killed", server.url, 3200, "checkpoint.interval_s=0.2")
    rng, kills = random.Random(5), 0
    while kills < 3:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        summary = folder / "killed" / "summary.json"
        begun = time.time()
        reached = (kills + 1) * 700
        while process.poll() is None and time.time() - begun < 120:
            if summary.is_file() and json.loads(summary.read_text())["env_steps"] >= reached:
                break
            time.sleep(0.02)
        time.sleep(rng.random() * 0.3)
        assert process.poll() is None, process.communicate()[1]
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        kills += 1
        if checkpoints(folder / "killed" / "checkpoints"):
            command = [*[a for a in command if a != "--resume"], "--resume"]
    asked_before = len(server.asked)
    run(command)
    assert metrics(folder / "killed") == metrics(folder / "whole")
    assert weights(folder / "killed") == weights(folder / "whole")
    # What the first attempts had paid for was not asked again.
    assert len(server.asked) - asked_before < len(set(server.asked))


@pytest.mark.long
@pytest.mark.parametrize("model", ["hash", "ranking"])
def test_other_reward_models_learn_from_the_judge(tmp_path, model):
    pairs = ["judge.pairs=pointwise"] if model == "ranking" else []
    with RuleServer() as server:
        command = arguments(tmp_path, model, server.url, 1280, f"reward.model={model}", *pairs)
        networks = () if model == "ranking" else ("distiller.batch_size", "distiller.steps_per_update")
        run([word for word in command if not word.startswith(networks)])
    summary = json.loads((tmp_path / model / "summary.json").read_text())
    assert summary["reward_model_version"] >= 1 and summary["reward_model_accuracy"] is not None
    assert any(line["reward/intrinsic"] for _, line in metrics(tmp_path / model))
    assert summary["captions_labelled"] >= 8
