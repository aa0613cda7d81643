"""Writes traces. Invariant: a finished file appears whole and is never written again; a `.part` ends in whole frames.

Lines are collected and written as one zstd frame, so that whatever a crash leaves can be read up to the last frame.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from agents.observer import EpisodeFinish, EpisodeStart, StepRecord
from envs.captions import EMPTY_CAPTION_ID
from orchestration.errors import TraceError
from orchestration.files import sync_folder, write_all
from orchestration.traces.schema import (
    SCHEMA,
    SUFFIX,
    Caption,
    End,
    EnvReset,
    EnvStep,
    Header,
    Record,
    Reward,
    WeightsUpdate,
    encode,
)

_VERSIONED = ("yendor", "nle", "minihack", "gymnasium", "numpy", "torch")
_EPISODE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_LEVEL = 3


@dataclass(frozen=True, slots=True)
class TraceRun:
    """What a recorder says about the run in each header."""

    run: str
    seed: int
    code_revision: str | None = None
    count_exponent: float | None = None
    versions: Mapping[str, str | None] = field(default_factory=lambda: package_versions())


def package_versions() -> dict[str, str | None]:
    """Versions of the packages that a replay depends on, without importing them."""
    versions: dict[str, str | None] = {}
    for name in _VERSIONED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def is_sampled(seed: int, episode_id: str, rate: float) -> bool:
    """Whether an episode is one of the share `rate`: decided by a hash, so the same in every run with this seed."""
    digest = hashlib.blake2b(f"{seed}:{episode_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < rate * 2**64


def observation_hash(observation: Mapping[str, NDArray[Any]]) -> str:
    """blake2b (128 bits) over names, dtypes, shapes and bytes of the arrays, in the order of their names."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(observation):
        array = np.ascontiguousarray(observation[name])
        digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        digest.update(array.data.cast("B") if array.size else b"")
    return digest.hexdigest()


class TraceRecorder:
    """Records a share of the episodes of one rollout actor; an `EpisodeObserver` of the rollout loop.

    `agent` names the actor in the events. A frame is written after `frame_lines` lines or `frame_s` seconds.
    An episode whose finished trace exists (the run was resumed and plays it again) is left alone.
    """

    def __init__(
        self,
        folder: Path,
        rate: float,
        run: TraceRun,
        *,
        agent: str = "actor",
        frame_lines: int = 256,
        frame_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._rate = rate
        self._run = run
        self._agent = agent
        self._frame_lines = frame_lines
        self._frame_s = frame_s
        self._clock = clock
        self._open: dict[int, _Episode] = {}

    def wants(self, episode_id: str) -> bool:
        """Whether the episode is to be recorded."""
        if not _EPISODE_ID.fullmatch(episode_id):
            raise TraceError(f"episode id {episode_id!r} cannot be the name of a file")
        sampled = is_sampled(self._run.seed, episode_id, self._rate)
        return sampled and not (self._folder / f"{episode_id}{SUFFIX}").exists()

    def start(self, env_index: int, start: EpisodeStart) -> None:
        """Begins the trace of the episode that environment `env_index` now plays."""
        if env_index in self._open:
            raise TraceError(f"environment {env_index}: an episode began before the one before it was finished")
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
            clock="unpinned",
            recorded_at=time.time(),
            count_exponent=self._run.count_exponent,
        )
        file = _TraceFile(self._folder, start.episode_id, self._frame_lines, self._frame_s, self._clock)
        self._open[env_index] = _Episode(file, header, start, f"{self._agent}/{env_index}", self._clock)

    def step(self, env_index: int, record: StepRecord) -> None:
        """Records a step of the episode that environment `env_index` plays."""
        self._open[env_index].step(record)

    def finish(self, env_index: int, finish: EpisodeFinish) -> None:
        """Ends the trace: it gets its final name."""
        self._open.pop(env_index).finish(finish)

    def close(self) -> None:
        """Gives up the episodes that still run: what was recorded of them stays, as `.part`."""
        while self._open:
            self._open.popitem()[1].file.abandon()


