"""The interpreter of Z-machine stories, and the texts that a TextWorld game prints, taken apart."""

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.captions import normalise

WON, LOST = "*** The End ***", "*** You lost! ***"
"""What Inform prints when a game of TextWorld is over."""

_STATUS = re.compile(r"\s*>? {20,}-= [^\n]* =--?\d+/\d+\s*\Z|\s*>\s*\Z")
"""The prompt and the status line at the bottom of the interpreter's screen."""
_BLOCK = re.compile(r"<(description|inventory|score|moves)>\n(.*?)</\1>", re.DOTALL)
"""What the game prints beside its answer once `tw-extra-infos` has asked for it."""
_EVENT = re.compile(r"\[([^\]]+)\]\n?")
"""Inform's trace of the actions that are tried; games print no other brackets."""
_SUCCEEDED = " - succeeded"
_AFTER_END = re.compile(r"\s*Would you like to RESTART.*\Z", re.DOTALL)
_BLANK_LINES = re.compile(r"[ \t]*\n\s*\n")
_HEADER = re.compile(r"-= (.+?) =-")
_SCORE_LINES = re.compile(r"Your score has (?:just )?gone (?:up|down) by [^.]*\.|You scored [^\n]*")

_SPEAK_UP = ("tw-extra-infos description", "tw-extra-infos inventory", "tw-extra-infos score", "tw-trace-actions")
"""What makes a game print all that `Told` holds, from now on."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the game said to one command, taken apart."""

    feedback: str
    """The answer itself, without prompt, status line and blank lines."""
    description: str | None
    """The room, as `look` tells it; None where the game did not say it (a command that it did not carry out)."""
    inventory: str | None
    score: int | None
    events: tuple[str, ...]
    """The actions that succeeded, in Inform's words and order."""

    @property
    def won(self) -> bool:
        return WON in self.feedback

    @property
    def lost(self) -> bool:
        return LOST in self.feedback


def take_apart(raw: str) -> Told:
    """What the screen `raw` says. Rooms and possessions are printed after the answer, the end of a game after them."""
    blocks: dict[str, str] = {}

    def keep(match: re.Match[str]) -> str:
        blocks[match[1]] = _tidy(_EVENT.sub("", match[2]))
        return ""

    text = _BLOCK.sub(keep, _STATUS.sub("", raw))
    tried = _EVENT.findall(text)
    done = [event.removesuffix(_SUCCEEDED) for event in tried if event.endswith(_SUCCEEDED)]
    score = blocks.get("score")
    return Told(
        feedback=_tidy(_AFTER_END.sub("", _EVENT.sub("", text))),
        description=blocks.get("description"),
        inventory=blocks.get("inventory"),
        score=None if score is None else int(score.split()[0]),
        events=tuple(event for event in done if "(" not in event),  # in brackets: a part of another action
    )


def caption_of(feedback: str) -> str:
    """What a judge is told of an answer: the same words whenever the same thing happens.

    A room that is entered or looked at stands by its name alone, as what lies there changes; points and counts of turns
    are left out, as they would tell the judge the reward.
    """
    text, rooms = feedback, _HEADER.findall(feedback)
    if rooms:
        text = " ".join([feedback.partition("-= ")[0], *(f"-= {room} =-" for room in rooms)])
    return normalise(_SCORE_LINES.sub(" ", text))


def _tidy(text: str) -> str:
    lines = "\n".join(line.strip() for line in text.split("\n"))
    return _BLANK_LINES.sub("\n", lines).strip()


class Interpreter:
    """Frotz (through jericho) with one story loaded at a time."""

    def __init__(self) -> None:
        self._frotz: Any = None

    def start(self, story: Path, seed: int) -> Told:
        """Loads `story` and starts it, its random numbers drawn from `seed` (at least 1); returns what holds then.

        The game prints room, possessions and score after each command that it carries out, and traces its actions.
        """
        import jericho

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", jericho.UnsupportedGameWarning)  # TextWorld's games are none of its list
            if self._frotz is None:
                self._frotz = jericho.FrotzEnv(str(story), seed)
            else:
                self._frotz._cache.clear()  # it would keep every story that it ever loaded
                self._frotz.close()
                self._frotz.load(str(story), seed)
        for command in _SPEAK_UP[:-1]:  # loading has started the story too
            self.send(command)
        return take_apart(self.send(_SPEAK_UP[-1]))

    def send(self, command: str) -> str:
        """The screen after `command`, which must be printable ASCII and shorter than 198 characters: a NUL would make
        Frotz wait for input for ever, and it cuts longer lines off."""
        return str(self._frotz.step(command)[0])

    def close(self) -> None:
        if self._frotz is not None:
            self._frotz.close()
            self._frotz = None
