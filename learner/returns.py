"""Sums of a reward component over whole episodes, from trajectories that cut episodes into pieces."""

import numpy as np
from numpy.typing import NDArray

from agents.trajectory import Trajectory


def sums_by_id(ids: NDArray[np.int64], component: NDArray[np.float32]) -> dict[int, float]:
    """The sum of a reward component [T, B] by the id [T, B] of each step, for the ids where it is not always 0."""
    rewarded = component != 0.0
    unique, inverse = np.unique(ids[rewarded], return_inverse=True)
    sums = np.bincount(inverse, weights=component[rewarded], minlength=len(unique))
    return dict(zip(unique.tolist(), sums.tolist(), strict=True))


class EpisodeSums:
    """Running sums for each environment of each source of trajectories."""

    def __init__(self) -> None:
        self._open: dict[str, NDArray[np.float64]] = {}

    def add(self, source: str, trajectory: Trajectory, component: NDArray[np.float32]) -> dict[tuple[int, int], float]:
        """Adds a component [T, B] of the next trajectory of `source`.

        Returns the sums of the episodes that ended in it, by (t, b). An episode whose first steps were never added
        (a trajectory was lost) has the sum of those that were.
        """
        sums = self._open.setdefault(source, np.zeros(trajectory.batch))
        ended = trajectory.terminated | trajectory.truncated
        done: dict[tuple[int, int], float] = {}
        for b in np.flatnonzero(ended.any(axis=0)):
            begin = 0
            for t in np.flatnonzero(ended[:, b]):
                done[int(t), int(b)] = float(sums[b] + component[begin : t + 1, b].sum(dtype=np.float64))
                sums[b], begin = 0.0, t + 1
            sums[b] = component[begin:, b].sum(dtype=np.float64)
        going = ~ended.any(axis=0)
        sums[going] += component[:, going].sum(axis=0, dtype=np.float64)
        return done

    def state_dict(self) -> dict[str, list[float]]:
        return {source: [float(x) for x in sums] for source, sums in self._open.items()}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self._open = {source: np.array(sums) for source, sums in state.items()}
