"""The benchmarks run, at sizes that say nothing, so that they do not rot."""

import argparse
import contextlib
import io
import json
import random
import subprocess
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import (
    attribution,
    demo,
    evidence_credit,
    evidence_minihack,
    evidence_runs,
    evidence_score,
    evidence_textworld,
    learners,
    pairs,
    startup,
    trace_index,
)
from benchmarks.plot import learning_curves
from benchmarks.runs import measured
from learner.language.small import SmallModel, small_model
from orchestration.cli.main import run as yendor


@pytest.fixture
def here(monkeypatch):
    """Commands that a comparison makes are carried out in this process: each would spend seconds on imports."""

    def train(folder, name, *arguments, timeout_s=0.0):
        with contextlib.redirect_stdout(io.StringIO()):
            words = ["train", *arguments, f"run.dir={folder}", f"run.name={name}", "--overwrite", "--plain"]
            assert yendor(words) == 0
        return measured(folder / name, arguments)

    def command(words, check, stdout, stderr, text=None):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            assert words[1:3] == ["-m", "orchestration.cli.main"] and yendor(words[3:]) == 0
        return subprocess.CompletedProcess(words, 0, printed.getvalue())

    monkeypatch.setattr(evidence_runs, "train", train)
    processes = SimpleNamespace(run=command, PIPE=subprocess.PIPE, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr(evidence_textworld, "subprocess", processes)


def test_curves_are_an_image_that_hides_nothing():
    svg = learning_curves({"a <b>": [[(0, 0.0), (50, None), (100, 1.0)]], "c": [[(0, 0.5), (100, 0.5)]]}, "success")
    root = ET.fromstring(svg)
    lines = [e.attrib["points"] for e in root.iter() if e.tag.endswith("polyline")]
    assert len(lines) == 2 and lines[0].split() == ["56.0,294.0", "700.0,20.0"]
    assert any(e.text == "a <b>" for e in root.iter())


@pytest.mark.slow
def test_the_demo_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "KINDS", {"reward.w_int=0": ["reward.w_int=0"]})
    sizes = [
        "train.env_steps=512",
        "actors.envs=8",
        "actors.rollout_length=16",
        "learner.batch_size=128",
        "runtime=serial",
    ]
    demo.main(tmp_path, 1, *sizes)
    assert "| reward.w_int=0 |" in capsys.readouterr().out
    assert (tmp_path / "demo.svg").read_text().startswith("<svg")


def test_the_start_of_commands_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(startup, "TRAINING", {})
    startup.main(tmp_path, "--repeats", "1")
    assert "| `yendor --help` |" in capsys.readouterr().out
    assert all(0 < each[0] < 60 for each in json.loads((tmp_path / "startup.json").read_text()).values())


def test_the_index_of_traces_is_measured(tmp_path, capsys):
    trace_index.main(tmp_path, "--episodes", "500", "--repeats", "2")
    out = capsys.readouterr().out
    assert "500 episodes" in out and "| of it: question, order, rows |" in out
    asked = json.loads((tmp_path / "trace_index.json").read_text())
    rows = [trace_index.episode(number, draw) for draw in [random.Random(0)] for number in range(500)]
    assert asked["found"] == sum(row["success"] and row["length"] < 50 for row in rows) > 0
    # A process that does nothing is quicker than one that asks; a question that was asked is not asked again.
    assert len(asked["command_s"]) == 2 and max(asked["python_s"]) < min(asked["command_s"])


def test_several_learners_are_measured(tmp_path, capsys):
    learners.main(tmp_path, "--networks", "fast", "--batches", "96", "--repeats", "1")
    assert "| fast | 96 | 2 |" in capsys.readouterr().out
    alone, two = json.loads((tmp_path / "learners.json").read_text())
    assert alone["exchange"] == 0.0 < two["exchange"] < 1.0 and min(two["samples_per_s"]) > 0


def test_informative_pairs_find_more_of_the_order_where_few_captions_matter():
    """Four pairs a caption. At half of that there is no difference to be seen: docs/reward_models.md has all figures."""
    strength = pairs.strengths()["rare"]
    gains = [
        pairs.accuracy("informative", strength, 240, seed) - pairs.accuracy("uniform", strength, 240, seed)
        for seed in range(5)
    ]
    assert sum(gains) / len(gains) > 0.0


@pytest.mark.slow
def test_reward_models_are_compared_and_kept(tmp_path, capsys, monkeypatch, here):
    small = ("actors.envs=8", "actors.rollout_length=16", "learner.batch_size=128", "runtime=serial")
    options = [
        "--models",
        "extrinsic",
        "rnd",
        "--tasks",
        "minihack/KeyRoom-S5",
        "--seeds",
        "1",
        "--steps",
        "512",
    ]
    options += ["--set", *(f"all:{key}" for key in small)]
    evidence_minihack.main(tmp_path, *options)
    first = capsys.readouterr().out
    assert all(f"| minihack/KeyRoom-S5 | {model} |" in first for model in ("extrinsic", "rnd"))
    found = json.loads((tmp_path / "evidence_minihack.json").read_text())
    assert [(run["model"], run["env_steps"]) for run in found] == [("extrinsic", 512), ("rnd", 512)]
    assert (tmp_path / "evidence_minihack-KeyRoom-S5.svg").read_text().count("<polyline") == 2
    monkeypatch.setattr(evidence_runs, "train", None)  # what finished is not run again
    evidence_minihack.main(tmp_path, *options)
    assert capsys.readouterr().out == first


