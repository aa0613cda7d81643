"""Checks that a trace keeps what its schema promises beyond the form of each record. Each fault says line and rule."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestration.errors import TraceError
from orchestration.traces.codec import tree_of
from orchestration.traces.complete import Late
from orchestration.traces.reader import read_lines, read_trace, records_of
from orchestration.traces.schema import (
    COMPONENT,
    EPISODE,
    FAMILIES,
    RAW,
    RUN,
    SUFFIX,
    TOTAL,
    UNITS,
    Annotation,
    AnyEvent,
    Caption,
    Delegate,
    End,
    EnvReset,
    EnvStep,
    Header,
    LlmCall,
    Message,
    Record,
    Return,
    Reward,
    Text,
    ToolCall,
    ToolResult,
    WeightsUpdate,
    text_ref,
)

RULES: Mapping[str, str] = {
    "form": "every line is a record of the schema",
    "cut": "a finished file is whole",
    "name": "the file bears the name of its episode",
    "header": "one header, at the beginning; scope is episode or run",
    "end": "exactly one end, at the end",
    "seq": "events are numbered from 0 without a gap",
    "id": "no id is used twice",
    "acyclic": "parents come before their children, so the graph has no cycle; only the first event has none",
    "time": "times never go back, durations are not negative",
    "finite": "numbers are finite",
    "reset": "an episode begins with its only env_reset",
    "step": "steps are numbered from 0 without a gap; actions bear their names",
    "version": "a step acts with the weights in force",
    "text": "the text of every caption and reference stands before its use, and its name fits",
    "count": "captions are counted as they come",
    "pair": "every result has one call before it, and every call of a finished trace one result",
    "reward": "rewards name earlier events, and what the environment paid is what the steps tell",
    "components": "components add up to the total of the same events, and to the end's sums",
    "cost": "costs add up",
    "late": "what the run says of an episode later can be read",
    "totals": "the end counts events, steps and return as they are; it has one reason",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, where, and against which of `RULES`."""

    line: int | None
    """From 1; None for the file as a whole."""
    rule: str
    message: str

    def __str__(self) -> str:
        where = "" if self.line is None else f"line {self.line}: "
        return f"{where}{self.message} [{self.rule}]"


def validate_file(path: Path) -> list[str]:
    """What is wrong with the trace in `path`, a line each; empty for a valid one. A `.part` may lack its end."""
    return [str(fault) for fault in faults_of(path)]


def faults_of(path: Path) -> list[Fault]:
    """As `validate_file`, apart."""
    try:
        read = read_lines(path)
    except TraceError as error:
        return [Fault(None, "form", _without(path, error))]
    finished = path.suffix != ".part"
    if not finished and not read.lines:
        # Its writer was killed before its first line was whole: nothing was promised of it, and nothing is there.
        return []
    check = _Check(finished)
    number = 0
    try:
        for number, record in records_of(path, read.lines):
            check.take(number, record)
    except TraceError as error:
        rule = "header" if number == 0 and "header" in str(error) else "form"
        check.fault(number + 1 if read.lines else None, rule, _without(path, error, number + 1))
        return check.faults
    if finished and read.cut is not None:
        check.fault(None, "cut", read.cut)
    check.conclude()
    name = path.name.removesuffix(".part").removesuffix(SUFFIX)
    if check.header is not None and name != check.header.episode_id:
        check.fault(1, "name", f"the file is called {name}, its episode {check.header.episode_id}")
    if finished and not check.faults:
        return _late_faults(path)
    return check.faults


def _late_faults(path: Path) -> list[Fault]:
    """What is wrong with a valid trace and what its run says of it later, together."""
    try:
        trace = Late.beside(path.parent).complete(read_trace(path)).trace
    except TraceError as error:
        return [Fault(None, "late", str(error))]
    check = _Check(finished=True)
    texts = [Text(ref, text) for ref, text in trace.texts.items()]
    captions = [Caption(caption, text) for caption, text in trace.captions.items()]
    assert trace.end is not None
    for number, record in enumerate((trace.header, *texts, *captions, *trace.events, trace.end), start=1):
        check.take(number, record)
    check.conclude()
    return [Fault(None, fault.rule, fault.message) for fault in check.faults]


