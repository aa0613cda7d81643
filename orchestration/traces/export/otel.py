"""OpenTelemetry: spans with the GenAI semantic conventions, as OTLP JSON lines.

Sources: the OTLP file exporter's and the OTLP/HTTP JSON encoding's specification, and the semantic conventions for
generative AI (gen-ai-agent-spans, gen-ai-spans, gen-ai-events), which are still in development. Ids are hashes of the
episode's and the event's ids: the same in every export.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import orjson

from orchestration.traces.export.episode import Episode, environment, numbers
from orchestration.traces.export.text import finite, plain, unicode
from orchestration.traces.schema import (
    Annotation,
    Delegate,
    EnvReset,
    EnvStep,
    Error,
    Event,
    LlmCall,
    Return,
    Reward,
    Spawn,
    ToolCall,
    ToolResult,
)

TEXT_LIMIT = 16_384
"""Characters of a text that an attribute is given."""

_NAME_LIMIT = 200
_VALUE_LIMIT = 8 * TEXT_LIMIT
"""Of an attribute as a whole: JSON that holds a text of `TEXT_LIMIT` characters fits, all of them escaped."""
_INTERNAL, _CLIENT = 1, 3
_OK, _FAILED = 1, 2
_EVALUATION = "gen_ai.evaluation.result"
_SAMPLING = {
    name: f"gen_ai.request.{name}"
    for name in ("temperature", "top_p", "top_k", "max_tokens", "seed", "frequency_penalty", "presence_penalty")
}


def write(episodes: Iterable[Episode], file: BinaryIO) -> None:
    """Writes a line for each episode: a `TracesData` message with one trace."""
    for episode in episodes:
        header = episode.header
        resource = {
            "service.name": "yendor",
            "service.version": header.versions.get("yendor") or "unknown",
            "yendor.run": header.run,
            "yendor.code_revision": header.code_revision,
        }
        spans = _Spans(episode).build()
        scope = {"name": "yendor.traces", "version": header.schema}
        scoped = {"scope": scope, "spans": spans}
        tree = {"resourceSpans": [{"resource": {"attributes": _attributes(resource)}, "scopeSpans": [scoped]}]}
        file.write(orjson.dumps(tree, option=orjson.OPT_APPEND_NEWLINE))


class _Spans:
    """The spans of one episode: one for the whole, one for each agent below it, and below these what each did."""

    def __init__(self, episode: Episode) -> None:
        header = episode.header
        self._episode = episode
        self._origin_ns = round((finite(header.recorded_at) or 0.0) * 1e6) * 1000
        self._trace_id = _hash(16, "trace", header.run, header.episode_id, repr(header.recorded_at))
        self._spans: dict[str, dict[str, Any]] = {}
        """By the id of the event."""
        self._agents: dict[str, dict[str, Any]] = {}
        self._above: dict[str, dict[str, Any]] = {}
        """The spans that others can be below, by their own ids."""
        self._results: dict[str, ToolResult | Return] = {
            event.call: event for event in episode.events if isinstance(event, ToolResult | Return)
        }
        self._players = {step.agent for step in episode.steps}
        """The agents that the header's policy acts for."""
        self._ended: dict[str, float] = {}
        self._root = self._open_root()
        self._above[self._root["spanId"]] = self._root

    def build(self) -> list[dict[str, Any]]:
        """The spans, the whole episode's first."""
        for event in self._episode.events:
            self._open_agent(event.agent, self._root, event.t)
            if isinstance(event, Spawn):
                self._open_agent(event.child, self._agents[event.agent], event.t)
            self._add(event)
            self._cover(event.agent, event.t, event.t)
        for event in self._episode.events:
            self._tell(event)
            self._link(event)
        return [self._root, *self._agents.values(), *self._spans.values()]

    def _open_root(self) -> dict[str, Any]:
        header, end = self._episode.header, self._episode.end
        name = environment(header)[:_NAME_LIMIT]
        attributes: dict[str, object] = {
            "gen_ai.operation.name": "invoke_workflow",
            "gen_ai.workflow.name": name,
            "gen_ai.conversation.id": header.episode_id,
            "yendor.scope": header.scope,
            "yendor.clock": header.clock,
            "yendor.policy_version": header.policy_version,
        }
        attributes |= {f"yendor.seed.{key}": seed for key, seed in header.seeds.items()}
        if end is not None:
            attributes |= {"yendor.return": end.episode_return, "yendor.length": end.length}
            attributes |= {"yendor.success": end.success, "yendor.truncated": end.truncated}
            attributes |= {f"yendor.metric.{key}": value for key, value in numbers(end.metrics)}
        root = self._span("", f"invoke_workflow {name}", None, 0.0, self._episode.length_s, attributes)
        if end is not None:
            root["status"] = (
                {"code": _FAILED, "message": unicode(end.error, TEXT_LIMIT)} if end.error else {"code": _OK}
            )
        return root

    def _open_agent(self, agent: str, parent: dict[str, Any], t: float) -> None:
        if agent in self._agents:
            return
        attributes: dict[str, object] = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.provider.name": "yendor",
            "gen_ai.agent.name": agent,
            "gen_ai.agent.id": agent,
            "gen_ai.conversation.id": self._episode.header.episode_id,
            "gen_ai.request.model": self._episode.header.policy if agent in self._players else None,
        }
        name = f"invoke_agent {unicode(agent, _NAME_LIMIT)}"
        span = self._span(f"agent\0{agent}", name, parent, max(0.0, t), max(0.0, t), attributes)
        self._agents[agent] = self._above[span["spanId"]] = span

    def _cover(self, agent: str, start: float, end: float) -> None:
        """An agent lasts as long as what it does, and so does whoever spawned it."""
        span: dict[str, Any] | None = self._agents[agent]
        first, last = self._time(start), self._time(end)
        while span is not None:
            span["startTimeUnixNano"] = str(min(first, int(span["startTimeUnixNano"])))
            span["endTimeUnixNano"] = str(max(last, int(span["endTimeUnixNano"])))
            span = self._above.get(span.get("parentSpanId", ""))

    def _add(self, event: Event) -> None:
        start, end, kind = event.t - event.duration, event.t, _INTERNAL
        attributes: dict[str, object] = {
            f"yendor.{name}": value for name, value in self._episode.details(event, TEXT_LIMIT).items()
        }
        match event:
            case EnvReset() | EnvStep():
                start = start if event.duration else self._ended.get(event.agent, event.t)
                self._ended[event.agent] = event.t
                name = f"env_step {event.action_name}" if isinstance(event, EnvStep) else "env_reset"
            case LlmCall():
                start, kind, name = event.t - (event.duration or event.latency_s), _CLIENT, f"chat {event.model}"
                attributes = self._chat(event)
            case ToolCall():
                result = self._results.get(event.id)
                start, end, name = event.t, result.t if result else event.t, f"execute_tool {event.tool}"
                attributes = self._tool(event, result)
            case Delegate():
                result = self._results.get(event.id)
                start, end, name = event.t, result.t if result else event.t, f"delegate {event.to}"
            case _:
                return
        start, name = max(0.0, start), unicode(name, _NAME_LIMIT)
        self._cover(event.agent, start, end)
        agent = self._agents[event.agent]
        self._spans[event.id] = self._span(f"event\0{event.id}", name, agent, start, max(start, end), attributes, kind)

    def _chat(self, call: LlmCall) -> dict[str, object]:
        attributes: dict[str, object] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "yendor",
            "gen_ai.request.model": call.model,
            "gen_ai.response.model": call.model if call.version is None else f"{call.model}@{call.version}",
            "gen_ai.usage.input_tokens": call.prompt_tokens,
            "gen_ai.usage.output_tokens": call.output_tokens,
            "gen_ai.conversation.id": self._episode.header.episode_id,
            "yendor.latency_s": call.latency_s,
            "yendor.calls": call.calls,
            "yendor.step": call.step,
        }
        attributes |= {_SAMPLING.get(name, f"yendor.sampling.{name}"): value for name, value in call.sampling.items()}
        if call.finish_reason is not None:
            attributes["gen_ai.response.finish_reasons"] = [call.finish_reason]
        prompt, answer = self._episode.text(call.prompt_ref), self._episode.text(call.output_ref)
        if prompt is not None:
            attributes["gen_ai.input.messages"] = _messages("user", prompt, None)
        if answer is not None:
            attributes["gen_ai.output.messages"] = _messages("assistant", answer, call.finish_reason or "unknown")
        return attributes

    def _tool(self, call: ToolCall, result: ToolResult | Return | None) -> dict[str, object]:
        attributes: dict[str, object] = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": call.tool,
            "gen_ai.tool.call.id": call.id,
            "gen_ai.tool.type": "function",
            "gen_ai.tool.call.arguments": _json(call.arguments),
        }
        if result is not None:
            attributes["gen_ai.tool.call.result"] = _json(self._episode.details(result, TEXT_LIMIT))
        if isinstance(result, ToolResult) and not result.ok:
            attributes["error.type"] = "tool_error"
        return attributes

    def _tell(self, event: Event) -> None:
        """What has no span of its own becomes an event of the spans that it is about, or of its agent's."""
        if event.id in self._spans or (isinstance(event, ToolResult | Return) and event.call in self._spans):
            return
        details = {f"yendor.{name}": value for name, value in self._episode.details(event, TEXT_LIMIT).items()}
        name, targets = f"yendor.{event.type}", tuple[str, ...]()
        attributes: dict[str, object] = {"yendor.id": event.id, **details}
        match event:
            case Reward():
                name, targets = _EVALUATION, event.targets
                score = finite(event.value)
                attributes |= {"gen_ai.evaluation.name": event.source, "gen_ai.evaluation.score.value": score}
            case Annotation():
                name, targets = _EVALUATION, event.targets
                attributes |= {
                    "gen_ai.evaluation.name": event.prompt_version or event.judge,
                    "gen_ai.evaluation.score.value": event.probability
                    if event.probability is not None
                    else event.label,
                    "gen_ai.evaluation.score.label": None if event.label is None else str(event.label),
                    "gen_ai.evaluation.explanation": details.get("yendor.answer"),
                }
            case Error():
                name = "exception"
                attributes |= {"exception.type": event.source, "exception.message": event.message}
                if event.fatal:
                    status = {"code": _FAILED, "message": unicode(event.message, TEXT_LIMIT)}
                    self._agents[event.agent]["status"] = status
            case _:
                pass
        told = {"timeUnixNano": str(self._time(event.t)), "name": name, "attributes": _attributes(attributes)}
        found = [self._spans[target] for target in dict.fromkeys(targets) if target in self._spans]
        for span in found or [self._agents[event.agent]]:
            span["events"].append(told)

    def _link(self, event: Event) -> None:
        span = self._spans.get(event.id)
        if span is None:
            return
        for parent in dict.fromkeys(event.parents):
            source = self._spans.get(parent)
            if source is not None:
                span["links"].append({"traceId": self._trace_id, "spanId": source["spanId"]})

    def _span(
        self,
        key: str,
        name: str,
        parent: dict[str, Any] | None,
        start: float,
        end: float,
        attributes: Mapping[str, object],
        kind: int = _INTERNAL,
    ) -> dict[str, Any]:
        span: dict[str, Any] = {
            "traceId": self._trace_id,
            "spanId": _hash(8, "span", self._trace_id, key),
            "name": name,
            "kind": kind,
            "startTimeUnixNano": str(self._time(start)),
            "endTimeUnixNano": str(self._time(end)),
            "attributes": _attributes(attributes),
            "events": [],
            "links": [],
        }
        if parent is not None:
            span["parentSpanId"] = parent["spanId"]
        return span

    def _time(self, t: float) -> int:
        """Nanoseconds since the epoch."""
        return self._origin_ns + round(t * 1e9)


