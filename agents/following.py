"""Tells an observer about the episodes of a rollout that it wants to follow.

While the environments step, screens are only copied; all else is taken from the arrays of the rollout call, and told once
at its end or where an episode ends. So an environment that nobody follows costs one look-up a step.
"""

import time
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agents.observer import CallArrays, Cells, EpisodeFinish, EpisodeObserver, EpisodeStart, EpisodeSteps, Screens
from agents.recall import EpisodeMemory
from envs.base import Observation, Terminal, YendorEnv
from envs.vector import VectorEnv, VectorStep


class CallBuffers(Protocol):
    """What one rollout call fills, as in `CallArrays`."""

    observation: dict[str, NDArray[Any]]
    action: NDArray[np.int64]
    log_prob: NDArray[np.float32]
    value: NDArray[np.float32]
    reward: NDArray[np.float32]
    caption_id: NDArray[np.int64]
    grounded: NDArray[np.bool_]


@dataclass(slots=True)
class _Followed:
    """An episode that is followed, and what the running call has brought of it since it was last told."""

    episode_id: str
    first: int = 0
    """The first step of the call that was not told."""
    captions: list[str] = field(default_factory=list[str])
    cells: NDArray[np.uint8] | None = None
    """Where it is drawn on a terminal, the planes of T + 1 screens: the newest that was told, and `seen` after it."""
    texts: list[str] = field(default_factory=list[str])
    seen: int = 0
    """Steps since `first` that were seen: all but one that raised."""
    final: Observation | None = None
    """The last observation of an episode that ended: the arrays of the call show the next one there."""

    def saw(self, env: YendorEnv, row: Observation, ended: bool) -> None:
        """`envs.vector.Watcher`."""
        terminal = env.terminal()
        if terminal is None or self.cells is None:
            self.texts.append(env.screen())
        else:
            planes = self.cells[self.seen + 1]
            planes[0] = terminal.chars
            planes[1] = terminal.colors
        self.seen += 1
        if ended:
            self.final = {name: array.copy() for name, array in row.items()}

    def screens(self) -> Screens:
        if self.cells is None:
            return tuple(self.texts)
        return Cells(self.cells[: self.seen + 1])

    def told(self, first: int) -> None:
        """What was collected is with the observer now; the next step is number `first` of a call."""
        self.first = first
        if self.cells is not None:
            self.cells[0] = self.cells[self.seen]
        self.captions, self.texts, self.seen, self.final = [], [], 0, None


