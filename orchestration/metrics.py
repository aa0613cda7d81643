"""Metrics of a run: `metrics.jsonl` and TensorBoard as it goes, `summary.json` as it stands.

Invariant: a line of `metrics.jsonl` keeps what depends on the clock (`time`) apart from what does not (`metrics`), so
two serial runs with one seed have equal `metrics`, and a resumed run equal to one that was never interrupted.
"""

import dataclasses
import io
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from orchestration.errors import MetricsError
from orchestration.files import GrowingFile, write_atomically
from orchestration.summary import Summary


@dataclasses.dataclass(frozen=True, slots=True)
class MetricsLine:
    """One line of `metrics.jsonl`."""

    env_steps: int
    metrics: Mapping[str, float | None]
    """Deterministic in the serial runtime. Null: not known or not finite."""
    time: Mapping[str, float | None]
    """Depends on the clock: `unix` (seconds since the epoch) always, durations and rates beside it."""


def scalars(line: MetricsLine) -> dict[str, float | None]:
    """The numbers of a line by the names that TensorBoard has for them: what depends on the clock is under `time/`."""
    return {**line.metrics, **{f"time/{name}": value for name, value in line.time.items() if name != "unix"}}


class MetricsWriter:
    """Appends to `metrics.jsonl` and to TensorBoard's event file. What cannot be written (a full disk) is written later.

    `resume_step`: the env_steps of the checkpoint that a run goes on from; lines past it are cut off, as they are
    written again. None starts the file anew.
    """

    def __init__(
        self,
        metrics: Path,
        tensorboard: Path | None,
        *,
        resume_step: int | None = None,
        interval_s: float = 2.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = metrics
        self._clock = clock
        self._interval_s = interval_s
        self._due_at = -math.inf
        try:
            kept = _lines_until(metrics, resume_step) if resume_step is not None and metrics.exists() else b""
            write_atomically(metrics, kept)
            self._file = GrowingFile(metrics)
        except OSError as error:
            raise MetricsError(f"{metrics}: cannot be written: {error.strerror}") from error
        self._events = None if tensorboard is None else EventFile(tensorboard, resume_step)

    @property
    def trouble(self) -> str | None:
        """Why lines wait to be written; None where none does."""
        error = self._file.trouble
        return None if error is None else f"{self._path}: cannot be written: {error.strerror}"

    def due(self) -> bool:
        """Whether `interval_s` went by since `due` last said so. Only for runtimes that need not be deterministic."""
        now = self._clock()
        if now < self._due_at:
            return False
        self._due_at = now + self._interval_s
        return True

    def log(
        self, env_steps: int, metrics: Mapping[str, float | None], timing: Mapping[str, float | None] | None = None
    ) -> MetricsLine:
        """Appends one line, as one write. `timing` is what depends on the clock; a value that is not finite is null."""
        now = self._clock()
        line = MetricsLine(env_steps, _finite(metrics), {"unix": now, **_finite(timing or {})})
        self._file.append(orjson.dumps(line) + b"\n")
        if self._events is not None:
            self._events.add(_scalar_event(now, env_steps, scalars(line)))
        return line

    def close(self) -> None:
        """Tries once more to write what waits."""
        self._file.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def write_summary(path: Path, summary: Summary, *, durable: bool = False) -> None:
    """Replaces `summary.json` atomically; `durable` (for the last one) also waits for the disk."""
    try:
        write_atomically(path, orjson.dumps(summary, option=orjson.OPT_INDENT_2) + b"\n", durable=durable)
    except OSError as error:
        raise MetricsError(f"{path}: cannot be written: {error.strerror}") from error


def read_metrics(path: Path) -> list[MetricsLine]:
    """All whole lines of `metrics.jsonl`; a last line that was cut by a crash is left out."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MetricsError(f"{path}: cannot be read: {error.strerror}") from error
    lines: list[MetricsLine] = []
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            lines.append(MetricsLine(**orjson.loads(line)))
        except (ValueError, TypeError) as error:
            raise MetricsError(f"{path}:{number}: not a line of metrics: {error}") from error
    return lines


def _lines_until(path: Path, env_steps: int) -> bytes:
    """The whole lines of `path` up to and including `env_steps`, byte for byte."""
    kept: list[bytes] = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        if orjson.loads(line)["env_steps"] > env_steps:
            break
        kept.append(line + b"\n")
    return b"".join(kept)


def _finite(values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else _plain(value) for name, value in values.items()}


def _plain(value: float) -> float | None:
    """`value` as JSON has it: no NaN, and plain numbers for scalars of numpy and torch."""
    if not math.isfinite(value):
        return None
    return value if type(value) is int else float(value)


class EventFile:
    """A file of TensorBoard's events. Its own writer has a thread that ends with the first error; that of torch would load
    torch into processes that do not need it."""

    def __init__(self, folder: Path, resume_step: int | None) -> None:
        """Raises `MetricsError`."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]  (generated code)

        now = time.time()
        path = folder / f"events.out.tfevents.{now:.6f}.{platform.node()}.{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = GrowingFile(path)
        except OSError as error:
            raise MetricsError(f"{path}: cannot be written: {error.strerror}") from error
        self.add(Event(wall_time=now, file_version="brain.Event:2"))
        if resume_step is not None:
            # TensorBoard then drops what earlier files say about later steps.
            start = SessionLog(status=SessionLog.SessionStatus.START)
            self.add(Event(wall_time=now, step=resume_step + 1, session_log=start))

    def add(self, event: Any) -> None:
        """Appends an event."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        self._file.append(record.getvalue())

    def close(self) -> None:
        """Tries once more to write what waits."""
        self._file.close()


def _scalar_event(now: float, step: int, scalars: Mapping[str, float | None]) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]  (generated code)
    from tensorboard.compat.proto.summary_pb2 import (
        Summary as SummaryProto,  # pyright: ignore[reportAttributeAccessIssue]  (generated code)
    )

    values = [SummaryProto.Value(tag=name, simple_value=value) for name, value in scalars.items() if value is not None]
    return Event(wall_time=now, step=step, summary=SummaryProto(value=values))
