"""OpenTelemetry: what is exported is read with the OTLP schema, and named by the GenAI conventions."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes

from orchestration.traces.export import export
from tests.trace_export_support import HOSTILE, RECORDED_AT, end, graphs, header, rich_trace, write_trace

KNOWN = {
    value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI") and isinstance(value, str)
}
OPERATIONS = {member.value for member in gen_ai_attributes.GenAiOperationNameValues}


def parsed(line: str) -> Any:
    """A line as `TracesData`. OTLP's JSON writes ids in hexadecimal where protocol buffers' has base64."""
    tree = json.loads(line, parse_constant=pytest.fail)
    for resource in tree["resourceSpans"]:
        for span in resource["scopeSpans"][0]["spans"]:
            for item in (span, *span["links"]):
                for name in ("traceId", "spanId", "parentSpanId"):
                    if name in item:
                        item[name] = base64.b64encode(bytes.fromhex(item[name])).decode()
    return json_format.ParseDict(tree, trace_pb2.TracesData())


def traces_of(paths: list[Path], out: Path) -> list[Any]:
    lines = export(paths, "otel", out).out.read_text().split("\n")
    assert lines.pop() == ""
    return [parsed(line) for line in lines]


def spans_of(path: Path, out: Path) -> dict[str, Any]:
    (trace,) = traces_of([path], out)
    return {span.name: span for span in trace.resource_spans[0].scope_spans[0].spans}


def attributes(item: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in item.attributes}


def test_spans_have_the_names_and_times_of_the_conventions(tmp_path: Path) -> None:
    spans = spans_of(rich_trace(tmp_path), tmp_path / "out")
    at = {
        name: (
            round(span.start_time_unix_nano / 1e9 - RECORDED_AT, 5),
            round(span.end_time_unix_nano / 1e9 - RECORDED_AT, 5),
        )
        for name, span in spans.items()
    }
    assert at == {
        "invoke_workflow minihack/X": (0, 5),
        "invoke_agent lead": (0, 5),
        "invoke_agent helper": (0.5, 4.5),
        "invoke_agent judge": (3.1, 3.2),
        "env_reset": (0, 0),
        "delegate helper": (0.6, 2.6),
        "execute_tool search": (1, 1.5),
        "chat judge-1": (1.75, 2.5),
        "env_step north": (2.8, 3),
        "env_step kick": (3, 4),
    }


def test_the_model_call_says_what_the_conventions_ask(tmp_path: Path) -> None:
    spans = spans_of(rich_trace(tmp_path), tmp_path / "out")
    call = spans["chat judge-1"]
    found = attributes(call)
    assert call.kind == trace_pb2.Span.SPAN_KIND_CLIENT
    assert found["gen_ai.operation.name"] == "chat"
    assert found["gen_ai.provider.name"]
    assert (found["gen_ai.request.model"], found["gen_ai.response.model"]) == ("judge-1", "judge-1@4")
    assert (found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"]) == (12, 5)
    assert (found["gen_ai.request.temperature"], found["gen_ai.request.max_tokens"]) == (0.5, 64)
    assert [value.string_value for value in found["gen_ai.response.finish_reasons"].values] == ["stop"]
    message = {"role": "user", "parts": [{"type": "text", "content": "a plan"}]}
    assert json.loads(found["gen_ai.input.messages"]) == [message]
    tool = attributes(spans["execute_tool search"])
    assert (tool["gen_ai.tool.name"], json.loads(tool["gen_ai.tool.call.arguments"])) == ("search", {"query": "a plan"})


def test_the_policy_is_the_model_of_who_plays_alone(tmp_path: Path) -> None:
    spans = spans_of(rich_trace(tmp_path), tmp_path / "out")
    models = {name: attributes(spans[f"invoke_agent {name}"]).get("gen_ai.request.model") for name in ("lead", "judge")}
    assert models == {"lead": "oni", "judge": None}


def test_only_attributes_and_operations_that_exist_are_used(tmp_path: Path) -> None:
    for span in spans_of(rich_trace(tmp_path), tmp_path / "out").values():
        found = {**attributes(span), **{key: 0 for event in span.events for key in attributes(event)}}
        named = {name for name in found if name.startswith("gen_ai.")}
        assert named <= KNOWN
        assert found.get("gen_ai.operation.name", "chat") in OPERATIONS


def test_labels_and_rewards_are_evaluations_of_the_step(tmp_path: Path) -> None:
    spans = spans_of(rich_trace(tmp_path), tmp_path / "out")
    results = [
        (
            found["gen_ai.evaluation.name"],
            found["gen_ai.evaluation.score.value"],
            found.get("gen_ai.evaluation.score.label"),
        )
        for event in spans["env_step north"].events
        if event.name == "gen_ai.evaluation.result"
        for found in [attributes(event)]
    ]
    assert results == [("judge-1", 0.875, "1"), ("reward_model", 0.25, None), ("fusion", 0.25, None)]
    assert [event.name for event in spans["invoke_agent helper"].events] == ["exception"]


def check_tree(spans: list[Any]) -> None:
    """One trace, ids of the sizes of OTLP, one root, every other span below one that lasts as long as it."""
    by_id = {span.span_id: span for span in spans}
    assert len(by_id) == len(spans)
    assert {len(span.span_id) for span in spans} == {8}
    (trace_id,) = {span.trace_id for span in spans}
    assert len(trace_id) == 16
    assert sum(not span.parent_span_id for span in spans) == 1
    for span in spans:
        assert span.start_time_unix_nano <= span.end_time_unix_nano
        if span.parent_span_id:
            parent = by_id[span.parent_span_id]
            assert parent.start_time_unix_nano <= span.start_time_unix_nano
            assert parent.end_time_unix_nano >= span.end_time_unix_nano
        assert all(link.span_id in by_id for link in span.links)


@settings(max_examples=25, deadline=None)
@given(graphs())
def test_any_graph_is_one_tree(tmp_path_factory: pytest.TempPathFactory, made: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("graph")
    (trace,) = traces_of([write_trace(folder, [header(), *made, end(len(made))])], folder / "out")
    check_tree([*trace.resource_spans[0].scope_spans[0].spans])


def test_spans_form_one_tree_in_time_and_links_follow_the_graph(tmp_path: Path) -> None:
    spans = spans_of(rich_trace(tmp_path), tmp_path / "out")
    check_tree([*spans.values()])
    by_id = {span.span_id: span for span in spans.values()}
    roots = [name for name, span in spans.items() if not span.parent_span_id]
    assert roots == ["invoke_workflow minihack/X"]
    parents = {name: by_id[span.parent_span_id].name for name, span in spans.items() if span.parent_span_id}
    assert parents["invoke_agent helper"] == "invoke_agent lead"
    assert parents["chat judge-1"] == "invoke_agent helper"
    assert [by_id[link.span_id].name for link in spans["chat judge-1"].links] == []
    assert spans["env_step kick"].status.code == 0
    assert spans[roots[0]].status.code == trace_pb2.Status.STATUS_CODE_OK


def test_each_episode_is_a_trace_of_its_own_with_the_same_ids_every_time(tmp_path: Path) -> None:
    paths = [rich_trace(tmp_path, name=name) for name in ("a", "b")]
    first, second = traces_of(paths, tmp_path / "1"), traces_of(paths, tmp_path / "2")
    assert first == second
    ids = {span.trace_id for trace in first for span in trace.resource_spans[0].scope_spans[0].spans}
    assert len(ids) == 2


def test_hostile_texts_are_values_only(tmp_path: Path) -> None:
    for said in HOSTILE[:3]:
        found = attributes(spans_of(rich_trace(tmp_path, said), tmp_path / "out")["env_step north"])
        assert found["yendor.caption"] == said
    found = attributes(spans_of(rich_trace(tmp_path, HOSTILE[3]), tmp_path / "out")["env_step north"])
    assert len(found["yendor.caption"]) < 20_000
    assert found["yendor.caption"].endswith("(1,000,000 characters)")
