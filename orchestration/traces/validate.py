"""Checks that a trace keeps what its schema promises beyond the form of each record."""

import math
from collections.abc import Iterator
from pathlib import Path

from orchestration.errors import TraceError
from orchestration.traces.reader import Trace, read_trace
from orchestration.traces.schema import SUFFIX, EnvReset, EnvStep, Reward, WeightsUpdate


def validate_file(path: Path) -> list[str]:
    """What is wrong with the trace in `path`; empty for a valid one. A `.part` may lack its end."""
    try:
        trace = read_trace(path)
    except TraceError as error:
        return [str(error).removeprefix(f"{path}:").removeprefix(f"{path}").strip(": ")]
    faults = [*_graph_faults(trace), *_step_faults(trace), *_end_faults(trace)]
    if path.suffix != ".part":
        faults += _cut_faults(trace)
    name = path.name.removesuffix(".part").removesuffix(SUFFIX)
    if name != trace.header.episode_id:
        faults.append(f"the file is called {name}, its episode {trace.header.episode_id}")
    return faults


def _cut_faults(trace: Trace) -> Iterator[str]:
    if trace.cut is not None:
        yield trace.cut
    if trace.end is None:
        yield "has no end record"


def _graph_faults(trace: Trace) -> Iterator[str]:
    seen: set[str] = set()
    before = 0.0
    for at, event in enumerate(trace.events):
        if event.seq != at:
            yield f"event {event.id}: seq {event.seq} at position {at}"
        if event.id in seen:
            yield f"event {event.id}: the id is used twice"
        # Parents come first, so the graph has no cycles.
        missing = [parent for parent in event.parents if parent not in seen]
        if missing:
            yield f"event {event.id}: parents {', '.join(missing)} are not before it"
        if not event.parents and not isinstance(event, EnvReset):
            yield f"event {event.id}: has no parent"
        if event.t < before:
            yield f"event {event.id}: time goes back from {before} to {event.t}"
        before = max(before, event.t)
        seen.add(event.id)


def _step_faults(trace: Trace) -> Iterator[str]:
    if not trace.events or not isinstance(trace.events[0], EnvReset):
        yield "does not begin with an env_reset"
    if sum(isinstance(event, EnvReset) for event in trace.events) > 1:
        yield "has more than one env_reset"
    version, expected, counts = trace.header.policy_version, 0, dict[str, int]()
    for event in trace.events:
        if isinstance(event, WeightsUpdate):
            if event.from_version != version:
                yield f"event {event.id}: the policy was v{version}, not v{event.from_version}"
            version = event.to_version
        if not isinstance(event, EnvStep):
            continue
        if event.step != expected:
            yield f"event {event.id}: step {event.step} where {expected} is due"
        expected = event.step + 1
        if event.policy_version != version:
            yield f"event {event.id}: acted with v{event.policy_version} while v{version} was in force"
        names = trace.header.action_names
        if not 0 <= event.action < len(names) or names[event.action] != event.action_name:
            yield f"event {event.id}: action {event.action} is not called {event.action_name}"
        if event.caption_id != "0" and event.caption_id not in trace.captions:
            yield f"event {event.id}: the text of caption {event.caption_id} is missing"
        counts[event.caption_id] = counts.get(event.caption_id, 0) + (event.caption_id != "0")
        if event.caption_count != counts[event.caption_id]:
            yield f"event {event.id}: caption count {event.caption_count}, counted {counts[event.caption_id]}"


def _end_faults(trace: Trace) -> Iterator[str]:
    steps = trace.steps
    earned = {step.id: step.reward for step in steps if step.reward != 0}
    paid = {
        event.target: event.value
        for event in trace.events
        if isinstance(event, Reward) and event.source == "environment"
    }
    if trace.end is None and steps:
        # The reward of the last step may be in what was cut off.
        paid.setdefault(steps[-1].id, steps[-1].reward)
        earned.setdefault(steps[-1].id, steps[-1].reward)
    if earned != paid:
        yield "the reward events do not match the rewards of the steps"
    end = trace.end
    if end is None:
        return
    if end.events != len(trace.events):
        yield f"the end counts {end.events} events, there are {len(trace.events)}"
    if end.length != len(steps):
        yield f"the end counts {end.length} steps, there are {len(steps)}"
    total = math.fsum(step.reward for step in steps)
    # An environment that raised has no return to tell of.
    if end.error is None and not math.isclose(end.episode_return, total, rel_tol=1e-4, abs_tol=1e-4):
        yield f"the end tells of a return of {end.episode_return:g}, the rewards sum to {total:g}"
    if end.terminated and end.truncated:
        yield "ended both by termination and by truncation"
