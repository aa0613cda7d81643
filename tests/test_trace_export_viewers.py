"""Chrome and Perfetto: what is exported is read with Python's JSON and with Perfetto's own schema, and compared."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as proto

from orchestration.traces.export import export
from orchestration.traces.export.protobuf import varint
from orchestration.traces.schema import EnvReset, LlmCall
from tests.trace_export_support import HOSTILE, RECORDED_AT, end, graphs, header, rich_trace, write_trace

Slice = tuple[str, str, str, float, float]
"""Process, track, name, start and duration in seconds since the recording began."""


def chrome_of(paths: list[Path], out: Path) -> list[dict[str, Any]]:
    written = export(paths, "chrome", out).out.read_bytes()
    return json.loads(written.decode(), parse_constant=pytest.fail)["traceEvents"]


def perfetto_of(paths: list[Path], out: Path) -> Any:
    trace = proto.Trace()
    trace.ParseFromString(export(paths, "perfetto", out).out.read_bytes())
    return trace


def chrome_slices(events: list[dict[str, Any]]) -> set[Slice]:
    names = {
        (event["pid"], event["tid"] if event["name"] == "thread_name" else None): event["args"]["name"]
        for event in events
        if event["ph"] == "M" and "name" in event["args"]
    }
    return {
        (
            names[event["pid"], None],
            names[event["pid"], event["tid"]],
            event["name"],
            round(event["ts"] / 1e6 - RECORDED_AT, 5),
            round(event.get("dur", 0) / 1e6, 5),
        )
        for event in events
        if event["ph"] in "Xi"
    }


def perfetto_slices(trace: Any) -> set[Slice]:
    """Slices and instants, put together from begins and ends as a viewer does: the last begun ends first."""
    tracks = {p.track_descriptor.uuid: p.track_descriptor for p in trace.packet if p.HasField("track_descriptor")}
    open_slices: dict[int, list[Any]] = defaultdict(list)
    found: set[Slice] = set()

    def place(uuid: int) -> tuple[str, str]:
        lane, agent = tracks[uuid], tracks[tracks[uuid].parent_uuid]
        return tracks[agent.parent_uuid].process.process_name, f"{agent.name}: {lane.name}"

    packets = [packet for packet in trace.packet if packet.HasField("track_event")]
    for packet in sorted(packets, key=lambda packet: packet.timestamp):
        event, at = packet.track_event, packet.timestamp / 1e9 - RECORDED_AT
        if event.type == proto.TrackEvent.TYPE_SLICE_BEGIN:
            open_slices[event.track_uuid].append((event.name, packet.timestamp))
            assert len(open_slices[event.track_uuid]) == 1, "slices of a lane overlap"
        elif event.type == proto.TrackEvent.TYPE_SLICE_END:
            name, start = open_slices[event.track_uuid].pop()
            duration = (packet.timestamp - start) / 1e9
            found.add((*place(event.track_uuid), name, round(start / 1e9 - RECORDED_AT, 5), round(duration, 5)))
        elif event.type == proto.TrackEvent.TYPE_INSTANT:
            found.add((*place(event.track_uuid), event.name, round(at, 5), 0.0))
    assert not any(open_slices.values())
    return found


def test_both_show_the_same_slices_at_the_same_times(tmp_path: Path) -> None:
    path = rich_trace(tmp_path)
    slices = chrome_slices(chrome_of([path], tmp_path / "c"))
    assert slices == perfetto_slices(perfetto_of([path], tmp_path / "p"))
    process = "ep1 (minihack/X)"
    assert slices == {
        (process, "lead: steps", "env_reset", 0, 0),
        (process, "lead: events", "spawn", 0.5, 0),
        (process, "lead: delegated", "helper", 0.6, 2.0),
        (process, "lead: events", "message", 0.7, 0),
        (process, "helper: tools", "search", 1.0, 0.5),
        (process, "helper: model calls", "judge-1", 1.75, 0.75),
        (process, "lead: events", "aggregate", 2.7, 0),
        (process, "lead: steps", "north", 2.8, 0.2),
        (process, "lead: steps", "kick", 3.0, 1.0),
        (process, "judge: judge", "label 1", 3.05, 0.05),
        (process, "judge: events", "reward reward_model", 3.1, 0),
        (process, "judge: events", "reward fusion", 3.2, 0),
        (process, "lead: events", "weights_update", 3.3, 0),
        (process, "lead: events", "reward environment", 4.0, 0),
        (process, "helper: events", "error", 4.5, 0),
        (process, "lead: events", "stop", 5.0, 0),
    }


def test_perfettos_schema_knows_every_field(tmp_path: Path) -> None:
    trace = perfetto_of([rich_trace(tmp_path, HOSTILE[1])], tmp_path / "p")
    again = trace.SerializeToString()
    trace.DiscardUnknownFields()
    assert trace.SerializeToString() == again
    assert len(again) == (tmp_path / "p").stat().st_size
    step = next(p.track_event for p in trace.packet if p.track_event.name == "north")
    fields = {a.name: a for a in step.debug_annotations}
    assert fields["caption"].string_value == HOSTILE[1]
    assert fields["log_prob"].double_value == -0.5
    assert fields["grounded"].bool_value
    assert fields["policy_version"].int_value == 3
    assert list(step.categories) == ["env_step"]


def test_counters_add_up_the_rewards(tmp_path: Path) -> None:
    path = rich_trace(tmp_path)
    chrome = [
        (event["name"], event["args"]["value"]) for event in chrome_of([path], tmp_path / "c") if event["ph"] == "C"
    ]
    trace = perfetto_of([path], tmp_path / "p")
    names = {
        p.track_descriptor.uuid: p.track_descriptor.name for p in trace.packet if p.track_descriptor.HasField("counter")
    }
    perfetto = [
        (names[p.track_event.track_uuid], p.track_event.double_counter_value)
        for p in trace.packet
        if p.track_event.type == proto.TrackEvent.TYPE_COUNTER
    ]
    wanted = [
        ("return", 0), ("component reward_model", 0.25), ("total fusion", 0.25), ("return", 1.5), ("value", 0.5),
    ]  # fmt: skip
    assert chrome == wanted
    assert perfetto == wanted


def test_arrows_join_agents(tmp_path: Path) -> None:
    path = rich_trace(tmp_path)
    events = chrome_of([path], tmp_path / "c")
    starts = {e["id"]: (e["tid"], e["ts"]) for e in events if e["ph"] == "s"}
    ends = {e["id"]: (e["tid"], e["ts"]) for e in events if e["ph"] == "f"}
    assert starts.keys() == ends.keys() and starts
    assert all(starts[name][0] != ends[name][0] for name in starts)
    flows = [p.track_event for p in perfetto_of([path], tmp_path / "p").packet]
    assert len(starts) == len({flow for event in flows for flow in event.flow_ids})
    assert {f for event in flows for f in event.flow_ids} == {f for e in flows for f in e.terminating_flow_ids}


def test_calls_that_overlap_get_lanes_of_their_own(tmp_path: Path) -> None:
    call: dict[str, Any] = {"model": "m", "prompt_tokens": 1, "output_tokens": 1, "latency_s": 1.0, "agent": "a"}
    made = [EnvReset(id="r", seq=0, t=0.0, agent="a", parents=(), observation_hash="", screen="")]
    calls = [LlmCall(id=f"c{n}", seq=n, t=1.0 + t, parents=("r",), **call) for n, t in enumerate((0, 0.5, 0.7, 1), 1)]
    path = write_trace(tmp_path, [header(), *made, *calls, end(5)])
    slices = perfetto_slices(perfetto_of([path], tmp_path / "p"))
    lanes = {(round(start, 3), track) for _, track, name, start, _ in slices if name == "m"}
    assert lanes == {(0, "a: model calls"), (0.5, "a: model calls 2"), (0.7, "a: model calls 3"), (1, "a: model calls")}


def test_several_episodes_share_a_time_line_and_no_track(tmp_path: Path) -> None:
    paths = [rich_trace(tmp_path, name="a"), rich_trace(tmp_path, name="b", recorded_at=RECORDED_AT + 60)]
    slices = chrome_slices(chrome_of(paths, tmp_path / "c"))
    assert slices == perfetto_slices(perfetto_of(paths, tmp_path / "p"))
    starts = {process: min(slice[3] for slice in slices if slice[0] == process) for process, *_ in slices}
    assert starts == {"a (minihack/X)": 0, "b (minihack/X)": 60}


def test_varints_are_those_of_protocol_buffers() -> None:
    for value in (0, 1, 127, 128, 2**32, 2**63 - 1, -1, -(2**63)):
        assert varint(4, value) == proto.DebugAnnotation(int_value=value).SerializeToString()


@settings(max_examples=40, deadline=None)
@given(graphs())
def test_any_graph_is_shown_the_same_by_both(tmp_path_factory: pytest.TempPathFactory, made: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("graph")
    path = write_trace(folder, [header(), *made, end(len(made))])
    events = chrome_of([path], folder / "c")
    trace = perfetto_of([path], folder / "p")
    assert chrome_slices(events) == perfetto_slices(trace)
    flows = sum(len(packet.track_event.flow_ids) for packet in trace.packet)
    assert flows == sum(event["ph"] == "s" for event in events)
    assert flows == sum(event["ph"] == "f" for event in events)
