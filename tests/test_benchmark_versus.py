"""The comparison with Sample Factory: what is asked of it, and what is made of its answers. It does not run here."""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from benchmarks import versus
from benchmarks.sample_factory import environment
from benchmarks.sample_factory.runs import Progress, SampleFactoryRun, Setting, flags, run_bounded, train
from benchmarks.versus import Comparison, Rates, compare, rate, shares, table
from orchestration.config import Config
from orchestration.configuration.loader import load_config


def as_dict(given: list[str]) -> dict[str, str]:
    return dict(flag.removeprefix("--").split("=", 1) for flag in given)


def test_steady_rate_starts_after_the_warm_up_and_counts_only_where_the_count_moves() -> None:
    # Slow for 10 s, then 100 steps/s in batches of 200, with lines in between that bring nothing.
    slow = [Progress(t, 10 * t) for t in range(11)]
    quick = [Progress(10.0 + t, 100 + 200 * (t // 2)) for t in range(1, 41)]
    assert rate([*slow, *quick], warm_up_s=10.0, seconds=20.0) == pytest.approx(100.0)


def test_a_window_that_is_too_short_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"only 3\.0 s of the 20\.0 s"):
        rate([Progress(t, 1 + t) for t in range(9)], warm_up_s=5.0, seconds=20.0)
    with pytest.raises(RuntimeError, match=r"only 0\.0 s"):
        rate([], warm_up_s=0.0, seconds=1.0)


@pytest.mark.parametrize("setting", versus.CANDIDATES, ids=[s.name for s in versus.CANDIDATES])
def test_every_candidate_plays_the_same_games_with_the_same_batch(setting: Setting) -> None:
    config = load_config("nethack_score", ("agent.network=oni", *versus.KEYS))
    given = as_dict(flags(config, setting))
    groups = int(given["num_workers"]) * int(given["num_envs_per_worker"])
    games = groups * int(given["games"]) if given["batched_sampling"] == "True" else groups
    assert games == config.actors.count * config.actors.envs == 64
    assert int(given["batch_size"]) == 2048 and int(given["rollout"]) == 32
    assert (given["serial_mode"], given["async_rl"]) == {
        "asynchronous": ("False", "True"),
        "synchronous": ("False", "False"),
        "serial": ("True", "False"),
    }[setting.mode]


def test_settings_of_learning_are_those_of_the_configuration() -> None:
    given = as_dict(flags(load_config("nethack_score", ("learner.learning_rate=0.002",)), Setting("serial")))
    assert float(given["learning_rate"]) == 0.002
    assert float(given["gamma"]) == 0.99 and float(given["exploration_loss_coeff"]) == 0.003
    # w_ext clip(s r, ±10) with w_ext = s = 0.1, written the other way round.
    scale, bound = float(given["reward_scale"]), float(given["reward_clip"])
    for reward in (-500.0, -50.0, 3.0, 99.0, 101.0):
        theirs = max(-bound, min(bound, scale * reward))
        assert theirs == pytest.approx(0.1 * max(-10.0, min(10.0, 0.1 * reward)))


def test_games_that_cannot_be_divided_are_an_error() -> None:
    config = load_config("nethack_score", ("actors.envs=10",))
    with pytest.raises(ValueError, match="10 games cannot be divided among 2 workers x 2 splits"):
        flags(config, Setting("asynchronous", workers=2, splits=2))


def test_the_quickest_setting_is_compared_run_by_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick, slow = Setting("asynchronous", workers=2, splits=2), Setting("serial")
    order: list[str] = []
    plain = dataclasses.replace(quick, plain=True)
    slow_plain = dataclasses.replace(slow, plain=True)
    speeds = {quick.name: iter([50.0, 40.0, 80.0]), slow.name: iter([30.0])}
    speeds |= {plain.name: iter([20.0, 20.0, 30.0]), slow_plain.name: iter([10.0])}

    def theirs(folder: Path, config: Config, setting: Setting, seconds: float) -> SampleFactoryRun:
        order.append(setting.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "profile.json").write_text(json.dumps({"runner": {"main_loop": 4.0}, "Learner": {"train": 1.0}}))
        speed = next(speeds[setting.name])
        return SampleFactoryRun((), tuple(Progress(t, int(speed * (t + 1))) for t in range(int(seconds) + 1)), {})

    def ours(folder: Path, name: str, network: str, keys: Sequence[str], seconds: float) -> Rates:
        order.append(name)
        return Rates(f"yendor train {network}", (120.0,))

    monkeypatch.setattr(versus.sample_factory, "train", theirs)
    monkeypatch.setattr(versus, "measure_ours", ours)
    found = compare(tmp_path, "fast", 20.0, 2, 10.0, candidates=(slow, quick), ours={"yendor": ()})
    searched = [slow.name, quick.name, plain.name, slow_plain.name]
    assert order == [*searched, "yendor-0-0", quick.name, plain.name, "yendor-0-1", quick.name, plain.name]
    assert found.theirs.each == (40.0, 80.0) and found.theirs.median == 60.0
    assert found.ratio("yendor") == pytest.approx((120 / 40 + 120 / 80) / 2)
    assert found.ratio("yendor", plain=True) == pytest.approx((120 / 20 + 120 / 30) / 2)
    assert "Learner: train 25%" in table(found)
    assert json.loads(json.dumps(versus.as_json(found)))["ratio"]["yendor"] == pytest.approx(2.25)


def test_shares_leave_out_what_takes_no_time() -> None:
    profile = {"runner": {"main_loop": 10.0}, "A": {"x": 5.0, "y": 0.1}, "B": {"z": 0.0}}
    assert shares(profile) == {"A": {"x": 0.5}}


def test_table_has_a_row_for_each_system() -> None:
    ours, theirs, plain = Rates("c", (20.0, 30.0, 25.0)), Rates("d", (10.0,) * 3), Rates("e", (5.0,) * 3)
    rows = table(Comparison("oni", {"serial": 10.0}, {"yendor": ours}, theirs, plain, {})).splitlines()
    assert rows[2] == "| yendor | 20, 30, 25 | 25 | 40% | 2.50 | 5.00 |"
    assert rows[3] == "| Sample Factory, our encoder module | 10, 10, 10 | 10 | 0% | 1 | |"
    assert rows[4] == "| Sample Factory, plain network | 5, 5, 5 | 5 | 0% | | 1 |"


def test_a_run_that_fails_names_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Our own environment has no Sample Factory.
    monkeypatch.setattr(environment, "python", lambda: Path(sys.executable))
    with pytest.raises(RuntimeError, match=r"exited with 1: ModuleNotFoundError: No module named 'sample_factory'"):
        train(tmp_path, load_config("nethack_score"), Setting("serial"), 1.0)


def test_a_run_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    child = f"import subprocess, sys; subprocess.run([{sys.executable!r}, '-c', 'import time; time.sleep(600)'])"
    assert run_bounded([sys.executable, "-c", child], tmp_path / "log", os.environ, 1.0) is None
    left = [p for p in psutil.process_iter(["cmdline"]) if "import time; time.sleep(600)" in (p.info["cmdline"] or [])]
    # One that was killed may still be on its way out; by itself it would sleep on.
    assert psutil.wait_procs(left, timeout=10)[1] == []


@pytest.mark.parametrize(("native", "count"), [(False, 1), (True, 2)])
def test_fp32_is_measured_once(monkeypatch: pytest.MonkeyPatch, native: bool, count: int) -> None:
    monkeypatch.setattr("learner.precision.cpu_has_bfloat16", lambda: native)
    assert len(versus.variants()) == count


def test_no_repeats_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        versus.main(tmp_path, "--repeats", "0")
    assert "--repeats must be at least 1, not 0" in capsys.readouterr().err
