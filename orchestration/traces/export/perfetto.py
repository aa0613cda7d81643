"""Perfetto: TrackEvents in a protobuf trace, which ui.perfetto.dev and trace_processor open.

Field numbers: protos/perfetto/trace/perfetto_trace.proto of Perfetto. Encoded by hand: it takes twenty fields of a
schema with thousands.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import orjson

from orchestration.traces.export.episode import Episode
from orchestration.traces.export.protobuf import double, fixed64, message, string, varint
from orchestration.traces.export.text import Plain
from orchestration.traces.export.timeline import Mark, Timeline, lay_out

_PACKET = 1
_TIMESTAMP, _SEQUENCE, _TRACK_EVENT, _TRACK_DESCRIPTOR = 8, 10, 11, 60
_ANNOTATION, _TYPE, _TRACK, _CATEGORY, _NAME, _COUNTER_VALUE, _FLOW, _FLOW_END = 4, 9, 11, 22, 23, 44, 47, 48
_BEGIN, _END, _INSTANT, _COUNTER = 1, 2, 3, 4


def write(episodes: Iterable[Episode], file: BinaryIO) -> None:
    """Writes one trace: each episode is a process, each agent a track, each of its lanes a track below it."""
    for pid, episode in enumerate(episodes, start=1):
        for packet in _packets(lay_out(episode), pid):
            file.write(message(_PACKET, varint(_SEQUENCE, 1) + packet))


def _packets(timeline: Timeline, pid: int) -> Iterator[bytes]:
    process = _uuid(pid, "process")
    yield message(
        _TRACK_DESCRIPTOR,
        varint(1, process) + string(2, timeline.name) + message(3, varint(1, pid) + string(6, timeline.name)),
    )
    yield from _descriptors(timeline, pid, process)
    starts: dict[str, list[int]] = {}
    ends: dict[str, list[int]] = {}
    for number, (source, target) in enumerate(timeline.arrows):
        flow = _uuid(pid, "flow", number)
        starts.setdefault(source, []).append(flow)
        ends.setdefault(target, []).append(flow)
    for mark in timeline.marks:
        flows = b"".join(fixed64(_FLOW, flow) for flow in starts.get(mark.id, ()))
        flows += b"".join(fixed64(_FLOW_END, flow) for flow in ends.get(mark.id, ()))
        yield from _mark(mark, timeline, pid, flows)
    for sample in timeline.samples:
        track = varint(_TRACK, _uuid(pid, "counter", sample.counter))
        event = varint(_TYPE, _COUNTER) + track + double(_COUNTER_VALUE, sample.value)
        yield _at(timeline, sample.t) + message(_TRACK_EVENT, event)


def _descriptors(timeline: Timeline, pid: int, process: int) -> Iterator[bytes]:
    for agent in dict.fromkeys(mark.agent for mark in timeline.marks):
        yield _track(_uuid(pid, "agent", agent), agent, process)
    for agent, lane in dict.fromkeys((mark.agent, mark.lane) for mark in timeline.marks):
        yield _track(_uuid(pid, "lane", agent, lane), lane, _uuid(pid, "agent", agent))
    for counter in dict.fromkeys(sample.counter for sample in timeline.samples):
        yield _track(_uuid(pid, "counter", counter), counter, process, message(8, b""))


def _track(uuid: int, name: str, parent: int, more: bytes = b"") -> bytes:
    return message(_TRACK_DESCRIPTOR, varint(1, uuid) + string(2, name) + varint(5, parent) + more)


def _mark(mark: Mark, timeline: Timeline, pid: int, flows: bytes) -> Iterator[bytes]:
    track = varint(_TRACK, _uuid(pid, "lane", mark.agent, mark.lane))
    args = b"".join(
        message(_ANNOTATION, _argument(name, value)) for name, value in {"id": mark.id, **mark.args}.items()
    )
    kind = _INSTANT if mark.end is None else _BEGIN
    event = varint(_TYPE, kind) + track + string(_CATEGORY, mark.category) + string(_NAME, mark.name) + args + flows
    yield _at(timeline, mark.start) + message(_TRACK_EVENT, event)
    if mark.end is not None:
        yield _at(timeline, mark.end) + message(_TRACK_EVENT, varint(_TYPE, _END) + track)


def _argument(name: str, value: Plain) -> bytes:
    head = string(10, name)
    match value:
        case bool():
            return head + varint(2, value)
        case int():
            return head + varint(4, value)
        case float():
            return head + double(5, value)
        case str():
            return head + string(6, value)
        case _:
            return head + string(6, orjson.dumps(value).decode())


def _at(timeline: Timeline, t: float) -> bytes:
    """Nanoseconds since the epoch. The numbers go together with those of other episodes, not with a boot."""
    return varint(_TIMESTAMP, timeline.origin_us * 1000 + round(t * 1e9))


def _uuid(*parts: object) -> int:
    """A number for a track or arrow, not 0 and the same in every export."""
    text = "\0".join(map(repr, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") | 1
