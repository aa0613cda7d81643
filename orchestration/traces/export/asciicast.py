"""asciicast v2: the terminal of an episode, for asciinema and its players.

Source: https://docs.asciinema.org/manual/asciicast/v2/.
"""

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Any, BinaryIO

import orjson

from orchestration.errors import TraceError
from orchestration.traces.export.episode import Episode, environment
from orchestration.traces.export.text import finite, printable, unicode
from orchestration.traces.schema import EnvReset, EnvStep

_MIN_WIDTH, _MAX_WIDTH = 80, 200
_MIN_HEIGHT, _MAX_HEIGHT = 24, 100
_CLEAR = "\x1b[0m\x1b[H\x1b[2J"
_HIDE_CURSOR = "\x1b[?25l"
_DEFAULT_COLOR = "7"


def write(episodes: Iterable[Episode], file: BinaryIO, pace: float | None = None) -> None:
    """Writes one episode: a frame for each screen, a marker for each reward.

    Frames come when they came in the episode, or `pace` of them a second. Lines that are longer than the terminal is
    wide are wrapped, and what does not fit on it is left out with a note.
    """
    (episode,) = episodes
    shown = [event for event in episode.events if isinstance(event, EnvReset | EnvStep)]
    if not shown:
        raise TraceError(f"{episode.path}: no environment steps in it, so there is no terminal to show")
    width = _clamp(max((len(line) for event in shown for line in event.screen.split("\n")), default=0), "width")
    screens = [_wrapped(event.screen, event.colors, width) for event in shown]
    height = _clamp(max(map(len, screens)), "height")
    header = {
        "version": 2,
        "width": width,
        "height": height,
        "timestamp": int(finite(episode.header.recorded_at) or 0),
        "title": f"{unicode(episode.header.episode_id, 200)} · {environment(episode.header)[:200]}",
        "env": {"TERM": "xterm-256color"},
    }
    _line(file, header)
    _line(file, [0.0, "o", _HIDE_CURSOR])
    for at, (event, screen) in enumerate(zip(shown, screens, strict=True)):
        t = round(event.t if pace is None else at / pace, 6)
        # An observation that was not kept leaves the one before it on the terminal.
        if event.screen:
            _line(file, [t, "o", _CLEAR + "\r\n".join(_frame(screen, height))])
        if isinstance(event, EnvStep) and event.reward != 0:
            _line(file, [t, "m", f"step {event.step}: reward {event.reward:g}"])


def _line(file: BinaryIO, value: Any) -> None:
    file.write(orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE))


def _clamp(size: int, axis: str) -> int:
    least, most = (_MIN_WIDTH, _MAX_WIDTH) if axis == "width" else (_MIN_HEIGHT, _MAX_HEIGHT)
    return max(least, min(most, size))


def _wrapped(screen: str, colors: str, width: int) -> list[tuple[str, str]]:
    """Lines that fit in `width`, each with its colours; no more of them than tell that they do not fit the terminal."""
    lines: list[tuple[str, str]] = []
    # Split no further than is shown: a screen may have a million lines.
    for text, shades in zip_longest(
        screen.split("\n", _MAX_HEIGHT + 1), colors.split("\n", _MAX_HEIGHT + 1), fillvalue=""
    ):
        for start in range(0, max(len(text), 1), width):
            if len(lines) > _MAX_HEIGHT:
                return lines
            lines.append((text[start : start + width], shades[start : start + width]))
    return lines


def _frame(lines: list[tuple[str, str]], height: int) -> Iterator[str]:
    shown = lines if len(lines) <= height else lines[: height - 1]
    for text, shades in shown:
        yield _colored(printable(text), shades)
    if len(shown) < len(lines):
        yield "… more than the terminal shows"


def _colored(text: str, shades: str) -> str:
    out: list[str] = []
    before = _DEFAULT_COLOR
    for character, shade in zip_longest(text, shades[: len(text)], fillvalue=_DEFAULT_COLOR):
        if shade != before:
            out.append(_select(shade))
            before = shade
        out.append(character)
    return "".join(out) + (_select(_DEFAULT_COLOR) if before != _DEFAULT_COLOR else "")


def _select(shade: str) -> str:
    """The escape sequence that selects one of the terminal's 16 colours, given as a hexadecimal digit."""
    if shade == _DEFAULT_COLOR or shade not in "0123456789abcdef":
        return "\x1b[0m"
    number = int(shade, 16)
    return f"\x1b[{30 + number if number < 8 else 82 + number}m"
