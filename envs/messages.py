"""NetHack's message line: which of the lines that it showed during one step are news, and what they add up to.

One step of an environment is often several key presses (a macro, a `--More--` that is passed over, a question that is
declined), and each shows its own line. NetHack clears the line at every key, so a line that is not empty was said anew.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from envs.captions import normalise

_REFUSALS = re.compile(
    r"^(?:Never mind|You can(?:not|'t)\b|You don't have (?:that|anything)|It's (?:a wall|solid stone|an obstacle)"
    r"|Unknown command|What a strange direction|There is nothing here to pick up|There isn't anything here"
    r"|This door is locked|Nothing to (?:eat|drink)|You don't know any spells|You are carrying too much to get through"
    r"|There is (?:nobody|no one) here to (?:pay|receive)|You do not owe)"
)
"""How the lines begin with which NetHack 3.6 declines a command (cmd.c, hack.c, invent.c, eat.c, lock.c, shk.c)."""

_KILLS = re.compile(r"\bYou (?:kill|destroy) ")
"""mon.c, xkilled(): "You kill" the living and "You destroy" the rest."""

_TYPED = re.compile(r"^#($| )")
"""The line on which an extended command is typed (win/tty/getline.c)."""

_DISORDER = re.compile(
    r"""Can't open '\w+' file\.?|Program in disorder!(?: \([^)]*\))?"""
    r"""|[^.!?"]*whispers: "NetHack rumors file closed for renovation\.\""""
)
"""What NetHack says of its own files (pline.c, impossible(); rumors.c). MiniHack's data file holds nothing but a level,
so the key of KeyRoom, which would whisper a rumour when it is used, finds none."""

_CHOICE = re.compile(r"\? \[[^\]]*\](?: \(.\))?(?: .)?$")
"""How a question ends that lists its answers, also when it is shown once more with the answer behind it."""


@dataclass(frozen=True, slots=True)
class Said:
    """What the game said during one step."""

    caption: str
    """The distinct lines in their order, joined by a space, normalised; questions only where nothing else was said."""
    refused: bool
    """Whether something was said, and each line of it declined the command."""
    kills: int
    """How often the lines report a kill by the agent."""


NOTHING = Said("", False, 0)


def text_of(raw: bytes) -> str:
    """The text of a zero-terminated message buffer (NetHack's own character set is a subset of Latin-1)."""
    return normalise(raw.partition(b"\0")[0].decode("latin-1"))


def _question(raw: bytes) -> str:
    """The text of a question without what has been typed so far in answer to it."""
    text = text_of(raw)
    return text if _CHOICE.search(text) else text.partition("?")[0] + "?"


@lru_cache(maxsize=8192)
def compose(statements: tuple[bytes, ...], questions: tuple[bytes, ...]) -> Said:
    """What a step's lines add up to, each given as a raw message buffer, in the order in which they were shown."""
    lines = [text for raw in statements if (text := text_of(raw)) and not _TYPED.match(text)]
    said = [text for text in lines if not _CHOICE.search(text)]
    news = [text for text in said if not text.startswith("Never mind")]
    asked = [text for raw in questions if not _TYPED.match(text := _question(raw))]
    return Said(
        caption=normalise(_DISORDER.sub(" ", " ".join(dict.fromkeys(news or said or asked)))),
        refused=bool(said) and all(_REFUSALS.match(text) for text in said),
        kills=sum(len(_KILLS.findall(text)) for text in said),
    )
