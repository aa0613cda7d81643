"""The trace of a run itself: actors that came and went, weights that were published, judge's batches, checkpoints.

It has the schema of episodes (`Header.scope` is `run`), so whatever shows or exports a trace shows what the cluster did.
Each time that a run is started or resumed it writes a file of its own, `run-TIME.jsonl.zst`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestration.errors import TraceError
from orchestration.traces.clocks import WallClock
from orchestration.traces.files import TraceFile
from orchestration.traces.reader import RUN_PREFIX
from orchestration.traces.schema import (
    RUN,
    RUN_SEED,
    SCHEMA,
    SUFFIX,
    Aggregate,
    Delegate,
    End,
    Error,
    Header,
    LlmCall,
    Message,
    Record,
    Return,
    Spawn,
    Stop,
    Text,
    ToolCall,
    ToolResult,
    WeightsUpdate,
    clean,
    text_ref,
)
from orchestration.traces.versions import native_versions, package_versions

COORDINATOR, LEARNER, REWARD_SERVER = "coordinator", "learner", "reward-server"
FRAME_S = 2.0
"""Seconds between two writes of the file."""


@dataclass(frozen=True, slots=True)
class JudgeUse:
    """What was asked of the judge since the run began."""

    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0


class RunTrace:
    """Writes the trace of one run. Its calls come from one thread; the file is there after `kill -9` up to a few seconds.

    A run does not end because its trace cannot be written: `on_trouble` is told why, once until it can be written again; what
    happens meanwhile waits, and is written then.
    """

    def __init__(
        self,
        folder: Path,
        *,
        run: str,
        env_id: str,
        env_options: Mapping[str, Any],
        seed: int,
        policy: str,
        policy_version: int,
        reward_model_version: int | None,
        code_revision: str | None,
        count_exponent: float | None,
        on_trouble: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._began, self._wall = clock(), WallClock()
        name = _free_name(folder)
        self._on_trouble = on_trouble
        self._file: TraceFile | None = None
        self._told_trouble = False
        try:
            self._file = TraceFile(folder, name, frame_s=FRAME_S, clock=clock)
        except TraceError as error:
            on_trouble(str(error))
        self._seq = 0
        self._newest: dict[str, str] = {}
        self._root = ""
        self._policy_version = policy_version
        self._published = ""
        """Id of the event that published the newest weights or reward model."""
        self._told: dict[str, str] = {}
        """Of each actor: `_published` when it was last given something to do."""
        self._reward_model_version = reward_model_version or 0
        self._texts: set[str] = set()
        self._judge = JudgeUse()
        self._taught: dict[int, str] = {}
        """Of each reward model that was made: id of the event."""
        self._costs = {"tokens": 0, "llm_calls": 0, "tool_calls": 0, "messages": 0}
        header = Header(
            schema=SCHEMA,
            episode_id=name,
            run=run,
            env_id=env_id,
            env_options=dict(env_options),
            action_names=(),
            seeds={RUN_SEED: str(seed)},
            policy_version=policy_version,
            versions=package_versions(),
            code_revision=code_revision,
            clock="unpinned",
            recorded_at=self._wall.recorded_at,
            count_exponent=count_exponent,
            scope=RUN,
            reward_model_version=reward_model_version,
            policy=policy,
            natives=native_versions(),
        )
        self._write(header)
        self.spawned(LEARNER, "learner")

    def spawned(self, child: str, role: str, **details: Any) -> None:
        """A part of the system is there."""
        event = Spawn(**self._event(COORDINATOR), child=child, role=role, details=details)
        self._write(event)
        self._newest[child] = event.id

    def lost(self, child: str, reason: str) -> None:
        """A part of the system died."""
        error = Error(**self._event(child), message=clean(reason), source=child)
        self._write(error)
        self._write(Stop(**self._event(COORDINATOR, error.id), target=child, reason="died"))

    def stands_still(self, child: str, why: str) -> None:
        """A part of the system makes no progress."""
        self._write(Error(**self._event(child), message=clean(why), source=child))

    def goes_on(self, child: str, words: str) -> None:
        """It does again."""
        self._message(child, COORDINATOR, words)

    def retired(self, child: str) -> None:
        """A part of the system was let go: the run was scaled down."""
        self._write(Stop(**self._event(COORDINATOR), target=child, reason="scaled down"))

    def delegated(self, actor: str, **details: Any) -> str:
        """An actor was given something to play, under the newest versions; the id of the event, for `returned`."""
        news = self._published if self._told.get(actor) != self._published else ""
        self._told[actor] = self._published
        event = Delegate(**self._event(COORDINATOR, news), to=actor, details=details)
        self._write(event)
        return event.id

    def returned(self, actor: str, call: str, duration: float, **details: Any) -> str:
        """An actor brought what it was given to play, which took it `duration` seconds; the id of the event."""
        event = Return(
            **self._event(actor, call), duration=self._lasting(duration), call=call, to=COORDINATOR, details=details
        )
        self._write(event)
        return event.id

    def told_captions(self, actor: str, count: int) -> None:
        """Captions that an actor told of went to the reward server."""
        self._message(actor, REWARD_SERVER, f"{count:,} caption{'' if count == 1 else 's'}")

    def updated(self, rollouts: Sequence[str], duration: float, **details: Any) -> None:
        """The learner made updates of what the events `rollouts` brought, in `duration` seconds."""
        event = self._event(LEARNER, *rollouts)
        self._write(Aggregate(**event, duration=self._lasting(duration), method="gradient step", details=details))

    def weights(self, version: int) -> None:
        """The learner published weights."""
        if version != self._policy_version:
            event = WeightsUpdate(**self._event(LEARNER), from_version=self._policy_version, to_version=version)
            self._write(event)
            self._policy_version, self._published = version, event.id

    def taught(self, version: int) -> None:
        """The reward server has made a reward model of the labels, and gives it to the learner."""
        self._taught[version] = self._message(REWARD_SERVER, LEARNER, f"reward model v{version}")

    def reward_model(self, version: int) -> None:
        """The learner adopted a reward model."""
        before = self._reward_model_version
        if version != before:
            made = self._taught.get(version, "")
            event = WeightsUpdate(
                **self._event(LEARNER, made), from_version=before, to_version=version, what="reward_model"
            )
            self._write(event)
            self._reward_model_version, self._published = version, event.id

    def judged(self, use: JudgeUse, model: str, latency_s: float | None, labelled: int) -> None:
        """The judge answered: `use` and `labelled` count since the run began, `latency_s` is of late."""
        before, self._judge = self._judge, use
        # A reward server that died counts on from its newest checkpoint: fewer than it had told of.
        if use.requests <= before.requests:
            return
        event = LlmCall(
            **self._event(REWARD_SERVER),
            model=model,
            prompt_tokens=use.prompt_tokens - before.prompt_tokens,
            output_tokens=use.output_tokens - before.output_tokens,
            latency_s=latency_s or 0.0,
            calls=use.requests - before.requests,
            sampling={"labelled": labelled},
        )
        self._costs["llm_calls"] += event.calls
        self._costs["tokens"] += event.prompt_tokens + event.output_tokens
        self._write(event)

    def judge_changed(self, status: str, error: str | None, *, away: bool) -> None:
        """The judge went away, which is an error, or came back, which the reward server says."""
        if away:
            message = f"judge is {status}" + (f": {error}" if error else "")
            self._write(Error(**self._event(REWARD_SERVER), message=clean(message), source="judge"))
            return
        self._message(REWARD_SERVER, COORDINATOR, f"judge is {status}")

    def checkpoint(self, name: str, env_steps: int) -> None:
        """A checkpoint was written."""
        call = ToolCall(**self._event(LEARNER), tool="checkpoint", arguments={"env_steps": env_steps})
        self._write(call)
        result = ToolResult(
            **self._event(LEARNER, call.id), call=call.id, tool="checkpoint", details={"checkpoint": name}
        )
        self._write(result)
        self._costs["tool_calls"] += 1
        self._try(TraceFile.flush)

    def end(self, status: str, env_steps: int, error: str | None) -> None:
        """The run ended: the file gets its final name."""
        self._write(Stop(**self._event(COORDINATOR), target="run", reason=status))
        elapsed = self._elapsed()
        costs = {"wall_clock_s": elapsed, **{name: count for name, count in self._costs.items() if count}}
        self._write(
            End(
                t=elapsed,
                events=self._seq,
                length=env_steps,
                episode_return=0.0,
                terminated=status == "done",
                truncated=status != "done" and error is None,
                success=None,
                metrics={},
                error=None if error is None else clean(error),
                kept=RUN,
                costs=costs,
            )
        )
        self._try(TraceFile.flush)
        if self._file is not None and not self._file.failing:
            self._try(TraceFile.complete)

    def _message(self, agent: str, to: str, text: str) -> str:
        """The id of the event."""
        reference = text_ref(text)
        if reference not in self._texts:
            self._texts.add(reference)
            self._write(Text(ref=reference, text=text))
        self._costs["messages"] += 1
        message = Message(**self._event(agent), to=to, content_ref=reference)
        self._write(message)
        return message.id

    def _lasting(self, duration: float) -> float:
        """A duration as events have it: what took it cannot have begun before the trace."""
        return round(min(max(duration, 0.0), self._elapsed()), 6)

    def _event(self, agent: str, *also: str) -> dict[str, Any]:
        """What an event of `agent` has: its parents are the newest event of the agent and `also`."""
        seq, identity = self._seq, f"e{self._seq}"
        self._seq += 1
        before = self._newest.get(agent, self._root)
        parents = tuple(dict.fromkeys(parent for parent in (before, *also) if parent))
        self._newest[agent] = identity
        self._root = self._root or identity
        where = {"id": identity, "seq": seq, "agent": agent, "parents": parents}
        return {**where, "t": self._elapsed(), "skew": self._wall.skew()}

    def _write(self, record: Record) -> None:
        self._try(lambda file: file.write(record))

    def _try(self, do: Callable[[TraceFile], None]) -> None:
        file = self._file
        if file is None:
            return
        try:
            do(file)
        except TraceError as error:
            if not self._told_trouble:
                self._on_trouble(str(error))
        self._told_trouble = file.failing

    def _elapsed(self) -> float:
        return round(self._clock() - self._began, 6)


def _free_name(folder: Path) -> str:
    stem = time.strftime(f"{RUN_PREFIX}%Y%m%dT%H%M%SZ", time.gmtime())
    names = (stem if number == 1 else f"{stem}-{number}" for number in range(1, 1000))
    return next(
        name
        for name in names
        if not (folder / f"{name}{SUFFIX}").exists() and not (folder / f"{name}{SUFFIX}.part").exists()
    )
