"""Episodes of words that end because the model's context is full, and language models that go on from a step of one."""

import asyncio
import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agents.language.errors import LanguageModelError
from agents.language.rollout import LanguageRollout
from agents.language.template import ChatTemplate
from envs import registry
from envs.registry import register_text_family
from learner.checkpoint import write_checkpoint
from learner.language.checkpoint import MODEL
from orchestration.config import Config, RunSettings
from orchestration.configuration import to_yaml
from orchestration.errors import UsageError
from orchestration.language.recorder import LanguageRecorder
from orchestration.traces.reader import Trace, read_trace, trace_files
from orchestration.traces.replay import Outcome, isolate, replay_trace
from orchestration.traces.replay.fork import fork
from orchestration.traces.replay.tokens import force_tokens
from orchestration.traces.schema import LlmCall, Stop
from orchestration.traces.validate import validate_file
from orchestration.traces.writers import TraceRun
from tests.language_agents_support import Corridor, Scripted, settings, tiny_model, tiny_tokenizer
from tests.trace_replay_support import WORDS, record_arrays, record_words

TURN_BACK = ["go right", "go left"] * 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def corridor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_families", dict(registry._families))  # pyright: ignore[reportPrivateUsage]
    register_text_family("corridor", lambda name: Corridor(), lambda: ["corridor/test"])


def recorded(run: Path, script: Sequence[str] = TURN_BACK, **agent: Any) -> Trace:
    """The trace, in a run's folder, of an episode that a model with these settings played."""
    given = settings(**agent)
    run.mkdir(exist_ok=True)
    (run / "config.yaml").write_text(to_yaml(dataclasses.replace(Config(), agent=given)))
    template = ChatTemplate(tiny_tokenizer(), "tiny")
    observer = LanguageRecorder(run / "traces", 1.0, TraceRun("test", 5, policy="tiny"))
    rollout = LanguageRollout(
        Corridor, Scripted(template, script), template, given, seed_of=lambda group: 11, observer=observer
    )
    asyncio.run(rollout.play_group(0))
    rollout.close()
    (path,) = trace_files(run)
    return read_trace(path)


def calls(trace: Trace) -> list[LlmCall]:
    return [event for event in trace.events if isinstance(event, LlmCall)]


def commands(trace: Trace) -> list[str]:
    return [step.action_name for step in trace.steps]


def branch(parent: Trace, at: int, policy: Path, folder: Path, seed: int = 0) -> Trace:
    forked = fork(parent, at, str(policy), seed=seed, folder=folder)
    assert forked.path is not None and forked.verdict.outcome is Outcome.MATCH
    assert validate_file(forked.path) == []
    return read_trace(forked.path)


# Episodes that the model's context ends.


def test_an_episode_that_the_context_ended_says_so_and_matches(tmp_path: Path) -> None:
    """The world would have gone on, so what the end says of it is not the world's."""
    trace = recorded(tmp_path, context=140)
    assert trace.end is not None and trace.end.truncated and 0 < trace.end.length < len(TURN_BACK)
    (stop,) = (event for event in trace.events if isinstance(event, Stop))
    assert stop is trace.events[-1] and (stop.agent, stop.target, stop.reason) == ("actor", "actor", "context")
    assert stop.parents == (trace.steps[-1].id,)
    assert validate_file(trace.path) == []
    assert replay_trace(trace).line == f"MATCH ({trace.end.length} steps, clock: none)"
    assert trace.end.success is False
    won = dataclasses.replace(trace, end=dataclasses.replace(trace.end, success=True))
    assert replay_trace(won).line == f"DIVERGED at step {trace.end.length - 1} (success: recorded yes, replayed None)"
    # Without it the world would have to have cut the episode, which it does not.
    told = dataclasses.replace(trace, events=trace.events[:-1])
    assert replay_trace(told).line == (
        f"DIVERGED at step {trace.end.length - 1} (truncated: recorded yes, replayed no)"
    )


def test_an_episode_that_the_world_ended_is_not_stopped(tmp_path: Path) -> None:
    for name, script in (("won", ["go right"] * 2), ("cut", TURN_BACK)):
        trace = recorded(tmp_path / name, script)
        assert not any(isinstance(event, Stop) for event in trace.events)
        assert replay_trace(trace).outcome is Outcome.MATCH


def test_the_seed_of_the_run_is_among_the_seeds(tmp_path: Path) -> None:
    trace = recorded(tmp_path)
    assert trace.header.seeds == {"seed": "11", "run": "5"}
    other = dataclasses.replace(trace.header, seeds={"seed": "12", "run": "5"})
    assert replay_trace(dataclasses.replace(trace, header=other)).outcome is Outcome.DIVERGED


# Forks.


