"""Language models on real Ray: generation and learning overlap, lag is bounded; an engine or the learner that is killed is
replaced."""

import json
import signal
from pathlib import Path

import pytest

from learner.checkpoint import latest_checkpoint, load_state
from orchestration.cli.main import run as yendor
from orchestration.traces.reader import read_trace, run_traces
from orchestration.traces.schema import Return
from tests.language_agents_support import tiny_model
from tests.processes import Command, summary
from tests.text_worlds_support import GAMES, make_games

pytestmark = pytest.mark.long


def test_engines_and_a_learner_that_are_killed_are_replaced_and_a_run_is_scaled_and_goes_on(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make_games("w2-o3-q4", [0, 1], split="test")
    run = tmp_path / "run"
    keys = [
        "train", f"run.dir={tmp_path}", "run.name=run", "env.id=textworld/w2-o3-q4", "env.options.split=test",
        f"env.options.cache_dir={GAMES}", "env.tasks=2", f"agent.model={tiny_model(tmp_path / 'model')}",
        "agent.engine=transformers", "agent.answer=command", "agent.max_new_tokens=4", "agent.context=2048",
        "agent.history=window", "learner.algorithm=rloo", "agent.group_size=2", "language.batch_episodes=4",
        "actors.envs=8", "actors.cpus=0.5", "reward.w_int=0", "log.interval_s=0.2", "--plain",
    ]  # fmt: skip
    with Command(*keys, "train.env_steps=100000000") as command:
        command.until(lambda: summary(run).get("policy_version", 0) >= 2)
        (worker,) = command.named("ray::LanguageRolloutWorker")
        worker.kill()
        command.until(lambda: summary(run)["actor_restarts"] == 1)
        version = summary(run)["policy_version"]
        command.until(lambda: summary(run)["policy_version"] >= version + 3)
        before = summary(run)
        (learner,) = command.named("ray::LanguageLearnerWorker")
        learner.kill()
        command.until(lambda: summary(run)["learner_restarts"] == 1)
        command.until(lambda: summary(run)["policy_version"] > before["policy_version"] + 3)
        for engines, there in ((4, 2), (1, 1)):  # two processors: one is the learner's
            assert yendor(["scale", "run", "--dir", str(tmp_path), "--actors", str(engines)]) == 0
            command.until(lambda there=there: len(command.named("ray::LanguageRolloutWorker")) == there)
            command.until(lambda waiting=engines - there: summary(run)["actors_waiting"] == waiting)
            version = summary(run)["policy_version"]
            command.until(lambda version=version: summary(run)["policy_version"] >= version + 6)
            assert len(list((run / "weights").iterdir())) <= 4, "none is kept for an engine that waits for a machine"
        command.process.send_signal(signal.SIGINT)
        assert command.wait() == 130
        assert command.left_behind(10.0) == []
    told = summary(run)
    # Two batches are open at most: one that is trained on while the other is played.
    assert told["policy_lag_max"] <= 2 and told["actor_restarts"] == 1 and told["actors"] == 1
    returned = [event for path in run_traces(run) for event in read_trace(path).events if isinstance(event, Return)]
    assert any(event.agent.startswith("actor-01") for event in returned), "what the engine brought that came and went"
    # What the dead learner had learned from, and what waited for a full batch with it, is counted as lost.
    assert 0 < told["samples_lost"] <= told["env_steps"] and "goes on from the beginning" in command.text()
    versions = [json.loads(line)["metrics"]["policy/version"] for line in (run / "metrics.jsonl").open()]
    assert versions == sorted(versions)
    checkpoint = latest_checkpoint(run / "checkpoints")
    assert checkpoint is not None and not (run / "weights").exists()
    learner = load_state(checkpoint)["learner"]
    learned = learner["trained_samples"] + learner["dropped_samples"] + learner["waiting_samples"]
    assert told["env_steps"] == learned + told["samples_lost"] and learner["version"] >= told["policy_version"]
    AutoModelForCausalLM.from_pretrained(checkpoint / "model")
    assert AutoTokenizer.from_pretrained(checkpoint / "model").chat_template
    lines = [json.loads(line)["time"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any(line["output_tokens_per_second"] > 0 for line in lines)
    assert {"actor/policy", "learner/train", "learner/wait"} <= set().union(*lines)
    with Command(*keys, f"train.env_steps={told['env_steps'] + 300}", "--resume") as command:
        assert command.wait() == 0
    assert summary(run)["policy_version"] > told["policy_version"]
