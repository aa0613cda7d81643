"""What a rollout remembers of episodes that nobody followed: their actions, which with the seeds are the episode."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.observer import Recalled
from envs.base import EnvSpec

_LIMIT_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class _Chunk:
    """The arrays [T, B] of one rollout call, shared with its trajectory."""

    first: int
    """Number of its first step, counted since the rollout began."""
    version: int
    reward_model_version: int
    action: NDArray[np.int64]
    log_prob: NDArray[np.float32]
    value: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        return self.action.nbytes + self.log_prob.nbytes + self.value.nbytes


@dataclass(frozen=True, slots=True)
class _Running:
    episode_id: str
    seeds: Mapping[str, str]
    first: int
    """Number of its first step."""


class EpisodeMemory:
    """Keeps the calls that running episodes began in, up to a bound; episodes longer than that cannot be recalled."""

    def __init__(self, spec: EnvSpec, limit_bytes: int = _LIMIT_BYTES) -> None:
        self._spec = spec
        self._limit = limit_bytes
        self._chunks: deque[_Chunk] = deque()
        self._bytes = 0
        self._running: dict[int, _Running] = {}
        self._calls = 0

    def add(
        self,
        version: int,
        reward_model_version: int,
        action: NDArray[np.int64],
        log_prob: NDArray[np.float32],
        value: NDArray[np.float32],
    ) -> None:
        """A call begins, which fills these arrays [T, B] under these versions of policy and reward model (-1: none)."""
        chunk = _Chunk(self._calls, version, reward_model_version, action, log_prob, value)
        self._calls += len(action)
        self._chunks.append(chunk)
        self._bytes += chunk.nbytes
        oldest = min((each.first for each in self._running.values()), default=chunk.first)
        while len(self._chunks) > 1 and (self._bytes > self._limit or self._chunks[1].first <= oldest):
            self._bytes -= self._chunks.popleft().nbytes

    def begin(self, index: int, episode_id: str, seeds: Mapping[str, str], step: int | None) -> None:
        """An episode begins in environment `index` with the call's step number `step`; None: with the next call's first."""
        first = self._calls if step is None else self._chunks[-1].first + step
        self._running[index] = _Running(episode_id, seeds, first)

    def recall(self, index: int, episode_id: str, step: int) -> Recalled | None:
        """The episode that ended with step number `step` of the call; None where it is not remembered whole."""
        running = self._running.get(index)
        if running is None or running.episode_id != episode_id or self._chunks[0].first > running.first:
            return None
        end = self._chunks[-1].first + step + 1
        parts: list[tuple[_Chunk, int, int]] = []
        for chunk in reversed(self._chunks):  # a short episode lies in the newest of what may be many
            parts.append((chunk, max(running.first - chunk.first, 0), min(end - chunk.first, len(chunk.action))))
            if chunk.first <= running.first:
                break
        parts.reverse()
        lengths = [high - low for _, low, high in parts]
        return Recalled(
            episode_id=episode_id,
            env_id=self._spec.id,
            env_options=self._spec.options,
            action_names=self._spec.action_names,
            seeds=running.seeds,
            actions=np.concatenate([chunk.action[low:high, index] for chunk, low, high in parts]),
            log_probs=np.concatenate([chunk.log_prob[low:high, index] for chunk, low, high in parts]),
            values=np.concatenate([chunk.value[low:high, index] for chunk, low, high in parts]),
            policy_versions=np.repeat([chunk.version for chunk, _, _ in parts], lengths),
            reward_model_versions=np.repeat([chunk.reward_model_version for chunk, _, _ in parts], lengths),
        )
