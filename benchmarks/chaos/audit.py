"""What has to be true after a campaign, read from what the run left behind."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.chaos.training import Seen, digest, labels_of
from learner.checkpoint import latest_checkpoint, load_state
from orchestration.config import Config
from orchestration.configuration import read_config
from orchestration.errors import TraceError
from orchestration.traces.reader import read_trace, run_traces, trace_files
from orchestration.traces.schema import Return, Spawn
from orchestration.traces.validate import validate_file


@dataclass(frozen=True, slots=True)
class Finding:
    """One invariant."""

    name: str
    holds: bool
    detail: str


def audit(run: Path, seen: Seen, answered: Sequence[str], left: Sequence[psutil.Process]) -> list[Finding]:
    """`answered`: captions that the judge sent a label for; `left`: processes of the run that outlived it."""
    config = read_config(run / "config.yaml")
    return [
        labels(run, seen, answered),
        finished_traces(run, seen),
        valid_traces(run),
        samples(run),
        steps_of_traces(run, config),
        Finding("counters never fall", not seen.fell, "; ".join(seen.fell[:5]) or "none fell while a driver ran"),
        Finding("nothing is left running", not left, f"{len(left)} processes"),
    ]


def labels(run: Path, seen: Seen, answered: Sequence[str]) -> Finding:
    """Every label that was in the store at any time is in it at the end, and is the same."""
    now = labels_of(run / "annotations.sqlite")
    lost = [caption for caption in seen.labels if caption not in now]
    changed = [caption for caption, label in seen.labels.items() if now.get(caption, label) != label]
    again = len(answered) - len(set(answered))
    detail = f"{len(seen.labels)} seen, {len(now)} at the end, {len(lost)} lost, {len(changed)} changed; {again} answered again"
    return Finding("no label is lost", bool(now) and not lost and not changed, detail)


def finished_traces(run: Path, seen: Seen) -> Finding:
    """Every trace that was finished at any time is there at the end, byte for byte."""
    folder = run / "traces"
    lost = [name for name in seen.traces if not (folder / name).is_file()]
    changed = [name for name, was in seen.traces.items() if name not in lost and digest(folder / name) != was]
    detail = f"{len(seen.traces):,} seen, {len(lost)} lost, {len(changed)} changed"
    return Finding("no finished trace is lost or changed", bool(seen.traces) and not lost and not changed, detail)


def valid_traces(run: Path) -> Finding:
    """All finished traces hold what the schema and its rules ask, and those that broke off can be read."""
    paths = [*trace_files(run), *run_traces(run)]
    broken: list[str] = []
    for path in paths:
        broken += validate_file(path)[:1]
    finished = sum(path.suffix != ".part" for path in paths)
    detail = (
        f"{finished:,} finished, {len(paths) - finished} broken off; {len(broken)} not valid{': ' if broken else ''}"
    )
    return Finding("every trace is valid", bool(paths) and not broken, detail + "; ".join(broken[:3]))


def samples(run: Path) -> Finding:
    """Every step that was counted is in the policy, was too old, waits, or is counted as lost: none twice, none missing."""
    newest = latest_checkpoint(run / "checkpoints")
    if newest is None:
        return Finding("every step is accounted for", False, "no checkpoint")
    state: dict[str, Any] = load_state(newest)
    learner, counters = state["learner"]["learner"], state["session"]
    waiting = sum(part["action"].numel() for part in learner["queue"])
    parts = {
        "learned from": learner["trained_samples"],
        "too old": learner["dropped_samples"],
        "waiting": waiting,
        "lost": counters["faults"]["samples_lost"],
    }
    told = " + ".join(f"{count:,} {name}" for name, count in parts.items())
    missing = counters["env_steps"] - sum(parts.values())
    return Finding(
        "every step is accounted for", missing == 0, f"{counters['env_steps']:,} = {told}, {missing} missing"
    )


def steps_of_traces(run: Path, config: Config) -> Finding:
    """With every episode traced: the steps in the traces of each actor are those that it told, but for what it had under way
    when it died or was let go: the calls on their way, and the last lines that were not written yet."""
    told: dict[str, int] = defaultdict(int)
    for path in run_traces(run):
        trace = read_trace(path)
        for event in trace.events:
            if isinstance(event, Spawn) and event.role == "actor":
                told[event.child] += 0
            if isinstance(event, Return):
                told[event.agent] += event.details["steps"]
    written: dict[str, int] = defaultdict(int)
    for path in trace_files(run):
        try:
            trace = read_trace(path)
        except TraceError:
            if path.suffix == ".part":
                continue  # its writer died before the first line was written
            raise
        if trace.steps:
            # `actor-00.1/7`: the eighth environment of the actor.
            written[trace.steps[0].agent.partition("/")[0]] += len(trace.steps)
    actors = config.actors
    bound = (actors.in_flight + 1) * actors.envs * actors.rollout_length
    off = {agent: written[agent] - steps for agent, steps in told.items() if abs(written[agent] - steps) > bound}
    detail = (
        f"{sum(told.values()):,} told by {len(told)} actors, {sum(written.values()):,} in traces; "
        f"{len(off)} actors off by more than {bound:,}{f': {off}' if off else ''}"
    )
    return Finding("traces hold the steps that were counted", bool(told) and not off, detail)
