"""Decides which episodes of a rollout are recorded: an `EpisodeObserver` of the rollout loop. `writers` write them."""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

from agents.observer import EpisodeFinish, EpisodeStart, EpisodeSteps, Recalled
from orchestration.errors import TraceError
from orchestration.traces.schema import SUFFIX
from orchestration.traces.writers import TraceRun, Writers

__all__ = ["Again", "Keeper", "TraceRecorder", "TraceRun", "is_sampled"]

_EPISODE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_MAX_FAILED = 20
"""So many episodes of one actor are kept because the environment raised."""


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

    An episode whose finished trace exists (the run was resumed and plays it again) is left alone.
    """

    def __init__(
        self,
        folder: Path,
        rate: float,
        run: TraceRun,
        writers: Writers,
        *,
        agent: str = "actor",
        asked: Sequence[str] = (),
        keeper: Keeper | None = None,
    ) -> None:
        """`writers` write into `folder`; `agent` names the actor in what the keeper records."""
        self._folder = folder
        self._rate = rate
        self._run = run
        self._writers = writers
        self._agent = agent
        self._asked = tuple(asked)
        self._keeper = keeper
        self._best, self._worst = -math.inf, math.inf
        self._failed = 0

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
        self._writers.start(env_index, start, "asked" if self._is_asked(start.episode_id) else "rate")

    def steps(self, env_index: int, steps: EpisodeSteps) -> None:
        """Records the next steps of the episode that environment `env_index` plays."""
        self._writers.steps(env_index, steps)

    def finish(self, env_index: int, finish: EpisodeFinish) -> None:
        """Ends the trace: it gets its final name."""
        self._rank(finish)
        self._writers.finish(env_index, finish)

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
        self._best, self._worst = max(self._best, value), min(self._worst, value)
        return "best" if best else "worst" if worst else None

    def recall(self, env_index: int, episode: Recalled, finish: EpisodeFinish) -> None:
        """Has an episode played again and recorded, aside. What comes out differently is told in an `error` event."""
        assert self._keeper is not None
        kept = "failed" if finish.error is not None else "best" if finish.episode_return >= self._best else "worst"
        self._keeper.submit(Again(episode, finish, f"{self._agent}/{env_index}", kept))

    def take_trouble(self) -> tuple[str, ...]:
        """Why episodes could not be recorded, a line each; since the last call."""
        return (*self._writers.take_trouble(), *(() if self._keeper is None else self._keeper.take_trouble()))

    def close(self) -> None:
        """Gives up the episodes that still run: what was recorded of them stays, as `.part`."""
        self._writers.close()
        if self._keeper is not None:
            self._keeper.close()
