"""Warns of what runs out while a run goes: disk, memory, the object store's room, clocks that drift apart.

Each is told once when it begins, again when half of what was left then is gone too, and when it is over.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestration.faults import Faults
from orchestration.live import LiveView
from orchestration.machine import available_memory, free_disk, gibibytes, total_memory
from orchestration.traces.room import Room

_LOOK_S = 2.0
_DISK = 1 << 30
_MEMORY_SHARE = 0.08
"""Ray ends processes of a machine from 95 % of its memory on; without Ray the kernel does, later."""
SKEW_S = 1.0
_OVER = 1.25
"""A shortage is over from so much more than where it began."""
_SPILL_QUIET_S = 60.0
_TRACES = "traces"


@dataclass(slots=True)
class _Short:
    """Of something that is told to run out."""

    left: float
    """When it was last told."""
    words: str


class Backstops:
    """Of one run. What is short now stands in `Faults.running_out`."""

    def __init__(
        self, faults: Faults, view: LiveView, traces: Room, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._faults = faults
        self._view = view
        self._traces = traces
        self._clock = clock
        self._short: dict[str, _Short] = {}
        self._due = clock()
        self._spilled: dict[str, tuple[int, float]] = {}
        """Of each machine: bytes, and when they last grew."""

    def look_here(self, *, force: bool = False) -> None:
        """Looks at this machine: its memory, and the disk of the run's folder. Cheap: loops may call it as they like."""
        now = self._clock()
        if now < self._due and not force:
            return
        self._due = now + _LOOK_S
        folder = self._traces.folder.parent
        self.disk(f"disk of {folder}", folder, free_disk(folder))
        self.memory("this machine", available_memory(), total_memory())

    def disk(self, name: str, place: Path, free: int) -> None:
        """The file system of the run's folder has `free` bytes left."""
        reserve = self._traces.reserve
        advice = f"below {_size(reserve)} no traces are written; remove old runs, or files beside them"
        self._level(name, free, max(min(_DISK, 2 * self._traces.share), 2 * reserve), f"free in {place}", advice)
        if free < reserve and _TRACES not in self._short:
            words = f"they give way to checkpoints and labels, as only {_size(free)} are free in {place}"
            self._begin(_TRACES, 0.0, words)
        elif free > _OVER * reserve and _TRACES in self._short:
            self._end(_TRACES)

    def temporary(self, machine: str, free: int) -> None:
        """Where Ray keeps its files `free` bytes are left."""
        self._level(
            f"temporary disk of {machine}", free, _DISK // 2, "free for Ray's files", "remove old sessions (/tmp/ray)"
        )

    def memory(self, machine: str, free: int, total: int) -> None:
        """Bytes of memory of a machine."""
        advice = "processes are ended when nothing is left; take fewer actors.envs, actors.count or judge.replicas"
        self._level(f"memory of {machine}", free, _MEMORY_SHARE * total, f"of {gibibytes(total)} free", advice)

    def spilled(self, machine: str, spilled: int) -> None:
        """Bytes that the object store of a machine has written to disk so far, for want of room. What it had before the
        first look may be of earlier runs on the cluster."""
        name, now = f"object store of {machine}", self._clock()
        before, grew_at = self._spilled.get(name, (spilled, 0.0))
        if spilled > before:
            grew_at = now
        self._spilled[name] = (spilled, grew_at)
        if spilled > before and name not in self._short:
            self._begin(
                name, 0.0, f"it spills to disk, {_size(spilled)} so far, which is slow and fills the disk; take fewer "
                "actors.in_flight, or start Ray with a larger --object-store-memory",
            )  # fmt: skip
        elif name in self._short and now - grew_at > _SPILL_QUIET_S:
            self._end(name)

    def clock(self, machine: str, ahead: float, error: float) -> None:
        """The clock of a machine is `ahead` of the coordinator's by so many seconds, give or take `error`."""
        name, off = f"clock of {machine}", abs(ahead) - error
        if off > SKEW_S and name not in self._short:
            direction = "ahead of" if ahead > 0 else "behind"
            self._begin(
                name, 0.0, f"{abs(ahead):.1f} s {direction} the coordinator's, so times of traces and logs do not compare; "
                "let NTP (chrony) set it",
            )  # fmt: skip
        elif name in self._short and abs(ahead) < SKEW_S:
            self._end(name)

    def forget(self, machine: str) -> None:
        """The machine is gone."""
        for name in [name for name in self._short if name.endswith(f" of {machine}")]:
            self._end(name)

    def _level(self, name: str, left: float, enough: float, word: str, advice: str) -> None:
        known = self._short.get(name)
        if (known is None and left < enough) or (known is not None and left < known.left / 2):
            self._begin(name, left, f"only {_size(left)} {word}; {advice}")
        elif known is not None and left > _OVER * enough:
            self._end(name)

    def _begin(self, name: str, left: float, words: str) -> None:
        self._short[name] = _Short(left, words)
        self._faults.running_out[name] = words
        self._view.event(f"{name}: {words}", warning=True)

    def _end(self, name: str) -> None:
        del self._short[name], self._faults.running_out[name]
        self._view.event(f"{name}: enough again")


def _size(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB" if size < 2**30 else gibibytes(int(size))
