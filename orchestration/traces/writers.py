"""Writes the episodes that an actor records at once: in its process, or in one of its own beside it.

Invariants: no trouble with a file, nor the end of that process, ends the rollout; the episode is given up and told of. An episode
that finished is on disk, or can be told by its name to be lost (`take_settled`, `take_lost`).
"""

import contextlib
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agents.observer import Cells, EpisodeFinish, EpisodeStart, EpisodeSteps
from orchestration.errors import TraceError
from orchestration.traces.clocks import WallClock
from orchestration.traces.episode import AT_ONCE, EpisodeFile
from orchestration.traces.files import Finisher, TraceFile
from orchestration.traces.pipe import receive, send
from orchestration.traces.schema import RUN_SEED, SCHEMA, SUFFIX, Header
from orchestration.traces.versions import clock_text, native_versions, package_versions

ASIDE_FROM = 0.1
"""From this share of traced episodes on it is worth a process to write them."""
_CLOSE_S = 5.0
"""So long `close` waits for what is still to be written."""
_DEATHS_IN_A_ROW = 3
_SETTLED = "settled "
"""What a line of the process begins with that names an episode whose file is complete, or was given up."""
EPISODE_FRAME_S = 15.0
"""Lines of an episode wait so long to be compressed together; those that wait are lost with the writer's machine."""
_PIPE_BYTES = 2**20
_SET_PIPE_SIZE = 1031
"""`F_SETPIPE_SZ` of Linux."""


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


class Writers(Protocol):
    """Open episodes, by the environment that plays them."""

    def start(self, env_index: int, start: EpisodeStart, kept: str) -> None: ...

    def steps(self, env_index: int, steps: EpisodeSteps) -> None: ...

    def finish(self, env_index: int, finish: EpisodeFinish) -> None: ...

    def give_up(self, env_index: int, why: str) -> None:
        """Ends the recording of an episode that goes on; nothing of it is kept."""
        ...

    def take_trouble(self) -> tuple[str, ...]:
        """Why episodes could not be recorded, a line each; since the last call."""
        ...

    @property
    def may_lose(self) -> bool:
        """Whether episodes may get lost after they were told as a whole."""
        ...

    def take_settled(self) -> tuple[str, ...]:
        """Episodes that finished and cannot be lost any more, or were given up; since the last call of `take_trouble`."""
        ...

    def take_lost(self) -> bool:
        """Whether all that was told and is not settled is lost; since the last call."""
        ...

    def close(self) -> None:
        """Gives up the episodes that still run: what was recorded of them stays, as `.part`."""
        ...


