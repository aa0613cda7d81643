"""Records episodes while they are played: an `EpisodeObserver` of the rollout loop. Invariant: no trouble with a file ends
the rollout; the episode is given up, counted and told of."""

import hashlib
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

from agents.observer import EpisodeFinish, EpisodeStart, EpisodeSteps, Recalled
from envs.clock import PINNED
from orchestration.errors import TraceError
from orchestration.traces.episode import AT_ONCE, EpisodeFile
from orchestration.traces.files import Finisher, TraceFile
from orchestration.traces.schema import SCHEMA, SUFFIX, Header
from orchestration.traces.versions import native_versions, package_versions

_EPISODE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_MAX_FAILED = 20
"""So many episodes of one actor are kept because the environment raised."""


@dataclass(frozen=True, slots=True)
class TraceRun:
    """What a recorder says about the run in each header."""

    run: str
    seed: int
    code_revision: str | None = None
    count_exponent: float | None = None
    versions: Mapping[str, str | None] = field(default_factory=lambda: package_versions())
    policy: str | None = None
    """Name of the network or of the language model that acts."""


@dataclass(frozen=True, slots=True)
class Again:
    """An episode that is to be played again and recorded then."""

    episode: Recalled
    finish: EpisodeFinish
    agent: str
    kept: str
    """`best`, `worst` or `failed`."""


class Keeper(Protocol):
    """Plays episodes again, aside."""

    def submit(self, again: Again) -> None: ...

    def take_trouble(self) -> tuple[str, ...]:
        """Why episodes could not be kept, a line each; since the last call."""
        ...

    def close(self) -> None:
        """Waits for what is left, for a bounded time."""
        ...


