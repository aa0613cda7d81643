"""`yendor trace show --credit`: an episode's attribution out of its trace and a checkpoint of its run."""

import dataclasses
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from learner.learner import NoIntrinsicReward
from orchestration.cli.main import app
from orchestration.configuration import load_config
from orchestration.configuration.loader import to_yaml
from orchestration.parts import LearnerPart, build_observer, build_rollout
from orchestration.traces.credit import credit_of, write_credited
from orchestration.traces.reader import read_trace, trace_files
from orchestration.traces.validate import validate_file
from orchestration.traces.view.document import episode_document

KEYS = (
    "run.name=small", "runtime=serial", "env.id=minihack/Room-5x5", "env.options.max_episode_steps=20", "actors.envs=4",
    "actors.rollout_length=16", "learner.batch_size=64", "trace.rate=1", "credit.min_episodes=1", "credit.publish_every=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A few updates with SPA, traced, and a checkpoint; what the learner paid each step, by episode."""
    folder = tmp_path_factory.mktemp("credit") / "small"
    config = load_config("minihack_spa", KEYS)
    rollout = build_rollout(config, 0, observer=build_observer(config, folder / "traces", 0))
    learner = LearnerPart(config, len(rollout.envs.env_spec.action_names))
    for _ in range(14):
        rollout.set_weights(learner.weights(), learner.learner.version)
        trajectory, report = rollout.collect()
        learner.feed(report.source, trajectory, report.new_captions, report.episodes)
    learner.checkpoint(folder / "checkpoints", 1, {"runtime": "serial"}, to_yaml(config), 1)
    rollout.close()
    return folder, learner


def finished(folder):
    return next(t for t in map(read_trace, trace_files(folder)) if t.end is not None and t.steps)


def test_the_sums_are_the_outcome(run):
    """`conserve`: the contributions that were paid sum to R; the components sum to the total; g_t is what the trace says."""
    folder, learner = run
    trace = finished(folder)
    found = credit_of(trace)
    assert found.progress_version == learner.learner.credit.estimator.version >= 1
    assert len(found.turns) == len(trace.steps) and found.outcome == float(trace.end.success)
    sums = found.sums()
    assert sums["progress"] == pytest.approx(found.outcome)
    assert sums["total"] == pytest.approx(
        sum(sums[name] for name in ("extrinsic", "intrinsic", "progress", "grounding"))
    )
    assert sums["extrinsic"] == pytest.approx(trace.end.episode_return)
    grounded = [turn.grounding for turn in found.turns]
    assert grounded == pytest.approx([0.001 * step.grounded for step in trace.steps])
    assert ("success" if trace.end.success else "no success") in found.turns[-1].why


def test_contributions_are_those_of_the_rollout(run):
    """Features made from the trace equal those made from the rollout's own observations, read in fragments."""
    folder, learner = run
    config = load_config("minihack_spa", KEYS)
    rollout = build_rollout(config, 0, observer=None)
    rollout.set_weights(learner.weights(), 1)
    trace = next(t for t in map(read_trace, trace_files(folder)) if t.header.episode_id.endswith("env000-ep000000"))
    expected = [turn.contribution for turn in credit_of(trace).turns]
    rollout.envs.reset()
    policy, credit = learner.learner.policy, learner.learner.credit
    import torch

    from learner.credit.online import turn_features

    state, found = policy.initial_state(1), []
    for at, step in enumerate(trace.steps):
        observation = {
            name: torch.from_numpy(np.array(array[:1]))[None] for name, array in rollout.envs.observation.items()
        }
        with torch.no_grad():
            output = policy(observation, torch.tensor([[at == 0]]), state)
        state = output.state[0]
        feature = turn_features(state, torch.tensor([step.action]), len(trace.header.action_names))
        found.append(credit.estimator.contributions(feature)[0][0])
        rollout.envs.step(np.full(4, step.action))
    rollout.close()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_copy_with_these_rewards_is_valid_and_drawn(run, tmp_path):
    folder, _ = run
    trace = finished(folder)
    found = credit_of(trace)
    path = write_credited(trace, found, tmp_path)
    assert validate_file(path) == []
    lanes = {(lane["source"], lane["part"]): lane["points"] for lane in episode_document(read_trace(path))["lanes"]}
    assert {("progress", "raw"), ("progress", "component"), ("grounding", "component"), ("fusion", "total")} <= set(
        lanes
    )
    raw = lanes["progress", "raw"]
    assert [value for _, value in raw] == pytest.approx([turn.contribution for turn in found.turns])
    assert [frame for frame, _ in raw] == list(range(1, len(trace.steps) + 1))
    with pytest.raises(Exception, match="says already what each step was paid"):
        write_credited(read_trace(path), found, tmp_path)


def test_the_command(run, tmp_path):
    folder, _ = run
    trace = finished(folder)
    runner = CliRunner()
    shown = runner.invoke(app, ["trace", "show", str(trace.path), "--credit"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert "estimator" in shown.output and "ĉ" in shown.output and "Σ" in shown.output
    assert runner.invoke(app, ["trace", "show", str(trace.path), "--limit", "3"]).exit_code == 0
    told = json.loads(
        runner.invoke(app, ["trace", "show", str(trace.path), "--credit", "--json", "--out", str(tmp_path)]).output
    )
    assert told["credit"]["outcome"] == float(trace.end.success)
    assert told["written"].startswith(str(tmp_path))


def test_what_cannot_be_attributed_says_why(run, tmp_path):
    folder, _ = run
    trace = finished(folder)
    lonely = dataclasses.replace(trace, path=tmp_path / "a" / "traces" / trace.path.name)
    with pytest.raises(Exception, match=r"holds no checkpoint with an estimator; name one with --checkpoint"):
        credit_of(lonely)
    with pytest.raises(Exception, match="is no checkpoint"):
        credit_of(trace, tmp_path)
    moved = dataclasses.replace(trace.header, seeds={**trace.header.seeds, "seed": "12345"})
    with pytest.raises(Exception, match="played again it differs at step"):
        credit_of(dataclasses.replace(trace, header=moved))
    plain = LearnerPart(load_config("minihack_spa", [*KEYS[:-2], "reward.w_prog=0", "reward.w_ground=0"]), 8)
    assert isinstance(plain.learner.intrinsic, NoIntrinsicReward) and plain.learner.credit is None
    config = load_config("minihack_spa", [*KEYS[:-2], "reward.w_prog=0", "reward.w_ground=0"])
    checkpoint = plain.checkpoint(tmp_path / "checkpoints", 1, {"runtime": "serial"}, to_yaml(config), 1)
    with pytest.raises(
        Exception, match=r"a run that attributes no credit \(credit.method=spa\+grounding, reward.w_prog=0\)"
    ):
        credit_of(trace, checkpoint)
