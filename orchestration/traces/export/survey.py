"""The orchestration-trace schema of the survey on multi-agent reinforcement learning: one JSON object an episode.

Source: github.com/xxzcc/awesome-llm-mas-rl, trace-schema/. It knows ten types of events; ours are mapped to these, with
what they lose kept under the key `yendor` of each event, which the schema allows.
"""

from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import orjson

from orchestration.traces.export.episode import Episode, environment, numbers
from orchestration.traces.export.text import finite, unicode
from orchestration.traces.schema import (
    RAW,
    Aggregate,
    Annotation,
    Delegate,
    EnvReset,
    EnvStep,
    Error,
    Event,
    LlmCall,
    Message,
    Return,
    Reward,
    Spawn,
    Stop,
    ToolCall,
    ToolResult,
    WeightsUpdate,
    text_ref,
)

TEXT_LIMIT = 4096
"""Characters of a text under `yendor`."""

_TEAM = "team"
_CHANNELS = {"outcome": _TEAM, "shared_outcome": _TEAM}
"""Reward families that the survey's traces call otherwise."""


def write(episodes: Iterable[Episode], file: BinaryIO) -> None:
    """Writes the object of one episode."""
    (episode,) = episodes
    file.write(orjson.dumps(tree_of(episode), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def tree_of(episode: Episode) -> dict[str, Any]:
    """The trace in the survey's schema, valid by it: all ids unique, all edges between events that are there."""
    mapped = _Mapping(episode)
    events, end = mapped.events(), episode.end
    if not events:
        # The schema wants one at least; an episode that was cut at once has none.
        events = [{"id": "cut", "t": 0.0, "type": "orchestrator_decision", "agent": "recorder"}]
    metrics = dict(numbers(end.metrics)) if end else {}
    if end:
        metrics |= dict(numbers({"episode_length": end.length, "episode_return": end.episode_return}))
        if end.success is not None:
            metrics["task_success"] = float(end.success)
    agents = {event["agent"] for event in events if event["agent"] != "environment"}
    return {
        "trace_id": unicode(episode.header.episode_id) or "unknown",
        "task_id": environment(episode.header),
        "system": "yendor",
        "topology": "mixed" if len(agents) > 1 else "unknown",
        "events": events,
        "edges": list(mapped.edges()),
        "rewards": _rewards(episode),
        "costs": _costs(episode, events),
        "metrics": metrics,
    }


class _Mapping:
    """Events of one episode as the survey's. Rewards become channels, and what they say stays with their targets."""

    def __init__(self, episode: Episode) -> None:
        self._episode = episode
        self._first: dict[str, str] = {}
        self._last: dict[str, tuple[str, ...]] = {}
        """Of each of our events: the first event that it became, and those that what follows from it follows from."""
        self._pairs: list[tuple[str, str]] = []
        self._ids: set[str] = {event.id for event in episode.events}

    def events(self) -> list[dict[str, Any]]:
        """All events, in order."""
        found: list[dict[str, Any]] = []
        by_id: dict[str, dict[str, Any]] = {}
        for event in self._episode.events:
            if isinstance(event, Reward):
                parents = (self._last.get(parent, ()) for parent in event.parents)
                self._last[event.id] = tuple(dict.fromkeys(last for lasts in parents for last in lasts))
                for target in event.targets:
                    if target in by_id:
                        by_id[target]["yendor"].setdefault("rewards", []).append(self._reward(event))
                continue
            made = list(self._made(event))
            found += made
            by_id[event.id] = made[-1]
            self._first[event.id], self._last[event.id] = made[0]["id"], (made[-1]["id"],)
            if len(made) > 1:
                self._pairs.append((made[0]["id"], made[-1]["id"]))
        return found

    def edges(self) -> Iterator[dict[str, str]]:
        """All edges; call after `events`."""
        for call, result in self._pairs:
            yield {"src": call, "dst": result, "type": "return"}
        by_id = {event.id: event for event in self._episode.events}
        for event in self._episode.events:
            target = self._first.get(event.id)
            if target is None:
                continue
            for parent in event.parents:
                for source in self._last.get(parent, ()):
                    yield {"src": source, "dst": target, "type": _edge(by_id[parent], event)}

    def _made(self, event: Event) -> Iterator[dict[str, Any]]:
        match event:
            case EnvReset():
                yield from self._pair(event, "environment.reset", "environment", _observation(event))
            case EnvStep():
                yield from self._pair(event, "environment.step", "environment", _observation(event))
            case LlmCall():
                yield from self._pair(event, "llm", event.model, event.output_ref)
            case Annotation():
                yield from self._pair(event, "judge", event.judge, event.answer_ref)
            case Spawn():
                yield self._event(event, "spawn", to=event.child, role=event.role)
            case Delegate():
                yield self._event(event, "orchestrator_decision", to=event.to, content_ref=event.task_ref)
            case Message():
                sender = {"from": event.agent, "to": event.to}
                yield self._event(event, "message", **sender, content_ref=event.content_ref, trusted=event.trusted)
            case ToolCall():
                yield self._event(event, "tool_call", tool=event.tool)
            case ToolResult():
                yield self._event(event, "tool_result", tool=event.tool, content_ref=event.content_ref)
            case Return():
                sender = {"from": event.agent, "to": event.to}
                yield self._event(event, "return", **sender, content_ref=event.content_ref)
            case Aggregate():
                yield self._event(event, "aggregate", content_ref=event.content_ref)
            case Stop():
                yield self._event(event, "despawn", to=event.target)
            case Error():
                yield self._event(event, "safety_event", content_ref=event.traceback_ref)
            case WeightsUpdate():
                yield self._event(event, "orchestrator_decision")
            case _:
                yield self._event(event, "orchestrator_decision")

    def _pair(self, event: Event, tool: str, answers: str, ref: str | None) -> Iterator[dict[str, Any]]:
        """A call and what came of it, of an event that holds both."""
        # An id of the file's own may end like this, too.
        call = f"{event.id}:call"
        while call in self._ids:
            call += "'"
        self._ids.add(call)
        begun = {"id": call, "t": max(0.0, event.t - event.duration), "type": "tool_call"}
        yield {**begun, "agent": unicode(event.agent) or "unknown", "tool": tool, "yendor": {"type": event.type}}
        yield {**self._event(event, "tool_result", tool=tool, content_ref=ref), "agent": unicode(answers) or "unknown"}

    def _event(self, event: Event, kind: str, **more: str | bool | None) -> dict[str, Any]:
        tree: dict[str, Any] = {
            "id": event.id,
            "t": event.t,
            "type": kind,
            "agent": unicode(event.agent) or "unknown",
        }
        tree |= {name: unicode(v) if isinstance(v, str) else v for name, v in more.items() if v is not None}
        tree["yendor"] = {"type": event.type, **self._episode.details(event, TEXT_LIMIT)}
        if event.duration:
            tree["yendor"]["duration"] = event.duration
        return tree

    def _reward(self, reward: Reward) -> dict[str, Any]:
        fields = self._episode.details(reward, TEXT_LIMIT)
        return {"id": reward.id, **{name: value for name, value in fields.items() if name != "targets"}}


def _observation(event: EnvReset | EnvStep) -> str | None:
    if event.observation_hash:
        return f"observation:{event.observation_hash}"
    return f"screen:{text_ref(event.screen)}" if event.screen else None


def _edge(source: Event, target: Event) -> str:
    """The survey's type for an edge between two of our events, going by what each is."""
    match source, target:
        case _, Spawn():
            return "spawn"
        case _, Aggregate():
            return "aggregate"
        case (ToolCall(), ToolResult()) | (_, Return()) | (Return(), _):
            return "return"
        case _, Message():
            return "message"
        case ((Message() | Delegate()), _):
            return "message"
        case _, ToolCall():
            return "tool_dependency"
        case Error(), _:
            return "safety_flow"
        case _:
            return "temporal" if source.agent == target.agent else "causal"


def _rewards(episode: Episode) -> dict[str, float]:
    """Sums by family of what the sources gave, and of the components of the reward that is learned from."""
    sums: dict[str, float] = {}
    for event in episode.events:
        value = finite(event.value) if isinstance(event, Reward) else None
        if isinstance(event, Reward) and event.part == RAW and value is not None:
            channel = _CHANNELS.get(event.family, unicode(event.family))
            sums[channel] = sums.get(channel, 0.0) + value
    if _TEAM not in sums and episode.end is not None:
        sums |= dict(numbers({_TEAM: episode.end.episode_return}))
    components = episode.end.components if episode.end else {}
    return {**sums, **{f"component:{source}": value for source, value in numbers(components)}}


def _costs(episode: Episode, events: list[dict[str, Any]]) -> dict[str, float]:
    """What the events add up to: calls and messages as a reader of the export would count them."""
    calls = [event for event in episode.events if isinstance(event, LlmCall)]
    told = dict(numbers(episode.end.costs)) if episode.end else {}
    kinds = [event["type"] for event in events]
    costs: dict[str, float] = {
        "tokens": sum(call.prompt_tokens + call.output_tokens for call in calls),
        "wall_clock_s": told.get("wall_clock_s", episode.length_s),
        "tool_calls": kinds.count("tool_call"),
        "messages": kinds.count("message"),
        "llm_calls": sum(call.calls for call in calls),
    }
    return {name: max(0.0, float(value)) for name, value in costs.items()}
