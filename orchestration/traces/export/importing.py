"""Imports traces in the survey's schema, for viewing: there is nothing in them that could be executed again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import zstandard

from orchestration.errors import TraceError
from orchestration.traces.codec import encode
from orchestration.traces.export.files import new_file
from orchestration.traces.export.text import finite
from orchestration.traces.reader import Trace
from orchestration.traces.schema import (
    FAMILIES,
    SCHEMA,
    SUFFIX,
    Aggregate,
    AnyEvent,
    Delegate,
    End,
    EnvReset,
    Error,
    Header,
    Message,
    Return,
    Reward,
    Spawn,
    Stop,
    Text,
    ToolCall,
    ToolResult,
    text_ref,
)

_REQUIRED = {"trace_id": str, "task_id": str, "events": list, "edges": list, "rewards": dict, "costs": dict}
_CHANNELS = {"team": "shared_outcome"}
_START = "start"


def import_survey(source: Path, out: Path) -> Path:
    """Writes the survey trace in `source` as a trace of ours to `out`, and returns `out`.

    `out` is called `NAME.jsonl.zst`; the episode is called NAME. Raises `TraceError` for what is no survey trace.
    """
    if not out.name.endswith(SUFFIX) or out.name == SUFFIX:
        raise TraceError(f"{out}: a trace is called NAME{SUFFIX}")
    trace = read_survey(source, episode_id=out.name.removesuffix(SUFFIX))
    texts = [Text(ref, text) for ref, text in trace.texts.items()]
    assert trace.end is not None
    lines = b"".join(encode(record) for record in (trace.header, *texts, *trace.events, trace.end))
    with new_file(out) as file:
        file.write(zstandard.ZstdCompressor().compress(lines))
    return out


def read_survey(source: Path, *, episode_id: str | None = None) -> Trace:
    """The survey trace in `source` as events of ours, called `episode_id` or as it calls itself.

    Raises `TraceError` for what is no survey trace, naming what is wrong with it.
    """
    tree = _load(source)
    reader = _Events(source, tree)
    events = reader.events()
    told = _numbers(tree["costs"])
    metrics = _numbers(tree.get("metrics", {}))
    seconds = max(0.0, told.get("wall_clock_s", 0.0), *(event.t for event in events))
    success = metrics.get("task_success")
    header = Header(
        schema=SCHEMA,
        episode_id=episode_id or tree["trace_id"],
        run=str(tree.get("system", "imported")),
        env_id=tree["task_id"],
        env_options={"topology": str(tree["topology"])} if "topology" in tree else {},
        action_names=(),
        seeds={},
        policy_version=0,
        versions={},
        code_revision=None,
        clock="unpinned",
        recorded_at=0.0,
        count_exponent=None,
    )
    end = End(
        t=seconds,
        events=len(events),
        length=0,
        episode_return=0.0,
        terminated=True,
        truncated=False,
        success=None if success is None else success > 0,
        metrics={**metrics, **{f"cost:{name}": value for name, value in told.items()}},
        error=None,
        costs=_costs(events, seconds),
    )
    return Trace(source, header, {}, events, end, None, reader.texts)


def _costs(events: tuple[AnyEvent, ...], seconds: float) -> dict[str, float]:
    """Ours add up from the events, which the survey's need not: those are kept among the metrics."""
    costs: dict[str, float] = {
        "tool_calls": sum(isinstance(event, ToolCall) for event in events),
        "messages": sum(isinstance(event, Message) for event in events),
        "wall_clock_s": seconds,
    }
    return {name: float(value) for name, value in costs.items() if value}


