"""Forks of recorded episodes, and rewards computed again."""

import dataclasses
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.networks import build_policy
from learner.checkpoint import save_checkpoint
from orchestration.config import Config, EnvSettings, RunSettings
from orchestration.configuration import to_yaml
from orchestration.errors import TraceError, UsageError
from orchestration.traces.files import TraceFile
from orchestration.traces.reader import Trace, read_trace, trace_files
from orchestration.traces.replay import Outcome, UnreplayableError, isolate, replay_trace
from orchestration.traces.replay.command import run_replay
from orchestration.traces.replay.fork import fork
from orchestration.traces.replay.policies import CheckpointPolicy, build_fork_policy
from orchestration.traces.replay.rewards import rescore
from orchestration.traces.replay.worlds import open_world, reset_of
from orchestration.traces.schema import RAW, EnvReset, EnvStep, Reward
from orchestration.traces.validate import validate_file
from reward_server.models.base import build_reward_model
from tests import trace_replay_support as support
from tests.trace_replay_support import WORDS, record_arrays, record_words

STEPS = 20
ENV = "minihack/KeyRoom-S5"


def config(network: str = "fast", **reward: Any) -> Config:
    base = Config()
    return dataclasses.replace(
        base,
        run=RunSettings(name="demo"),
        env=EnvSettings(id=ENV, options={"max_episode_steps": STEPS}),
        agent=dataclasses.replace(base.agent, network=network),
        reward=dataclasses.replace(base.reward, **reward),
    )