@pytest.mark.parametrize("template", ["append", "exact"])
def test_a_model_reads_what_its_parent_read_and_goes_on(tmp_path: Path, model: Path, template: str) -> None:
    """Token for token, as the parent's rollout had it, an answer that could not be read included: the reference is what that
    was recorded to read."""
    parent = recorded(tmp_path, ["go right", "what\nnow", *TURN_BACK[1:5]], template=template)
    assert "failure" in calls(parent)[1].sampling
    forked = branch(parent, 3, model, tmp_path)
    assert (forked.header.forked_from, forked.header.forked_at) == (parent.header.episode_id, 3)
    assert forked.header.episode_id == f"{parent.header.episode_id}-fork3-tiny-v0-s0"
    assert (forked.header.policy, forked.header.seeds) == (str(model), {"seed": "11", "fork": "0"})
    assert commands(forked)[:3] == commands(parent)[:3] and len(forked.steps) > 3
    first, *others = calls(forked)
    assert (first.step, first.prompt) == (3, calls(parent)[3].prompt)
    assert [call.step for call in others] == list(range(4, len(forked.steps)))
    assert forked.steps[3].log_prob == pytest.approx(sum(first.log_probs or ()), abs=1e-3)
    assert forked.end is not None and forked.end.costs["llm_calls"] == len(others) + 1
    assert replay_trace(forked).outcome is Outcome.MATCH
    assert force_tokens(forked).outcome is Outcome.MATCH


def test_what_a_model_says_follows_from_the_seed(tmp_path: Path, model: Path) -> None:
    parent = recorded(tmp_path)
    made = [branch(parent, 2, model, tmp_path / str(n), seed) for n, seed in enumerate((1, 1, 2))]
    one, same, other = ([call.output for call in calls(trace)] for trace in made)
    assert one == same != other


def test_a_model_whose_context_fills_stops(tmp_path: Path, model: Path) -> None:
    parent = recorded(tmp_path, context=140)
    cut = len(parent.steps)
    forked = branch(parent, cut - 1, model, tmp_path)
    assert forked.end is not None and forked.end.truncated and not forked.end.terminated
    assert isinstance(forked.events[-1], Stop) and forked.events[-1].reason == "context"
    assert replay_trace(forked).outcome is Outcome.MATCH


def test_steps_that_do_not_fit_into_the_context_are_told(tmp_path: Path, model: Path) -> None:
    parent = recorded(tmp_path)
    small = recorded(tmp_path / "small", context=140)
    inside = dataclasses.replace(parent, path=small.path)  # as if its run had this context
    with pytest.raises(UsageError, match="reads at most 140 tokens, and the conversation has more from step"):
        fork(inside, 5, str(model), folder=tmp_path)


def test_a_checkpoint_of_a_language_model_goes_on_in_its_own_settings(tmp_path: Path, model: Path) -> None:
    given = settings(answer="thought", max_new_tokens=8, temperature=0.5)
    config = dataclasses.replace(Config(), run=RunSettings(name="talker"), agent=given)
    write_checkpoint(
        tmp_path / "talker" / "checkpoints", 100,
        lambda part: tiny_model(part / MODEL, seed=3), state={"learner": {"version": 7}}, config=to_yaml(config), keep=2,
    )  # fmt: skip
    parent = recorded(tmp_path / "parent")
    forked = branch(parent, 2, tmp_path / "talker", tmp_path)
    assert forked.header.episode_id.endswith("-fork2-talker-v7-s0")
    assert [step.policy_version for step in forked.steps] == [3] * 2 + [7] * (len(forked.steps) - 2)
    call = calls(forked)[0]
    assert (call.sampling["temperature"], call.sampling["max_tokens"]) == (0.5, 8)
    template = ChatTemplate(tiny_tokenizer(), "tiny")
    assert "Thought:" in template.decode(call.prompt or ())
    assert force_tokens(forked).outcome is Outcome.MATCH
    assert replay_trace(forked).outcome is Outcome.MATCH


def test_commands_that_no_model_said_are_told_in_the_form_of_answers(tmp_path: Path, model: Path) -> None:
    path = record_words(tmp_path, "corridor/test", {}, 11, random.Random(4), "words")
    parent = read_trace(path)
    assert len(parent.steps) > 1
    call = calls(branch(parent, 1, model, tmp_path / "out"))[0]
    said = ChatTemplate(tiny_tokenizer(), "tiny").decode(call.prompt or ())
    assert f"Action: {parent.steps[0].action_name.strip()}" in said and "Task: Find the door." in said


def test_models_that_cannot_go_on_are_refused(tmp_path: Path, model: Path) -> None:
    record_arrays(tmp_path / "keys", "minihack/KeyRoom-S5", {}, envs=1, steps=3)
    path = trace_files(tmp_path / "keys")[0]
    with pytest.raises(UsageError, match="was played by a network, with keys; this model says commands"):
        fork(read_trace(path), 1, str(model))
    (tmp_path / "mute").mkdir()
    (tmp_path / "mute" / "config.json").write_text("{}")
    with pytest.raises(LanguageModelError, match="its tokenizer cannot be loaded"):
        fork(recorded(tmp_path / "run"), 1, str(tmp_path / "mute"))


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(WORDS))
def test_a_model_goes_on_in_a_text_world_in_a_fresh_process(tmp_path: Path, model: Path, family: str) -> None:
    env_id, options, _ = WORDS[family]
    path = record_words(tmp_path, env_id, {**options, "max_episode_steps": 8}, 1, random.Random(2), "words")
    forked = isolate.fork_aside(path, 4, str(model), seed=5)
    assert forked.path is not None and forked.path.parent == tmp_path
    made = read_trace(forked.path)
    assert made.header.forked_from == "words" and commands(made)[:4] == commands(read_trace(path))[:4]
    assert len(calls(made)) == len(made.steps) - 4 > 0
    assert validate_file(forked.path) == [] and isolate.replay(forked.path).outcome is Outcome.MATCH
