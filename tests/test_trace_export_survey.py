"""The survey's schema: what is exported is valid by it, and its own example can be imported.

The JSON Schema below is built from the schema's facts (github.com/xxzcc/awesome-llm-mas-rl, trace-schema/), and `rules`
are what the survey checks beside it. The example is that of the survey (CC0).
"""

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings

from orchestration.errors import TraceError
from orchestration.traces.export import export, import_survey, read_survey
from orchestration.traces.reader import read_trace
from orchestration.traces.schema import (
    Aggregate,
    Delegate,
    EnvReset,
    Message,
    Return,
    Reward,
    Spawn,
    ToolCall,
    ToolResult,
)
from orchestration.traces.validate import validate_file
from tests.trace_export_support import end, graphs, header, rich_trace, write_trace
from tests.trace_support import CAPTIONS, Played, record, recorder

EVENT_TYPES = (
    "orchestrator_decision spawn despawn message tool_call tool_result return aggregate human_intervention safety_event"
)
EDGE_TYPES = "temporal causal spawn message tool_dependency return aggregate safety_flow"
TOPOLOGIES = "centralized planner_executor_critic debate swarm hierarchical harness mixed unknown"

NAME, TEXT, NUMBER = {"type": "string", "minLength": 1}, {"type": "string"}, {"type": "number"}
POSITIVE = {"type": "number", "minimum": 0}
NUMBERS = {"type": "object", "additionalProperties": NUMBER}


def record_of(required: dict[str, Any], optional: dict[str, Any], more: bool) -> dict[str, Any]:
    properties = required | optional
    return {"type": "object", "required": [*required], "properties": properties, "additionalProperties": more}


def one_of(words: str) -> dict[str, Any]:
    return {"type": "string", "enum": words.split()}


EVENT = record_of(
    {"id": NAME, "t": POSITIVE, "type": one_of(EVENT_TYPES), "agent": NAME},
    {"role": TEXT, "from": TEXT, "to": TEXT, "tool": TEXT, "content_ref": TEXT, "trusted": {"type": "boolean"}},
    True,
)
EDGE = record_of({"src": NAME, "dst": NAME, "type": one_of(EDGE_TYPES)}, {}, False)
COSTS = NUMBERS | {
    "required": ["tokens", "wall_clock_s"],
    "properties": dict.fromkeys(("tokens", "wall_clock_s", "tool_calls", "messages"), POSITIVE),
}
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    **record_of(
        {
            "trace_id": NAME,
            "task_id": NAME,
            "events": {"type": "array", "minItems": 1, "items": EVENT},
            "edges": {"type": "array", "items": EDGE},
            "rewards": NUMBERS,
            "costs": COSTS,
        },
        {"system": TEXT, "topology": one_of(TOPOLOGIES), "metrics": NUMBERS},
        False,
    ),
}

EXAMPLE: dict[str, Any] = {
    "trace_id": "demo-trace-001",
    "task_id": "demo-task-browser-research",
    "system": "illustrative",
    "topology": "centralized",
    "events": [
        {
            "id": "e1",
            "t": 0,
            "type": "orchestrator_decision",
            "agent": "orchestrator",
            "role": "lead",
            "content_ref": "decide_spawn_planner_executor",
        },
        {"id": "e2", "t": 1, "type": "spawn", "agent": "orchestrator", "role": "planner", "to": "planner_1"},
        {"id": "e3", "t": 2, "type": "spawn", "agent": "orchestrator", "role": "executor", "to": "executor_1"},
        {
            "id": "e4",
            "t": 3,
            "type": "message",
            "agent": "planner_1",
            "from": "planner_1",
            "to": "executor_1",
            "role": "planner",
            "content_ref": "plan_summary_hash",
            "trusted": True,
        },
        {
            "id": "e5",
            "t": 4,
            "type": "tool_call",
            "agent": "executor_1",
            "role": "executor",
            "tool": "browser.search",
            "content_ref": "query_hash",
            "trusted": True,
        },
        {
            "id": "e6",
            "t": 5,
            "type": "tool_result",
            "agent": "browser.search",
            "tool": "browser.search",
            "content_ref": "result_hash",
            "trusted": False,
        },
        {
            "id": "e7",
            "t": 6,
            "type": "return",
            "agent": "executor_1",
            "from": "executor_1",
            "to": "orchestrator",
            "content_ref": "answer_summary_hash",
            "trusted": True,
        },
        {
            "id": "e8",
            "t": 7,
            "type": "aggregate",
            "agent": "orchestrator",
            "role": "lead",
            "content_ref": "final_answer_hash",
        },
    ],
    "edges": [
        {"src": "e1", "dst": "e2", "type": "spawn"},
        {"src": "e1", "dst": "e3", "type": "spawn"},
        {"src": "e2", "dst": "e4", "type": "causal"},
        {"src": "e3", "dst": "e4", "type": "message"},
        {"src": "e4", "dst": "e5", "type": "tool_dependency"},
        {"src": "e5", "dst": "e6", "type": "return"},
        {"src": "e6", "dst": "e7", "type": "causal"},
        {"src": "e7", "dst": "e8", "type": "aggregate"},
    ],
    "rewards": {"team": 1.0, "orchestration": 0.3, "tool": 0.1},
    "costs": {"tokens": 12000, "wall_clock_s": 420, "tool_calls": 1, "messages": 1},
    "metrics": {"task_success": 1, "protocol_overhead": 0.18, "error_amplification": 0},
}


