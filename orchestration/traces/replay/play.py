"""Executes a recorded episode again and compares all that the trace keeps of it (level L2)."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.captions import EMPTY_CAPTION_ID, caption_id
from envs.clock import PINNED
from orchestration.errors import TraceError, first_line
from orchestration.traces.hashes import key_hashes
from orchestration.traces.reader import Trace
from orchestration.traces.replay.verdict import (
    AT_RESET,
    Difference,
    Divergence,
    Outcome,
    UnreplayableError,
    Verdict,
)
from orchestration.traces.replay.worlds import (
    Seen,
    World,
    clock_of,
    hash_like,
    open_world,
    other_versions,
    reset_of,
    seed_of,
)
from orchestration.traces.schema import (
    EPISODE,
    FORK_SEED,
    RAW,
    RUN_SEED,
    End,
    EnvReset,
    EnvStep,
    Reward,
    Stop,
    clean,
)

_NOT_KEPT = ("", "0")
"""What stands for a caption of the opening that was not recorded, or that was empty."""


def replay_trace(trace: Trace, until: int | None = None) -> Verdict:
    """Plays the episode of `trace`, or only its first `until` steps, again in this process."""
    try:
        _check(trace)
        walked, divergence = _walk(trace, until)
        if divergence is not None:
            _blame(trace, until, walked)
    except UnreplayableError as error:
        return _verdict(trace, Outcome.UNREPLAYABLE, 0, reason=str(error))
    if divergence is None:
        return _verdict(trace, Outcome.MATCH, len(trace.steps[:until]), notes=_notes(trace))
    steps = max(divergence.step, 0)
    versions = other_versions(trace.header)
    if versions:
        first = divergence.differences[0]
        where = "the reset" if divergence.step == AT_RESET else f"step {divergence.step}"
        reason = f"{'; '.join(versions)}; the {first.key} differs from {where} on"
        return _verdict(trace, Outcome.UNREPLAYABLE, steps, divergence=divergence, reason=reason)
    return _verdict(trace, Outcome.DIVERGED, steps, divergence=divergence, notes=_notes(trace))


def _verdict(trace: Trace, outcome: Outcome, steps: int, **rest: Any) -> Verdict:
    header = trace.header
    return Verdict(outcome, str(trace.path), header.episode_id, header.env_id, steps, clock=clock_of(header), **rest)


def _check(trace: Trace) -> None:
    if trace.header.scope != EPISODE:
        raise UnreplayableError(f"it is the trace of a {trace.header.scope}, not of an episode")
    reset_of(trace)


def _notes(trace: Trace) -> tuple[str, ...]:
    notes = other_versions(trace.header)
    if trace.end is None:
        notes.append(f"the episode was cut after {len(trace.steps):,} steps: {trace.cut or 'its writer was stopped'}")
    elif trace.steps and not _keeps_observation(trace, trace.steps[-1]):
        notes.append("the last observation was not kept, so it is not compared")
    if clock_of(trace.header) == "wall":
        notes.append("the game could read the time of day: antholes and shopkeepers' names may differ")
    return tuple(notes)


# Walking along a trace.


_Print = tuple[object, ...]
"""What is kept of a step to compare two walks: one value for each of `_PRINTED`."""

_PRINTED = ("observation_hash", "reward", "terminated", "truncated", "caption", "grounded", "error")


def _walk(trace: Trace, until: int | None) -> tuple[list[_Print], Divergence | None]:
    """Plays once, up to the end or the first difference."""
    prints: list[_Print] = []

    def watch(seen: Seen) -> None:
        prints.append(tuple(getattr(seen, name) for name in _PRINTED))

    world = open_world(trace.header, reset_of(trace).observation_hash)
    try:
        divergence = follow(trace, world, until=until, watch=watch)
    finally:
        world.close()
    return prints, divergence


def _blame(trace: Trace, until: int | None, walked: Sequence[_Print]) -> None:
    """Raises `UnreplayableError` where a second walk comes out differently from the first: then it is the world that is
    not determined by its seed, and no recording of it can match."""
    again, _ = _walk(trace, until)
    for number, (one, other) in enumerate(zip(walked, again, strict=False)):
        keys = [name for name, a, b in zip(_PRINTED, one, other, strict=True) if a != b]
        if keys:
            where = "the reset" if number == 0 else f"step {number - 1}"
            key = keys[0].removesuffix("_hash")
            raise UnreplayableError(
                f"the environment is not deterministic: two replays with the same seed differ at {where} ({key})"
            )


def follow(
    trace: Trace,
    world: World,
    *,
    until: int | None = None,
    watch: Callable[[Seen], None] = lambda seen: None,
    observations: bool = True,
) -> Divergence | None:
    """Resets `world` and carries out the actions of the first `until` steps (all without it); the first difference.

    `watch` is told what the reset and each step brought, the one that differs included. Without `observations` their
    hashes are not compared: for a world in another view. Raises `UnreplayableError` where the world cannot be started or
    has other actions.
    """
    header = trace.header
    reset = reset_of(trace)
    if world.action_names != header.action_names:
        raise UnreplayableError(f"{header.env_id} has other actions here than in the recording")
    seen = _started(world, seed_of(header))
    watch(seen)
    comparison = _Comparison(trace, observations)
    differences = [*_seed_differences(trace, world), *comparison.of_reset(reset, seen)]
    if differences:
        return Divergence(AT_RESET, tuple(differences), reset.screen, seen.screen)
    for step in trace.steps[:until]:
        wrong = _name_difference(trace, step)
        if wrong is None:
            seen = stepped(world, step.action, step.action_name, seen)
            watch(seen)
        differences = [wrong] if wrong is not None else list(comparison.of_step(step, seen))
        if differences:
            return Divergence(step.step, tuple(differences), step.screen, seen.screen)
    return None


def _started(world: World, seed: int) -> Seen:
    try:
        return world.reset(seed)
    except Exception as error:  # whatever a world raises when it starts, it cannot be played
        raise UnreplayableError(f"the environment cannot be started: {first_line(error)}") from error


def stepped(world: World, action: int, name: str, before: Seen) -> Seen:
    """What an action brings. What a world raises is its `error`, and all else is as it was before."""
    try:
        return world.step(action, name)
    except Exception as error:  # it ends an episode, and is recorded and compared as its end
        return Seen(before.observation, before.screen, "", grounded=False, error=f"{type(error).__name__}: {error}")


def _name_difference(trace: Trace, step: EnvStep) -> Difference | None:
    names = trace.header.action_names
    if not names:
        return None
    named = names[step.action] if 0 <= step.action < len(names) else f"no action {step.action}"
    return None if named == step.action_name else Difference("action", step.action_name, named)


def _seed_differences(trace: Trace, world: World) -> Iterator[Difference]:
    """Where the world did not set the seeds that the header tells of. (`game` may be a path, other on each machine; if
    another game is meant, its texts will tell. What policies draw from is none of the world's.)"""
    here = world.seeds
    if PINNED in trace.header.seeds and PINNED not in here:
        raise UnreplayableError("its clock was pinned, which is not possible here: NetHack's library lacks the symbol")
    for name, value in trace.header.seeds.items():
        if name not in ("game", RUN_SEED, FORK_SEED) and here.get(name) != value:
            yield Difference(f"seeds.{name}", value, here.get(name, "none"))


# Comparing.


def _keeps_observation(trace: Trace, step: EnvStep) -> bool:
    """Whether the hash of a step is that of its own observation.

    Older recorders wrote, where a game was won or lost, the first observation of the next one, and no screen.
    """
    last = trace.end is not None and step is trace.steps[-1]
    lost = last and trace.end is not None and (trace.end.terminated or trace.end.error is not None) and not step.screen
    return bool(step.observation_hash) and not lost


@dataclass(frozen=True, slots=True)
class _Expected:
    """What the records other than a step's own say about that step."""

    rewards: dict[str, float]
    """What reward events say that the environment paid, by the event that earned it."""
    last: EnvStep | None
    end: End | None


class _Comparison:
    """Compares what is seen with what was recorded, in the order of the steps."""

    def __init__(self, trace: Trace, observations: bool) -> None:
        paid = (e for e in trace.events if isinstance(e, Reward) and e.source == "environment" and e.part == RAW)
        steps = trace.steps
        self._trace = trace
        self._observations = observations
        self._expected = _Expected(
            {event.targets[0]: event.value for event in paid if event.targets}, steps[-1] if steps else None, trace.end
        )
        self._stopped = any(isinstance(event, Stop) and event.target == event.agent for event in trace.events)
        """Whoever played stopped, where the world would have gone on."""
        self._counts: dict[int, int] = {}
        self._return = 0.0

    def of_reset(self, reset: EnvReset, seen: Seen) -> Iterator[Difference]:
        if self._observations:
            yield from self._of_observation(reset, seen)
        if reset.screen:
            yield from _screens(reset.screen, seen.screen)
            yield from _colors(reset, seen)
        if reset.caption_id not in _NOT_KEPT:
            yield from self._captions(reset.caption_id, seen.caption)
        if self._expected.last is None and self._expected.end is not None:
            yield from self._of_end(self._expected.end, seen)

    def of_step(self, step: EnvStep, seen: Seen) -> Iterator[Difference]:
        end, is_last = self._expected.end, step is self._expected.last
        error = end.error if end is not None and is_last else None
        if seen.error is not None or error is not None:
            yield from _unequal("error", error or "none", clean(seen.error or "none"))
            return
        if self._observations and _keeps_observation(self._trace, step):
            yield from self._of_observation(step, seen)
        if step.screen:
            yield from _screens(step.screen, seen.screen)
            yield from _colors(step, seen)
        yield from self._rewards(step, seen)
        if not is_last:
            yield from _unequal("terminated", False, seen.terminated)
            yield from _unequal("truncated", False, seen.truncated)
        yield from self._captions(step.caption_id, seen.caption)
        number = caption_id(seen.caption)
        self._counts[number] = self._counts.get(number, 0) + (number != EMPTY_CAPTION_ID)
        yield from _unequal("caption_count", step.caption_count, self._counts[number])
        yield from _unequal("grounded", step.grounded, seen.grounded)
        if is_last and end is not None:
            yield from self._of_end(end, seen)

    def _of_observation(self, event: EnvReset | EnvStep, seen: Seen) -> Iterator[Difference]:
        """By the keys in which it differs, where the trace can tell them."""
        recorded, replayed = event.observation_hash, hash_like(event.observation_hash, seen.observation)
        if recorded == replayed:
            return
        before, after = _by_key(event.key_hashes), _by_key(key_hashes(seen.observation))
        keys = self._trace.header.observation_keys
        if keys != tuple(sorted(seen.observation)) or not len(keys) == len(before) == len(after):
            yield Difference("observation", recorded, replayed)
            return
        differing = [(key, old, new) for key, old, new in zip(keys, before, after, strict=True) if old != new]
        for key, old, new in differing:
            yield Difference(f"observation.{key}", f"#{old}", f"#{new}")
        if not differing:  # a hash of two digits does not tell all arrays apart
            yield Difference("observation", recorded, replayed)

    def _rewards(self, step: EnvStep, seen: Seen) -> Iterator[Difference]:
        # The batched stepper keeps rewards as 32-bit numbers.
        accepted = (seen.reward, float(np.float32(seen.reward)))
        told = self._expected.rewards.get(step.id, step.reward)
        wrong = next((value for value in (step.reward, told) if value not in accepted), None)
        if wrong is not None:
            yield Difference("reward", f"{wrong:g}", f"{seen.reward:g}")
        self._return += seen.reward

    def _captions(self, recorded: str, caption: str) -> Iterator[Difference]:
        if recorded != str(caption_id(caption)):
            yield Difference("caption", repr(self._trace.captions.get(recorded, "")), repr(clean(caption)))

    def _of_end(self, end: End, seen: Seen) -> Iterator[Difference]:
        yield from _unequal("terminated", end.terminated, seen.terminated)
        yield from _unequal("truncated", end.truncated and not self._stopped, seen.truncated)
        # Where something other than the world ended the episode, the world says nothing of success: it was not won.
        if not (self._stopped and seen.success is None and not end.success):
            yield from _unequal("success", end.success, seen.success)
        yield from _unequal("length", end.length, len(self._trace.steps))
        for name in sorted(end.metrics.keys() | seen.metrics.keys()):
            yield from _unequal(f"metrics.{name}", end.metrics.get(name), seen.metrics.get(name))
        if not math.isclose(end.episode_return, self._return, rel_tol=1e-6, abs_tol=1e-6):
            yield Difference("episode_return", f"{end.episode_return:g}", f"{self._return:g}")


def _by_key(hashes: str) -> list[str]:
    return [hashes[at : at + 2] for at in range(0, len(hashes), 2)]


def _unequal(key: str, recorded: object, replayed: object) -> Iterator[Difference]:
    if recorded != replayed:
        yield Difference(key, _told(recorded), _told(replayed))


def _told(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _screens(recorded: str, replayed: str) -> Iterator[Difference]:
    """The first line of the screen that differs."""
    yield from _lines("screen", recorded, clean(replayed))


def _colors(recorded: EnvReset | EnvStep, seen: Seen) -> Iterator[Difference]:
    """The first line whose colours differ, where they were recorded and the screens are the same."""
    if recorded.colors and recorded.screen == clean(seen.screen):
        yield from _lines("colours", recorded.colors, seen.colors)


def _lines(key: str, recorded: str, replayed: str) -> Iterator[Difference]:
    if recorded == replayed:
        return
    before, after = recorded.split("\n"), replayed.split("\n")
    rows = max(len(before), len(after))
    padded = zip(before + [""] * (rows - len(before)), after + [""] * (rows - len(after)), strict=True)
    row, (old, new) = next((row, pair) for row, pair in enumerate(padded) if pair[0] != pair[1] or row == rows - 1)
    yield Difference(f"{key} line {row + 1}", repr(old), repr(new))


def unreadable(path: str, error: TraceError) -> Verdict:
    """The verdict on a file that is no trace."""
    return Verdict(Outcome.UNREPLAYABLE, path, None, None, 0, clock="none", reason=first_line(error))
