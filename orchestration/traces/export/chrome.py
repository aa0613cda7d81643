"""Chrome trace: the JSON that chrome://tracing, Speedscope and Perfetto's viewer open.

Source: "Trace Event Format" (docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU).
"""

from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import orjson

from orchestration.traces.export.episode import Episode
from orchestration.traces.export.timeline import Mark, Timeline, lay_out


def write(episodes: Iterable[Episode], file: BinaryIO) -> None:
    """Writes one JSON object: each episode is a process, each lane of an agent a thread."""
    file.write(b'{"displayTimeUnit":"ms","traceEvents":[\n')
    separator = b""
    for pid, episode in enumerate(episodes, start=1):
        for event in _events(lay_out(episode), pid):
            file.write(separator + orjson.dumps(event))
            separator = b",\n"
    file.write(b"\n]}\n")


def _events(timeline: Timeline, pid: int) -> Iterator[dict[str, Any]]:
    yield _name("process_name", pid, 0, timeline.name)
    threads: dict[tuple[str, str], int] = {}
    for mark in timeline.marks:
        if (mark.agent, mark.lane) not in threads:
            tid = threads[mark.agent, mark.lane] = len(threads) + 1
            yield _name("thread_name", pid, tid, f"{mark.agent}: {mark.lane}")
            yield {"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": tid}}

    def stamp(t: float) -> float:
        return round(timeline.origin_us + t * 1e6, 3)

    def place(mark: Mark) -> dict[str, Any]:
        return {"pid": pid, "tid": threads[mark.agent, mark.lane], "ts": stamp(mark.start)}

    for mark in timeline.marks:
        common = {"name": mark.name, "cat": mark.category, **place(mark), "args": {"id": mark.id, **mark.args}}
        if mark.end is None:
            yield {"ph": "i", "s": "t", **common}
        else:
            yield {"ph": "X", "dur": round((mark.end - mark.start) * 1e6, 3), **common}
    for sample in timeline.samples:
        args = {"value": sample.value}
        yield {"ph": "C", "name": sample.counter, "pid": pid, "ts": stamp(sample.t), "args": args}
    by_id = {mark.id: mark for mark in timeline.marks}
    for number, (source, target) in enumerate(timeline.arrows):
        arrow = {"name": "follows", "cat": "graph", "id": f"{pid}.{number}"}
        yield {"ph": "s", **arrow, **place(by_id[source])}
        yield {"ph": "f", "bp": "e", **arrow, **place(by_id[target])}


def _name(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}
