"""Records episodes while they are played. See `files` for what is promised of the file.

Recording a step is on the path of every step of a traced run, so it is written for speed: the line is made of a plain
dictionary, of what does not follow from the lines before it (see `packing`).
"""

import functools
import hashlib
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import zstandard
from numpy.typing import NDArray

from agents.observer import EpisodeFinish, EpisodeStart, Recalled, StepRecord
from envs.captions import EMPTY_CAPTION_ID
from envs.clock import PINNED
from orchestration.errors import TraceError
from orchestration.traces.files import LEVEL, Finisher, TraceFile
from orchestration.traces.packing import Screens
from orchestration.traces.schema import (
    SCHEMA,
    SUFFIX,
    Caption,
    End,
    EnvReset,
    Error,
    Header,
    WeightsUpdate,
    clean,
)
from orchestration.traces.versions import native_versions, package_versions

__all__ = ["TraceRecorder", "TraceRun", "is_sampled", "observation_hash", "package_versions"]

_EPISODE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_DIGITS = 4
"""Log-probabilities and values are written to 1e-4: the rest of their digits would be a third of a trace's bytes."""
_SLOW_S = 0.1
"""Steps that took less have no duration: the environments of a batch step together, so it says little, and takes bytes."""
_MAX_FAILED = 20
"""So many episodes of one actor are kept because the environment raised."""

Recorded = tuple[EpisodeStart, Iterator[StepRecord]]
Player = Callable[[Recalled], Recorded]
"""Plays an episode again: its beginning and its steps, as the rollout would have told of them."""


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


