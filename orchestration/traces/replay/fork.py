"""Goes on from a step of a recorded episode with another policy (level L4)."""

import dataclasses
import re
from pathlib import Path

from orchestration.errors import TraceError, UsageError
from orchestration.rundir import code_revision
from orchestration.traces.clocks import WallClock
from orchestration.traces.files import check_name
from orchestration.traces.reader import Trace
from orchestration.traces.replay.play import follow, replay_trace, stepped
from orchestration.traces.replay.policies import Choice, ForkPolicy, build_fork_policy
from orchestration.traces.replay.verdict import Forked, Outcome, UnreplayableError
from orchestration.traces.replay.worlds import Seen, World, open_world, reset_of
from orchestration.traces.replay.writer import EpisodeWriter
from orchestration.traces.schema import CONTEXT, FORK_SEED, SCHEMA, SUFFIX, Header
from orchestration.traces.versions import clock_text, native_versions, package_versions


def fork(trace: Trace, at: int, policy: str, *, seed: int = 0, folder: Path | None = None) -> Forked:
    """Plays the first `at` steps of `trace` again, then goes on to the end with `policy`, and records the branch.

    `policy` is `random`, the folder of a checkpoint or run, or that of a language model; what it draws follows from `seed`.
    The branch is written to `folder`, or else beside its parent, as `PARENT-forkAT-POLICY-sSEED`. Raises `UsageError` for a
    step that the episode does not have or a policy that cannot play its world, and `TraceError` where the branch is there
    already or its parent's name can be no part of a file's.
    """
    _check_step(trace, at)
    chosen = build_fork_policy(policy, trace, seed)
    try:
        return _fork(trace, at, chosen, seed, trace.path.parent if folder is None else folder)
    finally:
        chosen.close()


def _fork(trace: Trace, at: int, policy: ForkPolicy, seed: int, folder: Path) -> Forked:
    label = re.sub(r"[^A-Za-z0-9_-]", "_", policy.label)
    episode_id = f"{trace.header.episode_id}-fork{at}-{label}-s{seed}"
    check_name(episode_id)
    if (folder / f"{episode_id}{SUFFIX}").exists():
        raise TraceError(f"{folder / episode_id}{SUFFIX}: this fork is there already; give another --seed or --out")
    verdict = replay_trace(trace, until=at)
    if verdict.outcome is not Outcome.MATCH:
        return Forked(verdict, at, policy.name, None)
    world = open_world(trace.header, reset_of(trace).observation_hash, policy.view)
    try:
        writer, last = _branch(trace, at, policy, world, folder, episode_id, seed)
    finally:
        world.close()
    path = writer.finish()
    return Forked(verdict, at, policy.name, path, writer.steps, writer.episode_return, last.success)


def _check_step(trace: Trace, at: int) -> None:
    steps = len(trace.steps)
    limit = steps - (trace.end is not None)
    if not 0 <= at <= limit:
        raise UsageError(
            f"--from {at}: {trace.path.name} has {steps:,} steps and can be forked at 0 to {max(limit, 0):,}"
        )


def _branch(
    trace: Trace, at: int, policy: ForkPolicy, world: World, folder: Path, episode_id: str, seed: int
) -> tuple[EpisodeWriter, Seen]:
    """Plays and records: first the parent's actions, of which `policy` reads what they brought, then its own."""
    seen: list[Seen] = []
    divergence = follow(trace, world, until=at, watch=seen.append, observations=policy.view is None)
    if divergence is not None:
        first = divergence.differences[0]
        raise UnreplayableError(f"the {first.key} differs at step {divergence.step} when it is played once more")
    opening, *prefix = seen
    wall = WallClock()
    header = _header(trace.header, at, policy, world, opening)
    header = dataclasses.replace(
        header,
        episode_id=episode_id,
        seeds={**world.seeds, FORK_SEED: str(seed)},
        recorded_at=wall.recorded_at,
    )
    writer = EpisodeWriter(folder, header, opening, agent=f"fork/{policy.label}", wall=wall)
    try:
        policy.read(opening)
        for step, brought in zip(trace.steps, prefix, strict=False):
            writer.step(Choice(step.action, step.action_name, step.log_prob, step.value), brought, step.policy_version)
            policy.recall(step)
            policy.read(brought)
        last = seen[-1]
        while not last.ended:
            choice = policy.choose()
            if choice is None:
                writer.stop(CONTEXT)
                break
            last = stepped(world, choice.action, choice.name, last)
            writer.step(choice, last, policy.version)
            policy.read(last)
    except BaseException:
        writer.abandon()
        raise
    return writer, last


def _header(parent: Header, at: int, policy: ForkPolicy, world: World, opening: Seen) -> Header:
    return dataclasses.replace(
        parent,
        schema=SCHEMA,
        policy=policy.name,
        versions=package_versions(),
        natives=native_versions(),
        code_revision=code_revision(),
        clock=clock_text(world.seeds),
        reward_model_version=None,
        view=parent.view if policy.view is None else dataclasses.asdict(policy.view),
        observation_keys=tuple(sorted(opening.observation)) if world.action_names else (),
        forked_from=parent.episode_id,
        forked_at=at,
    )
