"""Whole episodes out of the parts that rollouts bring, for each environment of each rollout.

Rollouts bring T steps of B environments at a time, so an episode comes in parts, and its outcome with the last. A *slot* is
one environment of one rollout (a source). It keeps what its running episode has brought:

- at most `max_turns` features. Where there would be more, every second is left out (the odd or the even ones, drawn), as
  often as it takes, and those that stay count double: the sum over an episode stays right on average;
- nothing of an episode whose beginning was not seen, or of which a part is missing (too old to learn from, or lost);
- nothing for a source that was not heard of while each other was `_SILENCE` times: its actor was replaced.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.credit.replay import EpisodeFeatures

_SILENCE = 64


@dataclass(slots=True)
class Slot:
    """What is known of the running episode of one environment."""

    known: bool = False
    """All of it was seen so far."""
    extrinsic: float = 0.0
    """What it was paid so far, as it adds to the reward."""
    progress: float = 0.0
    """Σ ĉ so far."""
    parts: list[Tensor] = field(default_factory=list[Tensor])
    """Features [l, F] float16 of the turns that are kept."""
    turns: int = 0
    """All turns so far."""
    stride: int = 1
    phase: int = 0
    """Kept are turns number phase, phase + stride, ..."""

    @property
    def kept(self) -> int:
        return sum(len(part) for part in self.parts)


class Slots:
    """All slots, and the episodes that come out of them."""

    def __init__(self, max_turns: int, *, seed: int) -> None:
        self._max_turns = max_turns
        self._generator = torch.Generator().manual_seed(seed)
        self._slots: dict[str, dict[int, Slot]] = {}
        self._heard: dict[str, int] = {}
        self._calls = 0
        self.lost = 0
        """Episodes of which a part is missing."""

    def of(self, source: str, first: int, count: int) -> list[Slot]:
        """The slots of environments `first` to `first + count − 1` of a source."""
        slots = self._slots.setdefault(source, {})
        return [slots.setdefault(b, Slot()) for b in range(first, first + count)]

    def hear(self, source: str) -> None:
        """Notes that a source lives, and forgets those that do not."""
        self._calls += 1
        self._heard[source] = self._calls
        silent = [name for name, at in self._heard.items() if self._calls - at > _SILENCE * len(self._heard)]
        for name in silent:
            self._slots.pop(name, None)
            del self._heard[name]

    def miss(self, source: str, first: int, count: int) -> None:
        """A part of these environments' episodes was dropped: what they play now will not be known whole."""
        slots = self._slots.get(source, {})
        for b in range(first, first + count):
            if b in slots:
                self.lost += slots[b].known
                slots[b] = Slot()

    def clear(self) -> None:
        """A part of every running episode was lost."""
        self.lost += sum(slot.known for slots in self._slots.values() for slot in slots.values())
        self._slots.clear()

    def add(
        self,
        slot: Slot,
        features: Tensor | None,
        start: NDArray[np.bool_],
        ended: NDArray[np.bool_],
        outcomes: Sequence[float],
        version: int,
    ) -> list[EpisodeFeatures]:
        """Adds a slot's next T steps; the episodes that ended in it whole and with a known outcome.

        features [T, F] float16, None where nobody learns from them; start, ended [T]; outcomes: R at each end, NaN where
        it is not known. `slot.extrinsic` and `.progress` are the caller's.
        """
        done: list[EpisodeFeatures] = []
        begin = 0
        ends = np.flatnonzero(ended).tolist()
        for end, outcome in zip([*ends, len(ended) - 1], [*outcomes, np.nan], strict=True):
            if begin > end:  # the last step here was an end
                break
            if start[begin]:
                _begin(slot)
            if features is not None and slot.known:
                self._keep(slot, features[begin : end + 1])
            if ended[end]:
                if features is not None and slot.known and np.isfinite(outcome):
                    done.append(EpisodeFeatures(torch.cat(slot.parts), float(slot.stride), float(outcome), version))
                _clear(slot, known=False)
            begin = end + 1
        return done

    def _keep(self, slot: Slot, features: Tensor) -> None:
        first = (slot.phase - slot.turns) % slot.stride
        part = features[first :: slot.stride]
        slot.turns += len(features)
        if len(part):
            slot.parts.append(part.clone())
        while slot.kept > self._max_turns:
            odd = int(torch.randint(2, (), generator=self._generator))
            slot.parts = [torch.cat(slot.parts)[odd::2].clone()]
            slot.phase += odd * slot.stride
            slot.stride *= 2

    def state_dict(self) -> dict[str, Any]:
        return {
            "slots": {source: {b: _state(slot) for b, slot in slots.items()} for source, slots in self._slots.items()},
            "heard": dict(self._heard),
            "calls": self._calls,
            "lost": self.lost,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._slots = {
            source: {b: _slot(saved) for b, saved in slots.items()} for source, slots in state["slots"].items()
        }
        self._heard = dict(state["heard"])
        self._calls, self.lost = state["calls"], state["lost"]
        self._generator.set_state(state["generator"])


def _begin(slot: Slot) -> None:
    _clear(slot, known=True)


def _clear(slot: Slot, *, known: bool) -> None:
    slot.known = known
    slot.parts = []
    slot.turns, slot.stride, slot.phase = 0, 1, 0


def _state(slot: Slot) -> dict[str, Any]:
    return {
        "known": slot.known,
        "extrinsic": slot.extrinsic,
        "progress": slot.progress,
        "parts": [part.clone() for part in slot.parts],
        "turns": slot.turns,
        "stride": slot.stride,
        "phase": slot.phase,
    }


def _slot(state: Mapping[str, Any]) -> Slot:
    slot = Slot(**state)
    slot.parts = list(slot.parts)
    return slot
