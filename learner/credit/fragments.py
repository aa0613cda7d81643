"""Between the arrays [T, B] of rollouts and the turns [K] that credit is given to.

Turns of an environment lie end to end, those of environment 0 first: row b · T + t. Each part of an episode in an
environment is one episode of `Turns`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.trajectory import Trajectory
from learner.credit.assembly import Slot
from learner.credit.attribution import Floats, Past, Turns
from learner.credit.outcomes import EpisodeOutcome
from learner.fusion import FusedReward


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a trajectory came from, and how the episodes that ended in it did."""

    source: str
    """Name of the rollout: its trajectories follow one another."""
    first: int
    """Its environment that is column 0 here."""
    width: int
    """Columns."""
    ends: tuple[EpisodeOutcome, ...]
    """Of columns here."""

    def columns(self, begin: int, end: int) -> "Origin":
        """The environments `begin:end` alone."""
        inside = [
            EpisodeOutcome(e.t, e.b - begin, e.success, e.episode_return) for e in self.ends if begin <= e.b < end
        ]
        return Origin(self.source, self.first + begin, end - begin, tuple(inside))


def flat(x: NDArray[np.generic]) -> Floats:
    """[K] of [T, B]."""
    return x.T.reshape(-1).astype(np.float64)


def square(x: Floats, steps: int) -> NDArray[np.float32]:
    """[T, B] of [K]."""
    return np.ascontiguousarray(x.reshape(-1, steps).T.astype(np.float32))


def turns_of(
    batch: Trajectory, fused: FusedReward, progress: Floats, outcome: Floats, slots: Sequence[Slot], columns: slice
) -> Turns:
    """The turns of some columns of a batch, each of another slot.

    progress, outcome [k] of their turns (NaN where no episode ends or its R is unknown).
    """
    ended = (batch.terminated | batch.truncated)[:, columns].T  # [B, T]
    begins = np.zeros_like(ended)
    begins[:, 0] = True
    begins[:, 1:] = ended[:, :-1]
    offsets = np.append(np.flatnonzero(begins), ended.size).astype(np.int64)
    last, first = offsets[1:] - 1, offsets[:-1]
    column = first // batch.steps
    goes_on = (first % batch.steps == 0) & ~batch.start[0, columns][column]
    carried = [np.array([getattr(slot, name) for slot in slots]) for name in ("extrinsic", "progress")]
    return Turns(
        offsets=offsets,
        extrinsic=flat(fused.extrinsic[:, columns]),
        intrinsic=flat(fused.intrinsic[:, columns]),
        progress=progress,
        grounded=batch.grounded[:, columns].T.reshape(-1),
        ended=ended.reshape(-1)[last],
        terminated=batch.terminated[:, columns].T.reshape(-1)[last],
        outcome=outcome[last],
        past=Past(*(np.where(goes_on, x[column], 0.0) for x in carried)),
    )


def carry(turns: Turns, slots: Sequence[Slot]) -> None:
    """Notes in each slot what its running episode was paid so far."""
    extrinsic = turns.past.extrinsic + turns.sums(turns.extrinsic)
    progress = turns.past.progress + turns.sums(turns.progress)
    steps = len(turns.extrinsic) // len(slots)
    rows = np.flatnonzero((turns.last + 1) % steps == 0)  # the last part of each column
    for slot, row in zip(slots, rows.tolist(), strict=True):
        slot.extrinsic = 0.0 if turns.ended[row] else float(extrinsic[row])
        slot.progress = 0.0 if turns.ended[row] else float(progress[row])