@pytest.mark.slow
def test_nethacks_score_is_compared_with_a_random_policy_on_held_out_games(tmp_path, capsys, here):
    small = ("actors.envs=4", "actors.rollout_length=16", "learner.batch_size=64", "runtime=serial", "actors.count=1")
    small += ("env.options.max_episode_steps=40",)
    options = ["--models", "extrinsic", "rnd", "--seeds", "1", "--steps", "256", "--episodes", "3"]
    evidence_score.main(tmp_path, *options, "--set", *(f"all:{key}" for key in small))
    shown = capsys.readouterr().out
    held = json.loads((tmp_path / "evidence_score-held_out.json").read_text())
    assert [(each["policy"], each["episodes"]) for each in held] == [("random", 3), ("extrinsic", 3), ("rnd", 3)]
    assert all(f"| {each['policy']} | " in shown for each in held)
    assert evidence_runs.model_of("classification@50") == "classification@50"
    with pytest.raises(argparse.ArgumentTypeError, match="MODEL@LABELS"):
        evidence_runs.model_of("extrinsic@50")


@pytest.mark.slow
def test_ways_of_giving_credit_are_compared(tmp_path, capsys, here):
    small = ("actors.envs=8", "actors.rollout_length=16", "learner.batch_size=128", "runtime=serial", "actors.count=1")
    options = ["--kinds", "vtrace", "spa+grounding", "--seeds", "1", "--steps", "512"]
    evidence_credit.main(tmp_path, *options, "--set", *(f"all:{key}" for key in small))
    shown = capsys.readouterr().out
    assert all(f"| minihack/KeyRoom-S5 | {kind} |" in shown for kind in ("vtrace", "spa+grounding"))
    found = json.loads((tmp_path / "evidence_credit.json").read_text())
    assert [(run["model"], run["env_steps"]) for run in found] == [(kind, 512) for kind in ("vtrace", "spa+grounding")]


def test_ranks_and_areas_are_those_of_their_definitions():
    rng = np.random.default_rng(0)
    for _ in range(50):
        x, y = rng.integers(5, size=(2, 12)).astype(float)
        by_counting = np.array([(x < each).sum() + ((x == each).sum() + 1) / 2 for each in x])
        np.testing.assert_allclose(attribution.ranks(x), by_counting)
        expected = np.corrcoef(attribution.ranks(x), attribution.ranks(y))[0, 1]
        assert attribution.spearman(x, y) == pytest.approx(expected)
        pairs = [(a > b) + 0.5 * (a == b) for a in x[y > 2] for b in x[y <= 2]]
        assert attribution.auc(x, y > 2) == pytest.approx(np.mean(pairs))
    assert attribution.spearman(np.ones(4), np.arange(4.0)) == 0.0
    assert attribution.auc(np.arange(3.0), np.ones(3, bool)) is None


@pytest.mark.long
def test_attributions_are_compared_with_the_planners_truth(tmp_path, capsys):
    spec = SmallModel(
        games=2,
        episodes=2,
        hidden_size=32,
        layers=2,
        heads=2,
        head_dim=16,
        intermediate_size=32,
        repeat_tokens=48,
        drills=8,
    )
    model = small_model(spec, cache=tmp_path)
    options = ["--model", str(model), "--episodes", "60", "--test", "20", "--steps", "40", "--seeds", "1"]
    attribution.main(tmp_path, *options)
    assert "| outcome: all at the end |" in capsys.readouterr().out
    rows = {row["name"]: row for row in json.loads((tmp_path / "attribution.json").read_text())}
    assert [row for row in rows if rows[row]["explained"] is not None] == [row for row in rows if row.startswith("spa")]
    assert len(rows) == 5 and all(-1 <= row["within"] <= 1 and 0 <= row["auc"] <= 1 for row in rows.values())


@pytest.mark.slow
def test_language_models_are_compared_on_games_that_none_of_them_saw(tmp_path, capsys, here):
    options = {"cache_dir": ".cache/test-games"}
    sizes = {"hidden_size": 32, "layers": 2, "heads": 2, "head_dim": 16, "intermediate_size": 32, "repeat_tokens": 48}
    model = small_model(SmallModel(games=2, episodes=2, drills=8, options=options, **sizes), cache=tmp_path)
    given = ["--model", str(model), "--world", "w1-o1-q1", "--seeds", "1", "--demonstrations", "2", "--episodes", "8"]
    given += [
        "--games",
        "3",
        "--fresh",
        "2",
        "--set",
        "env.options.cache_dir=.cache/test-games",
        "--set",
        "env.tasks=3",
    ]
    given += [
        "--set",
        "env.options.max_episode_steps=2",
        "--set",
        "learner.threads=1",
        "--set",
        "agent.engine=transformers",
    ]
    given += [
        "--sft",
        "sft.epochs=1",
        "--rl",
        "runtime=serial",
        "--rl",
        "language.batch_episodes=4",
        "--rl",
        "actors.envs=4",
    ]
    folder = tmp_path / "evidence"
    folder.mkdir()
    evidence_textworld.main(folder, *given, "--algorithms", "ppo")
    assert capsys.readouterr().out.count("| ppo | ") == 1
    found = json.loads((folder / "evidence_textworld.json").read_text())["results"]
    assert [row["name"] for row in found] == ["random", "sft", "ppo"]
    assert all(0 <= row["success"] <= 1 and 0 <= row["fresh"] <= 1 for row in found)
    # Two demonstrations cost 20 episodes of `train.episodes`, so that 8 are left to play, in updates of 4.
    assert [row["train_episodes"] for row in found] == [0, 0, 8]
    evidence_textworld.main(folder, *given, "--algorithms", "ppo")
    again = json.loads((folder / "evidence_textworld.json").read_text())["results"]
    assert again == found, "what is there is not run again"
    with pytest.raises(SystemExit, match="holds results of other settings"):
        evidence_textworld.main(folder, *given, "--temperature", "1.0")
