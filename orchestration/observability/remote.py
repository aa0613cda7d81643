"""Hands a run's numbers to a service from a thread, so that a slow or absent one never holds up the training."""

import contextlib
import queue
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import orjson

from orchestration.errors import MetricsError, first_line
from orchestration.files import write_atomically
from orchestration.metrics import MetricsLine
from orchestration.summary import Status

_BACKLOG = 4096
"""Lines that may wait for a service; more are lost."""
_AT_ONCE = 16
_CLOSE_S = 30.0


class Tracker(Protocol):
    """A run as a service has it. May block and raise; is used by one thread at a time."""

    name: str
    run_id: str
    """By which the service knows the run, now and when it is resumed."""

    def log(self, lines: Sequence[MetricsLine]) -> None: ...

    def close(self, status: Status) -> None: ...


class RemoteRun:
    """The file that remembers under which id a service has the run, and up to which step it was told."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.run_id: str | None = None
        self.env_steps = -1
        """Of the last line that was told, -1: none."""
        try:
            known = orjson.loads(path.read_bytes())
            self.run_id, self.env_steps = str(known["run_id"]), int(known["env_steps"])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise MetricsError(f"{path}: cannot be read: {error}; without it the service gets a new run") from error

    def save(self, run_id: str, env_steps: int) -> None:
        """Replaces the file."""
        self.run_id, self.env_steps = run_id, env_steps
        write_atomically(self._path, orjson.dumps({"run_id": run_id, "env_steps": env_steps}))


class RemoteSink:
    """The queue before a `Tracker`, and the thread behind it.

    Lines that the service was told before a resume are not told again: it keeps what it heard first.
    """

    def __init__(self, tracker: Tracker, remembered: RemoteRun) -> None:
        self._tracker = tracker
        self._remembered = remembered
        self._told_before = remembered.env_steps if remembered.run_id == tracker.run_id else -1
        self._status = Status.FAILED
        self._lines: queue.Queue[MetricsLine | None] = queue.Queue(_BACKLOG)
        self.errors = 0
        """Lines that were lost, and failures to end well."""
        self.trouble: str | None = None
        """Of the first of them."""
        remembered.save(tracker.run_id, self._told_before)
        self._thread = threading.Thread(target=self._work, name=tracker.name, daemon=True)
        self._thread.start()

    def put(self, line: MetricsLine) -> None:
        """Hands on `line` in due time; never waits."""
        if line.env_steps <= self._told_before:
            return
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._failed(1, f"{_BACKLOG} lines wait")

    def close(self, status: Status) -> None:
        """Tells what still waits, and how the run ended; gives up after `_CLOSE_S` seconds."""
        self._status = status
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=_CLOSE_S)
        self._thread.join(_CLOSE_S)
        if self._thread.is_alive():
            self._failed(1, f"did not take the last lines in {_CLOSE_S:.0f} s")

    def _work(self) -> None:
        ended = False
        while not ended:
            lines, ended = self._take()
            if lines:
                self._tell(lines)
        try:
            self._tracker.close(self._status)
        except Exception as error:
            self._failed(1, first_line(error))

    def _take(self) -> tuple[list[MetricsLine], bool]:
        """The lines that wait, a few at most, and whether there will be no more."""
        lines: list[MetricsLine] = []
        line = self._lines.get()
        while line is not None:
            lines.append(line)
            if len(lines) == _AT_ONCE or self._lines.empty():
                return lines, False
            line = self._lines.get_nowait()
        return lines, True

    def _tell(self, lines: Sequence[MetricsLine]) -> None:
        # Whatever a client library raises is no reason to end a run; it is counted, and told once.
        try:
            self._tracker.log(lines)
            self._remembered.save(self._tracker.run_id, lines[-1].env_steps)
        except Exception as error:
            self._failed(len(lines), first_line(error))

    def _failed(self, count: int, why: str) -> None:
        self.errors += count
        self.trouble = self.trouble or f"{self._tracker.name}: {why}"
