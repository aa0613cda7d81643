"""Reads the records of one trace in their order, and finds what does not follow from those before."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from orchestration.traces.checks import fields
from orchestration.traces.checks.rules import Fault
from orchestration.traces.checks.sums import Sums
from orchestration.traces.schema import (
    EPISODE,
    POLICY,
    REWARD_MODEL,
    RUN,
    Annotation,
    AnyEvent,
    Caption,
    Delegate,
    End,
    EnvReset,
    EnvStep,
    Error,
    Header,
    LlmCall,
    Record,
    Return,
    Reward,
    Stop,
    Text,
    ToolCall,
    ToolResult,
    WeightsUpdate,
)

_REFERENCES = (
    "prompt_ref", "output_ref", "question_ref", "answer_ref", "task_ref", "content_ref", "traceback_ref"
)  # fmt: skip


@dataclass(slots=True)
class Check:
    """Takes the records of one file in order; what is wrong is in `faults`. `finished`: nothing may be missing."""

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
    _versions: dict[str, int | None] = field(default_factory=dict[str, int | None])
    _counts: Counter[str] = field(default_factory=Counter[str])
    _open: dict[str, tuple[int, ToolCall | Delegate]] = field(
        default_factory=dict[str, tuple[int, ToolCall | Delegate]]
    )
    _stopped: set[str] = field(default_factory=set[str])
    """Agents that somebody ended."""
    _unhashed: tuple[int, str] | None = None
    _fatal: str | None = None
    _sums: Sums = field(default_factory=Sums)
    _resets: int = 0

    def _say(self, rule: str, message: str) -> None:
        self.faults.append(Fault(self._line, rule, message))

    def _say_all(self, wrong: Iterable[tuple[str, str]]) -> None:
        for rule, message in wrong:
            self._say(rule, message)

    @property
    def _scope(self) -> str:
        return EPISODE if self.header is None else self.header.scope

    # A record after the other.

    def take(self, number: int, record: Record) -> None:
        """The record of line `number`, from 1."""
        self._line = number
        self._say_all(fields.of_record(record))
        if self.end is not None:
            rule = "end" if isinstance(record, End) else "form"
            self._say(rule, f"a record of kind {record.record!r} after the end, where none can be")
        elif isinstance(record, Header):
            self._header(record)
        elif isinstance(record, Caption):
            self._say_all(fields.of_caption(record))
            if record.caption_id in self._captions:
                self._say("text", f"the caption {record.caption_id} stands there twice")
            self._captions.add(record.caption_id)
        elif isinstance(record, Text):
            self._say_all(fields.of_text(record))
            if record.ref in self._texts:
                self._say("text", f"the text {record.ref} stands there twice")
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
        self._versions = {POLICY: header.policy_version, REWARD_MODEL: header.reward_model_version}
        self._say_all(fields.of_header(header))

    def _event(self, event: AnyEvent) -> None:
        self._say_all(fields.of_event(event))
        self._graph(event)
        self._references(event)
        self.faults += self._sums.take(self._line, event) if not isinstance(event, EnvStep) else ()
        if isinstance(event, EnvReset):
            self._resets += 1
            if self._resets > 1:
                self._say("reset", "has more than one env_reset")
        elif isinstance(event, EnvStep):
            self._step(event)
        elif isinstance(event, WeightsUpdate):
            self._update(event)
        elif isinstance(event, ToolCall | Delegate):
            self._open[event.id] = (self._line, event)
        elif isinstance(event, ToolResult | Return):
            self._close(event)
        elif isinstance(event, LlmCall):
            self._llm_call(event)
        elif isinstance(event, Error) and event.fatal:
            self._fatal = event.id
        elif isinstance(event, Stop):
            self._stopped.add(event.target)
        if isinstance(event, EnvReset | EnvStep):
            self._keys(event)
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
        if self.header is not None and self._scope == EPISODE and not self._seen and event.type != "env_reset":
            self._say("reset", "does not begin with an env_reset")
        if event.t < self._t:
            self._say("time", f"event {event.id}: time goes back from {self._t} to {event.t}")
        self._t = max(self._t, event.t)
        if self.header is not None and fields.is_moment(self.header.recorded_at):
            wall = self.header.recorded_at + event.t + event.skew
            if not fields.is_moment(wall):
                self._say("time", f"event {event.id}: happened {wall:g} s since 1970, by its skew of {event.skew:g} s")

    def _references(self, event: AnyEvent) -> None:
        for name in _REFERENCES:
            ref = getattr(event, name, None)
            if ref is not None and ref not in self._texts:
                self._say("text", f"event {event.id}: the text {ref} of {name} is missing")
        caption = getattr(event, "caption_id", "0")
        if caption != "0" and caption not in self._captions:
            self._say("text", f"event {event.id}: the text of caption {caption} is missing")
        if isinstance(event, Annotation | Reward):
            for target in event.targets:
                if target not in self._seen:
                    self._say("reward", f"event {event.id}: the target {target} is not before it")

    def _keys(self, event: EnvReset | EnvStep) -> None:
        keys = () if self.header is None else self.header.observation_keys
        if event.key_hashes and len(event.key_hashes) != 2 * len(keys):
            self._say("observation", f"event {event.id}: hashes {event.key_hashes!r} of {len(keys)} arrays")

    def _step(self, event: EnvStep) -> None:
        assert self.header is not None
        if event.step != self._sums.steps:
            self._say("step", f"event {event.id}: step {event.step} where {self._sums.steps} is due")
        self.faults += self._sums.take(self._line, event)
        if self._fatal is not None:
            self._say("end", f"event {event.id}: a step after the fatal error {self._fatal}")
        if event.agent in self._stopped:
            self._say("end", f"event {event.id}: a step of {event.agent}, which was stopped before")
        in_force = self._versions[POLICY]
        if event.policy_version != in_force:
            self._say("version", f"event {event.id}: acted with v{event.policy_version} while v{in_force} was in force")
        names = self.header.action_names
        # Text worlds whose commands change have no fixed names.
        if names and (not 0 <= event.action < len(names) or names[event.action] != event.action_name):
            self._say("step", f"event {event.id}: action {event.action} is not called {event.action_name}")
        self._counts[event.caption_id] += event.caption_id != "0"
        counted = self._counts[event.caption_id]
        if event.caption_count != counted:
            self._say("count", f"event {event.id}: caption count {event.caption_count}, counted {counted}")
        if self._unhashed is not None:
            line, identity = self._unhashed
            self.faults.append(Fault(line, "observation", f"event {identity}: has no hash, but is not the last step"))
        self._unhashed = None if event.observation_hash else (self._line, event.id)

    def _update(self, event: WeightsUpdate) -> None:
        if self._scope != EPISODE:
            return
        in_force = self._versions.get(event.what)
        # Who recorded it may not have known the version of the reward model.
        if in_force is not None and event.from_version != in_force:
            what = event.what.replace("_", " ")
            self._say("version", f"event {event.id}: the {what} was v{in_force}, not v{event.from_version}")
        self._versions[event.what] = event.to_version

    def _llm_call(self, event: LlmCall) -> None:
        if self._scope == EPISODE:
            self._say_all(fields.of_untold(event))
        if event.step is not None and event.step != self._sums.steps:
            self._say(
                "step", f"event {event.id}: chose the action of step {event.step}, the next is {self._sums.steps}"
            )

    def _close(self, event: ToolResult | Return) -> None:
        wanted = "tool_call" if isinstance(event, ToolResult) else "delegate"
        _, found = self._open.get(event.call, (0, None))
        if found is None or found.type != wanted:
            known = self._seen.get(event.call)
            why = "is not before it" if known is None else f"is a {known}" if known != wanted else "is answered already"
            self._say("pair", f"event {event.id}: its {wanted} {event.call} {why}")
            return
        if isinstance(event, ToolResult) and isinstance(found, ToolCall) and event.tool != found.tool:
            self._say("pair", f"event {event.id}: a result of {event.tool}, called was {found.tool}")
        del self._open[event.call]

    # The whole.

    def conclude(self) -> None:
        """What can be said when all records were taken."""
        if not self._seen and self.finished:
            self.faults.append(Fault(None, "reset", "does not begin with an env_reset"))
        if self.end is None and self.finished:
            self.faults.append(Fault(None, "end", "has no end record"))
        if self.end is not None:
            self._line = self._end_line
            self._of_end(self.end)
        self.faults += self._sums.faults(self.end, self._end_line, self._scope, finished=self.finished)

    def _of_end(self, end: End) -> None:
        self._say_all(fields.of_end(end, self._scope))
        if end.events != len(self._seen):
            self._say("totals", f"the end counts {end.events} events, there are {len(self._seen)}")
        if end.t < self._t:
            self._say("time", f"the end is at {end.t}, the last event at {self._t}")
        if self._scope == EPISODE and self._fatal is not None and end.error is None:
            self._say("totals", f"the end tells of no error, {self._fatal} was fatal")
        forked_at = None if self.header is None else self.header.forked_at
        if forked_at is not None and forked_at > end.length:
            self.faults.append(Fault(1, "header", f"was forked at step {forked_at}, has {end.length}"))
        for call, (line, event) in self._open.items():
            # Whoever was ended does not answer any more.
            if isinstance(event, Delegate) and self._stopped & {event.to, RUN}:
                continue
            self.faults.append(Fault(line, "pair", f"event {call}: the {event.type} has no result"))
