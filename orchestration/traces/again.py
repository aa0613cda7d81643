"""Records episodes that turned out to be worth keeping when they had ended, by playing them again from seeds and actions.

That happens in a process of its own, which the operating system runs when a processor has nothing else to do; so it costs
the actor a message. It is started when it is first needed and ends when nothing was asked of it for a while.
"""

import os
import pickle
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from agents.observer import Cells, EpisodeStart, EpisodeSteps, Recalled, Screens
from envs.base import View, YendorEnv
from envs.captions import caption_id
from orchestration.errors import TraceError, first_line
from orchestration.traces.files import Finisher
from orchestration.traces.recorder import Again
from orchestration.traces.writers import EpisodeWriters, TraceRun

_IDLE_S = 10.0
"""So long the process waits for another episode."""
_CLOSE_S = 4.0
"""So long `close` waits for the episodes that are left."""
_AT_ONCE = 256
"""Steps that are recorded together."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make the environment, and where its traces go."""

    env_id: str
    view: View
    env_options: dict[str, Any]
    folder: Path
    run: TraceRun


class AsideKeeper:
    """Hands episodes to the process, one after the other. Of the best (and the worst) that wait only the newest counts."""

    def __init__(self, recipe: Recipe, *, idle_s: float = _IDLE_S, close_s: float = _CLOSE_S) -> None:
        self._recipe = recipe
        self._idle_s, self._close_s = idle_s, close_s
        self._waiting: deque[Again] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._trouble: list[str] = []
        self._closing = False
        self._playing = False

    @property
    def busy(self) -> bool:
        """Whether an episode is played or waits."""
        with self._changed:
            return self._playing or bool(self._waiting)

    def submit(self, again: Again) -> None:
        """Has an episode played again. Returns at once."""
        with self._changed:
            if again.kept in ("best", "worst"):
                self._waiting = deque(each for each in self._waiting if each.kept != again.kept)
            self._waiting.append(again)
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="episodes again", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def take_trouble(self) -> tuple[str, ...]:
        with self._changed:
            trouble, self._trouble = tuple(self._trouble), []
        return trouble

    def close(self) -> None:
        deadline = time.monotonic() + self._close_s
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            thread, process = self._thread, self._process
        if thread is None:
            return
        thread.join(max(deadline - time.monotonic(), 0.0))
        if thread.is_alive() and process is not None:
            process.kill()
            thread.join()

    def _serve(self) -> None:
        while (again := self._next()) is not None:
            error = self._play(again)
            with self._changed:
                self._playing = False
                if error is not None:
                    self._trouble.append(f"{again.episode.episode_id} ({again.kept}) could not be kept: {error}")

    def _next(self) -> Again | None:
        """The next episode; None, after which the thread has to end, where none comes."""
        with self._changed:
            if not self._waiting and not self._closing:
                self._changed.wait_for(lambda: self._waiting or self._closing, self._idle_s)
            if self._waiting:
                self._playing = True
                return self._waiting.popleft()
            # From here on an episode that comes has a thread and a process of its own.
            self._thread = None
            process, self._process = self._process, None
        if process is not None:
            _end(process)
        return None

    def _play(self, again: Again) -> str | None:
        """None, or why it could not be recorded."""
        try:
            if self._process is None:
                self._process = _start(self._recipe)
            streams: tuple[IO[bytes] | None, IO[bytes] | None] = (self._process.stdin, self._process.stdout)
            out, answers = streams
            assert out is not None and answers is not None
            pickle.dump(again, out)
            out.flush()
            return pickle.load(answers)
        except (OSError, EOFError) as error:
            process, self._process = self._process, None
            if process is None:
                return f"its process cannot be started: {error}"
            _end(process)
            return f"the process that played it again died (exit code {process.returncode})"


def _start(recipe: Recipe) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "orchestration.traces.again"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert process.stdin is not None
    pickle.dump(recipe, process.stdin)
    process.stdin.flush()
    return process


