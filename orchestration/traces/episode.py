"""The file of one episode while it is recorded. See `files` for what is promised of it, `packing` for its lines."""

import math
from typing import Any

import numpy as np
import orjson

from agents.observer import Cells, EpisodeFinish, EpisodeStart, EpisodeSteps
from envs.captions import caption_id
from orchestration.traces.cells import colors_of, text_of
from orchestration.traces.clocks import WallClock
from orchestration.traces.codec import encode
from orchestration.traces.files import TraceFile
from orchestration.traces.hashes import key_hashes, observation_hash
from orchestration.traces.packing import StepPacker
from orchestration.traces.schema import (
    Caption,
    End,
    EnvReset,
    Error,
    Header,
    clean,
)

AT_ONCE = 128
"""Steps in a line; """
_LATEST_S = 10.0
"""So long they wait at most, as far as the rollout tells of others meanwhile."""
_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE


class EpisodeFile:
    """Writes what happens in one episode. `kept` says why; `at_once` steps are in a line."""

    def __init__(
        self,
        file: TraceFile,
        header: Header,
        start: EpisodeStart,
        agent: str,
        kept: str,
        wall: WallClock,
        *,
        at_once: int = AT_ONCE,
    ) -> None:
        self.file = file
        self._wall = wall
        self._agent = agent
        self._kept = kept
        self._at_once = at_once
        self._began = start.at
        self._t = 0.0
        self._seq = 0
        self._last = ""
        self._packer = StepPacker(start)
        self._due = 0.0
        self._length = 0
        self._return = 0.0
        shown = start.screen
        if isinstance(shown, Cells):
            screen, colors = text_of(shown.planes[0]), colors_of(shown.planes[0])
        else:
            screen, colors = clean(shown[0]), ""
        file.write(header)
        for caption, text in self._packer.opening(start.caption):
            file.write(Caption(caption_id=str(caption), text=clean(text)))
        reset = EnvReset(
            **self._event(()),
            observation_hash=observation_hash(start.observation),
            key_hashes=key_hashes(start.observation),
            screen=screen,
            colors=colors,
            caption_id=str(caption_id(start.caption)),
        )
        self._last = reset.id
        file.write(reset)
        file.flush()

    def steps(self, steps: EpisodeSteps) -> None:
        """The next steps. They are written some calls of the rollout later: many together take less room."""
        for caption, text in self._packer.new_captions(steps):
            self.file.write(Caption(caption_id=str(caption), text=clean(text)))
        if not self._packer.count:
            self._due = float(steps.at[0]) + _LATEST_S
        self._seq += self._packer.add(steps)
        # The newest of the trunk; its reward, where it has one, comes after it.
        self._last = f"e{self._seq - 1 - bool(steps.reward[-1])}"
        self._t = round(float(steps.at[-1]) - self._began, 3)
        self._length += len(steps)
        self._return += float(steps.reward.sum(dtype=np.float64))
        if self._packer.count >= self._at_once or steps.at[-1] >= self._due:
            self.write()

    def write(self) -> None:
        """Hands what waits to the file."""
        count = self._packer.count
        if count:
            self.file.append(orjson.dumps(self._packer.line(self._wall.skew()), option=_OPTIONS), count)

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
        where = {"id": f"e{seq}", "seq": seq, "agent": self._agent, "parents": parents}
        return {**where, "t": self._t, "skew": self._wall.skew()}
