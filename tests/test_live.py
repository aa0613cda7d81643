"""The live view: what it shows, and that it fits a small terminal."""

import dataclasses
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from orchestration.live import PLAIN_INTERVAL_S, LiveView, duration, final_summary, panel, plain_line
from orchestration.summary import CaptionScore, HackingFlag, RewardWatchReport, Status, Summary

BUSY = Summary(
    "demo",
    "minihack/KeyRoom-S15",
    status=Status.RUNNING,
    env_steps=412_000,
    target_env_steps=1_000_000,
    wall_s=93,
    eta_s=133,
    steps_per_second=5120,
    episodes=3211,
    return_mean=0.79,
    success_rate=0.83,
    intrinsic_return_mean=1.31,
    episode_length_mean=84,
    captions_unique=231,
    captions_labelled=220,
    captions_failed=1,
    captions_dropped=7,
    labels_per_second=12.1,
    judge_status="down",
    judge_error="connection refused by 127.0.0.1:8000, which nobody listens at, and that takes more than a line",
    reward_model_version=5,
    reward_model_accuracy=0.97,
    policy_version=201,
    policy_lag_mean=1.2,
    policy_lag_max=4,
    samples_dropped=64,
    actors=2,
    actor_restarts=1,
    env_errors=3,
    waits={
        "actor": {"env": 0.52, "policy": 0.30, "other": 0.08, "wait": 0.1},
        "learner": {"train": 0.8, "rewards": 0.05, "wait": 0.15},
        "reward server": {"annotate and distil": 0.7},
        "coordinator": {"wait": 0.95},
    },
    success_first_tenth=0.05,
    success_last_tenth=0.92,
    return_first_tenth=0.04,
    return_last_tenth=0.9,
    liked=(CaptionScore("You see here a key.", 0.99, 1234),),
    disliked=(CaptionScore("It's a wall. " * 30, 0.01, 99_999),),
    checkpoint="runs/demo/checkpoints/412000",
)


def rendered(renderable: object) -> list[str]:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text().splitlines()


def test_what_stands_still_is_shown() -> None:
    since = {"actor-03": 1000.0, "learner": 940.0, "judge": 1001.0, "trace writer of actor-00": 1002.0}
    short = {"disk of runs/x": "only 900 MiB free in runs/x; remove old runs", "memory of one": "only 1.0 GiB free"}
    summary = dataclasses.replace(BUSY, standing_still=since, running_out=short, updated=1005.0)
    lines = rendered(panel(summary))
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    assert "learner for 1:05, actor-03 for 0:05 and 2 more" in "\n".join(lines)
    assert "disk of runs/x: only 900 MiB free" in "\n".join(lines) and "(+1)" in "\n".join(lines)
    assert "stands still: learner for 1:05" in plain_line(summary)


def test_nethacks_measures_and_a_flag_fit_too_and_are_told() -> None:
    flag = HackingFlag("You close the door. It opens again.", ("grows",), 0.62, 0.5, 1.5, "success", 0.31, 0.3)
    measures = {
        "dungeon_level": 3.2,
        "gold": 120.0,
        "experience_level": 4.2,
        "score": 1234.5,
        "scout": 812.0,
        "kills": 12,
    }
    summary = dataclasses.replace(
        BUSY, episode_metrics=measures, reward_watch=RewardWatchReport(100, 0.62, 0.9, 0.5, True, (flag, flag))
    )
    lines = rendered(panel(summary, "▁▂▃▄▅▆▇█" * 4, tuple(Text(f"12:00:0{n} actor 0 was replaced") for n in range(3))))
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    told = " ".join(" ".join(line.strip("│ ") for line in lines).split())
    for text in (told, plain_line(summary)):
        assert (
            "62% of intrinsic return from 'You close the door. It open…', 0.50 → 1.50; success 0.31 → 0.30 (+1)" in text
        )
    assert "depth 3.2 · gold 120 · level 4.2 · scout 812 · kills 12.0" in told