def checkpoint(run: Path, settings: Config, version: int, env_steps: int, seed: int = 0, actions: int = 0) -> Path:
    """A checkpoint with the weights that `torch.manual_seed(seed)` gives, as the recorded policy has them."""
    torch.manual_seed(seed)
    policy = build_policy(settings.agent.network, actions)
    model = build_reward_model("classification", settings.model_settings())
    state = {
        "learner": {"learner": {"version": 7}, "scorer": {"version": version, "model": model.state_dict()}, "sums": {}}
    }
    return save_checkpoint(
        run / "checkpoints", env_steps, policy=policy.state_dict(), state=state, config=to_yaml(settings), keep=9
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with traces of two episodes and two checkpoints."""
    folder = tmp_path_factory.mktemp("demo")
    record_arrays(folder / "traces", ENV, {}, envs=2, steps=STEPS)
    names = read_trace(trace_files(folder)[0]).header.action_names
    for version, env_steps in ((0, 100), (4, 200)):
        checkpoint(folder, config(), version, env_steps, actions=len(names))
    return folder


@pytest.fixture
def trace(run: Path) -> Trace:
    return max((read_trace(path) for path in trace_files(run)), key=lambda trace: len(trace.steps))


def screens(trace: Trace) -> list[EnvReset | EnvStep]:
    return [event for event in trace.events if isinstance(event, EnvReset | EnvStep)]


def actions(trace: Trace) -> list[str]:
    return [step.action_name for step in trace.steps]


# Forks.


@pytest.mark.parametrize("at", [0, 7, STEPS - 1])
def test_a_fork_begins_as_its_parent_and_can_be_replayed(trace: Trace, tmp_path: Path, at: int) -> None:
    forked = fork(trace, at, "random", seed=1, folder=tmp_path)
    assert forked.path is not None and forked.verdict.outcome is Outcome.MATCH
    branch = read_trace(forked.path)
    assert (branch.header.forked_from, branch.header.forked_at) == (trace.header.episode_id, at)
    assert branch.header.episode_id == f"{trace.header.episode_id}-fork{at}-random-s1"
    assert actions(branch)[:at] == actions(trace)[:at]
    kept = [step.observation_hash for step in trace.steps[:at]]
    assert [step.observation_hash for step in branch.steps[:at]] == kept
    assert branch.end is not None and branch.end.length == len(branch.steps) == forked.length > at
    # In colours, as its parent: those of the reset and of the steps that they share are the same.
    painted, parents = ([(event.screen, event.colors) for event in screens(each)] for each in (branch, trace))
    assert painted[: at + 1] == parents[: at + 1] and all(set(colors) - set("07\n") for _, colors in painted)
    assert validate_file(forked.path) == []
    assert replay_trace(branch).outcome is Outcome.MATCH


def test_a_fork_follows_from_its_seed(trace: Trace, tmp_path: Path) -> None:
    made = [fork(trace, 5, "random", seed=seed, folder=tmp_path / str(n)) for n, seed in enumerate((1, 1, 2))]
    one, same, other = (actions(read_trace(each.path)) for each in made if each.path is not None)
    assert one == same != other
    with pytest.raises(TraceError, match="is there already; give another --seed or --out"):
        fork(trace, 5, "random", seed=1, folder=tmp_path / "0")


def test_a_fork_in_a_fresh_process_is_the_same(trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = fork(trace, 5, "random", seed=1, folder=tmp_path / "here")
    there = isolate.fork_aside(trace.path, 5, "random", seed=1, folder=tmp_path / "there")
    assert here.path is not None and there.path is not None
    assert actions(read_trace(here.path)) == actions(read_trace(there.path))
    with pytest.raises(UsageError, match="can be forked at 0 to"):
        isolate.fork_aside(trace.path, 10**6, "random", folder=tmp_path)
    monkeypatch.setattr(isolate, "_fork", support.die)
    verdict = isolate.fork_aside(trace.path, 5, "random", folder=tmp_path).verdict
    assert (verdict.outcome, verdict.reason) == (Outcome.UNREPLAYABLE, "the process that played it died (signal 9)")


def test_a_checkpoint_goes_on_with_the_state_that_the_steps_before_gave_it(trace: Trace, run: Path) -> None:
    """The recorded log-probabilities are of the same weights, so they are what the policy must come to again."""
    policy = build_fork_policy(str(run), trace, seed=0)
    assert isinstance(policy, CheckpointPolicy)
    world = open_world(trace.header, None, policy.view)
    policy.read(world.reset(int(trace.header.seeds["seed"])))
    for step in trace.steps:
        assert step.log_prob == pytest.approx(float(policy.log_probs()[step.action]), abs=2e-4)
        policy.read(world.step(step.action, step.action_name))
    world.close()


def test_a_fork_by_a_checkpoint(trace: Trace, run: Path, tmp_path: Path) -> None:
    names = len(trace.header.action_names)
    other = checkpoint(tmp_path / "other", config("oni"), 0, 100, seed=3, actions=names)
    for policy, network in ((run / "checkpoints" / f"{200:012d}", "fast"), (other, "oni")):
        forked = fork(trace, 6, str(policy), folder=tmp_path)
        assert forked.path is not None
        branch = read_trace(forked.path)
        assert branch.header.policy == network and f"fork6-{network}-v7-s0" in branch.header.episode_id
        assert [step.policy_version for step in branch.steps] == [0] * 6 + [7] * (len(branch.steps) - 6)
        assert actions(branch)[:6] == actions(trace)[:6]
        assert all(step.value is not None for step in branch.steps[6:])
        assert replay_trace(branch).outcome is Outcome.MATCH


def test_a_fork_of_what_does_not_match_is_not_made(trace: Trace, tmp_path: Path) -> None:
    events = tuple(
        dataclasses.replace(event, reward=9.0) if isinstance(event, EnvStep) and event.step == 3 else event
        for event in trace.events
    )
    edited = dataclasses.replace(trace, events=events)
    forked = fork(edited, 8, "random", folder=tmp_path)
    assert (forked.path, forked.verdict.outcome, forked.verdict.steps) == (None, Outcome.DIVERGED, 3)
    assert list(tmp_path.iterdir()) == []
    # Before the step that differs there is nothing wrong.
    assert fork(edited, 3, "random", folder=tmp_path).path is not None


@pytest.mark.parametrize(
    ("at", "policy", "message"),
    [
        (-1, "random", "--from -1: .* can be forked at 0 to"),
        (10**6, "random", "--from 1000000: .* steps and can be forked at 0 to"),
        (0, "nowhere", "--policy nowhere: no such folder; name a checkpoint, a run's folder, a model's, or 'random'"),
        (0, ".", "--policy .: holds no checkpoint"),
    ],
)
def test_a_fork_that_cannot_be(
    trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, policy: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UsageError, TraceError), match=message):
        fork(trace, at, policy, folder=tmp_path / "out")


def test_a_checkpoint_with_other_actions_is_refused(trace: Trace, tmp_path: Path) -> None:
    other = checkpoint(tmp_path, config(), 0, 100, actions=3)
    count = len(trace.header.action_names)
    with pytest.raises(UsageError, match=f"with 3 actions, minihack/KeyRoom-S5 has {count}"):
        fork(trace, 0, str(other))


@pytest.mark.slow
def test_a_fork_of_a_text_world(tmp_path: Path, run: Path) -> None:
    env_id, options, _ = WORDS["alfworld"]
    path = record_words(tmp_path, env_id, {**options, "max_episode_steps": 10}, 1, random.Random(2), "words")
    trace = read_trace(path)
    forked = fork(trace, 4, "random", seed=5)
    assert forked.path is not None and forked.path.parent == tmp_path
    branch = read_trace(forked.path)
    assert actions(branch)[:4] == actions(trace)[:4]
    assert replay_trace(branch).outcome is Outcome.MATCH
    with pytest.raises(UsageError, match="was played with words, which this policy does not speak"):
        fork(trace, 4, str(run))


def test_the_command_forks_and_scores(trace: Trace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_replay([trace.path], start=6, fork=True, policy="random", seed=3, out=tmp_path) == 0
    out = capsys.readouterr().out
    assert out.startswith(str(tmp_path)) and ": 6 steps as before, " in out and " by random, return " in out
    assert run_replay([trace.path], reward_model="4") == 0
    assert "reward model v4: extrinsic " in capsys.readouterr().out
    assert run_replay([trace.path], reward_model="9") == 3
    assert "UNREPLAYABLE (no weights of reward model v9: the checkpoints of " in capsys.readouterr().out
    assert run_replay([trace.path], reward_model="latest", as_json=True) == 0
    assert '"compared": 0' in capsys.readouterr().out


# Rewards.


def test_rewards_are_those_of_the_formula(trace: Trace, run: Path) -> None:
    """A slow reference: caption by caption, step by step."""
    result = rescore(trace, "4")
    settings = config().reward
    model = build_reward_model(
        "classification", config().model_settings()
    )  # the same weights: they follow from a fixed seed
    assert (result.version, len(result.steps), result.compared) == (4, len(trace.steps), 0)
    said = 0
    for step, scored in zip(trace.steps, result.steps, strict=True):
        text = trace.captions.get(step.caption_id, "")
        r_int = float(model.score([text])[0]) if text else 0.0
        extrinsic = settings.w_ext * max(-settings.clip, min(settings.clip, settings.scale * step.reward))
        intrinsic = settings.w_int * r_int / step.caption_count**settings.count_exponent if text else 0.0
        assert scored.r_int == pytest.approx(r_int) and scored.extrinsic == pytest.approx(extrinsic)
        assert scored.intrinsic == pytest.approx(intrinsic) and scored.total == pytest.approx(extrinsic + intrinsic)
        said += bool(text)
    assert said
    assert result.sums()["total"] == pytest.approx(math.fsum(step.total for step in result.steps))


def test_before_the_first_version_nothing_is_intrinsic(trace: Trace, run: Path) -> None:
    result = rescore(trace, str(run / "checkpoints" / f"{100:012d}"))
    assert result.version == 0 and not any(step.r_int for step in result.steps)


def test_stored_rewards_are_compared_and_components_kept(trace: Trace) -> None:
    fresh = rescore(trace, "4")
    spoken = [(step, score) for step, score in zip(trace.steps, fresh.steps, strict=True) if score.caption]

    def reward(at: int, source: str, value: float, target: str, part: str, version: int | None) -> Reward:
        return Reward(
            id=f"r{at}", seq=900 + at, t=1.0, agent="x", parents=(target,), family="process", value=value,
            source=source, version=version, targets=(target,), part=part,
        )  # fmt: skip

    stored = [reward(n, "reward_model", score.r_int, step.id, RAW, 4) for n, (step, score) in enumerate(spoken)]
    extra = reward(99, "progress", 0.25, trace.steps[2].id, "component", None)
    told = dataclasses.replace(trace, events=(*trace.events, *stored, extra))
    result = rescore(told, "4")
    assert (result.compared, result.difference, result.outcome) == (len(spoken), None, Outcome.MATCH)
    assert result.steps[2].stored == 0.25
    assert result.steps[2].total == pytest.approx(fresh.steps[2].total + 0.25)
    wrong = dataclasses.replace(stored[1], value=stored[1].value + 0.5)
    changed = dataclasses.replace(trace, events=(*trace.events, stored[0], wrong))
    result = rescore(changed, "4")
    assert (result.step, result.outcome) == (spoken[1][0].step, Outcome.DIVERGED)


def test_weights_that_are_not_there(trace: Trace, tmp_path: Path) -> None:
    lost = dataclasses.replace(trace, path=tmp_path / "traces" / trace.path.name)
    with pytest.raises(UnreplayableError, match=r"no weights of a reward model: .* holds no checkpoints"):
        rescore(lost, "latest")
    with pytest.raises(UsageError, match="is no version, not 'latest' and no folder of a checkpoint"):
        rescore(trace, "newest")


def test_the_first_observation_is_found_whatever_the_view(trace: Trace) -> None:
    header = dataclasses.replace(trace.header, policy=None)
    world = open_world(header, reset_of(trace).observation_hash)
    seen = world.reset(int(header.seeds["seed"]))
    world.close()
    assert seen.observation_hash == reset_of(trace).observation_hash
    assert isinstance(seen.observation["chars"], np.ndarray)


# Traces of others.


EVIL = ["../evil", "/tmp/evil", "a/b", "..", ".hidden", "a\0b", "a b", "", "a" * 300]


@pytest.mark.parametrize("evil", EVIL)
def test_the_name_of_an_episode_leads_no_branch_out_of_its_folder(trace: Trace, tmp_path: Path, evil: str) -> None:
    """Whoever made the trace, nothing is written but below the folder that was asked for."""
    inside = tmp_path / "deep" / "out"
    inside.mkdir(parents=True)
    named = dataclasses.replace(trace, header=dataclasses.replace(trace.header, episode_id=evil))
    with pytest.raises(TraceError, match="cannot be the name of a file"):
        fork(named, 3, "random", folder=inside)
    with pytest.raises(TraceError, match="cannot be the name of a file"):
        TraceFile(inside, evil)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert not Path("/tmp/evil.jsonl.zst.part").exists()


def test_a_trace_does_not_say_where_games_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where there is a folder of games already; else they go where those of this machine are kept."""
    env_id, options, _ = WORDS["textworld"]
    path = record_words(tmp_path / "traces", env_id, {**options, "max_episode_steps": 3}, 1, random.Random(2), "words")
    trace = read_trace(path)
    assert replay_trace(trace).outcome is Outcome.MATCH
    private = tmp_path / "private"
    private.mkdir()
    (private / "notes").write_text("mine")
    monkeypatch.setenv("YENDOR_CACHE", str(tmp_path / "cache"))
    for folder in (private, tmp_path / "none"):
        header = dataclasses.replace(trace.header, env_options={**trace.header.env_options, "cache_dir": str(folder)})
        assert replay_trace(dataclasses.replace(trace, header=header)).outcome is Outcome.MATCH
    assert [each.name for each in private.iterdir()] == ["notes"] and not (tmp_path / "none").exists()
    assert (tmp_path / "cache" / "textworld").is_dir()
