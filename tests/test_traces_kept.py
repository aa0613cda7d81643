"""Which episodes are kept, and the trace of the run itself, in real rollouts and runs."""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.networks.base import RecurrentPolicy
from agents.observer import EpisodeFinish, Recalled
from agents.recall import EpisodeMemory
from agents.rollout import Rollout
from envs import make
from envs.base import EnvSpec, View
from envs.captions import caption_id
from envs.vector import VectorEnv
from orchestration.traces import again as again_module
from orchestration.traces.again import AsideKeeper, Recipe
from orchestration.traces.complete import Late
from orchestration.traces.index import load_index
from orchestration.traces.late import LABELS, LabelCopier, ScoreLog, read_labels, read_scores
from orchestration.traces.reader import read_trace, run_traces, trace_files
from orchestration.traces.recorder import Again, TraceRecorder
from orchestration.traces.schema import Aggregate, Annotation, Return, Reward, Spawn, ToolCall, WeightsUpdate
from orchestration.traces.validate import validate_file
from orchestration.traces.writers import TraceRun, WritersAside
from reward_server.judge.prompts import PromptTemplate
from reward_server.store import AnnotationStore, LabelRecord
from reward_server.types import Answer, JudgeKey
from tests.trace_support import Played, begin, record, recorder, steps_of

ENV_ID = "minihack/Room-Random-5x5"
SPEC = EnvSpec("toy/x", {}, ("a", "b"), 9, False)


def test_the_memory_gives_back_what_an_episode_did() -> None:
    memory = EpisodeMemory(SPEC)
    actions = np.arange(24).reshape(-1, 2)
    memory.begin(1, "e0", {"seed": "5"}, None)
    for version, first in enumerate((0, 4, 8)):
        part = actions[first : first + 4]
        memory.add(version, -1, part, part.astype(np.float32), -part.astype(np.float32))
        if version == 1:
            whole = memory.recall(1, "e0", 2)
            assert whole is not None
            assert whole.actions.tolist() == actions[:7, 1].tolist()
            assert whole.policy_versions.tolist() == [0] * 4 + [1] * 3
            assert whole.reward_model_versions.tolist() == [-1] * 7
            assert whole.values.tolist() == [-float(x) for x in actions[:7, 1]]
            assert (whole.seeds, whole.env_id) == ({"seed": "5"}, "toy/x")
            memory.begin(1, "e1", {"seed": "6"}, 3)
    second = memory.recall(1, "e1", 0)
    assert second is not None
    assert second.actions.tolist() == actions[7:9, 1].tolist()
    assert memory.recall(1, "e0", 0) is None
    assert memory.recall(0, "e1", 0) is None


def test_the_memory_is_bounded() -> None:
    memory = EpisodeMemory(SPEC, limit_bytes=10 * 2 * 16)
    memory.begin(0, "long", {}, None)
    part = np.zeros((5, 2), np.int64)
    for _ in range(4):
        memory.add(0, -1, part, part.astype(np.float32), part.astype(np.float32))
    assert memory.recall(0, "long", 4) is None
    memory.begin(0, "short", {}, 4)
    memory.add(0, -1, part, part.astype(np.float32), part.astype(np.float32))
    found = memory.recall(0, "short", 1)
    assert found is not None
    assert len(found.actions) == 3


def test_asked_for_episodes_are_kept_whatever_the_rate(tmp_path: Path) -> None:
    tracing = recorder(tmp_path, 0.0, asked=("*-ep000007", "e1"))
    assert tracing.wants("actor-00-env000-ep000007")
    assert tracing.wants("e1")
    assert not tracing.wants("actor-00-env000-ep000008")
    record(tracing, Played("e1", [0], [""], [0.0], [3]))
    end = read_trace(tmp_path / "e1.jsonl.zst").end
    assert end is not None
    assert end.kept == "asked"


def finish(value: float, error: str | None = None) -> EpisodeFinish:
    return EpisodeFinish(value, 3, True, None, {}, error)


