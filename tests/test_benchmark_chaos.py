"""The fault campaign: its schedule, and that its audit finds what it is there to find."""

import itertools
import re
import shutil
import sqlite3
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.chaos import audit
from benchmarks.chaos.curves import curve, learning
from benchmarks.chaos.schedule import SHARES, Kind, schedule
from benchmarks.chaos.training import Seen, digest, labels_of
from benchmarks.rule_judge import RuleServer
from learner.checkpoint import latest_checkpoint, load_state
from orchestration.cli.main import run as yendor
from orchestration.configuration import read_config
from orchestration.traces.reader import read_trace, run_traces, trace_files
from orchestration.traces.run_trace import RunTrace


def test_a_schedule_is_the_seeds_and_has_every_kind() -> None:
    one, again, other = schedule(1, 400, Kind), schedule(1, 400, Kind), schedule(2, 400, Kind)
    assert one == again != other
    counted = Counter(fault.kind for fault in one)
    assert set(counted) == set(Kind)
    total = sum(share.weight for share in SHARES.values())
    for kind, share in SHARES.items():
        expected = 1 + (400 - len(Kind)) * share.weight / total
        assert abs(counted[kind] - expected) < 5 * expected**0.5, kind
    for fault in one:
        least, most = SHARES[fault.kind].hold_s
        assert least <= fault.hold_s <= most and 0 <= fault.choice < 1
    assert 1.5 < sum(fault.wait_s for fault in one) / 400 < 2.5
    assert {fault.kind for fault in schedule(0, 3, {Kind.CUT})} == {Kind.CUT}
    with pytest.raises(ValueError, match=f"{len(Kind) - 1} faults of {len(Kind)} kinds"):
        schedule(0, len(Kind) - 1, Kind)


def _curve(*successes: float | None) -> list[tuple[int, float | None, float | None]]:
    return [(50_000 * (n + 1), success, 10.0 * n) for n, success in enumerate(successes)]


def test_a_learning_curve_is_held_against_the_spread_of_runs_without_faults() -> None:
    # Means 0.5, 0.6 and 0.7 over two marks: one more such run is above 0.6 - 2.920 x 0.1 x sqrt(4 / 3) = 0.2628 19 times of 20.
    without = [_curve(0.4, 0.6), _curve(0.5, 0.7, 1.0), _curve(0.6, 0.8)]
    above = learning(_curve(0.23, 0.30, 0.0), without)
    assert above.endswith("noise bound 0.263: not below by more than noise"), "its third mark is one that others lack"
    below = learning(_curve(0.22, 0.30), without)
    assert "0.260 with faults; without, 3 seeds: 0.500 0.600 0.700, mean 0.600" in below
    assert below.endswith("noise bound 0.263: below by more than noise")
    # A mark that one lacks is left out for all: 0.3 against 0.6, 0.7 and 0.8.
    assert "mean success at 1 marks of 50,000 steps: 0.300 with" in learning(_curve(None, 0.30), without)
    returns = [[(steps, None, got) for steps, _, got in one] for one in without]
    assert learning([(50_000, None, -1.0)], returns).startswith("learning curve, mean return at 1 marks")
    wide = [_curve(0.1), _curve(0.5), _curve(0.9)]  # 0.5 - 2.920 x 0.4 x sqrt(4 / 3) = -0.85
    assert learning(_curve(0.0), wide).endswith("too few runs without faults to tell")
    for told in (learning(_curve(0.9), without[:1]), learning([], without)):
        assert "nothing to compare" in told


