"""An episode with all that is known of it by now: its trace, and what its run's sidecars say.

The events that are added come after all others, and have the steps that they are about as parents and targets:
`annotation` for every answer of the judge about one of its captions, and `reward` for what the reward that is learned from
is made of: R = w_ext · clip(s · r) + w_int · r_int / N^β, what `credit.method` makes of that, and the fine for an answer that could
not be read, under the settings of the run, with r_int as the learner looked it up. See `late`. Where a progress estimator pays,
what it paid is not in the run: it is another one after every few updates. Then `Completed.why` says so.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestration.errors import ConfigError, TraceError
from orchestration.traces.late import LABELS, SCORES, STORE, LateLabel, Scores, read_labels, read_scores
from orchestration.traces.names import WAITING
from orchestration.traces.reader import Trace, read_trace
from orchestration.traces.schema import (
    COMPONENT,
    EPISODE,
    FORMAT,
    RAW,
    REWARD_MODEL,
    TOTAL,
    Annotation,
    AnyEvent,
    EnvStep,
    Reward,
    WeightsUpdate,
    text_ref,
)

if TYPE_CHECKING:
    from learner.credit.attribution import CreditMethod
    from learner.settings import RewardSettings
    from orchestration.config import Config

_JUDGE, _LEARNER = "judge", "learner"
_CONFIG = "config.yaml"


@dataclass(frozen=True, slots=True)
class Late:
    """What a run says about its episodes beside their traces."""

    labels: Mapping[str, Sequence[LateLabel]]
    """By caption id, oldest first."""
    scores: Scores
    settings: "RewardSettings | None"
    """None for traces that lie in no run."""
    credit: "CreditMethod | None" = None
    """What makes of them what each step is paid; None where that is just what it brought."""
    untold: str | None = None
    """Why what a step is paid cannot be made out, only what the reward model gave; None where it can."""
    learned: bool = False
    """Whether the run learns a reward model: a step without a version of it then has a reward that nobody knows."""

    @classmethod
    def beside(cls, traces: Path) -> "Late":
        """Of the run whose traces lie in the folder `traces`. Raises `TraceError` where a file cannot be read."""
        stamp = _stamp(traces)
        known = _newest.get(traces)
        if known is None or known[0] != stamp:
            labels: dict[str, list[LateLabel]] = {}
            for label in read_labels(traces):
                labels.setdefault(label.caption_id, []).append(label)
            _newest.clear()
            config = _config(traces.parent)
            if config is None:
                late = cls(
                    labels, read_scores(traces), None, untold="its rewards lie in no run: there is no config.yaml"
                )
            else:
                late = _of_run(config, labels, read_scores(traces))
            _newest[traces] = known = (stamp, late)
        return known[1]

    def complete(self, trace: Trace) -> "Completed":
        """The episode with these events. A trace that has rewards of a reward model, or that was cut, gets no more."""
        if trace.header.scope != EPISODE:
            return Completed(trace, known=False, why="it is the trace of a run")
        added = _Added(trace)
        for caption in trace.captions:
            for label in self.labels.get(caption, ()):
                added.annotation(label)
        if _has_components(trace):
            return Completed(added.trace(False), known=False)
        if trace.end is None:
            return Completed(added.trace(False), known=False, why="it did not end")
        why = self.untold if self.settings is None else _reward(trace, added, self, self.settings)
        return Completed(added.trace(why is None), why is None, why)

    def complete_path(self, path: Path) -> tuple[Trace | None, str | None]:
        """The same of the file of a trace that has ended and has no components yet: the trace where the reward of every
        step is known, otherwise why it is not. Where none of its run is known, it is not read."""
        if self.untold is not None:
            return None, self.untold
        done = self.complete(read_trace(path))
        return (done.trace if done.known else None), done.why


@dataclass(frozen=True, slots=True)
class Completed:
    """A trace with what came late."""

    trace: Trace
    known: bool
    """Whether the reward of every step was made out."""
    why: str | None = None
    """Why it was not; None too where the trace tells it itself."""


_newest: dict[Path, tuple[tuple[Any, ...], Late]] = {}
"""The sidecars read last, and what the files were then: many episodes of one run are completed one after the other."""


def _stamp(traces: Path) -> tuple[Any, ...]:
    store = traces.parent / STORE
    files = (traces / LABELS, traces / SCORES, store, store.with_name(f"{STORE}-wal"), traces.parent / _CONFIG)
    return tuple((stat.st_mtime_ns, stat.st_size) if (stat := _stat(path)) else None for path in files)


def _stat(path: Path) -> Any:
    try:
        return path.stat()
    except OSError:
        return None


def _config(run: Path) -> "Config | None":
    path = run / _CONFIG
    if not path.is_file():
        return None
    from orchestration.configuration.loader import read_config

    try:
        return read_config(path)
    except ConfigError as error:
        raise TraceError(f"the rewards of its steps cannot be made out: {error}") from error


def _of_run(config: "Config", labels: Mapping[str, Sequence[LateLabel]], scores: Scores) -> Late:
    from learner.credit.attribution import CreditRule
    from learner.credit.registry import build_credit
    from orchestration.configuration import attributes_credit, learns_intrinsic, learns_progress

    reward, method = config.reward, config.credit.method
    credit, untold = None, None
    if attributes_credit(config) and not learns_progress(config):
        credit = build_credit(method, CreditRule(w_prog=0.0, w_ground=reward.w_ground))
    elif learns_progress(config):
        untold = (
            f"credit.method={method} paid by a progress estimator, as it was at that update; yendor trace show FILE --credit "
            "computes it under a checkpoint's"
        )
    return Late(labels, scores, reward, credit, untold, learns_intrinsic(config))


def _has_components(trace: Trace) -> bool:
    return any(isinstance(event, Reward) and event.part != RAW for event in trace.events)


def _reward(trace: Trace, added: "_Added", late: Late, settings: "RewardSettings") -> str | None:
    """Adds what each step's reward is made of. Where that cannot be made out, why; then what the reward model gave is
    added, or nothing, where a caption was not looked up."""
    looked_up = [_looked_up(step, version, late) for step, version in _versions(trace)]
    found = [each for each in looked_up if each is not None]
    if len(found) < len(looked_up):
        return WAITING
    fines = _fines(trace)
    paid = _paid(trace, [r_int for _, r_int in found], late, settings)
    for step, (version, r_int), *values in zip(trace.steps, found, *paid, strict=True):
        if r_int:
            added.reward(step, r_int, REWARD_MODEL, "verifier", RAW, version)
        if late.untold is not None:
            continue
        extrinsic, intrinsic, grounding = values
        parts = (
            (extrinsic, "environment", "outcome", None),
            (intrinsic, REWARD_MODEL, "verifier", version),
            (grounding, "grounding", "tool", None),
            (fines.get(step.id, 0.0), FORMAT, "process", None),
        )
        for value, source, family, of in parts:
            if value:
                added.reward(step, value, source, family, COMPONENT, of)
        if any(value for value, *_ in parts):
            added.reward(step, sum(value for value, *_ in parts), "fusion", "hybrid", TOTAL, None)
    return late.untold


def _paid(
    trace: Trace, r_int: Sequence[float], late: Late, settings: "RewardSettings"
) -> tuple[list[float], list[float], list[float]]:
    """What each step is paid as extrinsic, intrinsic and grounding reward, without an estimator's part."""
    from learner.credit.attribution import whole
    from learner.fusion import fuse

    steps = trace.steps
    fused = fuse(
        np.array([step.reward for step in steps], np.float32),
        np.array(r_int, np.float32),
        np.array([step.caption_count for step in steps], np.int32),
        settings,
    )
    if late.credit is None or not steps:
        return fused.extrinsic.tolist(), fused.intrinsic.tolist(), [0.0] * len(steps)
    turns = whole(
        lengths=[len(steps)],
        extrinsic=fused.extrinsic.astype(np.float64),
        intrinsic=fused.intrinsic.astype(np.float64),
        grounded=np.array([step.grounded for step in steps]),
    )
    credited = late.credit.attribute(turns)
    return credited.extrinsic.tolist(), credited.intrinsic.tolist(), credited.grounding.tolist()