def is_sampled(seed: int, episode_id: str, rate: float) -> bool:
    """Whether an episode is one of the share `rate`: decided by a hash, so the same in every run with this seed."""
    digest = hashlib.blake2b(f"{seed}:{episode_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < rate * 2**64


def observation_hash(observation: Mapping[str, NDArray[Any]]) -> str:
    """blake2b (48 bits) over names, dtypes, shapes and bytes of the arrays, in the order of their names."""
    parts: list[bytes] = []
    for name in sorted(observation):
        array = observation[name]
        parts.append(_described(name, array.dtype, array.shape))
        parts.append(array.tobytes())
    return hashlib.blake2b(b"".join(parts), digest_size=6).hexdigest()


@functools.lru_cache(maxsize=256)
def _described(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    return f"{name}:{dtype.str}:{shape};".encode()


class TraceRecorder:
    """Records episodes of one rollout actor; an `EpisodeObserver` of the rollout loop.

    Recorded are a share `rate` of the episodes and those whose id matches a pattern of `asked`. With a `player`, so are
    the best and the worst of this actor so far, and those whose environment raised: that they are is known when they
    have ended, and then they are played again.

    `agent` names the actor in the events. An episode whose finished trace exists (the run was resumed and plays it
    again) is left alone. `aside`: files are completed in a thread.
    """

    def __init__(
        self,
        folder: Path,
        rate: float,
        run: TraceRun,
        *,
        agent: str = "actor",
        asked: Sequence[str] = (),
        player: Player | None = None,
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
        self._player = player
        self._frame_lines, self._frame_s = frame_lines, frame_s
        self._clock = clock
        self._open: dict[int, _Episode] = {}
        self._compressor = zstandard.ZstdCompressor(level=LEVEL)
        self._finisher = Finisher(aside=aside)
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
        """Begins the trace of the episode that environment `env_index` now plays."""
        if env_index in self._open:
            raise TraceError(f"environment {env_index}: an episode began before the one before it was finished")
        kept = "asked" if self._is_asked(start.episode_id) else "rate"
        self._open[env_index] = self._episode(env_index, start, kept)

    def _episode(self, env_index: int, start: EpisodeStart, kept: str) -> "_Episode":
        born = start.seeds.get(PINNED)
        header = Header(
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
            policy=self._run.policy,
            natives=native_versions(),
        )
        file = TraceFile(
            self._folder,
            start.episode_id,
            frame_lines=self._frame_lines,
            frame_s=self._frame_s,
            clock=self._clock,
            compressor=self._compressor,
        )
        return _Episode(file, header, start, f"{self._agent}/{env_index}", self._clock, kept)

    def step(self, env_index: int, record: StepRecord) -> None:
        """Records a step of the episode that environment `env_index` plays."""
        self._open[env_index].step(record)

    def finish(self, env_index: int, finish: EpisodeFinish) -> None:
        """Ends the trace: it gets its final name."""
        self._rank(finish)
        episode = self._open.pop(env_index)
        episode.finish(finish)
        self._finisher.complete(episode.file)

    def wants_back(self, episode_id: str, finish: EpisodeFinish) -> bool:
        """Whether an episode that was not followed is the best or the worst so far, or failed."""
        why = self._rank(finish)
        return why is not None and self._player is not None and not self._exists(episode_id)

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
        """Plays an episode again and records it. What comes out differently is told in an `error` event."""
        if self._player is None:
            raise TraceError(f"{episode.episode_id}: there is nothing to play it again with")
        start, steps = self._player(episode)
        kept = "failed" if finish.error is not None else "best" if finish.episode_return >= self._best else "worst"
        trace = self._episode(env_index, start, kept)
        total, length = 0.0, 0
        for record in steps:
            trace.step(record)
            total += record.reward
            length += 1
        if finish.error is None and not math.isclose(total, finish.episode_return, rel_tol=1e-4, abs_tol=1e-4):
            trace.diverged(f"played again it returned {total:g}, the first time {finish.episode_return:g}")
        trace.finish(replace(finish, episode_return=total, length=length))
        self._finisher.complete(trace.file)

    def close(self) -> None:
        """Gives up the episodes that still run: what was recorded of them stays, as `.part`."""
        while self._open:
            self._open.popitem()[1].file.abandon()
        self._finisher.close()


class _Episode:
    """The trace of one running episode."""

    def __init__(
        self, file: TraceFile, header: Header, start: EpisodeStart, agent: str, clock: Callable[[], float], kept: str
    ) -> None:
        self.file = file
        self._actions = header.action_names
        self._agent = agent
        self._clock = clock
        self._kept = kept
        self._began = clock()
        self._wall = header.recorded_at
        self._seq = 0
        self._last = ""
        self._version = header.policy_version
        self._captions: set[int] = set()
        self._screens = Screens(clean(start.screen))
        file.write(header)
        reset = EnvReset(
            **self._event(()),
            observation_hash=observation_hash(start.observation),
            screen=clean(start.screen),
            colors=start.colors,
        )
        self._last = reset.id
        file.write(reset)
        file.flush()

    def step(self, record: StepRecord) -> None:
        if record.policy_version != self._version:
            update = WeightsUpdate(
                **self._event((self._last,)), from_version=self._version, to_version=record.policy_version
            )
            self._version, self._last = record.policy_version, update.id
            self.file.write(update)
        caption = record.caption_id
        if caption != EMPTY_CAPTION_ID and caption not in self._captions:
            self._captions.add(caption)
            self.file.write(Caption(caption_id=str(caption), text=clean(record.caption)))
        now = self._clock()
        paid = record.reward != 0
        # The rest follows from the lines before: see `packing`.
        tree: dict[str, Any] = {
            "record": "event",
            "type": "env_step",
            "t": round(now - self._began, 4),
            "action": record.action,
            "log_prob": _rounded(record.log_prob),
            "value": _rounded(record.value),
            "reward": record.reward,
            "observation_hash": observation_hash(record.observation) if record.observation else "",
        }
        if paid:
            tree["paid"] = True
        if caption != EMPTY_CAPTION_ID:
            tree["caption_id"] = str(caption)
            tree["caption_count"] = record.caption_count
        if not record.grounded:
            tree["grounded"] = False
        if record.screen:
            self._screens.pack(record.screen if record.screen.isascii() else clean(record.screen), tree)
        else:
            tree["screen"] = ""
        if record.colors:
            tree["colors"] = record.colors
        if record.duration_s >= _SLOW_S:
            tree["duration"] = round(record.duration_s, 3)
        self._last = f"e{self._seq}"
        self._seq += 1 + paid
        self.file.append(orjson.dumps(tree, option=orjson.OPT_APPEND_NEWLINE), now)

    def diverged(self, message: str) -> None:
        """Tells that the episode, played again, was another one."""
        self.file.write(Error(**self._event((self._last,)), message=message, source="recall"))

    def finish(self, finish: EpisodeFinish) -> None:
        if finish.error is not None:
            error = Error(**self._event((self._last,)), message=clean(finish.error), source="environment", fatal=True)
            self.file.write(error)
        elapsed = self._elapsed()
        end = End(
            t=elapsed,
            events=self._seq,
            length=finish.length,
            episode_return=float(finish.episode_return),
            terminated=finish.terminated,
            truncated=not finish.terminated and finish.error is None,
            success=finish.success,
            metrics={name: float(value) for name, value in finish.metrics.items()},
            error=None if finish.error is None else clean(finish.error),
            kept=self._kept,
            costs={"wall_clock_s": elapsed},
        )
        self.file.write(end)

    def _event(self, parents: tuple[str, ...]) -> dict[str, Any]:
        seq = self._seq
        self._seq += 1
        return {"id": f"e{seq}", "seq": seq, "t": self._elapsed(), "agent": self._agent, "parents": parents}

    def _elapsed(self) -> float:
        return round(self._clock() - self._began, 4)


def _rounded(value: float) -> float | None:
    return round(value, _DIGITS) if math.isfinite(value) else None