def check_valid(tree: dict[str, Any]) -> None:
    """By the schema, by the rules that the survey checks beside it, and finite."""
    jsonschema.Draft202012Validator(SCHEMA).validate(tree)
    ids = [event["id"] for event in tree["events"]]
    assert len(set(ids)) == len(ids)
    for edge in tree["edges"]:
        # The survey wants both ends; that the second comes later is ours.
        assert ids.index(edge["src"]) < ids.index(edge["dst"])
    assert all(value >= 0 for value in tree["costs"].values())
    assert all(math.isfinite(value) for part in ("rewards", "costs", "metrics") for value in tree[part].values())


def exported(path: Path, out: Path) -> dict[str, Any]:
    tree = json.loads(export([path], "survey", out).out.read_bytes(), parse_constant=pytest.fail)
    check_valid(tree)
    return tree


def test_the_schema_here_accepts_the_surveys_example_and_no_less() -> None:
    check_valid(EXAMPLE)
    for wrong in ({"more": 1}, {"events": []}, {"costs": {"tokens": 1}}, {"topology": "star"}, {"rewards": {"a": "b"}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.Draft202012Validator(SCHEMA).validate(EXAMPLE | wrong)


# Export.


def test_every_kind_has_its_place(tmp_path: Path) -> None:
    tree = exported(rich_trace(tmp_path), tmp_path / "out.json")
    by_id = {event["id"]: event for event in tree["events"]}
    kinds = {event["yendor"]["type"]: event["type"] for event in tree["events"]}
    assert kinds == {
        "env_reset": "tool_result",
        "env_step": "tool_result",
        "llm_call": "tool_result",
        "annotation": "tool_result",
        "spawn": "spawn",
        "delegate": "orchestrator_decision",
        "message": "message",
        "tool_call": "tool_call",
        "tool_result": "tool_result",
        "return": "return",
        "aggregate": "aggregate",
        "weights_update": "orchestrator_decision",
        "error": "safety_event",
        "stop": "despawn",
    }
    assert by_id["e1"]["to"] == "helper"
    assert by_id["e3"]["trusted"] is False
    assert by_id["e9"]["content_ref"] == "observation:bb"
    assert [(r["part"], r["value"]) for r in by_id["e9"]["yendor"]["rewards"] if "part" in r] == [
        ("component", 0.25),
        ("total", 0.25),
    ]
    assert tree["rewards"] == {"team": 1.5, "component:reward_model": 0.25}
    # Two steps, a reset, a model's call, an annotation and a call of a tool.
    assert tree["costs"] == {"tokens": 17, "wall_clock_s": 6, "tool_calls": 6, "messages": 1, "llm_calls": 1}
    assert tree["metrics"] == {"depth": 2, "episode_length": 2, "episode_return": 1.5, "task_success": 1}


def test_edges_lead_through_rewards_and_have_the_surveys_types(tmp_path: Path) -> None:
    tree = exported(rich_trace(tmp_path), tmp_path / "out.json")
    edges = {(edge["src"], edge["dst"]): edge["type"] for edge in tree["edges"]}
    assert edges["e0", "e1"] == "spawn"
    assert edges["e3", "e4"] == "message"
    assert edges["e4", "e5"] == "return"
    assert edges["e7", "e8"] == "aggregate"
    assert edges["e9:call", "e9"] == "return"
    # The weights' update follows from a reward, which follows from the annotation.
    assert edges["e10", "e13"] == "causal"


def test_recorded_episodes_are_valid(tmp_path: Path) -> None:
    played = Played("ep", [0, 1, 2, 0], list(CAPTIONS), [0.0, 1.0, -0.5, 0.0], [3, 3, 4, 4])
    record(recorder(tmp_path), played)
    tree = exported(tmp_path / "ep.jsonl.zst", tmp_path / "out.json")
    assert tree["rewards"]["team"] == 0.5
    assert tree["metrics"]["task_success"] == 1
    assert [event["id"] for event in tree["events"] if event["type"] == "tool_call"] == [
        event["id"] + ":call" for event in tree["events"] if event["type"] == "tool_result"
    ]


def test_an_episode_without_events_is_valid_too(tmp_path: Path) -> None:
    trace = write_trace(tmp_path, [header(env_id=""), end(0, metrics={}, success=None)])
    assert exported(trace, tmp_path / "out.json")["task_id"] == "demo"


@settings(max_examples=25, deadline=None)
@given(graphs())
def test_any_graph_is_valid(tmp_path_factory: pytest.TempPathFactory, made: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("graph")
    tree = exported(write_trace(folder, [header(), *made, end(len(made))]), folder / "out.json")
    kept = {event.id for event in made if not isinstance(event, Reward)}
    assert kept <= {event["id"] for event in tree["events"]}
    # All but the beginning follow from something, also where what they followed from is left out.
    assert {edge["dst"] for edge in tree["edges"]} == {event["id"] for event in tree["events"]} - {"e0:call"}


# Import.


def imported(tmp_path: Path, tree: object) -> Path:
    source = tmp_path / "survey.json"
    source.write_text(json.dumps(tree))
    return import_survey(source, tmp_path / "shown.jsonl.zst")


def test_the_surveys_example_comes_in_as_our_events(tmp_path: Path) -> None:
    trace = read_trace(imported(tmp_path, EXAMPLE))
    assert (trace.header.episode_id, trace.header.env_id) == ("shown", "demo-task-browser-research")
    kinds = [type(event) for event in trace.events]
    assert kinds == [
        EnvReset, Message, Spawn, Spawn, Delegate, Message, ToolCall, ToolResult, Return, Aggregate, Reward, Reward, Reward,
    ]  # fmt: skip
    by_id: dict[str, Any] = {event.id: event for event in trace.events}
    assert by_id["e6"].call == "e5"
    assert by_id["e6"].details == {"trusted": False}
    assert by_id["e7"].call == "e3:task"
    assert trace.texts[by_id["e4"].content_ref] == "plan_summary_hash"
    for edge in EXAMPLE["edges"]:
        assert edge["src"] in by_id[edge["dst"]].parents
    rewards = {event.source: (event.family, event.value) for event in trace.events if isinstance(event, Reward)}
    assert rewards == {"team": ("shared_outcome", 1), "orchestration": ("orchestration", 0.3), "tool": ("tool", 0.1)}
    assert trace.end is not None
    assert trace.end.success
    assert trace.end.costs == {"tool_calls": 1, "messages": 2, "wall_clock_s": 420}
    assert trace.end.metrics["cost:tokens"] == 12000


def test_what_came_in_goes_out_valid(tmp_path: Path) -> None:
    tree = exported(imported(tmp_path, EXAMPLE), tmp_path / "out.json")
    assert tree["rewards"]["team"] == 1.0
    types = {event["id"]: event["type"] for event in tree["events"]}
    same = [event["id"] for event in EXAMPLE["events"] if event["type"] != "orchestrator_decision"]
    assert all(types[event["id"]] == event["type"] for event in EXAMPLE["events"] if event["id"] in same)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"events": None}, "'events' is missing"),
        ({"events": []}, "has no events"),
        ({"events": [{"id": 1}]}, "event 1: needs the texts"),
        ({"events": [{"id": "a", "type": "message", "agent": "x", "t": float("nan")}]}, "not JSON|is no time"),
        ({"events": [EXAMPLE["events"][0]] * 2}, "event e1: the id is used twice"),
        ({"edges": [{"src": "e1", "dst": "e9", "type": "spawn"}]}, "edge 1: there is no event 'e9'"),
        ({"edges": [{"src": "e3", "dst": "e2", "type": "spawn"}]}, "edge 1: e2 follows from e3, which is not before"),
        ({"edges": ["x"]}, "edge 1: there is no event"),
    ],
)
def test_what_is_no_survey_trace_is_refused(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    with pytest.raises(TraceError, match=why):
        imported(tmp_path, EXAMPLE | change)
    assert {path.name for path in tmp_path.iterdir()} == {"survey.json"}


def test_results_and_returns_that_nothing_began_become_messages(tmp_path: Path) -> None:
    lonely = [
        {"id": "a", "t": 0, "type": "tool_result", "agent": "x"},
        {"id": "b", "t": 1, "type": "return", "agent": "x"},
    ]
    source = tmp_path / "lonely.json"
    source.write_text(json.dumps(EXAMPLE | {"events": lonely, "edges": [], "rewards": {}}))
    trace = read_survey(source)
    assert [type(event) for event in trace.events] == [EnvReset, Message, Message]
    assert trace.header.episode_id == "demo-trace-001"


def test_what_was_imported_is_valid(tmp_path: Path) -> None:
    assert validate_file(imported(tmp_path, EXAMPLE)) == []
