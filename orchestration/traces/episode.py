"""The file of one episode while it is recorded. See `files` for what is promised of it, `packing` for its lines."""

import functools
import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from agents.observer import Cells, EpisodeFinish, EpisodeStart, EpisodeSteps
from envs.captions import EMPTY_CAPTION_ID
from orchestration.traces.cells import colors_of, text_of
from orchestration.traces.codec import encode
from orchestration.traces.files import TraceFile
from orchestration.traces.packing import StepPacker
from orchestration.traces.schema import (
    Caption,
    End,
    EnvReset,
    Error,
    Header,
    clean,
)

_HASH_BYTES = 6
AT_ONCE = 128
"""Steps in a line; so many screens of a terminal are half a megabyte until they are packed."""
_LATEST_S = 10.0
"""So long they wait at most, as far as the rollout tells of others meanwhile."""
_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE


class EpisodeFile:
    """Writes what happens in one episode. `kept` says why; `at_once` steps are in a line."""

    def __init__(
        self, file: TraceFile, header: Header, start: EpisodeStart, agent: str, kept: str, *, at_once: int = AT_ONCE
    ) -> None:
        self.file = file
        self._agent = agent
        self._kept = kept
        self._at_once = at_once
        self._began = start.at
        self._t = 0.0
        self._seq = 0
        self._last = ""
        self._packer = StepPacker.after(start)
        self._pending: list[EpisodeSteps] = []
        self._due = 0.0
        self._length = 0
        self._return = 0.0
        shown = start.screen
        if isinstance(shown, Cells):
            screen, colors = text_of(shown.planes[0]), colors_of(shown.planes[0])
        else:
            screen, colors = clean(shown[0]), ""
        file.write(header)
        reset = EnvReset(
            **self._event(()), observation_hash=observation_hash(start.observation), screen=screen, colors=colors
        )
        self._last = reset.id
        file.write(reset)
        file.flush()

    def steps(self, steps: EpisodeSteps) -> None:
        """The next steps. They are written some calls of the rollout later: many together cost less."""
        if not self._pending:
            self._due = float(steps.at[0]) + _LATEST_S
        self._pending.append(steps)
        if sum(map(len, self._pending)) >= self._at_once or steps.at[-1] >= self._due:
            self.write()

    def write(self) -> None:
        """Hands what has come to the file."""
        batches, self._pending = self._pending, []
        if not batches:
            return
        known = self._packer.captions
        for steps in batches:
            for at in np.flatnonzero(steps.caption_id != EMPTY_CAPTION_ID).tolist():
                caption = int(steps.caption_id[at])
                if caption not in known:
                    known[caption] = len(known)
                    self.file.write(Caption(caption_id=str(caption), text=clean(steps.captions[at])))
            self._return += float(steps.reward.sum(dtype=np.float64))
            self._seq += len(steps) + int(np.count_nonzero(steps.reward))
        updates = self._packer.updates(batches)
        self._seq += len(updates)
        hashes = (found for steps in batches for found in hashes_of(steps.observation))
        line = self._packer.pack(batches, self._began, hashes, updates)
        # The newest of the trunk; its reward, where it has one, comes after it.
        self._last = f"e{self._seq - 1 - bool(batches[-1].reward[-1])}"
        self._t = round(float(batches[-1].at[-1]) - self._began, 3)
        count = sum(map(len, batches))
        self._length += count
        self.file.append(orjson.dumps(line, option=_OPTIONS), count)

    def tell(self, message: str, source: str, *, fatal: bool = False) -> None:
        """Something failed."""
        error = Error(**self._event((self._last,)), message=clean(message), source=source, fatal=fatal)
        self.file.write(error)

    def finish(self, finish: EpisodeFinish) -> None:
        """The episode has ended; the file is complete but for its name."""
        self.write()
        if finish.error is not None:
            self.tell(finish.error, "environment", fatal=True)
        same = math.isclose(self._return, finish.episode_return, rel_tol=1e-4, abs_tol=1e-4)
        if finish.error is None and not same:
            # One that was played again came out differently.
            self.tell(f"its steps return {self._return:g}, the episode returned {finish.episode_return:g}", "recorder")
        end = End(
            t=self._t,
            events=self._seq,
            length=self._length,
            episode_return=float(finish.episode_return) if finish.error is None and same else self._return,
            terminated=finish.terminated,
            truncated=not finish.terminated and finish.error is None,
            success=finish.success,
            metrics={name: float(value) for name, value in finish.metrics.items()},
            error=None if finish.error is None else clean(finish.error),
            kept=self._kept,
            costs={"wall_clock_s": self._t},
        )
        self.file.append(encode(end))

    def _event(self, parents: tuple[str, ...]) -> dict[str, Any]:
        seq = self._seq
        self._seq += 1
        return {"id": f"e{seq}", "seq": seq, "t": self._t, "agent": self._agent, "parents": parents}


def observation_hash(observation: Mapping[str, NDArray[Any]]) -> str:
    """blake2b (48 bits) over names, dtypes, shapes and bytes of the arrays, in the order of their names."""
    (found,) = hashes_of({name: array[None] for name, array in observation.items()})
    return found


def hashes_of(observations: Mapping[str, NDArray[Any]]) -> Iterator[str]:
    """`observation_hash` of each of L observations, whose arrays are [L, ...]."""
    count = len(next(iter(observations.values()), ()))
    if not count:
        return
    parts: list[NDArray[np.uint8]] = []
    for name in sorted(observations):
        array = np.ascontiguousarray(observations[name])
        described = np.frombuffer(_described(name, array.dtype, array.shape[1:]), np.uint8)
        parts.append(np.broadcast_to(described, (count, len(described))))
        parts.append(array.reshape(count, -1).view(np.uint8))
    rows = np.concatenate(parts, axis=1)
    size, data = rows.shape[1], memoryview(rows.tobytes())
    for at in range(0, count * size, size):
        yield hashlib.blake2b(data[at : at + size], digest_size=_HASH_BYTES).hexdigest()


@functools.lru_cache(maxsize=256)
def _described(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    return f"{name}:{dtype.str}:{shape};".encode()
