"""An episode as the exports read it: a trace, its texts resolved, events of kinds that are not known included."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestration.errors import TraceError
from orchestration.traces.complete import Late
from orchestration.traces.export.text import Plain, plain, unicode
from orchestration.traces.reader import Trace, read_trace
from orchestration.traces.schema import End, EnvReset, EnvStep, Event, Header

_GRAPH = frozenset(field.name for field in dataclasses.fields(Event))
_CENTURY_S = 100 * 366 * 86_400
_BULKY = frozenset({"screen", "colors", "prompt", "output", "log_probs"})
"""Not in `details`: what belongs on a terminal, and tokens, which are counted in other fields."""


@dataclass(frozen=True, slots=True)
class Episode:
    """What a trace file holds, as far as it could be read."""

    path: Path
    header: Header
    captions: Mapping[str, str]
    texts: Mapping[str, str]
    events: tuple[Event, ...]
    end: End | None
    cut: str | None

    @property
    def length_s(self) -> float:
        """Seconds from the first event to the last."""
        last = max((event.t for event in self.events), default=0.0)
        return max(last, self.end.t) if self.end else last

    @property
    def reset(self) -> EnvReset | None:
        """The event that the episode began with; None in a trace of a run."""
        return next((event for event in self.events if isinstance(event, EnvReset)), None)

    @property
    def steps(self) -> tuple[EnvStep, ...]:
        """The environment steps, in order."""
        return tuple(event for event in self.events if isinstance(event, EnvStep))

    def text(self, ref: str | None) -> str | None:
        """The text that `ref` names; `ref` itself where the file does not hold it; None for None."""
        return None if ref is None else self.texts.get(ref, ref)

    def details(self, event: Event, limit: int) -> dict[str, Plain]:
        """The fields of `event` beside graph and times, references resolved, texts cut after `limit` characters.

        Empty fields are left out, and so are screens and tokens.
        """
        found: dict[str, Plain] = {}
        for field in dataclasses.fields(event):
            name = field.name
            value = getattr(event, name)
            if name in _GRAPH or name in _BULKY or value in (None, "", (), {}):
                continue
            if name == "caption_id":
                name, value = "caption", self.captions.get(value)
            elif name.endswith("_ref"):
                name, value = name.removesuffix("_ref"), self.text(value)
            if value is not None:
                found[name] = plain(value, limit)
        return found


def open_episode(path: Path) -> Episode:
    """Reads the trace in `path`. Of one that was not finished (`.part`), what was written.

    Raises `TraceError` for a file that is no trace, and for a finished one that is damaged.
    """
    trace = Late.beside(path.parent).complete(read_trace(path)).trace
    if path.suffix != ".part" and (trace.cut is not None or trace.end is None):
        why = trace.cut or "has no end record"
        raise TraceError(f"{path}: {why}; rename it to {path.name}.part to export what can be read")
    _check(trace)
    return episode_of(trace)


def _check(trace: Trace) -> None:
    """What all formats rely on: ids that name one event, and times that fit into 64 bits of nanoseconds."""
    if not 0 <= trace.header.recorded_at < _CENTURY_S * 2:
        raise TraceError(f"{trace.path}: recorded_at {trace.header.recorded_at:g} is not a time")
    seen = set[str]()
    for event in trace.events:
        if not event.id or event.id in seen:
            why = "the id is used twice" if event.id else "has no id"
            raise TraceError(f"{trace.path}: event {event.id or event.seq}: {why}")
        seen.add(event.id)
        if not (0 <= event.t < _CENTURY_S and 0 <= event.duration < _CENTURY_S):
            raise TraceError(f"{trace.path}: event {event.id}: t {event.t:g}, duration {event.duration:g} are no times")


def episode_of(trace: Trace) -> Episode:
    """What was read of a trace, as an episode."""
    return Episode(trace.path, trace.header, trace.captions, trace.texts, tuple(trace.events), trace.end, trace.cut)


def environment(header: Header) -> str:
    """Name of what was played; the run's name for a run's own trace."""
    return unicode(header.env_id or header.run or "unknown")


def numbers(values: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    """The finite numbers among `values`, with their names."""
    for name, value in values.items():
        number = plain(value)
        if isinstance(number, int | float):
            yield unicode(name), float(number)
