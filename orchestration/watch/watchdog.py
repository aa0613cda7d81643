"""Says which parts of a run stand still. Pure: what is seen of processes and of answers comes in, what to tell goes out.

A part that has just answered works. One that has not for a while is looked at: it stands still where a process of it is
stopped, or where it owes an answer and nothing of it does anything. How long an answer takes says nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from orchestration.watch.processes import ProcessLook

SILENT_S = 1.5
"""A part that has answered within so long is not looked at."""
IDLE_S = 2.5
"""So long a part owes an answer and does nothing before it is told."""


@dataclass(frozen=True, slots=True)
class Watched:
    """A part of the run as the coordinator knows it."""

    name: str
    silent_s: float
    """Since its last answer."""
    owes: bool
    """Whether an answer of it is awaited."""


@dataclass(frozen=True, slots=True)
class Unreachable:
    """The machine of a part does not answer."""

    machine: str


class What(Enum):
    """Happened to a part."""

    STANDS_STILL = auto()
    GOES_ON = auto()
    TOO_LONG = auto()
    """It has stood still for as long as it may."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to tell."""

    what: What
    name: str
    part: str
    """Whose process it is: the trace writer belongs to an actor."""
    why: str
    seconds: float
    """That it has stood still."""
    pids: tuple[int, ...] = ()
    """With TOO_LONG, the processes to end; those of the part's first process are to be added where it is the part itself."""


@dataclass(frozen=True, slots=True)
class Still:
    """A part that stands still."""

    part: str
    since: float
    why: str


_Found = tuple[str, tuple[int, ...] | None]
"""Why something stands still, and the processes; None where they are out of reach."""


class Watchdog:
    """Remembers what stands still."""

    def __init__(self, too_long_s: float | None, clock: Callable[[], float]) -> None:
        self._too_long_s = too_long_s
        self._clock = clock
        self.still: dict[str, Still] = {}
        """By name of what stands still."""
        self._owes_since: dict[str, float] = {}
        """Before that a part had nothing to do."""

    def suspects(self, parts: Sequence[Watched]) -> list[Watched]:
        """The parts that have to be looked at."""
        named = {still.part for still in self.still.values()}
        return [part for part in parts if part.silent_s >= SILENT_S or part.name in named]

    def forget(self, part: str) -> None:
        """The part was ended: one in its place begins anew."""
        self.still = {name: still for name, still in self.still.items() if still.part != part}

    def look(self, parts: Sequence[Watched], looks: Mapping[str, ProcessLook | Unreachable]) -> list[Finding]:
        """What is new. `looks`: of the suspects among `parts`, by name; one that was not looked at stays as it was."""
        now = self._clock()
        findings: list[Finding] = []
        present = {part.name: part for part in parts}
        for name, still in list(self.still.items()):
            if still.part not in present:  # let go, or replaced
                del self.still[name]
        self._owes_since = {part.name: self._owes_since.get(part.name, now) for part in parts if part.owes}
        for part in parts:
            look = looks.get(part.name)
            if part.silent_s < SILENT_S and not isinstance(look, ProcessLook):
                found: dict[str, _Found] = {}
            elif look is None:
                continue
            else:
                found = _stands_still(part, look, now - self._owes_since.get(part.name, now))
            findings += self._compare(part.name, found, now)
        return findings

    def _compare(self, part: str, found: Mapping[str, _Found], now: float) -> list[Finding]:
        findings: list[Finding] = []
        for name, still in [each for each in self.still.items() if each[1].part == part]:
            if name not in found:
                del self.still[name]
                findings.append(Finding(What.GOES_ON, name, part, still.why, now - still.since))
        for name, (why, pids) in found.items():
            known = self.still.get(name)
            if known is None:
                self.still[name] = Still(part, now, why)
                findings.append(Finding(What.STANDS_STILL, name, part, why, 0.0))
            elif pids is not None and self._too_long_s is not None and now - known.since >= self._too_long_s:
                findings.append(Finding(What.TOO_LONG, name, part, why, now - known.since, pids))
        return findings


def _stands_still(part: Watched, look: ProcessLook | Unreachable, owes_s: float) -> dict[str, _Found]:
    """What of a part stands still, by name; `owes_s`: so long an answer is awaited."""
    if isinstance(look, Unreachable):
        # Ray gives up machines that do not answer, and their parts with them.
        return {part.name: (f"its machine, {look.machine}, does not answer", None)} if part.owes else {}
    found: dict[str, _Found] = {}
    if look.stopped:
        pids = ", ".join(str(pid) for pid in look.stopped)
        found[part.name] = (f"process {pids} is stopped (SIGSTOP, a debugger)", look.stopped)
    elif look.writer_stopped is None and part.silent_s >= SILENT_S and min(look.idle_s, owes_s) >= IDLE_S:
        found[part.name] = ("it owes an answer, and its processes do nothing", ())
    if look.writer_stopped is not None:
        # What waits for the writer does nothing either.
        name = f"trace writer of {part.name}"
        found[name] = (f"process {look.writer_stopped} is stopped (SIGSTOP, a debugger)", (look.writer_stopped,))
    return found