class _Episode:
    """The trace of one running episode."""

    def __init__(
        self, file: "_TraceFile", header: Header, start: EpisodeStart, agent: str, clock: Callable[[], float]
    ) -> None:
        self.file = file
        self._actions = header.action_names
        self._agent = agent
        self._clock = clock
        self._began = clock()
        self._seq = 0
        self._last = ""
        self._version = header.policy_version
        self._captions: set[int] = set()
        file.write(header)
        reset = EnvReset(**self._event(()), observation_hash=observation_hash(start.observation), screen=start.screen)
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
        if record.caption_id != EMPTY_CAPTION_ID and record.caption_id not in self._captions:
            self._captions.add(record.caption_id)
            self.file.write(Caption(caption_id=str(record.caption_id), text=record.caption))
        step = EnvStep(
            **self._event((self._last,)),
            step=record.step,
            action=int(record.action),
            action_name=self._actions[record.action],
            log_prob=float(record.log_prob),
            value=float(record.value),
            reward=float(record.reward),
            caption_id=str(record.caption_id),
            caption_count=int(record.caption_count),
            grounded=bool(record.grounded),
            policy_version=record.policy_version,
            observation_hash=observation_hash(record.observation),
            screen=record.screen,
        )
        self._last = step.id
        self.file.write(step)
        if record.reward != 0:
            reward = Reward(
                **self._event((step.id,)),
                family="outcome",
                value=float(record.reward),
                source="environment",
                version=None,
                target=step.id,
            )
            self.file.write(reward)

    def finish(self, finish: EpisodeFinish) -> None:
        end = End(
            t=self._elapsed(),
            events=self._seq,
            length=finish.length,
            episode_return=float(finish.episode_return),
            terminated=finish.terminated,
            truncated=not finish.terminated and finish.error is None,
            success=finish.success,
            metrics={name: float(value) for name, value in finish.metrics.items()},
            error=finish.error,
        )
        self.file.write(end)
        self.file.complete()

    def _event(self, parents: tuple[str, ...]) -> dict[str, Any]:
        seq = self._seq
        self._seq += 1
        return {"id": f"e{seq}", "seq": seq, "t": self._elapsed(), "agent": self._agent, "parents": parents}

    def _elapsed(self) -> float:
        return round(self._clock() - self._began, 6)


class _TraceFile:
    """Appends records to `EPISODE.jsonl.zst.part`, a zstd frame at a time."""

    def __init__(
        self, folder: Path, episode_id: str, frame_lines: int, frame_s: float, clock: Callable[[], float]
    ) -> None:
        self._final = folder / f"{episode_id}{SUFFIX}"
        self._part = folder / f"{episode_id}{SUFFIX}.part"
        self._frame_lines = frame_lines
        self._frame_s = frame_s
        self._clock = clock
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)
        self._lines: list[bytes] = []
        self._flushed = clock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._part.open("wb", buffering=0)
        except OSError as error:
            raise TraceError(f"{self._part}: cannot be written: {error.strerror}") from error

    def write(self, record: Record) -> None:
        self._lines.append(encode(record))
        if len(self._lines) >= self._frame_lines or self._clock() - self._flushed >= self._frame_s:
            self.flush()

    def flush(self) -> None:
        if not self._lines:
            return
        frame = self._compressor.compress(b"".join(self._lines))
        try:
            write_all(self._file, frame)
        except OSError as error:
            raise TraceError(f"{self._part}: cannot be written: {error.strerror}") from error
        self._lines.clear()
        self._flushed = self._clock()

    def complete(self) -> None:
        """Makes the file durable under its final name."""
        self.flush()
        try:
            os.fsync(self._file.fileno())
            self._file.close()
            self._part.rename(self._final)
            sync_folder(self._final.parent)
        except OSError as error:
            raise TraceError(f"{self._final}: cannot be written: {error.strerror}") from error

    def abandon(self) -> None:
        self.flush()
        self._file.close()