def _load(source: Path) -> dict[str, Any]:
    try:
        tree = orjson.loads(source.read_bytes())
    except OSError as error:
        raise TraceError(f"{source}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise TraceError(f"{source}: not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise TraceError(f"{source}: not a JSON object")
    for name, kind in _REQUIRED.items():
        if not isinstance(tree.get(name), kind):
            raise TraceError(f"{source}: no survey trace: {name!r} is missing or not of its type")
    return tree


def _numbers(values: Mapping[str, object]) -> dict[str, float]:
    found = {name: finite(value) for name, value in values.items()}
    return {name: value for name, value in found.items() if value is not None}


class _Events:
    """The events of one survey trace."""

    def __init__(self, source: Path, tree: Mapping[str, Any]) -> None:
        self._source = source
        self._tree = tree
        self.texts: dict[str, str] = {}
        self._made: list[AnyEvent] = []
        self._calls: dict[str, str] = {}
        """Tools of the calls that no result was found for yet, by id."""
        self._tasks: dict[str, str] = {}
        """By agent: the delegation that it has not answered."""
        self._listed = self._check_events()
        self._parents = self._check_edges()
        self._returning = {event["agent"] for event in self._listed if event["type"] == "return"}
        self._ids = {str(event["id"]) for event in self._listed}
        self._start = self._new_id(_START)

    def events(self) -> tuple[AnyEvent, ...]:
        """All events, in the order of their times, after one that they begin from; rewards at the end."""
        first = str(self._listed[0]["agent"])
        self._made.append(
            EnvReset(id=self._start, seq=0, t=0.0, agent=first, parents=(), observation_hash="", screen="")
        )
        for event in self._listed:
            self._add(event)
        last = self._made[-1]
        for channel, value in _numbers(self._tree["rewards"]).items():
            family = _CHANNELS.get(channel, channel)
            common = self._common(self._new_id(f"reward:{channel}"), last.t, last.agent, (last.id,))
            family = family if family in FAMILIES else "hybrid"
            unit = "team" if family == "shared_outcome" else "agent"
            targets = (last.id,)
            self._made.append(
                Reward(**common, family=family, unit=unit, value=value, source=channel, version=None, targets=targets)
            )
        return tuple(self._made)

    def _check_events(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = []
        seen = set[str]()
        for number, event in enumerate(self._tree["events"], start=1):
            if not isinstance(event, dict) or not all(isinstance(event.get(n), str) for n in ("id", "type", "agent")):
                raise TraceError(f"{self._source}: event {number}: needs the texts id, type and agent")
            t = finite(event.get("t"))
            if t is None or t < 0:
                raise TraceError(f"{self._source}: event {event['id']}: t {event.get('t')!r} is no time")
            if event["id"] in seen:
                raise TraceError(f"{self._source}: event {event['id']}: the id is used twice")
            seen.add(event["id"])
            listed.append({**event, "t": t})
        if not listed:
            raise TraceError(f"{self._source}: has no events")
        return sorted(listed, key=lambda event: event["t"])

    def _check_edges(self) -> dict[str, list[str]]:
        at = {event["id"]: position for position, event in enumerate(self._listed)}
        parents: dict[str, list[str]] = {}
        for number, edge in enumerate(self._tree["edges"], start=1):
            source, target = (str(edge.get(name)) if isinstance(edge, dict) else "" for name in ("src", "dst"))
            for end in (source, target):
                if end not in at:
                    raise TraceError(f"{self._source}: edge {number}: there is no event {end!r}")
            # Ours come after their parents; the survey's schema would let them run in a circle.
            if at[source] >= at[target]:
                raise TraceError(
                    f"{self._source}: edge {number}: {target} follows from {source}, which is not before it"
                )
            parents.setdefault(target, []).append(source)
        return parents

    def _add(self, event: dict[str, Any]) -> None:
        agent, to = str(event["agent"]), str(event.get("to") or event["agent"])
        parents = tuple(dict.fromkeys(self._parents.get(event["id"], [self._start])))
        common = self._common(event["id"], event["t"], agent, parents)
        ref = self._content(event)
        trusted = event.get("trusted") is not False
        match event["type"]:
            case "spawn":
                role = event.get("role")
                self._made.append(Spawn(**common, child=to, role=role if isinstance(role, str) else None))
                self._delegate(event, to)
            case "despawn":
                self._made.append(Stop(**common, target=to, reason="despawn"))
            case "tool_call":
                tool = self._calls[event["id"]] = str(event.get("tool", "unknown"))
                arguments = {"content_ref": event["content_ref"]} if ref else {}
                self._made.append(ToolCall(**common, tool=tool, arguments=arguments))
            case "tool_result" if (call := self._call_of(event)) is not None:
                details = {} if trusted else {"trusted": False}
                tool = str(event.get("tool", "unknown"))
                self._made.append(ToolResult(**common, call=call, tool=tool, content_ref=ref, details=details))
            case "return" if agent in self._tasks:
                self._made.append(Return(**common, call=self._tasks.pop(agent), to=to, content_ref=ref))
            case "aggregate":
                self._made.append(Aggregate(**common, method="aggregate", content_ref=ref))
            case "safety_event":
                self._made.append(Error(**common, message=str(event.get("content_ref", "safety event")), source=agent))
            case _:
                # Decisions, interventions, and results and returns of what no event began.
                self._made.append(Message(**common, to=to, content_ref=ref, trusted=trusted))

    def _delegate(self, event: dict[str, Any], child: str) -> None:
        """A task for an agent that will return: the survey's schema has no event for handing it over."""
        if child in self._returning:
            common = self._common(self._new_id(f"{event['id']}:task"), event["t"], event["agent"], (event["id"],))
            self._made.append(Delegate(**common, to=child))
            self._tasks[child] = common["id"]

    def _call_of(self, result: dict[str, Any]) -> str | None:
        """The tool call that a result belongs to: its parent, else the last open one of the same tool."""
        parents = [parent for parent in self._parents.get(result["id"], []) if parent in self._calls]
        same = [call for call, tool in self._calls.items() if tool == result.get("tool")]
        call = parents[-1] if parents else same[-1] if same else None
        if call is not None:
            del self._calls[call]
        return call

    def _content(self, event: dict[str, Any]) -> str | None:
        content = event.get("content_ref")
        if not isinstance(content, str):
            return None
        ref = text_ref(content)
        self.texts[ref] = content
        return ref

    def _common(self, event_id: str, t: float, agent: str, parents: tuple[str, ...]) -> dict[str, Any]:
        return {"id": event_id, "seq": len(self._made), "t": t, "agent": agent, "parents": parents}

    def _new_id(self, wish: str) -> str:
        while wish in self._ids:
            wish += "'"
        self._ids.add(wish)
        return wish
