"""asciicast: what is exported is played on a terminal emulator, and looks as the episode did."""

import json
from pathlib import Path
from typing import Any

import pyte
import pytest

from orchestration.errors import TraceError
from orchestration.traces.export import export
from orchestration.traces.export.text import printable
from orchestration.traces.schema import EnvReset, EnvStep
from tests.trace_export_support import HOSTILE, end, header, rich_trace, write_trace

COLORS = {
    "0": "black", "1": "red", "2": "green", "3": "brown", "4": "blue", "5": "magenta", "6": "cyan", "7": "default",
    "8": "brightblack", "9": "brightred", "a": "brightgreen", "b": "brightbrown", "c": "brightblue",
    "d": "brightmagenta", "e": "brightcyan", "f": "brightwhite",
}  # fmt: skip
"""pyte's names."""


def cast(path: Path, **options: Any) -> tuple[dict[str, Any], list[tuple[float, str, str]]]:
    out = export([path], "asciicast", path.parent / "out.cast", **options).out
    head, *rest = [json.loads(line, parse_constant=pytest.fail) for line in out.read_bytes().decode().splitlines()]
    return head, [(t, code, data) for t, code, data in rest]


def frames(path: Path, **options: Any) -> list[tuple[float, pyte.Screen]]:
    """The terminal after each frame, and when."""
    head, rest = cast(path, **options)
    shown: list[tuple[float, pyte.Screen]] = []
    for at, (t, code, _) in enumerate(rest):
        if code == "o" and at:
            screen = pyte.Screen(head["width"], head["height"])
            stream = pyte.Stream(screen)
            for _, other, data in rest[: at + 1]:
                if other == "o":
                    stream.feed(data)
            shown.append((t, screen))
    return shown


def lines(screen: pyte.Screen) -> list[str]:
    return "\n".join(line.rstrip() for line in screen.display).rstrip("\n").split("\n")


def one_screen(folder: Path, screen: str, colors: str = "") -> Path:
    reset = EnvReset(id="r", seq=0, t=0.0, agent="a", parents=(), observation_hash="", screen=screen, colors=colors)
    return write_trace(folder, [header(), reset, end(1)])


def test_it_shows_every_screen_when_it_came(tmp_path: Path) -> None:
    path = rich_trace(tmp_path)
    assert [(t, lines(screen)) for t, screen in frames(path)] == [
        (0.0, ["@.", ".."]),
        (3.0, [".@", "a plan"]),
        (4.0, ["..", ".@"]),
    ]


def test_at_a_fixed_pace_frames_come_evenly(tmp_path: Path) -> None:
    assert [t for t, _ in frames(rich_trace(tmp_path), pace=4)] == [0, 0.25, 0.5]


def test_the_header_is_that_of_version_2(tmp_path: Path) -> None:
    head, rest = cast(rich_trace(tmp_path))
    assert head["version"] == 2
    assert (head["width"], head["height"], head["timestamp"]) == (80, 24, 1_700_000_000)
    assert [t for t, *_ in rest] == sorted(t for t, *_ in rest)
    assert [(t, data) for t, code, data in rest if code == "m"] == [(4.0, "step 1: reward 1.5")]


def test_all_sixteen_colours_are_those_of_the_terminal(tmp_path: Path) -> None:
    digits = "0123456789abcdef"
    ((_, screen),) = frames(one_screen(tmp_path, "x" * 18 + "\nplain", f"{digits}3"))
    found = [screen.buffer[0][column].fg for column in range(18)]
    assert found == [*(COLORS[digit] for digit in digits), "brown", "default"]
    assert screen.buffer[1][0].fg == "default"


@pytest.mark.parametrize("said", HOSTILE[:2], ids=["script", "controls"])
def test_no_text_moves_the_cursor_or_sets_the_title(tmp_path: Path, said: str) -> None:
    ((_, screen),) = frames(one_screen(tmp_path, f"before\n{said}\nafter"))
    assert lines(screen) == ["before", printable(said), "after"]
    assert screen.title == ""


def test_a_megabyte_is_wrapped_and_cut_with_a_note(tmp_path: Path) -> None:
    for text in (HOSTILE[3], "\n" * 1_000_000, "y\n" * 500_000):
        path = one_screen(tmp_path, f"first\n{text}", "1" * 1000)
        head, _ = cast(path)
        assert (tmp_path / "out.cast").stat().st_size < 100_000
        ((_, screen),) = frames(path)
        assert lines(screen)[0] == "first"
        assert lines(screen)[-1] == "… more than the terminal shows"
        assert len(lines(screen)) == head["height"] == 100


def test_long_lines_are_wrapped(tmp_path: Path) -> None:
    ((_, screen),) = frames(one_screen(tmp_path, "a" * 250 + "\nb"))
    assert lines(screen) == ["a" * 200, "a" * 50, "b"]


def test_a_screen_that_was_not_kept_leaves_the_one_before(tmp_path: Path) -> None:
    step = EnvStep(
        id="s", seq=1, t=1.0, agent="a", parents=("r",), step=0, action=0, action_name="north", log_prob=None, value=None,
        reward=0.0, policy_version=0, observation_hash="", screen="",
    )  # fmt: skip
    reset = EnvReset(id="r", seq=0, t=0.0, agent="a", parents=(), observation_hash="", screen="@")
    assert len(frames(write_trace(tmp_path, [header(), reset, step, end(2)]))) == 1


def test_what_has_no_terminal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no environment steps in it"):
        cast(write_trace(tmp_path, [header(), end(0)]))