def wait_for(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120.0
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_process_writes_what_the_rollout_tells_of(tmp_path: Path) -> None:
    played = Played("e1", [0, 1, 2], ["", "You see here a key.", ""], [0.0, 1.0, 0.0], [3, 3, 4])
    for folder, beside in ((tmp_path / "a", False), (tmp_path / "b", True)):
        tracing = recorder(folder, beside=beside)
        record(tracing, played)
        record(tracing, replace(played, episode_id="running"), env=1, finish=False)
        tracing.close()
        assert tracing.take_trouble() == ()
    here, there = (read_trace(folder / "e1.jsonl.zst") for folder in (tmp_path / "a", tmp_path / "b"))
    assert (here.events, here.captions, here.end) == (there.events, there.captions, there.end)
    assert len(read_trace(tmp_path / "b" / "running.jsonl.zst.part").steps) == 3


def test_the_rollout_goes_on_without_the_process_that_writes(tmp_path: Path) -> None:
    tracing = recorder(tmp_path, beside=True)
    played = Played("e1", [0] * 9, [""] * 9, [0.0] * 9, [3] * 9)
    record(tracing, played, finish=False)
    assert tracing.take_trouble() == ()
    process = tracing._writers._process  # type: ignore[attr-defined]  # pyright: ignore
    process.kill()
    process.wait()
    record(tracing, replace(played, episode_id="e2"), env=1)
    (told,) = tracing.take_trouble()
    assert told == "the process that writes traces died (killed by signal 9); it is replaced"
    record(tracing, replace(played, episode_id="e3"), env=2)
    tracing.close()
    assert tracing.take_trouble() == ()
    assert validate_file(tmp_path / "e3.jsonl.zst") == []


def test_processes_that_die_again_and_again_are_given_up(tmp_path: Path) -> None:
    tracing = recorder(tmp_path, beside=True)
    played = Played("e", [0], [""], [0.0], [3])
    told: list[str] = []
    for number in range(8):
        record(tracing, replace(played, episode_id=f"e{number}"), finish=False)
        told += tracing.take_trouble()
        process = tracing._writers._process  # type: ignore[attr-defined]  # pyright: ignore
        if process is not None:
            process.kill()
            process.wait()
    assert len(told) == 3 and told[-1].endswith("episodes are no longer recorded: it has 3 times in a row")
    tracing.close()


def test_no_finished_trace_is_lost_with_the_process_that_writes(tmp_path: Path) -> None:
    """A real rollout, whose writer is killed in the midst of episodes and with episodes on their way."""
    from agents.networks import NETWORKS, build_policy

    view, options = NETWORKS["fast"].view, {"max_episode_steps": 12}
    envs = VectorEnv(lambda: make(ENV_ID, view, **options), 4, lambda env, episode: 1000 * env + episode)
    run = TraceRun("demo", 0)
    keeper = AsideKeeper(Recipe(ENV_ID, view, options, tmp_path, run), close_s=120.0)
    writers = WritersAside(tmp_path, run, "actor")
    tracing = TraceRecorder(tmp_path, 1.0, run, writers, keeper=keeper)
    policy: RecurrentPolicy = build_policy("fast", len(envs.env_spec.action_names))
    rollout = Rollout(envs, policy, length=7, seed=0, name="actor-00", observer=tracing)
    ended: dict[str, int] = {}
    told: list[str] = []
    for call in range(16):
        _, report = rollout.collect()
        told += report.trouble
        for episode in report.episodes:
            ended[f"actor-00-env{episode.end.env_index:03d}-ep{episode.end.episode_index:06d}"] = episode.end.length
        if call in (4, 11):
            process = writers._process  # pyright: ignore[reportPrivateUsage]
            assert process is not None
            process.kill()
    rollout.close()
    assert told == ["the process that writes traces died (killed by signal 9); it is replaced"] * 2
    whole = {path.name.removesuffix(".jsonl.zst"): path for path in trace_files(tmp_path) if path.suffix != ".part"}
    assert set(whole) == set(ended) and len(ended) > 12
    for name, path in whole.items():
        assert validate_file(path) == []
        trace = read_trace(path)
        assert trace.end is not None and (len(trace.steps), trace.end.kept) == (ended[name], "rate")


class NoKeeper:
    """Keeps nothing."""

    def submit(self, again: Again) -> None:
        pytest.fail("not asked to play")

    def take_trouble(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None: ...


def test_best_worst_and_failed_are_wanted_back(tmp_path: Path) -> None:
    tracing = recorder(tmp_path, 0.0, keeper=NoKeeper())
    wanted = [tracing.wants_back("e", finish(value)) for value in (0.0, 0.0, 1.0, 0.5, -1.0, 1.0, 2.0)]
    assert wanted == [True, False, True, False, True, False, True]
    assert sum(tracing.wants_back("e", finish(0.0, "ValueError: x")) for _ in range(99)) == 20
    assert not recorder(tmp_path, rate=0.0).wants_back("e", finish(9.0, "no keeper"))


def test_completing_aside_tells_its_errors(tmp_path: Path) -> None:
    tracing = recorder(tmp_path, aside=True)
    record(tracing, Played("e1", [0], [""], [0.0], [3]))
    tracing.close()
    assert validate_file(tmp_path / "e1.jsonl.zst") == []
    tracing = recorder(tmp_path, aside=True)
    record(tracing, Played("e2", [0], [""], [0.0], [3]), finish=False)
    (tmp_path / "e2.jsonl.zst.part").unlink()
    tracing.finish(0, finish(0.0))
    tracing.close()
    (told,) = tracing.take_trouble()
    assert told.endswith("e2.jsonl.zst: cannot be written: No such file or directory")


def test_what_was_recalled_is_what_was_recorded(tmp_path: Path) -> None:
    """Two equal rollouts in MiniHack, one that records every episode and one that records the extremes alone."""
    from agents.networks import NETWORKS, build_policy

    view = NETWORKS["fast"].view

    def rollout(folder: Path, rate: float) -> Rollout:
        import torch

        def make_env() -> Any:
            return make(ENV_ID, view, max_episode_steps=12)

        envs = VectorEnv(make_env, 2, lambda env, episode: 1000 * env + episode)
        torch.manual_seed(0)
        policy: RecurrentPolicy = build_policy("fast", len(envs.env_spec.action_names))
        run = TraceRun("demo", 0)
        keeper = AsideKeeper(Recipe(ENV_ID, view, {"max_episode_steps": 12}, folder, run), close_s=120.0)
        tracing = TraceRecorder(folder, rate, run, WritersAside(folder, run, "actor"), keeper=keeper)
        return Rollout(envs, policy, length=10, seed=0, name="actor-00", observer=tracing)

    for folder, rate in ((tmp_path / "all", 1.0), (tmp_path / "some", 0.0)):
        played = rollout(folder, rate)
        for _ in range(8):
            played.collect()
        played.close()
    ends = {path.name: read_trace(path).end for path in trace_files(tmp_path / "all") if path.suffix != ".part"}
    some = trace_files(tmp_path / "some")
    assert 1 <= len(some) < len(ends)
    for path in some:
        assert validate_file(path) == []
        again, first = read_trace(path), read_trace(tmp_path / "all" / path.name)
        assert again.end is not None
        assert again.end.kept in ("best", "worst")
        assert again.header.seeds == first.header.seeds
        assert len(again.steps) == len(first.steps)
        for one, other in zip(again.steps, first.steps, strict=True):
            assert one.screen and one.observation_hash
            assert (one.action, one.screen, one.colors) == (other.action, other.screen, other.colors)
            assert one.observation_hash == other.observation_hash
            assert (one.caption_id, one.caption_count, one.grounded) == (
                other.caption_id, other.caption_count, other.grounded,
            )  # fmt: skip
            assert (one.log_prob, one.value, one.reward) == (other.log_prob, other.value, other.reward)
    assert validate_file(tmp_path / "all" / some[0].name) == []


def again(name: str, action: int, kept: str) -> Again:
    """An episode of five steps, always the same action."""
    env = make(ENV_ID, View(), max_episode_steps=5)
    env.reset(seed=3)
    names = (*env.env_spec.action_names, *["none"] * 99)
    episode = Recalled(
        name, env.env_spec.id, env.env_spec.options, names, env.seeds, np.full(5, action),
        np.zeros(5, np.float32), np.zeros(5, np.float32), np.zeros(5, np.int64), np.arange(5),
    )  # fmt: skip
    error = "IndexError: x" if kept == "failed" else None
    return Again(episode, EpisodeFinish(0.0, 5, False, None, {}, error), "a/0", kept)


def test_an_episode_that_comes_while_the_idle_process_ends_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(ENV_ID, View(), {"max_episode_steps": 5}, tmp_path, TraceRun("demo", 0))
    keeper = AsideKeeper(recipe, idle_s=0.2, close_s=120.0)
    end, ended = again_module._end, []  # pyright: ignore[reportPrivateUsage]

    def slowly(process: subprocess.Popen[bytes]) -> None:
        if not ended:
            ended.append(process)
            keeper.submit(again("second", 0, "best"))
        end(process)

    monkeypatch.setattr(again_module, "_end", slowly)
    keeper.submit(again("first", 0, "best"))
    wait_for(lambda: (tmp_path / "second.jsonl.zst").exists())
    keeper.close()
    assert keeper.take_trouble() == ()
    assert validate_file(tmp_path / "first.jsonl.zst") == validate_file(tmp_path / "second.jsonl.zst") == []


def test_a_process_that_dies_is_told_and_the_next_episode_is_kept(tmp_path: Path) -> None:
    """The first episode asks for an action that there is not, the second one's process is killed."""
    run = TraceRun("demo", 0)
    keeper = AsideKeeper(Recipe(ENV_ID, View(), {"max_episode_steps": 5}, tmp_path, run), idle_s=60.0, close_s=120.0)
    keeper.submit(again("raises", 99, "failed"))
    wait_for(lambda: not keeper.busy)
    failed = read_trace(tmp_path / "raises.jsonl.zst")
    assert validate_file(failed.path) == []
    assert (len(failed.steps), failed.end and failed.end.kept, failed.end and failed.end.error) == (
        1,
        "failed",
        "IndexError: x",
    )
    process = keeper._process  # pyright: ignore[reportPrivateUsage]
    assert process is not None
    process.kill()
    process.wait()
    told: list[str] = []
    keeper.submit(again("lost", 0, "failed"))
    wait_for(lambda: bool(told.extend(keeper.take_trouble()) or told))
    assert told == ["lost (failed) could not be kept: the process that played it again died (exit code -9)"]
    keeper.submit(again("kept", 0, "failed"))
    keeper.close()
    kept = read_trace(tmp_path / "kept.jsonl.zst")
    assert validate_file(kept.path) == []
    updates = [event.to_version for event in kept.events if isinstance(event, WeightsUpdate)]
    assert (kept.header.reward_model_version, updates) == (0, [1, 2, 3, 4])
    assert keeper.take_trouble() == ()


# What comes later.


def test_labels_go_to_a_sidecar_once(tmp_path: Path) -> None:
    store = AnnotationStore(tmp_path / "annotations.sqlite")
    key = JudgeKey("p1", "get the key", "model", "direct", "{}")
    answers = {-5: Answer(1, 0.9, "yes", 0.1), 2**62: Answer(0, None, "no \x00 </script>", 0.2)}

    def give(ids: list[int]) -> None:
        store.add_captions([(each, f"caption {each}") for each in ids])
        store.write(key, [LabelRecord(each, answers[each]) for each in ids])

    traces = tmp_path / "traces"
    traces.mkdir()
    assert LabelCopier(tmp_path / "nothing.sqlite", traces).copy() == 0
    copier = LabelCopier(store.path, traces)
    give([-5])
    assert [copier.copy(), copier.copy(), LabelCopier(store.path, traces).copy()] == [1, 0, 0]
    whole = (traces / LABELS).read_bytes()
    give([2**62])
    # Also what is in the store alone.
    first, second = labels = read_labels(traces)
    assert copier.copy() == 1
    assert read_labels(traces) == labels
    assert (first.caption_id, first.probability, first.judge) == ("-5", 0.9, "model")
    assert (second.caption_id, second.answer, second.label) == (str(2**62), answers[2**62].raw, 0)
    # Cut anywhere, the next copy mends it.
    mended = (traces / LABELS).read_bytes()
    for size in range(len(whole), len(mended)):
        (traces / LABELS).write_bytes(mended[:size])
        assert LabelCopier(store.path, traces).copy() == 1
        assert (traces / LABELS).read_bytes() == mended
    assert read_labels(traces) == labels
    assert trace_files(traces) == []
    store.close()


def test_scores_are_those_of_the_version_that_counted(tmp_path: Path) -> None:
    log = ScoreLog(tmp_path)
    log.add(2, {7: 0.5, -1: 0.0})
    log.flush()
    log.add(5, {7: 0.25})
    log.flush()
    ScoreLog(tmp_path).flush()
    scores = read_scores(tmp_path)
    assert [scores.of("7", version) for version in (0, 1, 2, 3, 5, 6)] == [
        (0, 0.0), (2, 0.5), (2, 0.5), (5, 0.25), (5, 0.25), None,
    ]  # fmt: skip
    assert scores.of("-1", 1) == (2, 0.0)
    assert scores.of("8", 1) is None


def test_an_episode_is_completed_by_what_came_late(tmp_path: Path) -> None:
    """R = w_ext clip(s r) + w_int r_int / N^b, by hand: w_ext 1, s 0.5, w_int 0.1, b 1."""
    traces = tmp_path / "traces"
    traces.mkdir()
    (tmp_path / "config.yaml").write_text("reward: {scale: 0.5, clip: 1.0, w_int: 0.1, count_exponent: 1.0}\n")
    played = Played("e1", [0] * 4, ["", *["You see here a key."] * 2, "It's a wall."], [4.0, 0.0, -1.0, 0.0], [3] * 4)
    tracing = recorder(traces)
    begin(tracing, played, reward_model_version=1)
    steps = steps_of(played, 0, 4)
    tracing.steps(0, replace(steps, call=replace(steps.call, reward_model_version=2)))
    tracing.finish(0, EpisodeFinish(3.0, 4, True, True, {}, None))
    (path,) = trace_files(traces)
    key, wall = str(caption_id("You see here a key.")), str(caption_id("It's a wall."))
    assert not Late.beside(traces).complete(read_trace(path)).known
    assert load_index(traces).rows([0])[0].get("component_environment") is None
    log = ScoreLog(traces)
    log.add(1, {int(key): 9.0})
    log.add(2, {int(key): 0.6, int(wall): 0.0})
    log.flush()
    with AnnotationStore(tmp_path / "annotations.sqlite") as store:
        template = PromptTemplate.load()
        goal = template.goals[0]
        asked = JudgeKey(template.prompt(goal, "direct").version, goal, "judge", "direct", "{}")
        store.write(asked, [LabelRecord(int(key), Answer(1, 0.8, "yes", 0.1))], [(int(key), "You see here a key.")])
    done = Late.beside(traces).complete(read_trace(path))
    assert done.known
    rewards = [event for event in done.trace.events if isinstance(event, Reward)]
    told = [(event.target, event.source, event.part, event.version, round(event.value, 6)) for event in rewards]
    ids = [step.id for step in done.trace.steps]
    assert [each for each in told if each[2] != "raw"] == [
        (ids[0], "environment", "component", None, 1.0), (ids[0], "fusion", "total", None, 1.0),
        (ids[1], "reward_model", "component", 2, 0.06), (ids[1], "fusion", "total", None, 0.06),
        (ids[2], "environment", "component", None, -0.5), (ids[2], "reward_model", "component", 2, 0.03),
        (ids[2], "fusion", "total", None, -0.47),
    ]  # fmt: skip
    assert [each[4] for each in told if each[1:3] == ("reward_model", "raw")] == [0.6, 0.6]
    (label,) = [event for event in done.trace.events if isinstance(event, Annotation)]
    assert (label.label, label.probability, done.trace.texts[label.answer_ref or ""]) == (1, 0.8, "yes")
    assert "You see here a key." in done.trace.texts[label.question_ref or ""]
    assert done.trace.end is not None
    assert done.trace.end.components == pytest.approx({"environment": 0.5, "reward_model": 0.09})
    assert validate_file(path) == []
    row = load_index(traces).rows([0])[0]
    assert (row["component_environment"], row["component_reward_model"]) == pytest.approx((0.5, 0.09))


@pytest.mark.slow
def test_a_serial_run_leaves_valid_traces_of_its_episodes_and_of_itself(tmp_path: Path) -> None:
    command = [
        str(Path(sys.executable).parent / "yendor"), "train", "demo", "runtime=serial", f"run.dir={tmp_path}", "run.name=x",
        "train.env_steps=2000", "actors.count=1", "actors.envs=4", "actors.rollout_length=50", "learner.batch_size=100",
        "env.id=minihack/Room-Random-5x5", "judge.engine=none", "reward.model=none", "reward.w_int=0.0", "trace.rate=0.2",
        "--plain",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (own,) = run_traces(tmp_path / "x")
    traces = trace_files(tmp_path / "x")
    assert any(path.suffix != ".part" for path in traces)
    assert {str(path): validate_file(path) for path in (own, *traces)} == {str(path): [] for path in (own, *traces)}
    read = read_trace(own)
    assert read.end is not None
    assert {event.child for event in read.events if isinstance(event, Spawn)} == {"learner", "actor-00"}
    returned = [event for event in read.events if isinstance(event, Return)]
    assert sum(event.details["steps"] for event in returned) == read.end.length
    made = [event for event in read.events if isinstance(event, Aggregate)]
    assert sum(event.details["samples"] for event in made) == read.end.length
    assert any(isinstance(event, WeightsUpdate) for event in read.events)
    assert any(isinstance(event, ToolCall) and event.tool == "checkpoint" for event in read.events)
    assert read.end.length >= 2000
