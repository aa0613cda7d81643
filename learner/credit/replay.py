"""What the progress estimator learns from: whole episodes with their outcomes, the recent ones, both balanced."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor


class Episode(Protocol):
    """One finished episode, in whatever form the estimator reads it."""

    @property
    def turns(self) -> int:
        """That are kept."""
        ...

    @property
    def weight(self) -> float:
        """Turns of the episode that each kept one stands for."""
        ...

    @property
    def outcome(self) -> float:
        """R in [0, 1]."""
        ...

    @property
    def version(self) -> int:
        """Of the weights that its last turn was played by, or read."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        ...


E = TypeVar("E", bound=Episode)


@dataclass(frozen=True, slots=True, eq=False)
class EpisodeFeatures:
    """One finished episode, as features of its turns."""

    features: Tensor
    """[L, F] float16, of the turns that are kept."""
    weight: float
    """Turns of the episode that each kept one stands for."""
    outcome: float
    """R in [0, 1]."""
    version: int
    """Of the weights that read its last turn."""

    @property
    def turns(self) -> int:
        """L."""
        return len(self.features)

    def state(self) -> dict[str, Any]:
        return {
            "features": self.features.clone(),
            "weight": self.weight,
            "outcome": self.outcome,
            "version": self.version,
        }

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> "EpisodeFeatures":
        """The inverse of `state`."""
        return EpisodeFeatures(**state)


@dataclass(frozen=True, slots=True, eq=False)
class FeatureBatch:
    """Episodes end to end."""

    features: Tensor
    """[K, F]"""
    weight: Tensor
    """[K]"""
    episode: Tensor
    """[K] int64 rows."""
    outcome: Tensor
    """[E]"""

    @property
    def episodes(self) -> int:
        return len(self.outcome)


def join(episodes: list[EpisodeFeatures], device: torch.device) -> FeatureBatch:
    """The batch of these episodes; a feature is float32 in it."""
    lengths = torch.tensor([each.turns for each in episodes])
    rows = torch.arange(len(episodes)).repeat_interleave(lengths)
    return FeatureBatch(
        features=torch.cat([each.features for each in episodes]).to(device, torch.float32),
        weight=torch.tensor([each.weight for each in episodes], dtype=torch.float32)[rows].to(device),
        episode=rows.to(device),
        outcome=torch.tensor([each.outcome for each in episodes], dtype=torch.float32).to(device),
    )


class EpisodeReplay(Generic[E]):
    """Recent episodes in two halves, R < ½ and R ≥ ½, each bounded to half of `turns` (one episode always stays).

    Episodes grow stale as the policy learns: features are those of the weights that read them, tokens what it did then. So one
    more than `max_age` versions old is forgotten, but for the newest `min_episodes` of its half: without either outcome there is
    nothing to learn from.
    """

    def __init__(self, turns: int, *, min_episodes: int, max_age: int) -> None:
        self._bound = turns // 2
        self._min = min_episodes
        self._max_age = max_age
        self._halves: tuple[deque[E], deque[E]] = (deque(), deque())
        self._turns = [0, 0]
        """Kept in each half."""

    def add(self, episode: E) -> None:
        mine = int(episode.outcome >= 0.5)
        self._halves[mine].append(episode)
        self._turns[mine] += episode.turns
        for at, half in enumerate(self._halves):
            while len(half) > 1 and (self._turns[at] > self._bound or self._is_stale(half, episode.version)):
                self._turns[at] -= half.popleft().turns

    def _is_stale(self, half: deque[E], version: int) -> bool:
        return len(half) > self._min and version - half[0].version > self._max_age

    @property
    def counts(self) -> tuple[int, int]:
        """Episodes of R < ½ and of R ≥ ½."""
        return len(self._halves[0]), len(self._halves[1])

    @property
    def ready(self) -> bool:
        """Whether there are enough of both."""
        return min(self.counts) >= self._min

    @property
    def episodes(self) -> list[E]:
        return [*self._halves[0], *self._halves[1]]

    def mean_turns(self) -> float:
        """Mean number of turns of an episode, the halves counted alike; those left out of long ones included."""
        means = [sum(each.turns * each.weight for each in half) / len(half) for half in self._halves if half]
        return sum(means) / len(means)

    def sample(self, episodes: int, generator: torch.Generator) -> list[E]:
        """So many episodes, drawn with replacement, half of them from each half that has any."""
        halves = [half for half in self._halves if half]
        drawn: list[E] = []
        for at, half in enumerate(halves):
            count = episodes * (at + 1) // len(halves) - episodes * at // len(halves)
            index = torch.randint(len(half), (count,), generator=generator).tolist()
            drawn += [half[i] for i in index]
        return drawn

    def state_dict(self) -> list[list[dict[str, Any]]]:
        return [[each.state() for each in half] for half in self._halves]

    def load_state_dict(self, state: list[list[dict[str, Any]]], from_state: Callable[[Mapping[str, Any]], E]) -> None:
        for half, saved in zip(self._halves, state, strict=True):
            half.clear()
            half.extend(from_state(each) for each in saved)
        self._turns = [sum(each.turns for each in half) for half in self._halves]
