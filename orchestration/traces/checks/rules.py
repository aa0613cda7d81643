"""The rules of a valid trace, and what a fault against one is."""

from collections.abc import Mapping
from dataclasses import dataclass

RULES: Mapping[str, str] = {
    "form": "every line is a record of the schema",
    "cut": "a finished file is whole",
    "name": "the file bears the name of its episode",
    "header": "one header, at the beginning; scope is episode or run; a branch names parent and step",
    "seed": "seeds are decimal numbers below 2^64 (but `game`, which names one)",
    "clock": "`unpinned`, or `pinned:` and the second that the seeds tell, which follows from `core`",
    "versions": "the packages that decide about the world are named",
    "end": "exactly one end, at the end; why it was kept is known; nothing is played after a fatal error or a stop",
    "seq": "events are numbered from 0 without a gap",
    "id": "no id is used twice",
    "acyclic": "parents come before their children, so the graph has no cycle; only the first event has none",
    "time": "times never go back, durations are not negative; the wall clock's are between 1970 and 2200",
    "finite": "numbers are finite",
    "reset": "an episode begins with its only env_reset",
    "step": "steps are numbered from 0 without a gap; actions bear their names; a call chooses the next step's action",
    "observation": "hashes are hexadecimal, and only the last may be missing; colours are, too, and fit to their screen",
    "version": "a step acts with the weights in force, and updates go on from them",
    "text": "the text of every caption and reference stands before its use, once, and its name fits",
    "count": "captions are counted as they come",
    "probability": "log-probabilities are at most 0, probabilities from 0 to 1",
    "call": "a model's call tells prompt and answer, as token ids or texts",
    "pair": "every result has one call before it, of the same tool; a call is answered, unless who was called is stopped",
    "label": "an annotation is about a caption or an event",
    "reward": "rewards name earlier events, and what the environment paid is what the steps tell",
    "components": "components add up to the total of the same events, and to the end's sums",
    "cost": "costs add up, and the wall clock's is the end's time",
    "late": "what the run says of an episode later can be read",
    "totals": "the end counts events, steps and return as they are; it has one reason",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, where, and against which of `RULES`."""

    line: int | None
    """From 1; None for the file as a whole."""
    rule: str
    message: str

    def __str__(self) -> str:
        where = "" if self.line is None else f"line {self.line}: "
        return f"{where}{self.message} [{self.rule}]"
