"""Reads traces, also those whose writer died: every whole frame, and of the last one every whole line."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import zstandard

from orchestration.errors import TraceError
from orchestration.traces.schema import (
    SCHEMA,
    SUFFIX,
    Caption,
    End,
    EnvReset,
    EnvStep,
    Header,
    Record,
    Reward,
    WeightsUpdate,
    decode,
)

TraceEvent = EnvReset | EnvStep | Reward | WeightsUpdate


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace file as read."""

    path: Path
    header: Header
    captions: Mapping[str, str]
    """Text by caption id."""
    events: tuple[TraceEvent, ...]
    end: End | None
    """None for an episode that was cut."""
    cut: str | None
    """Why reading stopped before the end of the file; None where it did not."""

    @property
    def steps(self) -> tuple[EnvStep, ...]:
        """The environment steps, in order."""
        return tuple(event for event in self.events if isinstance(event, EnvStep))


@dataclass(frozen=True, slots=True)
class Outline:
    """First and last record of a trace: enough for a list."""

    path: Path
    header: Header
    end: End | None
    bytes: int


def trace_files(folder: Path) -> list[Path]:
    """The traces in `folder` (finished ones and `.part`), or in its `traces/` where it is a run; by name."""
    if (folder / "traces").is_dir():
        folder = folder / "traces"
    if not folder.is_dir():
        raise TraceError(f"{folder}: no such folder")
    return sorted(path for path in folder.iterdir() if path.name.endswith((SUFFIX, f"{SUFFIX}.part")))


def read_trace(path: Path) -> Trace:
    """Reads a whole trace. A cut tail is left out and told in `cut`.

    Raises `TraceError`, naming file and line, for a file that is no trace.
    """
    lines, cut = _lines(path)
    header = _header(path, lines)
    captions: dict[str, str] = {}
    events: list[TraceEvent] = []
    end: End | None = None
    for number, line in enumerate(lines[1:], start=2):
        record = _decode(path, number, line)
        if isinstance(record, Header) or end is not None:
            raise TraceError(f"{path}:{number}: a record of kind {record.record!r} where none can be")
        if isinstance(record, Caption):
            captions[record.caption_id] = record.text
        elif isinstance(record, End):
            end = record
        else:
            events.append(record)
    return Trace(path, header, captions, tuple(events), end, cut)


def read_outline(path: Path) -> Outline:
    """Reads header and end alone (the file is decompressed, but the lines between are not parsed)."""
    lines, _ = _lines(path)
    header = _header(path, lines)
    last = _decode(path, len(lines), lines[-1])
    return Outline(path, header, last if isinstance(last, End) else None, path.stat().st_size)


def _header(path: Path, lines: list[bytes]) -> Header:
    if not lines:
        raise TraceError(f"{path}: no whole record in it")
    record = _decode(path, 1, lines[0])
    if not isinstance(record, Header):
        raise TraceError(f"{path}: begins with a record of kind {record.record!r}, not with a header")
    if record.schema != SCHEMA:
        raise TraceError(f"{path}: written as {record.schema}, this version reads {SCHEMA}")
    return record


def _decode(path: Path, number: int, line: bytes) -> Record:
    try:
        return decode(line)
    except TraceError as error:
        raise TraceError(f"{path}:{number}: {error}") from error


def _lines(path: Path) -> tuple[list[bytes], str | None]:
    """The whole lines of a file, and why it ends before its end where it does."""
    try:
        rest = path.read_bytes()
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from error
    data, cut = bytearray(), None
    # Frame by frame: a stream reader that is told to go across frames takes a cut frame for the end of the file.
    while rest and cut is None:
        frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            data += frame.decompress(rest)
        except zstandard.ZstdError as error:
            cut = f"damaged after {len(data)} bytes of text: {error}"
        else:
            if not frame.eof:
                cut = f"the last frame is cut, after {len(data)} bytes of text"
            rest = frame.unused_data
    *lines, tail = bytes(data).split(b"\n")
    if tail and cut is None:
        cut = f"the last line is cut after {len(tail)} bytes"
    return lines, cut