class EpisodeWriters:
    """Writes in this process. `aside`: files are completed in a thread."""

    def __init__(
        self,
        folder: Path,
        run: TraceRun,
        agent: str,
        *,
        frame_lines: int = 512,
        frame_s: float = EPISODE_FRAME_S,
        aside: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._run = run
        self._agent = agent
        self._frame_lines, self._frame_s = frame_lines, frame_s
        self._clock = clock
        self._open: dict[int, EpisodeFile] = {}
        self._finisher = Finisher(aside=aside)
        self._trouble: list[str] = []
        self._given_up: list[str] = []

    def start(self, env_index: int, start: EpisodeStart, kept: str) -> None:
        """Begins the trace of the episode that environment `env_index` plays."""
        try:
            self._open[env_index] = self.open(start, f"{self._agent}/{env_index}", kept)
        except TraceError as error:
            self._trouble.append(str(error))

    def open(self, start: EpisodeStart, agent: str, kept: str) -> EpisodeFile:
        """The file of an episode that begins. Raises `TraceError` where it cannot be written."""
        file = TraceFile(
            self._folder, start.episode_id, frame_lines=self._frame_lines, frame_s=self._frame_s, clock=self._clock
        )
        wall = WallClock(start.at)
        header = self._header(start, wall.recorded_at)
        return EpisodeFile(file, header, start, agent, kept, wall, at_once=min(AT_ONCE, self._frame_lines))

    def _header(self, start: EpisodeStart, recorded_at: float) -> Header:
        return Header(
            schema=SCHEMA,
            episode_id=start.episode_id,
            run=self._run.run,
            env_id=start.env_id,
            env_options=dict(start.env_options),
            action_names=start.action_names,
            seeds={**start.seeds, RUN_SEED: str(self._run.seed)},
            policy_version=start.policy_version,
            versions=self._run.versions,
            code_revision=self._run.code_revision,
            clock=clock_text(start.seeds),
            recorded_at=recorded_at,
            count_exponent=self._run.count_exponent,
            reward_model_version=start.reward_model_version,
            policy=self._run.policy,
            natives=native_versions(),
            view=start.view,
            observation_keys=tuple(sorted(start.observation)),
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

    def finish(self, env_index: int, finish: EpisodeFinish) -> None:
        """Ends the trace: it gets its final name."""
        episode = self._open.get(env_index)
        if episode is None:
            return
        try:
            episode.finish(finish)
            self._finisher.complete(episode.file)
            del self._open[env_index]
        except TraceError as error:
            self._give_up(env_index, error)

    def give_up(self, env_index: int, why: str) -> None:
        episode = self._open.pop(env_index, None)
        if episode is not None:
            self._trouble.append(why)
            episode.file.remove()

    def _give_up(self, env_index: int, error: TraceError) -> None:
        self._trouble.append(str(error))
        file = self._open.pop(env_index).file
        file.drop()
        self._given_up.append(file.final.name.removesuffix(SUFFIX))

    def take_trouble(self) -> tuple[str, ...]:
        trouble, self._trouble = (*self._trouble, *self._finisher.take_trouble()), []
        return trouble

    @property
    def may_lose(self) -> bool:
        return False

    def take_settled(self) -> tuple[str, ...]:
        given_up, self._given_up = self._given_up, []
        return (*self._finisher.take_settled(), *given_up)

    def take_lost(self) -> bool:
        return False

    def close(self) -> None:
        while self._open:
            _, episode = self._open.popitem()
            try:
                episode.write()
                episode.file.abandon()
            except TraceError as error:
                self._trouble.append(str(error))
        self._finisher.close()


class WritersAside:
    """Hands everything to a process that writes it, so that the rollout pays only for the copying.

    The process begins with the first episode. It reads what it is told before it works on it, so the rollout waits only
    where the process falls behind by a whole call. It says of each episode when its file is complete. One that dies is
    replaced, and what it had not said so of is lost: `take_lost`. Where they die again and again nothing is recorded.
    """

    def __init__(self, folder: Path, run: TraceRun, agent: str) -> None:
        self._made_of = (folder, run, agent)
        self._process: subprocess.Popen[bytes] | None = None
        self._waiting: list[tuple[Any, ...]] = []
        self._trouble: list[str] = []
        self._settled: list[str] = []
        self._said = b""
        """The beginning of a line."""
        self._deaths = 0
        """Of processes, since one has completed a file."""
        self._lost = False
        self._gone = False

    @property
    def may_lose(self) -> bool:
        return not self._gone

    def start(self, env_index: int, start: EpisodeStart, kept: str) -> None:
        # Sent later, so what is the rollout's own has to be copied.
        screen = Cells(start.screen.planes.copy()) if isinstance(start.screen, Cells) else start.screen
        observation = {name: array.copy() for name, array in start.observation.items()}
        self._tell("start", env_index, replace(start, screen=screen, observation=observation), kept)

    def steps(self, env_index: int, steps: EpisodeSteps) -> None:
        if isinstance(steps.screens, Cells):
            self._tell("steps", env_index, replace(steps, screens=()), _Changes.of(steps.screens))
        else:
            self._tell("steps", env_index, steps, None)

    def finish(self, env_index: int, finish: EpisodeFinish) -> None:
        self._tell("finish", env_index, finish)

    def give_up(self, env_index: int, why: str) -> None:
        self._tell("give_up", env_index, why)

    def _tell(self, *message: Any) -> None:
        if not self._gone:
            self._waiting.append(message)

    def _send(self) -> None:
        """All that was told since the last time, at once: many small messages would cost more than what is in them."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        try:
            if self._process is None:
                self._process = _start_process()
                send(_stream(self._process.stdin), self._made_of)
            send(_stream(self._process.stdin), waiting)
        except OSError:
            self._died()

    def take_trouble(self) -> tuple[str, ...]:
        """Once for each rollout call: also sends what was told in it."""
        if self._process is not None and self._process.poll() is not None:
            self._died()
        else:
            self._send()
        if self._process is not None:
            self._hear(self._process, wait=False)
        trouble, self._trouble = tuple(self._trouble), []
        return trouble

    def take_settled(self) -> tuple[str, ...]:
        settled, self._settled = tuple(self._settled), []
        return settled

    def take_lost(self) -> bool:
        lost, self._lost = self._lost, False
        return lost

    def _hear(self, process: "subprocess.Popen[bytes]", *, wait: bool) -> None:
        """What the process says; with `wait` up to its end."""
        out = _stream(process.stdout).fileno()
        while wait or select.select([out], [], [], 0.0)[0]:
            data = os.read(out, 2**16)
            if not data:
                break
            *lines, self._said = (self._said + data).split(b"\n")
            for line in lines:
                text = line.decode("utf-8", "replace")
                if text.startswith(_SETTLED):
                    self._settled.append(text.removeprefix(_SETTLED))
                    self._deaths = 0
                else:
                    self._trouble.append(text)

    def _died(self) -> None:
        """The process is gone, or of no use any more."""
        process, self._process = self._process, None
        self._waiting.clear()
        self._lost = True
        self._deaths += 1
        how = "cannot be started"
        if process is not None:
            process.kill()
            self._hear(process, wait=True)
            how = f"died ({_ending(process.wait())})"
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):  # what was not sent
                    _stream(stream).close()
        self._said = b""
        self._gone = self._deaths >= _DEATHS_IN_A_ROW
        then = (
            f"episodes are no longer recorded: it has {self._deaths} times in a row" if self._gone else "it is replaced"
        )
        self._trouble.append(f"the process that writes traces {how}; {then}")

    def close(self) -> None:
        self._send()
        process, self._process = self._process, None
        if process is None:
            return
        killer = threading.Timer(_CLOSE_S, process.kill)
        killer.start()
        try:
            _stream(process.stdin).close()
            self._hear(process, wait=True)
        except OSError as error:
            self._trouble.append(str(error))
        if process.wait():
            self._lost = True
            self._trouble.append(f"the process that writes traces died ({_ending(process.returncode)})")
        killer.cancel()
        _stream(process.stdout).close()
        self._gone = True


def _ending(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


@dataclass(frozen=True, slots=True)
class _Changes:
    """Screens of a terminal as what changes from one to the next: a fortieth of their bytes."""

    shape: tuple[int, ...]
    """Of `Cells.planes`."""
    place: NDArray[np.uint32]
    """[N], of eight bytes that change, counted from those of the second screen."""
    change: NDArray[np.uint64]
    """[N], exclusive or with what was there."""

    @classmethod
    def of(cls, cells: Cells) -> "_Changes":
        words = cells.planes.reshape(len(cells.planes), -1).view(np.uint64)
        place = np.flatnonzero(words[1:] != words[:-1])
        flat, size = words.ravel(), words.shape[1]
        return cls(cells.planes.shape, place.astype(np.uint32), flat[place + size] ^ flat[place])

    def after(self, screen: NDArray[np.uint8]) -> Cells:
        """The screens, where `screen` [2, rows, columns] was the first."""
        first = screen.reshape(-1).view(np.uint64)
        words = np.zeros((self.shape[0], len(first)), np.uint64)
        words[1:].reshape(-1)[self.place] = self.change
        words[0] = first
        np.bitwise_xor.accumulate(words, axis=0, out=words)
        return Cells(words.view(np.uint8).reshape(self.shape))


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def _start_process() -> "subprocess.Popen[bytes]":
    import fcntl

    command = [sys.executable, "-c", "from orchestration.traces.writers import main; main()"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0)
    if sys.platform == "linux":
        fcntl.fcntl(_stream(process.stdin), _SET_PIPE_SIZE, _PIPE_BYTES)
    return process


def main() -> None:
    """The process: reads what `WritersAside` tells from the standard input; says its troubles, a line each."""
    source = os.fdopen(0, "rb", buffering=_PIPE_BYTES)
    folder, run, agent = receive(source)
    writers = EpisodeWriters(folder, run, agent, aside=True)
    shown: dict[int, NDArray[np.uint8]] = {}
    try:
        while True:
            for message in receive(source):
                _take(writers, shown, *message)
            _say(writers)
    except EOFError:
        writers.close()
        _say(writers)


def _take(
    writers: EpisodeWriters, shown: dict[int, NDArray[np.uint8]], name: str, env_index: int, told: Any, *rest: Any
) -> None:
    """Does what was told. `shown` is the newest screen of each environment that draws on a terminal."""
    if name == "start":
        if isinstance(told.screen, Cells):
            shown[env_index] = told.screen.planes[-1]
        writers.start(env_index, told, *rest)
    elif name == "steps":
        (changes,) = rest
        if changes is not None:
            screens = changes.after(shown[env_index])
            shown[env_index] = screens.planes[-1].copy()
            told = replace(told, screens=screens)
        writers.steps(env_index, told)
    elif name == "give_up":
        writers.give_up(env_index, told)
    else:
        writers.finish(env_index, told)


def _say(writers: EpisodeWriters) -> None:
    troubles = [line.replace("\n", " ") for line in writers.take_trouble()]
    lines = (*troubles, *(f"{_SETTLED}{name}" for name in writers.take_settled()))
    if lines:
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()
