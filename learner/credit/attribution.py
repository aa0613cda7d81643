"""What a way of giving credit is: the components of the reward of K turns in, what each turn is paid out.

Pure functions of arrays. Turns of E episodes lie end to end in the order in which they happened. An episode may be a
part of one, as recurrent agents bring them: then `Past` says what came in the parts before, and `ended` whether this one
holds the last turn. Letters of shapes: K turns, E episodes.

To add one: a file in `methods/` that subclasses `CreditMethod` and defines `METHOD`, one line in `registry.py`, and a test
against a closed form.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CreditRule:
    """The numbers that a method is given."""

    w_prog: float = 1.0
    """α, weight of progress (`reward.w_prog`)."""
    w_ground: float = 0.0
    """β, weight of grounding (`reward.w_ground`)."""
    discount: float = 1.0
    """γ of the return that the policy maximises."""
    conserve: bool = False
    """Pay R − Σ ĉ on the last turn."""


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """What earlier parts of the episodes brought; all [E], 0 where an episode begins here."""

    extrinsic: Floats
    progress: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Turns:
    """K turns of E episodes, whole or in part."""

    offsets: NDArray[np.int64]
    """[E + 1]: where each episode begins, and K. Every episode has a turn."""
    extrinsic: Floats
    """[K], w_ext · clip(s · r): as it adds to the reward."""
    intrinsic: Floats
    """[K], weighted."""
    progress: Floats
    """[K], ĉ_t; 0 where there is no estimator."""
    grounded: NDArray[np.bool_]
    """[K], g_t: the action could be executed."""
    ended: NDArray[np.bool_]
    """[E]: the last turn here is the last of the episode, whether that terminated or was cut."""
    terminated: NDArray[np.bool_]
    """[E]: it ended by the rules of its world, so nothing comes after."""
    outcome: Floats
    """[E], R in [0, 1]; NaN where it is not known (yet)."""
    past: Past
    group: NDArray[np.int64] | None = None
    """[E]: episodes of one group began in the same task and seed."""
    potential: Floats | None = None
    """[K], Φ of the state in which each turn begins, by any scorer. None: the progress so far."""
    potential_after: Floats | None = None
    """[E], Φ of the state after the last turn here; wanted with `potential`, and not read where `terminated`."""

    def __post_init__(self) -> None:
        turns, episodes = len(self.extrinsic), len(self.offsets) - 1
        if self.offsets[0] != 0 or self.offsets[-1] != turns or bool((np.diff(self.offsets) < 1).any()):
            raise ValueError(f"offsets must rise from 0 to the number of turns ({turns}); they are {self.offsets}")
        for name in ("intrinsic", "progress", "grounded", "potential"):
            _same_length(name, getattr(self, name), turns)
        for name in ("ended", "terminated", "outcome", "group", "potential_after"):
            _same_length(name, getattr(self, name), episodes)
        _same_length("past.extrinsic", self.past.extrinsic, episodes)
        _same_length("past.progress", self.past.progress, episodes)
        if (self.potential is None) != (self.potential_after is None):
            raise ValueError("potential and potential_after come together")
        check_outcomes(self.outcome)

    @property
    def episodes(self) -> int:
        return len(self.ended)

    @property
    def episode(self) -> NDArray[np.int64]:
        """[K]: row of each turn's episode."""
        return np.repeat(np.arange(self.episodes), np.diff(self.offsets))

    @property
    def last(self) -> NDArray[np.int64]:
        """[E]: the last turn here of each episode."""
        return self.offsets[1:] - 1

    def sums(self, x: Floats) -> Floats:
        """[E]: sums of x [K] over the turns here."""
        return np.add.reduceat(x, self.offsets[:-1]) if self.episodes else np.zeros(0)


@dataclass(frozen=True, slots=True, eq=False)
class Attribution:
    """What each turn is paid, by component; all [K]. The reward (or advantage) of a turn is their sum."""

    extrinsic: Floats
    intrinsic: Floats
    progress: Floats
    grounding: Floats

    @property
    def total(self) -> Floats:
        return self.extrinsic + self.intrinsic + self.progress + self.grounding


class CreditMethod(ABC):
    """One way of giving credit."""

    needs_progress: ClassVar[bool] = False
    """Whether `Turns.progress` is read, so that an estimator is wanted."""
    grounds: ClassVar[bool] = False
    """Whether `CreditRule.w_ground` is paid."""
    conserves: ClassVar[bool] = False
    """Whether `CreditRule.conserve` is read."""
    rearranges: ClassVar[bool] = True
    """Whether it pays anything but what the environment paid where both weights are 0."""
    whole_episodes: ClassVar[bool] = False
    """Whether it wants finished episodes; such a method is for language models alone."""
    is_advantage: ClassVar[bool] = False
    """Whether what it gives is an advantage: no critic, no return over later turns. No run can choose it by its name."""

    def __init__(self, rule: CreditRule) -> None:
        self.rule = rule

    @abstractmethod
    def attribute(self, turns: Turns) -> Attribution:
        """What each turn is paid. Docstrings of methods say which sums are conserved."""


def whole(
    *,
    lengths: NDArray[np.int64] | list[int],
    extrinsic: Floats,
    intrinsic: Floats | None = None,
    progress: Floats | None = None,
    grounded: NDArray[np.bool_] | None = None,
    terminated: NDArray[np.bool_] | None = None,
    outcome: Floats | None = None,
    group: NDArray[np.int64] | None = None,
) -> Turns:
    """Finished episodes of `lengths` [E] turns; what is not given is 0 (grounded, terminated: yes; outcome: unknown)."""
    turns, episodes = len(extrinsic), len(lengths)
    return Turns(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        extrinsic=extrinsic,
        intrinsic=np.zeros(turns) if intrinsic is None else intrinsic,
        progress=np.zeros(turns) if progress is None else progress,
        grounded=np.ones(turns, np.bool_) if grounded is None else grounded,
        ended=np.ones(episodes, np.bool_),
        terminated=np.ones(episodes, np.bool_) if terminated is None else terminated,
        outcome=np.full(episodes, np.nan) if outcome is None else outcome,
        past=Past(np.zeros(episodes), np.zeros(episodes)),
        group=group,
    )


class OutcomeError(ValueError):
    """An outcome that the estimator cannot learn from."""


def check_outcomes(outcome: Floats) -> None:
    """Raises `OutcomeError` where an R that is known lies outside [0, 1]."""
    wrong = outcome[(outcome < 0.0) | (outcome > 1.0)]
    if len(wrong):
        raise OutcomeError(f"an outcome R must be in [0, 1], and one is {wrong[0]:g}; scale it before it is attributed")


def _same_length(name: str, x: NDArray[np.generic] | None, length: int) -> None:
    if x is not None and x.shape != (length,):
        raise ValueError(f"{name} of Turns has the shape {x.shape}, not ({length},)")