def is_sampled(seed: int, episode_id: str, rate: float) -> bool:
    """Whether an episode is one of the share `rate`: decided by a hash, so the same in every run with this seed."""
    digest = hashlib.blake2b(f"{seed}:{episode_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < rate * 2**64


class TraceRecorder:
    """Records episodes of one rollout actor.

    Recorded are a share `rate` of the episodes and those whose id matches a pattern of `asked`. With a `keeper`, so are
    the best and the worst of this actor so far, and those whose environment raised: that they are is known when they
    have ended, and then they are played again, by the keeper.

    `agent` names the actor in the events. An episode whose finished trace exists (the run was resumed and plays it
    again) is left alone. `aside`: files are compressed and completed in a thread.
    """

    def __init__(
        self,
        folder: Path,
        rate: float,
        run: TraceRun,
        *,
        agent: str = "actor",
        asked: Sequence[str] = (),
        keeper: Keeper | None = None,
        frame_lines: int = 512,
        frame_s: float = 15.0,
        aside: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._rate = rate
        self._run = run
        self._agent = agent
        self._asked = tuple(asked)
        self._keeper = keeper
        self._frame_lines, self._frame_s = frame_lines, frame_s
        self._clock = clock
        self._open: dict[int, EpisodeFile] = {}
        self._finisher = Finisher(aside=aside)
        self._best, self._worst = -math.inf, math.inf
        self._failed = 0
        self._trouble: list[str] = []

    def wants(self, episode_id: str) -> bool:
        """Whether the episode is to be recorded from its beginning."""
        if not _EPISODE_ID.fullmatch(episode_id):
            raise TraceError(f"episode id {episode_id!r} cannot be the name of a file")
        chosen = self._is_asked(episode_id) or is_sampled(self._run.seed, episode_id, self._rate)
        return chosen and not self._exists(episode_id)

    def _is_asked(self, episode_id: str) -> bool:
        return any(fnmatchcase(episode_id, pattern) for pattern in self._asked)

    def _exists(self, episode_id: str) -> bool:
        return (self._folder / f"{episode_id}{SUFFIX}").exists()

    def start(self, env_index: int, start: EpisodeStart) -> None:
        """Begins the trace of the episode that environment `env_index` plays."""
        kept = "asked" if self._is_asked(start.episode_id) else "rate"
        try:
            self._open[env_index] = self.record(start, f"{self._agent}/{env_index}", kept)
        except TraceError as error:
            self._trouble.append(str(error))

    def record(self, start: EpisodeStart, agent: str, kept: str) -> EpisodeFile:
        """The file of an episode that begins. Raises `TraceError` where it cannot be written."""
        file = TraceFile(
            self._folder,
            start.episode_id,
            frame_lines=self._frame_lines,
            frame_s=self._frame_s,
            clock=self._clock,
        )
        return EpisodeFile(file, self._header(start), start, agent, kept, at_once=min(AT_ONCE, self._frame_lines))

    def _header(self, start: EpisodeStart) -> Header:
        born = start.seeds.get(PINNED)
        return Header(
            schema=SCHEMA,
            episode_id=start.episode_id,
            run=self._run.run,
            env_id=start.env_id,
            env_options=dict(start.env_options),
            action_names=start.action_names,
            seeds=dict(start.seeds),
            policy_version=start.policy_version,
            versions=self._run.versions,
            code_revision=self._run.code_revision,
            clock="unpinned" if born is None else f"pinned:{born}",
            recorded_at=time.time(),
            count_exponent=self._run.count_exponent,
            reward_model_version=start.reward_model_version,
            policy=self._run.policy,
            natives=native_versions(),
        )

    def steps(self, env_index: int, steps: EpisodeSteps) -> None:
        """Records the next steps of the episode that environment `env_index` plays."""
        episode = self._open.get(env_index)
        if episode is None:
            return
        try:
            episode.steps(steps)
        except TraceError as error:
            self._give_up(env_index, error)

    def _give_up(self, env_index: int, error: TraceError) -> None:
        self._trouble.append(str(error))
        self._open.pop(env_index).file.drop()

    def finish(self, env_index: int, finish: EpisodeFinish) -> None:
        """Ends the trace: it gets its final name."""
        self._rank(finish)
        episode = self._open.get(env_index)
        if episode is None:
            return
        try:
            episode.finish(finish)
            self._finisher.complete(episode.file)
            del self._open[env_index]
        except TraceError as error:
            self._give_up(env_index, error)

    def wants_back(self, episode_id: str, finish: EpisodeFinish) -> bool:
        """Whether an episode that was not followed is the best or the worst so far, or failed."""
        why = self._rank(finish)
        return why is not None and self._keeper is not None and not self._exists(episode_id)

    def _rank(self, finish: EpisodeFinish) -> str | None:
        """Counts an episode; says whether it is `best`, `worst` or `failed`."""
        if finish.error is not None:
            self._failed += 1
            return "failed" if self._failed <= _MAX_FAILED else None
        value = finish.episode_return
        best, worst = value > self._best, value < self._worst
        # The first episode is no extreme: it only says from where to count.
        first = math.isinf(self._best)
        self._best, self._worst = max(self._best, value), min(self._worst, value)
        return None if first else "best" if best else "worst" if worst else None

    def recall(self, env_index: int, episode: Recalled, finish: EpisodeFinish) -> None:
        """Has an episode played again and recorded, aside. What comes out differently is told in an `error` event."""
        assert self._keeper is not None
        kept = "failed" if finish.error is not None else "best" if finish.episode_return >= self._best else "worst"
        self._keeper.submit(Again(episode, finish, f"{self._agent}/{env_index}", kept))

    def take_trouble(self) -> tuple[str, ...]:
        """Why episodes could not be recorded, a line each; since the last call."""
        kept = () if self._keeper is None else self._keeper.take_trouble()
        trouble, self._trouble = (*self._trouble, *self._finisher.take_trouble(), *kept), []
        return trouble

    def close(self) -> None:
        """Gives up the episodes that still run: what was recorded of them stays, as `.part`."""
        while self._open:
            _, episode = self._open.popitem()
            try:
                episode.write()
                episode.file.abandon()
            except TraceError as error:
                self._trouble.append(str(error))
        self._finisher.close()
        if self._keeper is not None:
            self._keeper.close()
