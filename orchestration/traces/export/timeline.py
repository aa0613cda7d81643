"""An episode laid out in time, for the viewers of traces: tracks of slices and instants, counters, and arrows.

Shared by the Chrome and the Perfetto export, so that both show the same.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from orchestration.traces.export.episode import Episode, environment
from orchestration.traces.export.text import Plain, finite, unicode
from orchestration.traces.schema import (
    COMPONENT,
    TOTAL,
    Annotation,
    Delegate,
    EnvReset,
    EnvStep,
    LlmCall,
    Return,
    Reward,
    ToolCall,
    ToolResult,
)

TEXT_LIMIT = 4096
"""Characters of a text that a viewer is given."""

_NAME_LIMIT = 120
_EVENTS_LANE = "events"


@dataclass(frozen=True, slots=True)
class Mark:
    """A slice, or an instant where `end` is None. Times are seconds since the trace began."""

    id: str
    name: str
    category: str
    agent: str
    lane: str
    start: float
    end: float | None
    args: dict[str, Plain]


@dataclass(frozen=True, slots=True)
class Sample:
    """The value of a counter from `t` on."""

    counter: str
    t: float
    value: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """One episode. No two slices of a lane overlap."""

    name: str
    origin_us: int
    """Microseconds since the epoch at t = 0."""
    marks: tuple[Mark, ...]
    samples: tuple[Sample, ...]
    arrows: tuple[tuple[str, str], ...]
    """Ids of marks of different agents, the second of which follows from the first."""


def lay_out(episode: Episode) -> Timeline:
    """The timeline of an episode."""
    header = episode.header
    origin_us = round((finite(header.recorded_at) or 0.0) * 1e6)
    marks = tuple(_without_overlap(_marks(episode)))
    name = f"{unicode(header.episode_id, _NAME_LIMIT)} ({environment(header)[:_NAME_LIMIT]})"
    return Timeline(name, origin_us, marks, tuple(_samples(episode)), tuple(_arrows(episode, marks)))


def _marks(episode: Episode) -> Iterator[Mark]:
    results = {event.call: event for event in episode.events if isinstance(event, ToolResult | Return)}
    calls = {event.id for event in episode.events if isinstance(event, ToolCall | Delegate)}
    ended: dict[str, float] = {}
    for event in episode.events:
        args = episode.details(event, TEXT_LIMIT)
        start, end, lane, name = event.t - event.duration, event.t, _EVENTS_LANE, event.type
        match event:
            case EnvReset() | EnvStep():
                if not event.duration:
                    start = ended.get(event.agent, event.t)
                ended[event.agent] = event.t
                lane = "steps"
                name = event.action_name if isinstance(event, EnvStep) else event.type
            case LlmCall():
                start, lane, name = event.t - (event.duration or event.latency_s), "model calls", event.model
            case Annotation():
                start, lane, name = event.t - (event.duration or event.latency_s), "judge", f"label {event.label}"
            case ToolCall() | Delegate() if event.id in results:
                result = results[event.id]
                start, end = event.t, result.t
                args |= {"result": episode.details(result, TEXT_LIMIT)}
                lane, name = ("tools", event.tool) if isinstance(event, ToolCall) else ("delegated", event.to)
            case ToolResult() | Return() if event.call in calls:
                continue
            case Reward():
                name = f"reward {event.source}"
            case _:
                lane = _EVENTS_LANE if not event.duration else event.type
        start = max(0.0, start)
        instant = end <= start and lane == _EVENTS_LANE
        yield Mark(
            event.id,
            unicode(name, _NAME_LIMIT) or event.type,
            event.type,
            unicode(event.agent, _NAME_LIMIT),
            lane,
            start,
            None if instant else max(start, end),
            args,
        )


def _without_overlap(marks: Iterable[Mark]) -> Iterator[Mark]:
    """Moves slices that overlap another of their lane to further lanes: viewers nest what shares a lane."""
    busy_until: dict[tuple[str, str], list[float]] = {}
    for mark in sorted(marks, key=lambda mark: mark.start):
        if mark.end is None:
            yield mark
            continue
        lanes = busy_until.setdefault((mark.agent, mark.lane), [])
        free = next((at for at, until in enumerate(lanes) if until <= mark.start), len(lanes))
        lanes[free : free + 1] = [mark.end]
        yield replace(mark, lane=f"{mark.lane} {free + 1}") if free else mark


def _samples(episode: Episode) -> Iterator[Sample]:
    total = 0.0
    for event in episode.events:
        if isinstance(event, EnvStep):
            total += finite(event.reward) or 0.0
            yield Sample("return", event.t, total)
            value = finite(event.value)
            if value is not None:
                yield Sample("value", event.t, value)
        elif isinstance(event, Reward) and event.part in (COMPONENT, TOTAL):
            value = finite(event.value)
            if value is not None:
                yield Sample(f"{event.part} {unicode(event.source, _NAME_LIMIT)}", event.t, value)


def _arrows(episode: Episode, marks: tuple[Mark, ...]) -> Iterator[tuple[str, str]]:
    agents = {mark.id: mark.agent for mark in marks}
    calls = {event.id: event.call for event in episode.events if isinstance(event, ToolResult | Return)}
    for event in episode.events:
        for parent in event.parents:
            source, target = _shown(parent, agents, calls), _shown(event.id, agents, calls)
            if source and target and agents[source] != agents[target]:
                yield source, target


def _shown(event_id: str, agents: dict[str, str], calls: dict[str, str]) -> str | None:
    """The mark that an event is part of; None where the trace lacks it."""
    shown = event_id if event_id in agents else calls.get(event_id)
    return shown if shown in agents else None
