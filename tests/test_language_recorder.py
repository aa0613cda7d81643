"""Traces of language models, as a rollout has them written: which, and what becomes of a rollout whose files cannot be."""

import asyncio
import shutil
from pathlib import Path

import numpy as np
import pytest

from agents.language.rollout import LanguageRollout
from agents.language.template import ChatTemplate
from envs.captions import caption_id
from envs.clock import PINNED
from learner.language.episodes import turn_rewards
from orchestration.config import Config, RunSettings, TraceSettings
from orchestration.configuration import load_config, to_yaml
from orchestration.language.parts import build_language_observer
from orchestration.language.recorder import LanguageRecorder
from orchestration.language.report import report_of
from orchestration.traces.complete import Late
from orchestration.traces.late import ScoreLog
from orchestration.traces.reader import read_trace, trace_files
from orchestration.traces.schema import TOTAL, EnvStep, LlmCall, Reward, WeightsUpdate
from orchestration.traces.validate import validate_file
from orchestration.traces.writers import TraceRun
from tests.language_agents_support import Corridor, Scripted, settings, tiny_tokenizer

RUN = TraceRun("test", 0, policy="tiny")


@pytest.fixture(scope="module")
def template():
    return ChatTemplate(tiny_tokenizer(), "tiny")


def play(template, observer, scripts, *, env=Corridor, between=lambda group: None):
    """A group of one episode for each script; the results."""
    results = []
    for group, script in enumerate(scripts):
        between(group)
        generator = Scripted(template, script)
        rollout = LanguageRollout(
            env, generator, template, settings(), seed_of=lambda group: 11, name="actor-00", observer=observer
        )
        results.append(asyncio.run(rollout.play_group(group)))
    observer.close()
    return results


WIN, LOSE, TURN_BACK = ["go right"] * 2, ["go left"] * 2, ["go right", "go left"] * 3


def test_the_best_and_the_worst_are_kept_from_the_first_on(tmp_path, template):
    recorder = LanguageRecorder(tmp_path, 1e-12, RUN)
    play(template, recorder, [TURN_BACK, LOSE, WIN, LOSE, WIN])
    kept = {path.name.partition(".")[0]: read_trace(path) for path in trace_files(tmp_path)}
    assert {name: trace.end and trace.end.kept for name, trace in kept.items()} == {
        "actor-00-g000000-m00": "best", "actor-00-g000002-m00": "best",
    }  # fmt: skip
    for trace in kept.values():
        assert validate_file(trace.path) == []
        assert len([event for event in trace.events if isinstance(event, LlmCall)]) == len(trace.steps)


def test_those_that_were_asked_for_are_kept_at_rate_zero(tmp_path):
    def config(rate, episodes):
        return Config(run=RunSettings(dir=str(tmp_path)), trace=TraceSettings(rate=rate, episodes=episodes))

    assert build_language_observer(config(0.0, ""), tmp_path) is None
    recorder = build_language_observer(config(0.0, "actor-00-g000001-*,x"), tmp_path)
    play(ChatTemplate(tiny_tokenizer(), "tiny"), recorder, [WIN, WIN, LOSE])
    (path,) = trace_files(tmp_path)
    trace = read_trace(path)
    assert (path.name, trace.end and trace.end.kept) == ("actor-00-g000001-m00.jsonl.zst", "asked")


def test_a_file_that_cannot_be_written_ends_no_episode_and_is_told(tmp_path, template):
    folder = tmp_path / "traces"
    folder.mkdir()

    def between(group: int) -> None:
        if group == 1:  # the folder is gone, then back
            shutil.rmtree(folder)
            folder.write_text("")
        elif group == 2:
            folder.unlink()
            folder.mkdir()

    results = play(template, LanguageRecorder(folder, 1.0, RUN), [WIN, LOSE, WIN], between=between)
    assert [len(result.episodes) for result in results] == [1, 1, 1]
    told = [report_of("actor-00", result, 0, 1.0).trouble for result in results]
    assert told[0] == told[2] == () and len(told[1]) == 1 and "cannot be written" in told[1][0]
    assert [path.name for path in trace_files(folder)] == ["actor-00-g000002-m00.jsonl.zst"]


