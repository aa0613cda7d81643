"""Reads traces, also those whose writer died: every whole frame, and of the last one every whole line."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

from orchestration.errors import TraceError
from orchestration.traces.codec import build, parse
from orchestration.traces.migrations import migration
from orchestration.traces.names import RUN_PREFIX, SUFFIX
from orchestration.traces.packing import Unpacker
from orchestration.traces.schema import AnyEvent, Caption, End, EnvStep, Event, Header, Record, Text

TraceEvent = AnyEvent

TEXT_LIMIT = 2**31
"""Bytes of text in one file: some million steps."""
_BITE = 2**12
"""Bytes: at most 128 MB of text, as zstd unpacks 128 kB from four bytes."""


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
    texts: Mapping[str, str] = field(default_factory=dict[str, str])
    """Text by reference (`prompt_ref`, `content_ref`, ...)."""

    @property
    def steps(self) -> tuple[EnvStep, ...]:
        """The environment steps, in order."""
        return tuple(event for event in self.events if isinstance(event, EnvStep))

    def wall(self, event: Event) -> float:
        """Wall time of an event, seconds since the epoch."""
        return self.header.recorded_at + event.t + event.skew


@dataclass(frozen=True, slots=True)
class Outline:
    """First and last record of a trace: enough for a list."""

    path: Path
    header: Header
    end: End | None
    bytes: int


@dataclass(frozen=True, slots=True)
class Lines:
    """The whole lines of a file, and why it ends before its end where it does."""

    lines: list[bytes]
    cut: str | None
    whole: int
    """Bytes of the file that its whole frames take."""


def trace_files(folder: Path) -> list[Path]:
    """The traces of episodes in `folder` (finished ones and `.part`), or in its `traces/` where it is a run; by name."""
    return [path for path in _files(folder) if not path.name.startswith(RUN_PREFIX)]


def run_traces(folder: Path) -> list[Path]:
    """The traces of the run itself in `folder` or its `traces/`: one for each time that it was started; oldest first."""
    return [path for path in _files(folder) if path.name.startswith(RUN_PREFIX)]


def _files(folder: Path) -> list[Path]:
    if (folder / "traces").is_dir():
        folder = folder / "traces"
    if not folder.is_dir():
        raise TraceError(f"{folder}: no such folder")
    return sorted(path for path in folder.iterdir() if path.name.endswith((SUFFIX, f"{SUFFIX}.part")))


def read_trace(path: Path) -> Trace:
    """Reads a whole trace, of this version of the schema or an older one. A cut tail is left out and told in `cut`.

    Raises `TraceError`, naming file and line, for a file that is no trace.
    """
    read = read_lines(path)
    records = records_of(path, read.lines)
    _, header = next(records)
    assert isinstance(header, Header)
    captions: dict[str, str] = {}
    texts: dict[str, str] = {}
    events: list[TraceEvent] = []
    end: End | None = None
    for number, record in records:
        if isinstance(record, Header) or end is not None:
            raise TraceError(f"{path}:{number}: a record of kind {record.record!r} where none can be")
        if isinstance(record, Caption):
            captions[record.caption_id] = record.text
        elif isinstance(record, Text):
            texts[record.ref] = record.text
        elif isinstance(record, End):
            end = record
        else:
            events.append(record)
    return Trace(path, header, captions, tuple(events), end, read.cut, texts)


def read_outline(path: Path) -> Outline:
    """Reads header and end alone (the file is decompressed, but the lines between are not parsed)."""
    lines = read_lines(path).lines
    _, header = next(records_of(path, lines[:1]))
    assert isinstance(header, Header)
    end = None
    last = _at(path, len(lines), lambda: parse(lines[-1]))
    if last.get("record") == "end":
        end = _at(path, len(lines), lambda: build(last))
    return Outline(path, header, end, path.stat().st_size)


def records_of(path: Path, lines: list[bytes]) -> Iterator[tuple[int, Record]]:
    """The records of a file's lines, complete, with the lines' numbers, from 1; the first is the header.

    Raises `TraceError`, naming file and line, at a line that is no record or where the first is no header.
    """
    if not lines:
        raise TraceError(f"{path}: no whole record in it")
    tree = _at(path, 1, lambda: parse(lines[0]))
    if tree.get("record") != "header":
        raise TraceError(f"{path}: begins with a record of kind {tree.get('record')!r}, not with a header")
    try:
        upgrade = migration(tree.get("schema"))
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from error
    unpacker = Unpacker(tree)
    yield 1, _at(path, 1, lambda: build(upgrade(tree)))
    for number, line in enumerate(lines[1:], start=2):
        try:
            for each in unpacker.unpack(upgrade(parse(line))):
                yield number, build(each)
        except TraceError as error:
            raise TraceError(f"{path}:{number}: {error}") from error


def _at(path: Path, number: int, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except TraceError as error:
        raise TraceError(f"{path}:{number}: {error}") from error


def read_lines(path: Path, *, frames_only: bool = False) -> Lines:
    """The whole lines of a file of zstd frames; `frames_only` leaves out those of a cut frame.

    Raises `TraceError` where the file cannot be read, or unpacks to more than `TEXT_LIMIT` bytes.
    """
    try:
        rest = memoryview(path.read_bytes())
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from error
    data, cut, whole, size = bytearray(), None, 0, len(rest)
    # Frame by frame: a stream reader that is told to go across frames takes a cut frame for the end of the file.
    while rest and cut is None:
        frame = zstandard.ZstdDecompressor().decompressobj()
        begun = len(data)
        try:
            # In small bites, as a few bytes of a hostile file unpack to many.
            while rest and not frame.eof:
                data += frame.decompress(rest[:_BITE])
                rest = rest[min(_BITE, len(rest)) - len(frame.unused_data) :]
                if len(data) > TEXT_LIMIT:
                    raise TraceError(
                        f"{path}: unpacks to more than {TEXT_LIMIT:,} bytes, which no trace of an episode does"
                    )
        except zstandard.ZstdError as error:
            del data[begun:]
            cut = f"damaged after {begun} bytes of text: {error}"
        else:
            if frame.eof:
                whole = size - len(rest)
            else:
                if frames_only:
                    del data[begun:]
                cut = f"the last frame is cut, after {len(data)} bytes of text"
    *lines, tail = bytes(data).split(b"\n")
    if tail and cut is None:
        cut = f"the last line is cut after {len(tail)} bytes"
    return Lines(lines, cut, whole)
