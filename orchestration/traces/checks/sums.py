"""The arithmetic of a trace: rewards and their components, costs, and what its end says of them."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from orchestration.traces.checks.rules import Fault
from orchestration.traces.schema import (
    COMPONENT,
    FAMILIES,
    RAW,
    RUN,
    TOTAL,
    UNITS,
    AnyEvent,
    End,
    EnvStep,
    LlmCall,
    Message,
    Reward,
    ToolCall,
)

ENVIRONMENT = "environment"
"""The source of what the world itself pays."""
_COUNTED = ("tokens", "llm_calls", "tool_calls", "messages")
_WALL_CLOCK = "wall_clock_s"
_WALL_CLOCK_SLACK_S = 0.1
"""A writer may look at its clock once for each of the two."""


@dataclass(slots=True)
class _Sum:
    """Rewards of the same events."""

    components: float = 0.0
    total: float | None = None
    line: int = 0


@dataclass(slots=True)
class Sums:
    """Adds up the events of one trace, line by line; `faults` yields what does not come out."""

    steps: int = 0
    _return: list[float] = field(default_factory=list[float])
    _earned: dict[str, tuple[int, float]] = field(default_factory=dict[str, tuple[int, float]])
    _paid: dict[str, tuple[int, float]] = field(default_factory=dict[str, tuple[int, float]])
    _sums: dict[tuple[str, ...], _Sum] = field(default_factory=dict[tuple[str, ...], _Sum])
    _by_source: dict[str, float] = field(default_factory=dict[str, float])
    _costs: Counter[str] = field(default_factory=Counter[str])

    def take(self, line: int, event: AnyEvent) -> Iterator[Fault]:
        """What is wrong with an event already when it comes."""
        if isinstance(event, EnvStep):
            self.steps = event.step + 1
            self._return.append(event.reward)
            if event.reward != 0:
                self._earned[event.id] = (line, event.reward)
        elif isinstance(event, Reward):
            yield from self._reward(line, event)
        elif isinstance(event, LlmCall):
            self._costs["tokens"] += event.prompt_tokens + event.output_tokens
            self._costs["llm_calls"] += event.calls
        else:
            self._costs["tool_calls"] += isinstance(event, ToolCall)
            self._costs["messages"] += isinstance(event, Message)

    def _reward(self, line: int, event: Reward) -> Iterator[Fault]:
        if not event.targets:
            yield Fault(line, "reward", f"event {event.id}: names no event that earned it")
        for what, value, known in (
            ("family", event.family, FAMILIES),
            ("unit", event.unit, UNITS),
            ("part", event.part, (RAW, COMPONENT, TOTAL)),
        ):
            if value not in known:
                yield Fault(line, "reward", f"event {event.id}: {what} {value!r} is none of {', '.join(known)}")
        if event.source == ENVIRONMENT and event.version is not None:
            yield Fault(
                line, "reward", f"event {event.id}: the environment's, but of version {event.version} of a model"
            )
        if event.part == RAW:
            if event.source == ENVIRONMENT and event.targets:
                self._paid[event.target] = (line, event.value)
            return
        sums = self._sums.setdefault(event.targets, _Sum())
        sums.line = line
        if event.part == TOTAL:
            if sums.total is not None:
                yield Fault(line, "components", f"event {event.id}: a second total of {', '.join(event.targets)}")
            sums.total = event.value
        else:
            sums.components += event.value
            self._by_source[event.source] = self._by_source.get(event.source, 0.0) + event.value

    def faults(self, end: End | None, end_line: int, scope: str, *, finished: bool) -> Iterator[Fault]:
        """What does not add up in the whole."""
        yield from self._payments(may_be_cut=end is None and not finished)
        for targets, sums in self._sums.items():
            if sums.total is not None and not _close_to(sums.total, sums.components):
                what = f"the components of {', '.join(targets)} sum to {sums.components:g}, the total is {sums.total:g}"
                yield Fault(sums.line, "components", what)
        if end is not None:
            for rule, message in (*self._costs_of(end), *self._totals(end, scope)):
                yield Fault(end_line, rule, message)

    def _payments(self, *, may_be_cut: bool) -> Iterator[Fault]:
        for target in dict.fromkeys((*self._earned, *self._paid)):
            line, earned = self._earned.get(target, (None, 0.0))
            paid_line, paid = self._paid.get(target, (None, 0.0))
            # The reward of the last step may be in what was cut off.
            cut = may_be_cut and paid_line is None and target == list(self._earned)[-1]
            if not cut and earned != paid:
                what = f"event {target}: the reward events do not match the rewards of the steps ({paid:g}, {earned:g})"
                yield Fault(line or paid_line, "reward", what)

    def _costs_of(self, end: End) -> Iterator[tuple[str, str]]:
        for name in _COUNTED:
            told, counted = end.costs.get(name, 0), self._costs[name]
            if told != counted:
                yield "cost", f"the end tells of {told:g} {name}, the events sum to {counted}"
        seconds = end.costs.get(_WALL_CLOCK)
        if seconds is not None and not math.isclose(seconds, end.t, rel_tol=1e-4, abs_tol=_WALL_CLOCK_SLACK_S):
            yield "cost", f"the end tells of {seconds:g} s, it came after {end.t:g} s"

    def _totals(self, end: End, scope: str) -> Iterator[tuple[str, str]]:
        for source in sorted({*self._by_source, *end.components}):
            told, summed = end.components.get(source, 0.0), self._by_source.get(source, 0.0)
            if not _close_to(told, summed):
                yield "components", f"the end tells of {told:g} of {source}, the events sum to {summed:g}"
        if scope == RUN:
            return
        if end.length != self.steps:
            yield "totals", f"the end counts {end.length} steps, there are {self.steps}"
        total = math.fsum(self._return)
        # An environment that raised has no return to tell of.
        if end.error is None and not _close_to(end.episode_return, total):
            yield "totals", f"the end tells of a return of {end.episode_return:g}, the rewards sum to {total:g}"
        if end.terminated and end.truncated:
            yield "totals", "ended both by termination and by truncation"
        if not (end.terminated or end.truncated or end.error):
            yield "totals", "ended neither by termination, nor by truncation, nor by an error"


def _close_to(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-4)