def test_a_finished_trace_is_never_written_again(tmp_path, template):
    play(template, LanguageRecorder(tmp_path, 1.0, RUN), [WIN])
    (path,) = trace_files(tmp_path)
    before = path.read_bytes()
    play(template, LanguageRecorder(tmp_path, 1.0, RUN), [LOSE])
    assert path.read_bytes() == before and trace_files(tmp_path) == [path]


def test_the_header_says_whether_the_clock_was_pinned(tmp_path, template):
    class Born(Corridor):
        def begin(self, seed: int) -> str:
            told = super().begin(seed)
            self._seeds = {"seed": str(seed), PINNED: "1700000000"}
            return told

        @property
        def seeds(self):
            return self._seeds

    for folder, env in ((tmp_path / "pinned", Born), (tmp_path / "none", Corridor)):
        play(template, LanguageRecorder(folder, 1.0, RUN), [WIN], env=env)
    clocks = [read_trace(trace_files(Path(tmp_path / name))[0]).header.clock for name in ("pinned", "none")]
    assert clocks == ["pinned:1700000000", "unpinned"]


def test_components_are_what_the_learner_pays(tmp_path, template):
    """Fines, an intrinsic reward, one from the world; the learner's own function is the reference."""
    scores = {caption_id("You go right."): 0.75, caption_id("You leave through the door."): 1.0}

    class Looked:
        def lookup(self, ids):
            return np.array([scores.get(i, 0.0) for i in ids.tolist()], np.float32).reshape(ids.shape)

    config = load_config("textworld_ppo", ["reward.model=hash", "reward.w_int=0.5", "agent.failure_penalty=0.25"])
    traces = tmp_path / "traces"
    traces.mkdir()
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    recorder = LanguageRecorder(traces, 1.0, RUN)
    generator = Scripted(template, ["what\nnow", "dance", "go right", "go right"])
    fines = settings(failure_penalty=0.25, ungrounded_penalty=0.125)
    rollout = LanguageRollout(Corridor, generator, template, fines, seed_of=lambda group: 11, observer=recorder)
    rollout.reward_model_version = 2
    (episode,) = asyncio.run(rollout.play_group(0)).episodes
    rollout.close()
    paid = turn_rewards([episode], Looked(), config.reward)
    (path,) = trace_files(traces)
    assert read_trace(path).header.reward_model_version == 2
    assert not Late.beside(traces).complete(read_trace(path)).known, "the learner has looked nothing up yet"
    log = ScoreLog(traces)
    log.add(2, {turn.caption_id: scores.get(turn.caption_id, 0.0) for turn in episode.turns})
    log.flush()
    done = Late.beside(traces).complete(read_trace(path))
    assert done.known and done.trace.end is not None
    totals = {
        event.target: event.value for event in done.trace.events if isinstance(event, Reward) and event.part == TOTAL
    }
    assert [totals.get(step.id, 0.0) for step in done.trace.steps] == pytest.approx(paid.total.tolist())
    sums = {"environment": paid.extrinsic, "reward_model": paid.intrinsic, "format": paid.penalty}
    assert done.trace.end.components == pytest.approx({name: float(part.sum()) for name, part in sums.items()})
    assert paid.penalty.tolist() == [-0.25, -0.125, 0, 0] and paid.intrinsic.sum() > 0 and paid.extrinsic.sum() > 0
    assert validate_file(path) == []


def test_a_new_reward_model_is_told_at_its_turn(tmp_path, template):
    recorder = LanguageRecorder(tmp_path, 1.0, RUN)
    rollout: LanguageRollout

    class Teaching(Scripted):
        async def generate(self, prompt, sampling):
            if len(self.prompts) == 1:
                rollout.reward_model_version = 4
            return await super().generate(prompt, sampling)

    rollout = LanguageRollout(
        Corridor, Teaching(template, WIN), template, settings(), seed_of=lambda group: 11, observer=recorder
    )
    rollout.reward_model_version = 3
    asyncio.run(rollout.play_group(0))
    rollout.close()
    trace = read_trace(trace_files(tmp_path)[0])
    assert trace.header.reward_model_version == 3 and validate_file(trace.path) == []
    told = [(type(event), getattr(event, "to_version", None)) for event in trace.events]
    assert told.index((WeightsUpdate, 4)) == [kind for kind, _ in told].index(EnvStep) + 1