def test_a_curve_is_read_at_the_first_line_after_each_mark() -> None:
    lines = [
        {"env_steps": steps, "metrics": {"episode/success": steps / 1000, "episode/return": None}}
        for steps in (10, 90, 110, 120, 205, 290)
    ]
    assert curve(lines, 100) == [(110, 0.11, None), (205, 0.205, None)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run whose episodes are all traced."""
    folder = tmp_path_factory.mktemp("chaos")
    with RuleServer() as judge:
        keys = [
            "env.id=minihack/KeyRoom-S5", "runtime=serial", "actors.envs=4", "actors.rollout_length=16", "learner.batch_size=64",
            "train.env_steps=2048", "trace.rate=1", "judge.engine=openai", "judge.model=rules", f"judge.url={judge.url}",
            "reward.w_int=0.3", "env.options.max_episode_steps=40",
        ]  # fmt: skip
        assert yendor(["train", *keys, f"run.dir={folder}", "run.name=run", "--plain"]) == 0
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def seen_in(run: Path) -> Seen:
    seen = Seen(labels=labels_of(run / "annotations.sqlite"))
    seen.traces = {path.name: digest(path) for path in trace_files(run)}
    assert len(seen.labels) > 2 and len(seen.traces) > 10
    return seen


def test_a_run_that_nothing_happened_to_passes(run: Path) -> None:
    seen = seen_in(run)
    assert audit.labels(run, seen, []).holds
    assert audit.finished_traces(run, seen).holds
    assert audit.valid_traces(run).holds
    assert audit.samples(run).holds


def test_a_label_that_is_lost_or_changed_is_found(run: Path) -> None:
    seen = seen_in(run)
    one, other = sorted(seen.labels)[:2]
    with sqlite3.connect(run / "annotations.sqlite") as store:
        store.execute("DELETE FROM labels WHERE caption_id = ?", (one,))
    found = audit.labels(run, seen, ["a", "b", "a"])
    assert not found.holds and "1 lost, 0 changed; 1 answered again" in found.detail
    with sqlite3.connect(run / "annotations.sqlite") as store:
        store.execute("UPDATE labels SET label = 1 - label WHERE caption_id = ?", (other,))
    assert "1 lost, 1 changed" in audit.labels(run, seen, []).detail


def test_a_trace_that_is_lost_changed_or_broken_is_found(run: Path) -> None:
    seen = seen_in(run)
    gone, spoiled, *_ = trace_files(run)
    gone.unlink()
    assert "1 lost, 0 changed" in audit.finished_traces(run, seen).detail
    spoiled.write_bytes(spoiled.read_bytes()[:-20])
    found = audit.finished_traces(run, seen)
    assert not found.holds and "1 lost, 1 changed" in found.detail
    valid = audit.valid_traces(run)
    assert not valid.holds and "1 not valid" in valid.detail and spoiled.name in valid.detail


def test_a_step_that_is_counted_twice_or_missing_is_found(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newest = latest_checkpoint(run / "checkpoints")
    assert newest is not None
    state = load_state(newest)
    state["learner"]["learner"]["trained_samples"] += 7
    monkeypatch.setattr(audit, "load_state", lambda path: state)
    found = audit.samples(run)
    assert not found.holds and found.detail.endswith("-7 missing")


@pytest.fixture
def played(run: Path) -> Path:
    """The run as if each of its 32 calls of 64 steps had come long after the one before."""
    for path in run_traces(run):
        path.unlink()
    actor = trace_files(run)[0].name.partition("-env")[0]
    now = itertools.count(0.0, 10.0)
    trace = RunTrace(
        run / "traces", run="run", env_id="minihack/KeyRoom-S5", env_options={}, seed=0, policy="fast", policy_version=0,
        reward_model_version=None, code_revision=None, count_exponent=None, on_trouble=pytest.fail, clock=lambda: next(now),
    )  # fmt: skip
    trace.spawned(actor, "actor")
    for _ in range(2048 // 64):
        trace.returned(actor, trace.delegated(actor), 0.1, steps=64)
    trace.end("done", 2048, None)
    return run


def test_steps_that_traces_lack_or_have_too_many_of_are_found(played: Path) -> None:
    config = read_config(played / "config.yaml")
    slack = config.actors.in_flight * 64 + 64
    """Two calls that are on their way, and what the actor brought in its last seconds."""
    found = audit.steps_of_traces(played, config)
    assert found.holds and "1 actors without an interrupted episode brought 2,048, traced 2,048;" in found.detail

    # Newest first, over the environments in turn: none is missing between two that are there.
    newest = sorted(trace_files(played), key=lambda path: path.name.partition("-ep")[2], reverse=True)
    kept = {path: path.read_bytes() for path in newest}
    missing = 0
    for path in newest[:20]:
        missing += len(read_trace(path).steps)
        path.unlink()
        found = audit.steps_of_traces(played, config)
        assert found.holds is (missing <= slack) and f"traced {2048 - missing:,};" in found.detail, missing
    assert missing > slack and f"fewer than can be: {{'actor-00': {missing}}}" in found.detail
    for path, content in kept.items():
        path.write_bytes(content)

    # One in the midst of an environment's is an interrupted one: of those, no more than the longest can be missing each.
    oldest = sorted(kept, key=lambda path: path.name.partition("-ep")[2])
    for path in oldest[: len(oldest) - 8]:
        path.unlink()
    assert audit.steps_of_traces(played, config).holds
    for path, content in kept.items():
        path.write_bytes(content)

    # Steps that are in two traces are more than were brought.
    twice, added = oldest[0], 0
    for number in range(100, 110):
        added += len(read_trace(twice).steps)
        twice.with_name(re.sub("-ep[0-9]+", f"-ep{number:06d}", twice.name)).write_bytes(kept[twice])
        found = audit.steps_of_traces(played, config)
        assert ("more than can be: none" in found.detail) is (added <= config.actors.in_flight * 64)