def _messages(role: str, text: str, finish_reason: str | None) -> str:
    message: dict[str, Any] = {
        "role": role,
        "parts": [{"type": "text", "content": unicode(text, TEXT_LIMIT)}],
    }
    if finish_reason is not None:
        message["finish_reason"] = unicode(finish_reason, _NAME_LIMIT)
    return orjson.dumps([message]).decode()


def _json(value: object) -> str:
    return orjson.dumps(plain(value, TEXT_LIMIT)).decode()


def _attributes(values: Mapping[str, object]) -> list[dict[str, Any]]:
    """OTLP's list of keys and typed values; what is null or no finite number is left out."""
    found: list[dict[str, Any]] = []
    for key, value in values.items():
        typed = _value(value)
        if typed is not None:
            found.append({"key": unicode(key, _NAME_LIMIT), "value": typed})
    return found


def _value(value: object) -> dict[str, Any] | None:
    match value:
        case None:
            return None
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)} if -(2**63) <= value < 2**63 else {"stringValue": str(value)}
        case float():
            number = finite(value)
            return None if number is None else {"doubleValue": number}
        case str():
            return {"stringValue": unicode(value, _VALUE_LIMIT)}
        case list() | tuple() if all(isinstance(item, str) for item in value):
            return {"arrayValue": {"values": [{"stringValue": unicode(str(item), _VALUE_LIMIT)} for item in value]}}
        case _:
            return {"stringValue": _json(value)}


def _hash(size: int, *parts: str) -> str:
    """Hexadecimal; not zero, which means no id."""
    digest = hashlib.blake2b("\0".join(unicode(part) for part in parts).encode(), digest_size=size).digest()
    return (digest if any(digest) else b"\x01" * size).hex()
