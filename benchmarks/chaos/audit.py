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
from orchestration.traces.run_trace import FRAME_S
from orchestration.traces.schema import Return, Spawn
from orchestration.traces.validate import validate_file
from orchestration.traces.writers import EPISODE_FRAME_S


@dataclass(frozen=True, slots=True)
class Finding:
    """One invariant."""

    name: str
    holds: bool
    detail: str


def examine(run: Path, seen: Seen, answered: Sequence[str], left: Sequence[psutil.Process]) -> list[Finding]:
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
        broken += [f"{path.name}: {fault}" for fault in validate_file(path)[:1]]
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


@dataclass
class _Actor:
    """What one actor brought, and what its traces hold."""

    brought: int = 0
    recent: int = 0
    """Of those, what it brought while its writer kept lines to compress them together: not yet written when both were killed."""
    unwritten: int = 0
    """About as many as it brought after the run's trace, which is written every two seconds, broke off with the driver."""
    held: int = 0
    interrupted: int = 0
    """Episodes that broke off before the last of their environment, or have no trace: the writer was killed, the disk full."""


def steps_of_traces(run: Path, config: Config) -> Finding:
    """With every episode traced, the traces of each actor hold the steps that it brought, but for what may be lost on the way.

    More: calls that were on their way when it ended, and what it brought in the last seconds before the driver was killed.
    Fewer: what it brought while the writer that died with it kept the lines of a frame; where episodes were interrupted, the rest
    of each, and in each environment one of which no line was written yet; none is longer than the longest.
    """
    actors = _brought(run)
    longest = _held(run, actors)
    on_its_way = config.actors.in_flight * config.actors.envs * config.actors.rollout_length
    more: dict[str, int] = {}
    fewer: dict[str, int] = {}
    for name, actor in actors.items():
        over = actor.held - actor.brought
        whole = on_its_way + actor.recent
        may_lack = whole + (actor.interrupted + config.actors.envs) * longest if actor.interrupted else whole
        if over > on_its_way + actor.unwritten:
            more[name] = over
        if -over > may_lack:
            fewer[name] = -over
    untouched = [actor for actor in actors.values() if not actor.interrupted]
    detail = (
        f"{sum(a.brought for a in actors.values()):,} brought by {len(actors)} actors, {sum(a.held for a in actors.values()):,} in "
        f"traces; {len(untouched)} actors without an interrupted episode brought {sum(a.brought for a in untouched):,}, traced "
        f"{sum(a.held for a in untouched):,}; more than can be: {more or 'none'}, fewer than can be: {fewer or 'none'}"
    )
    return Finding("traces hold the steps that actors brought", bool(actors) and not more and not fewer, detail)


def _held(run: Path, actors: dict[str, _Actor]) -> int:
    """Fills in what traces hold; the length of the longest."""
    numbers: dict[str, dict[int, bool]] = defaultdict(dict)
    longest = 0
    for path in trace_files(run):
        # `actor-00.1-env007-ep000012.jsonl.zst`
        env, _, rest = path.name.partition("-ep")
        number, finished = int(rest.partition(".")[0]), path.suffix != ".part"
        numbers[env][number] = finished
        try:
            steps = len(read_trace(path).steps)
        except TraceError:
            if finished:
                raise
            steps = 0  # its writer died before the first line was written
        actors[env.partition("-env")[0]].held += steps
        longest = max(longest, steps)
    for env, there in numbers.items():
        last = max(there)
        broke_off = sum(not there.get(number, False) for number in range(last))
        actors[env.partition("-env")[0]].interrupted += broke_off
    return longest


def _brought(run: Path) -> dict[str, _Actor]:
    """What each actor brought, by the run's own traces."""
    actors: dict[str, _Actor] = defaultdict(_Actor)
    for path in run_traces(run):
        trace = read_trace(path)
        calls: dict[str, list[tuple[float, int]]] = defaultdict(list)
        for event in trace.events:
            if isinstance(event, Spawn) and event.role == "actor":
                actors[event.child].brought += 0
            if isinstance(event, Return):
                calls[event.agent].append((event.t, event.details["steps"]))
        end = trace.events[-1].t if trace.events else 0.0
        for name, brought in calls.items():
            actor, last = actors[name], brought[-1][0]
            actor.brought += sum(steps for _, steps in brought)
            actor.recent += sum(steps for t, steps in brought if t > last - EPISODE_FRAME_S - FRAME_S)
            if trace.end is None:
                actor.unwritten += sum(steps for t, steps in brought if t > end - 2 * FRAME_S)
    return actors
