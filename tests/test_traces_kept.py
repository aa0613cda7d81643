"""Which episodes are kept, and the trace of the run itself, in real rollouts and runs."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.networks.base import RecurrentPolicy
from agents.observer import EpisodeFinish
from agents.recall import EpisodeMemory
from agents.rollout import Rollout
from envs.base import EnvSpec
from envs.vector import VectorEnv
from orchestration.errors import TraceError
from orchestration.traces.again import player
from orchestration.traces.late import FILE, copy_labels, read_labels
from orchestration.traces.reader import read_trace, run_traces, trace_files
from orchestration.traces.recorder import TraceRecorder, TraceRun
from orchestration.traces.run_trace import RunTrace
from orchestration.traces.schema import Error, LlmCall, Spawn, Stop, ToolCall, WeightsUpdate
from orchestration.traces.validate import validate_file
from reward_server.store import AnnotationStore, LabelRecord
from reward_server.types import Answer, JudgeKey
from tests.trace_support import Played, record, recorder

SPEC = EnvSpec("toy/x", {}, ("a", "b"), 9, False)


def test_the_memory_gives_back_what_an_episode_did() -> None:
    memory = EpisodeMemory(SPEC)
    actions = np.arange(24).reshape(-1, 2)
    memory.begin(1, "e0", {"seed": "5"}, None)
    for version, first in enumerate((0, 4, 8)):
        part = actions[first : first + 4]
        memory.add(version, part, part.astype(np.float32), -part.astype(np.float32))
        if version == 1:
            whole = memory.recall(1, "e0", 2)
            assert whole is not None
            assert whole.actions.tolist() == actions[:7, 1].tolist()
            assert whole.policy_versions.tolist() == [0] * 4 + [1] * 3
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
        memory.add(0, part, part.astype(np.float32), part.astype(np.float32))
    assert memory.recall(0, "long", 4) is None
    memory.begin(0, "short", {}, 4)
    memory.add(0, part, part.astype(np.float32), part.astype(np.float32))
    found = memory.recall(0, "short", 1)
    assert found is not None
    assert len(found.actions) == 3


def test_asked_for_episodes_are_kept_whatever_the_rate(tmp_path: Path) -> None:
    tracing = TraceRecorder(tmp_path, 0.0, TraceRun("demo", 0), asked=("*-ep000007", "e1"))
    assert tracing.wants("actor-00-env000-ep000007")
    assert tracing.wants("e1")
    assert not tracing.wants("actor-00-env000-ep000008")
    record(tracing, Played("e1", [0], [""], [0.0], [3]))
    end = read_trace(tmp_path / "e1.jsonl.zst").end
    assert end is not None
    assert end.kept == "asked"


def finish(value: float, error: str | None = None) -> EpisodeFinish:
    return EpisodeFinish(value, 3, True, None, {}, error)


def test_best_worst_and_failed_are_wanted_back(tmp_path: Path) -> None:
    tracing = TraceRecorder(tmp_path, 0.0, TraceRun("demo", 0), player=lambda _: pytest.fail("not asked to play"))
    wanted = [tracing.wants_back("e", finish(value)) for value in (0.0, 0.0, 1.0, 0.5, -1.0, 1.0, 2.0)]
    assert wanted == [False, False, True, False, True, False, True]
    assert sum(tracing.wants_back("e", finish(0.0, "ValueError: x")) for _ in range(99)) == 20
    assert not recorder(tmp_path, rate=0.0).wants_back("e", finish(9.0, "no player"))


def test_completing_aside_tells_its_errors(tmp_path: Path) -> None:
    tracing = recorder(tmp_path, aside=True)
    record(tracing, Played("e1", [0], [""], [0.0], [3]))
    tracing.close()
    assert validate_file(tmp_path / "e1.jsonl.zst") == []
    tracing = recorder(tmp_path, aside=True)
    record(tracing, Played("e2", [0], [""], [0.0], [3]), finish=False)
    (tmp_path / "e2.jsonl.zst.part").unlink()
    tracing.finish(0, finish(0.0))
    with pytest.raises(TraceError, match=r"e2.jsonl.zst: cannot be written: No such file"):
        tracing.close()


def test_what_was_recalled_is_what_was_recorded(tmp_path: Path) -> None:
    """Two equal rollouts in MiniHack, one that records every episode and one that records the extremes alone."""
    from agents.networks import NETWORKS, build_policy
    from envs import make

    view = NETWORKS["fast"].view

    def rollout(folder: Path, rate: float) -> Rollout:
        import torch

        def make_env() -> Any:
            return make("minihack/Room-Random-5x5", view, max_episode_steps=12)

        envs = VectorEnv(make_env, 2, lambda env, episode: 1000 * env + episode)
        torch.manual_seed(0)
        policy: RecurrentPolicy = build_policy("fast", len(envs.env_spec.action_names))
        tracing = TraceRecorder(folder, rate, TraceRun("demo", 0), player=player(make_env))
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
        for one, other in zip(again.steps[:-1], first.steps[:-1], strict=True):
            assert (one.action, one.screen, one.observation_hash) == (
                other.action,
                other.screen,
                other.observation_hash,
            )
            assert (one.caption_id, one.caption_count, one.grounded) == (
                other.caption_id, other.caption_count, other.grounded,
            )  # fmt: skip
            assert (one.log_prob, one.value, one.reward) == (other.log_prob, other.value, other.reward)
        # Played again, the last screen is there too.
        assert again.steps[-1].screen
    assert validate_file(tmp_path / "all" / some[0].name) == []


def run_trace(folder: Path, clock: Callable[[], float]) -> RunTrace:
    return RunTrace(
        folder, run="demo", env_id="minihack/X", env_options={}, seed=7, policy="fast", policy_version=0,
        code_revision=None, count_exponent=3.0, clock=clock,
    )  # fmt: skip


def test_the_run_has_a_trace_of_its_own(tmp_path: Path) -> None:
    now = iter(range(1000))
    trace = run_trace(tmp_path, lambda: float(next(now)))
    trace.spawned("actor-00", "actor")
    trace.weights(1)
    trace.weights(1)
    trace.lost("actor-00", "killed by signal 9")
    trace.spawned("actor-00.1", "actor")
    trace.judged(3, "judge-model", 0.5, 40)
    trace.judged(3, "judge-model", 0.5, 40)
    trace.judge_changed("down", "connection refused")
    trace.reward_model(1)
    trace.checkpoint("000100", 100)
    trace.end("done", 200, None)
    (path,) = run_traces(tmp_path)
    assert trace_files(tmp_path) == []
    assert validate_file(path) == []
    read = read_trace(path)
    assert (read.header.scope, read.header.seeds) == ("run", {"run": "7"})
    kinds = [type(event) for event in read.events]
    assert kinds.count(Spawn) == 3
    assert kinds.count(WeightsUpdate) == 2
    assert [kinds.count(kind) for kind in (LlmCall, ToolCall, Error, Stop)] == [1, 1, 2, 2]
    (call,) = [event for event in read.events if isinstance(event, LlmCall)]
    assert call.calls == 3
    assert read.end is not None
    assert (read.end.length, read.end.costs["llm_calls"]) == (200, 3)
    second = run_trace(tmp_path, lambda: math.inf)
    assert second.path != path


# Labels that come later.


def test_labels_go_to_a_sidecar_once(tmp_path: Path) -> None:
    store = AnnotationStore(tmp_path / "annotations.sqlite")
    key = JudgeKey("p1", "get the key", "model", "direct", "{}")
    answers = {-5: Answer(1, 0.9, "yes", 0.1), 2**62: Answer(0, None, "no \x00 </script>", 0.2)}

    def give(ids: list[int]) -> None:
        store.add_captions([(each, f"caption {each}") for each in ids])
        store.write(key, [LabelRecord(each, answers[each]) for each in ids])

    traces = tmp_path / "traces"
    traces.mkdir()
    assert copy_labels(tmp_path / "nothing.sqlite", traces) == 0
    give([-5])
    assert copy_labels(store.path, traces) == 1
    assert copy_labels(store.path, traces) == 0
    whole = (traces / FILE).read_bytes()
    give([2**62])
    assert copy_labels(store.path, traces) == 1
    labels = read_labels(traces)
    assert labels["-5"].probability == 0.9
    assert (labels[str(2**62)].answer, labels[str(2**62)].label) == (answers[2**62].raw, 0)
    assert labels["-5"].judge == "model"
    # Cut anywhere, the next copy mends it.
    mended = (traces / FILE).read_bytes()
    for size in range(len(whole), len(mended)):
        (traces / FILE).write_bytes(mended[:size])
        assert copy_labels(store.path, traces) == 1
        assert read_labels(traces) == labels
    assert trace_files(traces) == []
    store.close()


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
    assert {event.child for event in read.events if isinstance(event, Spawn)} == {"learner", "actor-00"}
    assert any(isinstance(event, WeightsUpdate) for event in read.events)
    assert any(isinstance(event, ToolCall) and event.tool == "checkpoint" for event in read.events)
    assert read.end is not None
    assert read.end.length >= 2000
