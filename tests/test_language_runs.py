"""Runs in which a language model acts, from configuration to checkpoint: serial, resumed, with a judge, evaluated."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.rule_judge import RuleServer
from envs import registry
from learner.checkpoint import checkpoints
from orchestration.configuration import load_config
from orchestration.errors import ConfigError, UsageError
from orchestration.language.tasks import Tasks
from orchestration.live import LiveView
from orchestration.rundir import RunDir
from orchestration.summary import Summary
from tests.language_agents_support import Corridor, tiny_model

TEXT = ["env.id=corridor/test", "agent.engine=transformers", "agent.answer=command", "agent.context=512"]
KEYS = [*TEXT, "agent.max_new_tokens=8", "learner.algorithm=ppo", "runtime=serial", "language.batch_episodes=4"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True, scope="module")
def _corridor() -> Iterator[None]:
    registry.register_text_family("corridor", _make, lambda: ["corridor/test"])
    yield
    del registry._families["corridor"]


def _make(name: str, **options: Any) -> Corridor:
    return Corridor(**options)


def train(folder: Path, name: str, model: Path, steps: int, *more: str, resume: bool = False) -> Summary:
    from orchestration.train import train as run_training

    judge = [] if any(key.startswith("judge.") for key in more) else ["reward.w_int=0"]
    keys = [f"agent.model={model}", f"run.dir={folder}", f"run.name={name}", f"train.env_steps={steps}"]
    config = load_config(None, [*KEYS, *keys, *judge, *more])
    with RunDir(folder / name).open_for_training(config, resume=resume) as rundir, LiveView(plain=True) as view:
        return run_training(config, rundir, resume=resume, view=view)


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line)["metrics"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> bytes:
    return (checkpoints(run / "checkpoints")[-1] / "model" / "model.safetensors").read_bytes()


def test_a_serial_run_repeats_itself_and_a_resumed_one_equals_it(tmp_path: Path, model: Path) -> None:
    from orchestration.traces.reader import read_trace, trace_files
    from orchestration.traces.validate import validate_file

    loud = ("trace.rate=1", "language.learning_rate=1e-3", "agent.failure_penalty=0.1")
    whole = train(tmp_path, "whole", model, 72, *loud)
    assert whole.status == "done" and whole.episodes >= 12 and whole.policy_version == whole.episodes // 4
    assert whole.policy_lag_max == 0
    train(tmp_path, "parts", model, 24, *loud)
    train(tmp_path, "parts", model, 72, *loud, resume=True)
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")
    assert [m["reward/total"] for m in metrics(tmp_path / "whole")] == [
        m["reward/total"] for m in metrics(tmp_path / "parts")
    ]
    assert not (tmp_path / "whole" / "weights").exists()
    files = trace_files(tmp_path / "whole" / "traces")
    assert [validate_file(path) for path in files] == [[]] * len(files)
    trace = read_trace(next(path for path in files if path.name.startswith("actor-00-g000000")))
    calls = [event for event in trace.events if event.type == "llm_call"]
    assert trace.end is not None and len(calls) == trace.end.length == len(trace.steps)
    assert all(len(call.log_probs or ()) == len(call.output or ()) == call.output_tokens for call in calls)
    # The next prompt holds what was read and said before, id by id.
    assert (calls[1].prompt or ())[: len(calls[0].prompt or ())] == calls[0].prompt
    assert (calls[1].prompt or ())[len(calls[0].prompt or ()) :][: calls[0].output_tokens] == calls[0].output


def test_captions_of_a_text_world_are_judged_and_rewarded(tmp_path: Path, model: Path) -> None:
    """The same reward server as for networks; the rule judge answers at once."""
    with RuleServer() as server:
        judge = ("judge.engine=openai", f"judge.url={server.url}", "judge.model=rules", "reward.w_int=0.5")
        distiller = ("distiller.min_labels=1", "distiller.batch_size=4", "distiller.steps_per_update=2")
        summary = train(tmp_path, "judged", model, 100, *judge, *distiller, "distiller.holdout=0")
    assert summary.captions_labelled >= 1 and summary.reward_model_version >= 1
    assert summary.intrinsic_return_mean is not None
    assert "reward/intrinsic" in metrics(tmp_path / "judged")[-1]


def test_a_checkpoint_is_evaluated_on_held_out_episodes(tmp_path: Path, model: Path) -> None:
    from orchestration.evaluate import evaluate

    train(tmp_path, "run", model, 24)
    one, two = (evaluate(tmp_path / "run", episodes=6, seed=3) for _ in range(2))
    assert dataclasses.replace(one, wall_s=0.0) == dataclasses.replace(two, wall_s=0.0)
    assert one.episodes == 6 and one.success_rate is not None and "unreadable_share" in one.metrics


def test_held_out_games_are_those_of_another_split() -> None:
    from orchestration.language.evaluate import held_out
    from orchestration.seeds import is_held_out

    def asked(*keys: str, split: str | None = None, episodes: int = 3) -> tuple[Tasks, list[int]]:
        given = ["agent.model=small", "learner.algorithm=ppo", "reward.w_int=0", *keys]
        tasks, seed_of = held_out(load_config(None, given), split, 1, episodes)
        return tasks, [seed_of(episode) for episode in range(3)]

    def found(*keys: str, split: str | None = None) -> tuple[dict[str, Any], list[int]]:
        tasks, seeds = asked(*keys, split=split)
        (world,) = tasks.worlds
        return dict(tasks.options_of(world)), seeds

    textworld = "env.id=textworld/w2-o3-q4"
    assert found(textworld, "env.options.split=train") == ({"split": "test"}, [0, 1, 2])
    assert found("env.id=alfworld/all") == ({"split": "unseen"}, [0, 1, 2])
    assert found("env.id=alfworld/all", split="seen")[0] == {"split": "seen"}
    options, seeds = found(textworld)
    assert options == {} and all(map(is_held_out, seeds))
    shuffled = ("env.options.domain_randomization=true", "env.options.games=50")
    assert found("env.id=alfworld/all", *shuffled)[0] == {"split": "unseen", "games": 50}
    # A mix of families: each has its own split.
    mixed, _ = asked("env.mix={textworld/w2-o3-q4: 1, alfworld/all: 1}", "env.options.split=train")
    assert [mixed.options_of(world)["split"] for world in mixed.worlds] == ["test", "unseen"]
    # No game is played twice, and counted as another.
    asked(textworld, "env.options.split=train", episodes=100)
    asked("env.id=alfworld/all", "env.options.games=50", episodes=300)
    with pytest.raises(UsageError, match=r"101 episodes of textworld/w2-o3-q4: its split test has 100 games"):
        asked(textworld, "env.options.split=train", episodes=101)
    with pytest.raises(UsageError, match=r"301 episodes of alfworld/all: its split unseen has 300 games"):
        asked("env.id=alfworld/all", "env.options.games=50", episodes=301)
    # Of the split that is trained on, those that are not: whatever the number of tasks, no training draws them.
    some = (textworld, "env.options.split=train", "env.tasks=40")
    assert found(*some, split="train") == ({"split": "train"}, [40, 41, 42])
    assert found(*some)[1] == [0, 1, 2], "another split has no task of training's"
    learnt = Tasks(load_config(None, ["agent.model=small", "learner.algorithm=ppo", "reward.w_int=0", *some]))
    assert {learnt.seed_of(group) for group in range(80)} == set(range(40))
    assert found("env.id=alfworld/all", "env.tasks=40", split="train")[1] == [40, 41, 42], "its own default"
    with pytest.raises(UsageError, match=r"4961 episodes .* has 5000 games, the first 40 of which are trained on"):
        asked(*some, split="train", episodes=4961)
    with pytest.raises(UsageError, match="has no splits"):
        asked("env.id=nethack/Score", split="test")


def test_a_person_or_a_model_plays_in_the_terminal(model: Path) -> None:
    import io

    from rich.console import Console

    from orchestration.language.play import play_model, play_person

    config = load_config(None, [*KEYS, f"agent.model={model}", "reward.w_int=0"])
    screen = Console(file=io.StringIO(), width=80)
    lines = iter(["?", "dance", "2", "go right"])
    played = play_person(config, 1, screen, lambda _: next(lines))
    assert (played.success, played.commands, played.left) == (True, ("dance", "go right", "go right"), False)
    said = screen.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "Find the door." in said and "2 go right" in said and "not understood" in said
    pauses: list[int] = []
    one = play_model(config, 5, screen, lambda: pauses.append(1))
    assert one == play_model(config, 5, screen) and len(pauses) == one.steps - 1

    def gone(_: str) -> str:
        raise EOFError

    assert play_person(config, 1, screen, gone).left


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["learner.algorithm=rloo"], "agent.group_size=1: learner.algorithm=rloo compares"),
        (["learner.algorithm=appo"], "learner.algorithm=appo: is for networks"),
        (["language.objective.clip_hihg=1"], "did you mean language.objective.clip_high?"),
        (["language.objective.clip_high=wide"], "language.objective.clip_high=wide: expected a number"),
        (["language.objective.clip_low=2"], "language.objective.clip_low"),
        (["learner.algorithm=grpo", "agent.group_size=4", "language.critic_warmup=3"], "has no critic"),
        (["agent.network=oni"], "agent.network: has no effect, as a language model acts"),
        (["actors.rollout_length=8"], "actors.rollout_length: has no effect"),
        (["learner.discount=0.9"], "learner.discount: has no effect"),
        (["agent.max_new_tokens=512"], "leaves no room for a prompt"),
    ],
)
def test_keys_that_cannot_be_are_named(keys: list[str], said: str) -> None:
    names = {key.partition("=")[0] for key in keys}
    base = [key for key in KEYS if key.partition("=")[0] not in names]
    with pytest.raises(ConfigError) as error:
        load_config(None, [*base, "agent.model=small", "reward.w_int=0", *keys])
    assert said in str(error.value)


def test_keys_of_language_models_are_errors_for_networks() -> None:
    for key in ("agent.temperature=0.5", "language.epochs=2", "actors.gpus=0.5"):
        with pytest.raises(ConfigError, match="a network acts"):
            load_config("demo", [key])
    with pytest.raises(ConfigError, match="is for language models; name one with agent"):
        load_config("demo", ["learner.algorithm=ppo"])


def test_the_configuration_knows_the_learners_objectives() -> None:
    from learner.language.registry import objective_kind, objective_names
    from orchestration.configuration.objectives import OBJECTIVES

    assert {name: objective_kind(name).settings for name in objective_names()} == OBJECTIVES
