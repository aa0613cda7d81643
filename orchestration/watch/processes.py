"""Which processes of this machine stand still. Reads Linux's /proc; elsewhere nothing is seen.

A part of a run is a process and all below it. It stands still where one of its processes is stopped (SIGSTOP, a
debugger), and it is idle where none used a processor, waited for one or for a disk. A part that is slow but works (an
engine that loads, a compiler, a checkpoint on a slow disk) is neither.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_IDLE_SHARE = 0.03
"""Of one processor: what an idle process of Ray spends on signs of life stays below."""
_GAP_S = 1.0
"""Where two looks are further apart who looks was kept from it, and who is looked at may have been as well."""
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_STOPPED = frozenset("Tt")
_WORKING = frozenset("RD")
TRACE_WRITER = "orchestration.traces.writers"
"""What the command of a process holds that writes an actor's traces."""


@dataclass(frozen=True, slots=True)
class ProcessLook:
    """How a part stood when it was looked at."""

    idle_s: float
    """So long it has done nothing; 0: it works, or was looked at for the first time."""
    stopped: tuple[int, ...] = ()
    """Its processes that are stopped, but for the writer of its traces."""
    writer_stopped: int | None = None
    """The process that writes its traces, where that is stopped."""


@dataclass(frozen=True, slots=True)
class _Process:
    parent: int
    state: str
    ticks: int
    """That it ran."""


@dataclass(slots=True)
class _Seen:
    at: float
    ticks: int
    idle_since: float | None


class ProcessWatch:
    """Looks at parts of a run again and again, and remembers how they stood."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[int, _Seen] = {}

    def look(self, pids: Iterable[int]) -> dict[int, ProcessLook]:
        """How each part, named by its first process, stands; one that is gone is left out."""
        wanted = set(pids)
        self._seen = {pid: seen for pid, seen in self._seen.items() if pid in wanted}
        if not wanted:
            return {}
        table = dict(_processes())
        children: dict[int, list[int]] = {}
        for pid, process in table.items():
            children.setdefault(process.parent, []).append(pid)
        return {pid: self._one(pid, table, children) for pid in wanted if pid in table}

    def _one(self, pid: int, table: dict[int, _Process], children: dict[int, list[int]]) -> ProcessLook:
        tree = [pid]
        for member in tree:  # grows meanwhile
            tree += children.get(member, ())
        stopped = [member for member in tree if table[member].state in _STOPPED]
        writer = next((member for member in stopped if member != pid and _is_writer(member)), None)
        ticks = sum(table[member].ticks for member in tree)
        idle_s = self._idle(pid, ticks, lambda: any(_works(member) for member in tree))
        return ProcessLook(idle_s, tuple(member for member in stopped if member != writer), writer)

    def _idle(self, pid: int, ticks: int, works: Callable[[], bool]) -> float:
        now, before = self._clock(), self._seen.get(pid)
        if before is None:
            self._seen[pid] = _Seen(now, ticks, None)
            return 0.0
        spent = (ticks - before.ticks) / _TICKS
        # Threads are looked at last, as there may be hundreds.
        near = now - before.at <= _GAP_S
        idle = near and 0 <= spent <= max(_IDLE_SHARE * (now - before.at), 1 / _TICKS) and not works()
        since = (before.at if before.idle_since is None else before.idle_since) if idle else None
        self._seen[pid] = _Seen(now, ticks, since)
        return 0.0 if since is None else now - since


def kill(pids: Iterable[int]) -> None:
    """Ends processes at once, also those that are stopped."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _processes() -> Iterator[tuple[int, _Process]]:
    try:
        entries = os.listdir(_PROC)  # noqa: PTH208  names are all that is needed, a thousand times
    except OSError:
        return
    for entry in entries:
        if entry.isdigit() and (stat := _stat(f"/proc/{entry}/stat")) is not None:
            yield int(entry), _Process(int(stat[1]), stat[0], int(stat[11]) + int(stat[12]))


def _works(pid: int) -> bool:
    """Whether a thread of the process runs, waits for a processor or for a disk."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208
    except OSError:
        return False
    stats = (_stat(f"/proc/{pid}/task/{thread}/stat") for thread in threads)
    return any(stat is not None and stat[0] in _WORKING for stat in stats)


def _stat(path: str) -> list[str] | None:
    """The fields of a `stat` from the third (the state) on; None where the process is gone."""
    try:
        with open(path) as file:  # noqa: PTH123  as above
            return file.read().rpartition(")")[2].split()
    except OSError:
        return None


def _is_writer(pid: int) -> bool:
    try:
        return TRACE_WRITER in (_PROC / str(pid) / "cmdline").read_text(errors="replace")
    except OSError:
        return False