def test_the_panel_fits_80_by_24_and_tells_all() -> None:
    events = tuple(Text(f"12:00:0{n} actor 0 was replaced") for n in range(3))
    lines = rendered(panel(BUSY, "▁▂▃▄▅▆▇█" * 4, events))
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for part in (
        "412,000 of 1,000,000 steps · 2:13 left",
        "5,120 steps/s",
        "3,211 episodes",
        "2 actors, 1 restarted",
        "0.83",
        "intrinsic 1.31",
        "231 seen · 220 labelled · 1 failed · 7 dropped",
        "down",
        "connection refused",
        "v5, 97% right",
        "lag 1.2, at most 4",
        "env 52% · policy 30%",
        "waits for trajectories 15%",
        "was replaced",
    ):
        assert part in text, part


def test_an_empty_snapshot_is_shown_too() -> None:
    assert "0 of 0 steps" in "\n".join(rendered(panel(Summary("demo", "x"))))
    assert "judge off" in plain_line(Summary("demo", "x"))


def test_square_brackets_in_names_and_captions_are_text() -> None:
    odd = dataclasses.replace(BUSY, liked=(CaptionScore("[bold]You read [/red]", 1, 1),), judge_error="[/]")
    assert "[bold]You read [/red]" in "\n".join(rendered(final_summary(odd, "runs/demo", "demo")))
    rendered(panel(odd))


def test_the_final_summary_says_what_came_of_it_and_what_to_type() -> None:
    ended = dataclasses.replace(BUSY, status=Status.INTERRUPTED)
    text = "\n".join(rendered(final_summary(ended, "runs/demo", "demo", "yendor train demo --resume")))
    for part in (
        "demo: interrupted",
        "0.05 in the first tenth of the run, 0.92 in the last (+0.87)",
        "0.99  You see here a key.  (1,234 times)",
        "runs/demo",
        "yendor train demo --resume",
        "yendor eval demo",
        "yendor trace ls demo",
        "tensorboard --logdir runs/demo/tensorboard",
    ):
        assert part in text, part
    done = dataclasses.replace(BUSY, status=Status.DONE)
    assert "--resume" not in "\n".join(rendered(final_summary(done, "a", "demo", "yendor train demo --resume")))


def test_a_failure_says_why() -> None:
    failed = dataclasses.replace(BUSY, status=Status.FAILED, error="RuntimeError: the disk is full")
    assert "RuntimeError: the disk is full" in "\n".join(rendered(final_summary(failed, "a", "demo")))


def test_without_a_terminal_there_is_a_line_now_and_then(tmp_path: Path) -> None:
    now, out = [0.0], io.StringIO()
    with LiveView(Console(file=out, width=80), clock=lambda: now[0]) as view:
        view.log_to(tmp_path / "events.log")
        for second in range(25):
            now[0] = float(second)
            view.update(BUSY)
        view.event("checkpoint at 412,000 steps")
        view.event("judge is [down]", warning=True)
    *lines, event, warning = out.getvalue().splitlines()
    assert len(lines) == 1 + 24 // PLAIN_INTERVAL_S
    assert all(line == plain_line(BUSY) for line in lines)
    assert (event, warning) == ("checkpoint at 412,000 steps", "warning: judge is [down]")
    logged = [line.split(" ", 2)[2] for line in (tmp_path / "events.log").read_text().splitlines()]
    assert logged == [event, warning]


def test_on_a_terminal_there_is_a_panel_and_it_is_taken_down() -> None:
    out = io.StringIO()
    with LiveView(Console(file=out, width=80, height=24, force_terminal=True)) as view:
        view.update(BUSY)
        view.event("checkpoint written")
    assert "412,000 of 1,000,000" in out.getvalue()
    assert "checkpoint written" in out.getvalue()


def test_an_event_from_a_signal_handler_waits_for_the_loop() -> None:
    """Printing inside a handler would break a print that it interrupts."""
    out = io.StringIO()
    with LiveView(Console(file=out)) as view:
        view.event("stopping")
        assert out.getvalue() == ""
        view.update(BUSY)
        assert out.getvalue().startswith("stopping\n")
        view.event("last")
    assert out.getvalue().endswith("last\n")


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_durations_read_back(seconds: int) -> None:
    total = 0
    for part in duration(seconds).split(":"):
        total = total * 60 + int(part)
    assert total == seconds


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (75, "1:15"), (4000, "1:06:40")])
def test_durations_as_people_write_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