class Follower:
    """Stands between one rollout and its observer."""

    def __init__(self, observer: EpisodeObserver, envs: VectorEnv, name: str, length: int) -> None:
        self._observer = observer
        self._envs = envs
        self._name = name
        self._length = length
        self._followed: dict[int, _Followed] = {}
        self._remembered = EpisodeMemory(envs.env_spec)
        self._room: dict[int, NDArray[np.uint8]] = {}
        self._view = asdict(envs.env_spec.view)
        self._call: CallArrays | None = None
        self._versions: tuple[int, int | None] = (0, None)

    def begin(self, policy_version: int, reward_model_version: int | None) -> None:
        """The first episodes have begun everywhere."""
        self._versions = (policy_version, reward_model_version)
        for index in range(self._envs.count):
            self._follow(index, None)

    def call(self, buffers: CallBuffers, policy_version: int, reward_model_version: int | None) -> None:
        """A call begins, which fills `buffers` under these versions."""
        self._versions = (policy_version, reward_model_version)
        self._call = CallArrays(
            policy_version=policy_version,
            reward_model_version=reward_model_version,
            observation=buffers.observation,
            action=buffers.action,
            log_prob=buffers.log_prob,
            value=buffers.value,
            reward=buffers.reward,
            caption_id=buffers.caption_id,
            grounded=buffers.grounded,
            at=np.zeros(self._length),
            duration=np.zeros(self._length),
        )
        self._remembered.add(
            policy_version,
            -1 if reward_model_version is None else reward_model_version,
            buffers.action,
            buffers.log_prob,
            buffers.value,
        )

    def stepped(self, t: int, step: VectorStep, env_s: float) -> None:
        """Step number `t` of the call was taken and is in its arrays; the environments took `env_s` seconds for it."""
        assert self._call is not None
        self._call.at[t], self._call.duration[t] = time.monotonic(), env_s
        for index, followed in self._followed.items():
            followed.captions.append(step.captions[index])
        ended: list[int] = []
        for end in step.episodes:
            finish = EpisodeFinish(end.episode_return, end.length, end.terminated, end.success, end.metrics, None)
            self._ended(t, end.env_index, end.episode_index, finish)
            ended.append(end.env_index)
        for failure in step.failures:
            finish = EpisodeFinish(0.0, 0, False, None, {}, failure.error)
            self._ended(t, failure.env_index, failure.episode_index, finish)
            ended.append(failure.env_index)
        for index in dict.fromkeys(ended):
            self._follow(index, t + 1)

    def called(self) -> None:
        """The call has ended, and its arrays are full."""
        for index, followed in self._followed.items():
            self._tell(index, followed, self._length)
            followed.first = 0

    def forget(self) -> None:
        """Other episodes run now (a checkpoint was loaded): none of them is followed from its beginning."""
        self._followed = {}
        self._envs.watched.clear()
        self._remembered = EpisodeMemory(self._envs.env_spec)

    def take_trouble(self) -> tuple[str, ...]:
        """Why episodes could not be recorded, a line each; since the last call."""
        return self._observer.take_trouble()

    def close(self) -> None:
        """Gives up the episodes that run."""
        self._observer.close()

    def _episode_id(self, index: int, episode_index: int) -> str:
        return f"{self._name}-env{index:03d}-ep{episode_index:06d}"

    def _follow(self, index: int, t: int | None) -> None:
        """An episode has begun, whose first step is number `t` of the running call; None: the first of the next one."""
        episode_id = self._episode_id(index, self._envs.episode_index(index))
        self._remembered.begin(index, episode_id, self._envs.seeds(index), t)
        if not self._observer.wants(episode_id):
            return
        spec, env = self._envs.env_spec, self._envs.env(index)
        terminal = env.terminal()
        cells = None if terminal is None else self._cells(index, terminal)
        start = EpisodeStart(
            episode_id=episode_id,
            env_id=spec.id,
            env_options=spec.options,
            action_names=spec.action_names,
            seeds=self._envs.seeds(index),
            policy_version=self._versions[0],
            reward_model_version=self._versions[1],
            observation={name: array[index] for name, array in self._envs.observation.items()},
            screen=[env.screen()] if cells is None else Cells(cells[:1]),
            at=time.monotonic(),
            caption=self._envs.opening(index),
            view=self._view,
        )
        followed = self._followed[index] = _Followed(episode_id, first=t or 0, cells=cells)
        self._envs.watched[index] = followed.saw
        self._observer.start(index, start)

    def _cells(self, index: int, terminal: Terminal) -> NDArray[np.uint8]:
        """Room for the screens of a call, which begins with the one that is seen now. The same for all episodes of a place:
        fresh memory costs more than what is written into it."""
        if index not in self._room:
            self._room[index] = np.empty((self._length + 1, 2, *terminal.chars.shape), np.uint8)
        cells = self._room[index]
        cells[0, 0], cells[0, 1] = terminal.chars, terminal.colors
        return cells

    def _tell(self, index: int, followed: _Followed, end: int) -> None:
        """Tells of the steps of the call up to number `end`."""
        first, call = followed.first, self._call
        assert call is not None
        if first == end:
            return
        screens = followed.screens()
        steps = EpisodeSteps(call, index, first, followed.captions, followed.seen, screens, followed.final)
        self._observer.steps(index, steps)
        followed.told(end)

    def _ended(self, t: int, index: int, episode_index: int, finish: EpisodeFinish) -> None:
        episode_id = self._episode_id(index, episode_index)
        followed = self._followed.get(index)
        if followed is not None and followed.episode_id == episode_id:
            del self._followed[index], self._envs.watched[index]
            self._tell(index, followed, t + 1)
            self._observer.finish(index, finish, lambda: self._remembered.recall(index, episode_id, t))
        elif self._observer.wants_back(episode_id, finish):
            episode = self._remembered.recall(index, episode_id, t)
            if episode is not None:
                self._observer.recall(index, episode, finish)