def _without(path: Path, error: TraceError, line: int | None = None) -> str:
    text = str(error).removeprefix(str(path))
    return text.removeprefix(f":{line}").strip(": ")


@dataclass(slots=True)
class _Sums:
    """Rewards of the same events."""

    components: float = 0.0
    total: float | None = None
    line: int = 0


@dataclass(slots=True)
class _Check:
    """Reads the records of one file in order; every rule is a method."""

    finished: bool
    faults: list[Fault] = field(default_factory=list[Fault])
    header: Header | None = None
    end: End | None = None
    _line: int = 0
    _end_line: int = 0
    _seen: dict[str, str] = field(default_factory=dict[str, str])  # id → type
    _captions: set[str] = field(default_factory=set[str])
    _texts: set[str] = field(default_factory=set[str])
    _t: float = 0.0
    _version: int = 0
    _steps: int = 0
    _return: list[float] = field(default_factory=list[float])
    _counts: Counter[str] = field(default_factory=Counter[str])
    _earned: dict[str, tuple[int, float]] = field(default_factory=dict[str, tuple[int, float]])
    _paid: dict[str, tuple[int, float]] = field(default_factory=dict[str, tuple[int, float]])
    _open: dict[str, tuple[int, str]] = field(default_factory=dict[str, tuple[int, str]])
    _sums: dict[tuple[str, ...], _Sums] = field(default_factory=dict[tuple[str, ...], _Sums])
    _by_source: dict[str, float] = field(default_factory=dict[str, float])
    _costs: Counter[str] = field(default_factory=Counter[str])
    _resets: int = 0

    def fault(self, line: int | None, rule: str, message: str) -> None:
        self.faults.append(Fault(line, rule, message))

    def _say(self, rule: str, message: str) -> None:
        self.fault(self._line, rule, message)

    # A record after the other.

    def take(self, number: int, record: Record) -> None:
        self._line = number
        self._finite(record)
        if self.end is not None:
            rule = "end" if isinstance(record, End) else "form"
            self._say(rule, f"a record of kind {record.record!r} after the end, where none can be")
        elif isinstance(record, Header):
            self._header(record)
        elif isinstance(record, Caption):
            self._captions.add(record.caption_id)
        elif isinstance(record, Text):
            if record.ref != text_ref(record.text):
                self._say("text", f"the text {record.ref} is called {text_ref(record.text)} by its content")
            self._texts.add(record.ref)
        elif isinstance(record, End):
            self.end, self._end_line = record, number
        else:
            self._event(record)

    def _header(self, header: Header) -> None:
        if self.header is not None:
            self._say("header", "a record of kind 'header' where none can be")
            return
        self.header = header
        self._version = header.policy_version
        if header.scope not in (EPISODE, RUN):
            self._say("header", f"scope {header.scope!r} is neither {EPISODE} nor {RUN}")

    def _finite(self, record: Record) -> None:
        for place, value in _numbers(tree_of(record), ""):
            if not math.isfinite(value):
                self._say("finite", f"{place} is {value}")

    def _event(self, event: AnyEvent) -> None:
        self._graph(event)
        self._references(event)
        if isinstance(event, EnvReset):
            self._resets += 1
            if self._resets > 1:
                self._say("reset", "has more than one env_reset")
        elif isinstance(event, EnvStep):
            self._step(event)
        elif isinstance(event, WeightsUpdate):
            self._update(event)
        elif isinstance(event, Reward):
            self._reward(event)
        elif isinstance(event, ToolCall | Delegate):
            self._open[event.id] = (self._line, event.type)
            self._costs["tool_calls"] += isinstance(event, ToolCall)
        elif isinstance(event, ToolResult | Return):
            self._close(event)
        elif isinstance(event, Message):
            self._costs["messages"] += 1
        elif isinstance(event, LlmCall):
            self._llm_call(event)
        self._seen[event.id] = event.type

    def _graph(self, event: AnyEvent) -> None:
        at = len(self._seen)
        if event.seq != at:
            self._say("seq", f"event {event.id}: seq {event.seq} at position {at}")
        if event.id in self._seen:
            self._say("id", f"event {event.id}: the id is used twice")
        # Parents come first, so the graph has no cycles.
        missing = [parent for parent in event.parents if parent not in self._seen]
        if missing:
            self._say("acyclic", f"event {event.id}: parents {', '.join(missing)} are not before it")
        if not event.parents and self._seen:
            self._say("acyclic", f"event {event.id}: has no parent")
        if self.header is not None and self.header.scope == EPISODE and not self._seen and event.type != "env_reset":
            self._say("reset", "does not begin with an env_reset")
        if event.t < self._t:
            self._say("time", f"event {event.id}: time goes back from {self._t} to {event.t}")
        if event.duration < 0:
            self._say("time", f"event {event.id}: took {event.duration} s")
        self._t = max(self._t, event.t)

    def _references(self, event: AnyEvent) -> None:
        for name in (
            "prompt_ref",
            "output_ref",
            "question_ref",
            "answer_ref",
            "task_ref",
            "content_ref",
            "traceback_ref",
        ):
            ref = getattr(event, name, None)
            if ref is not None and ref not in self._texts:
                self._say("text", f"event {event.id}: the text {ref} of {name} is missing")
        caption = getattr(event, "caption_id", "0")
        if caption != "0" and caption not in self._captions:
            self._say("text", f"event {event.id}: the text of caption {caption} is missing")
        if isinstance(event, Annotation):
            self._targets(event.id, event.targets)

    def _targets(self, identity: str, targets: tuple[str, ...]) -> None:
        for target in targets:
            if target not in self._seen:
                self._say("reward", f"event {identity}: the target {target} is not before it")

    def _step(self, event: EnvStep) -> None:
        assert self.header is not None
        if event.step != self._steps:
            self._say("step", f"event {event.id}: step {event.step} where {self._steps} is due")
        self._steps = event.step + 1
        if event.policy_version != self._version:
            self._say(
                "version", f"event {event.id}: acted with v{event.policy_version} while v{self._version} was in force"
            )
        names = self.header.action_names
        # Text worlds whose commands change have no fixed names.
        if names and (not 0 <= event.action < len(names) or names[event.action] != event.action_name):
            self._say("step", f"event {event.id}: action {event.action} is not called {event.action_name}")
        self._counts[event.caption_id] += event.caption_id != "0"
        counted = self._counts[event.caption_id]
        if event.caption_count != counted:
            self._say("count", f"event {event.id}: caption count {event.caption_count}, counted {counted}")
        self._return.append(event.reward)
        if event.reward != 0:
            self._earned[event.id] = (self._line, event.reward)

    def _update(self, event: WeightsUpdate) -> None:
        assert self.header is not None
        if event.what != "policy" or self.header.scope == RUN:
            return
        if event.from_version != self._version:
            self._say("version", f"event {event.id}: the policy was v{self._version}, not v{event.from_version}")
        self._version = event.to_version

    def _reward(self, event: Reward) -> None:
        self._targets(event.id, event.targets)
        if not event.targets:
            self._say("reward", f"event {event.id}: names no event that earned it")
        for what, value, known in (
            ("family", event.family, FAMILIES),
            ("unit", event.unit, UNITS),
            ("part", event.part, (RAW, COMPONENT, TOTAL)),
        ):
            if value not in known:
                self._say("reward", f"event {event.id}: {what} {value!r} is none of {', '.join(known)}")
        if event.part == RAW:
            if event.source == "environment" and event.targets:
                self._paid[event.target] = (self._line, event.value)
            return
        sums = self._sums.setdefault(event.targets, _Sums())
        sums.line = self._line
        if event.part == TOTAL:
            if sums.total is not None:
                self._say("components", f"event {event.id}: a second total of {', '.join(event.targets)}")
            sums.total = event.value
        else:
            sums.components += event.value
            self._by_source[event.source] = self._by_source.get(event.source, 0.0) + event.value

    def _close(self, event: ToolResult | Return) -> None:
        wanted = "tool_call" if isinstance(event, ToolResult) else "delegate"
        found = self._open.get(event.call)
        if found is None or found[1] != wanted:
            known = self._seen.get(event.call)
            why = "is not before it" if known is None else f"is a {known}" if known != wanted else "is answered already"
            self._say("pair", f"event {event.id}: its {wanted} {event.call} {why}")
            return
        del self._open[event.call]

    def _llm_call(self, event: LlmCall) -> None:
        self._costs["tokens"] += event.prompt_tokens + event.output_tokens
        self._costs["llm_calls"] += event.calls
        if event.prompt_tokens < 0 or event.output_tokens < 0 or event.calls < 1:
            self._say("cost", f"event {event.id}: counts of tokens or calls that cannot be")
        for name, tokens, count in (
            ("prompt", event.prompt, event.prompt_tokens),
            ("output", event.output, event.output_tokens),
            ("log_probs", event.log_probs, event.output_tokens),
        ):
            if tokens is not None and len(tokens) != count:
                self._say("cost", f"event {event.id}: {len(tokens)} in {name}, counted {count}")

    # The whole.

    def conclude(self) -> None:
        if not self._seen and self.finished:
            self.fault(None, "reset", "does not begin with an env_reset")
        if self.end is None and self.finished:
            self.fault(None, "end", "has no end record")
        self._payments()
        for targets, sums in self._sums.items():
            if sums.total is not None and not _close_to(sums.total, sums.components):
                what = f"the components of {', '.join(targets)} sum to {sums.components:g}, the total is {sums.total:g}"
                self.fault(sums.line, "components", what)
        if self.end is not None:
            self._line = self._end_line
            self._totals(self.end)

    def _payments(self) -> None:
        for target in dict.fromkeys((*self._earned, *self._paid)):
            line, earned = self._earned.get(target, (None, 0.0))
            paid_line, paid = self._paid.get(target, (None, 0.0))
            # The reward of the last step may be in what was cut off.
            cut = self.end is None and not self.finished and paid_line is None and target == list(self._earned)[-1]
            if not cut and earned != paid:
                what = f"event {target}: the reward events do not match the rewards of the steps ({paid:g}, {earned:g})"
                self.fault(line or paid_line, "reward", what)

    def _totals(self, end: End) -> None:
        if end.events != len(self._seen):
            self._say("totals", f"the end counts {end.events} events, there are {len(self._seen)}")
        if end.t < self._t:
            self._say("time", f"the end is at {end.t}, the last event at {self._t}")
        for call, (line, kind) in self._open.items():
            self.fault(line, "pair", f"event {call}: the {kind} has no result")
        self._costs_of(end)
        for source in sorted({*self._by_source, *end.components}):
            told, summed = end.components.get(source, 0.0), self._by_source.get(source, 0.0)
            if not _close_to(told, summed):
                self._say("components", f"the end tells of {told:g} of {source}, the events sum to {summed:g}")
        if self.header is not None and self.header.scope == RUN:
            return
        if end.length != self._steps:
            self._say("totals", f"the end counts {end.length} steps, there are {self._steps}")
        total = math.fsum(self._return)
        # An environment that raised has no return to tell of.
        if end.error is None and not _close_to(end.episode_return, total):
            self._say("totals", f"the end tells of a return of {end.episode_return:g}, the rewards sum to {total:g}")
        if end.terminated and end.truncated:
            self._say("totals", "ended both by termination and by truncation")

    def _costs_of(self, end: End) -> None:
        for name in ("tokens", "llm_calls", "tool_calls", "messages"):
            told, counted = end.costs.get(name, 0), self._costs[name]
            if told != counted:
                self._say("cost", f"the end tells of {told:g} {name}, the events sum to {counted}")
        for name, value in end.costs.items():
            if value < 0:
                self._say("cost", f"{name} cost {value:g}")


def _close_to(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-4)


def _numbers(value: Any, place: str) -> Iterator[tuple[str, float]]:
    """All numbers in a tree of JSON, by where they are."""
    if isinstance(value, float):
        yield place, value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _numbers(part, f"{place}.{name}" if place else str(name))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _numbers(part, f"{place}[{index}]")