def _fines(trace: Trace) -> Mapping[str, float]:
    """What each step's answer was fined, where it could not be read."""
    return {event.target: event.value for event in trace.events if isinstance(event, Reward) and event.source == FORMAT}


def _looked_up(step: EnvStep, version: int | None, late: Late) -> tuple[int | None, float] | None:
    if version is None:
        return None if late.learned else (None, 0.0)
    return (version, 0.0) if step.caption_count == 0 else late.scores.of(step.caption_id, version)


def _versions(trace: Trace) -> Sequence[tuple[EnvStep, int | None]]:
    """Each step with the version of the reward model that was in force."""
    version = trace.header.reward_model_version
    found: list[tuple[EnvStep, int | None]] = []
    for event in trace.events:
        if isinstance(event, WeightsUpdate) and event.what == REWARD_MODEL:
            version = event.to_version
        elif isinstance(event, EnvStep):
            found.append((event, version))
    return found


class _Added:
    """The events that are added to one trace."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._events: list[AnyEvent] = []
        self._texts: dict[str, str] = {}
        self._sums: dict[str, float] = {}
        self._first: dict[str, str] = {}
        for event in trace.events:
            if isinstance(event, EnvStep):
                self._first.setdefault(event.caption_id, event.id)
        self._t = trace.end.t if trace.end is not None else trace.events[-1].t if trace.events else 0.0

    def annotation(self, label: LateLabel) -> None:
        """What the judge said of a caption."""
        said_by = self._first.get(label.caption_id)
        if said_by is None:
            return
        self._events.append(
            Annotation(
                **self._event(said_by, _JUDGE),
                caption_id=label.caption_id,
                question_ref=self._text(_question(label, self._trace.captions[label.caption_id])),
                answer_ref=self._text(label.answer),
                label=label.label,
                probability=label.probability,
                judge=label.judge,
                prompt_version=label.prompt_version,
                latency_s=label.latency_s,
            )
        )

    def reward(self, step: EnvStep, value: float, source: str, family: str, part: str, version: int | None) -> None:
        """What a step earned."""
        if part == COMPONENT:
            self._sums[source] = self._sums.get(source, 0.0) + value
        self._events.append(
            Reward(
                **self._event(step.id, _LEARNER),
                family=family,
                value=value,
                source=source,
                version=version,
                targets=(step.id,),
                part=part,
            )
        )

    def _event(self, parent: str, agent: str) -> dict[str, Any]:
        seq = len(self._trace.events) + len(self._events)
        return {"id": f"late{len(self._events)}", "seq": seq, "t": self._t, "agent": agent, "parents": (parent,)}

    def _text(self, text: str) -> str:
        ref = text_ref(text)
        self._texts[ref] = text
        return ref

    def trace(self, rewarded: bool) -> Trace:
        """The trace with them; `rewarded`: all components are there."""
        trace, end = self._trace, self._trace.end
        events = (*trace.events, *self._events)
        if end is not None:
            components = {"environment": 0.0} | self._sums if rewarded else end.components
            end = dataclasses.replace(end, events=len(events), components=components)
        return dataclasses.replace(trace, events=events, texts={**trace.texts, **self._texts}, end=end)


def _question(label: LateLabel, caption: str) -> str:
    """What the judge was asked, where this is still its prompt; otherwise which one it was."""
    from reward_server.judge.prompts import PromptTemplate
    from reward_server.types import JudgeError

    try:
        template = PromptTemplate.load(label.prompt_version.partition("@")[0])
        prompt = template.prompt(label.goal, label.mode)
        if prompt.version == label.prompt_version:
            chat = prompt.chat(caption)
            return "\n\n".join(f"{message.role}: {message.content}" for message in chat)
    except JudgeError:  # a prompt, goal or mode of another version of this program
        pass
    return f"{label.prompt_version}, goal {label.goal}, mode {label.mode}"