def _end(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.close()
    except OSError:  # it died with something in its pipe
        process.kill()
    process.wait()
    process.stdout.close()


# In the process.


class Player:
    """Plays episodes again in an environment, which is made when it is first needed and after one that raised."""

    def __init__(self, recipe: Recipe, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._recipe = recipe
        self._clock = clock
        self._writers = EpisodeWriters(recipe.folder, recipe.run, "")
        self._env: YendorEnv | None = None

    def record(self, again: Again) -> None:
        """Plays and records. Raises `TraceError` where the file cannot be written."""
        episode = again.episode
        start, steps = self._play(episode)
        trace = self._writers.open(start, again.agent, again.kept)
        try:
            for some in steps:
                trace.steps(some)
            trace.finish(again.finish)
            finisher = Finisher(aside=False)
            finisher.complete(trace.file)
        except BaseException:
            trace.file.drop()
            raise

    def _play(self, episode: Recalled) -> tuple[EpisodeStart, Iterator[EpisodeSteps]]:
        from envs import make

        recipe = self._recipe
        env = self._env = self._env or make(recipe.env_id, recipe.view, **recipe.env_options)
        observation, info = env.reset(seed=int(episode.seeds["seed"]))
        policies, rewards = episode.policy_versions, episode.reward_model_versions
        start = EpisodeStart(
            episode_id=episode.episode_id,
            env_id=episode.env_id,
            env_options=episode.env_options,
            action_names=episode.action_names,
            seeds=episode.seeds,
            policy_version=int(policies[0]) if len(policies) else 0,
            reward_model_version=_version(rewards[0]) if len(rewards) else None,
            observation=observation,
            screen=_join([_shot(env)]),
            at=self._clock(),
            caption=str(info.get("caption", "")),
            view=asdict(recipe.view),
        )
        return start, self._steps(env, episode)

    def _steps(self, env: YendorEnv, episode: Recalled) -> Iterator[EpisodeSteps]:
        versions = np.stack([episode.policy_versions, episode.reward_model_versions])
        changes = np.flatnonzero((versions[:, 1:] != versions[:, :-1]).any(axis=0)) + 1
        bounds = np.unique([0, len(episode.actions), *changes, *range(0, len(episode.actions), _AT_ONCE)])
        for low, high in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            yield self._some(env, episode, low, high)
            # Only an environment that did not raise goes on, and is used again.
            if self._env is None:
                env.close()
                return

    def _some(self, env: YendorEnv, episode: Recalled, low: int, high: int) -> EpisodeSteps:
        observations: list[dict[str, Any]] = []
        screens: list[Any] = [] if env.terminal() is None else [_shot(env)]
        captions: list[str] = []
        rewards = np.zeros(high - low, np.float32)
        grounded = np.zeros(high - low, np.bool_)
        at = np.zeros(high - low)
        for number, action in enumerate(episode.actions[low:high].tolist()):
            try:
                observation, reward, _, _, info = env.step(action)
            except Exception:  # as it did the first time: the trace ends with that step and the error of then
                self._env = None
                captions.append("")
                at[number:] = self._clock()
                break
            observations.append(observation)
            screens.append(_shot(env))
            captions.append(str(info.get("caption", "")))
            rewards[number], grounded[number] = reward, bool(info.get("grounded", True))
            at[number] = self._clock()
        done = len(captions)
        chosen = slice(low, low + done)
        return EpisodeSteps.alone(
            policy_version=int(episode.policy_versions[low]),
            reward_model_version=_version(episode.reward_model_versions[low]),
            action=episode.actions[chosen],
            log_prob=episode.log_probs[chosen],
            value=episode.values[chosen],
            reward=rewards[:done],
            captions=captions,
            caption_id=np.array([caption_id(caption) for caption in captions], np.int64),
            grounded=grounded[:done],
            at=at[:done],
            duration=np.zeros(done),
            observation={name: np.stack([each[name] for each in observations]) for name in (observations or [{}])[0]},
            screens=_join(screens),
        )


def _version(number: Any) -> int | None:
    return None if number < 0 else int(number)


def _shot(env: YendorEnv) -> Any:
    """What is seen now: the planes of a terminal, or text."""
    terminal = env.terminal()
    return env.screen() if terminal is None else terminal.planes()


def _join(shots: list[Any]) -> Screens:
    if not shots or isinstance(shots[0], str):
        return shots
    return Cells(np.stack(shots))


def main() -> None:
    """Reads a `Recipe` and then `Again` after `Again` from the standard input, pickled; answers each with None or why."""
    os.nice(19)
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    # What a game prints must not get among the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    questions = sys.stdin.buffer
    player = Player(pickle.load(questions))
    while True:
        try:
            again = pickle.load(questions)
        except EOFError:
            return
        error = None
        try:
            player.record(again)
        except TraceError as trouble:
            error = str(trouble)
        except Exception as trouble:  # told by the actor; the next episode may do
            error = first_line(trouble)
        pickle.dump(error, answers)
        answers.flush()


if __name__ == "__main__":
    # As a module of the package, so that what is unpickled is what it was made of.
    from orchestration.traces.again import main as run

    run()
