"""What the judge said of captions, beside a model that can speak for all of them."""

import numpy as np
from numpy.typing import NDArray


class KnownLabels:
    """p(y = 1) by caption id. Two arrays, 12 bytes a label: a dictionary takes thirteen times as much, and a learner that
    builds another for each version of the model is left with a heap of gaps."""

    def __init__(self) -> None:
        self._ids = np.zeros(0, dtype=np.int64)
        """In ascending order."""
        self._values = np.zeros(0, dtype=np.float32)
        self._new: dict[int, float] = {}
        """Not in the arrays yet; of two of one caption the later holds."""

    def __len__(self) -> int:
        self._settle()
        return len(self._ids)

    def add(self, caption_id: int, probability: float) -> None:
        self._new[caption_id] = probability

    def lookup(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Of captions [N]: float32 [N], NaN where nothing is known."""
        self._settle()
        found = np.full(len(ids), np.nan, dtype=np.float32)
        if len(self._ids):
            at = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
            there = self._ids[at] == ids
            found[there] = self._values[at[there]]
        return found

    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids [N], ascending, and what is known of them [N]."""
        self._settle()
        return self._ids, self._values

    def replace(self, ids: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """Nothing else is known from now on. Copies; ids [N] in any order, each once."""
        order = np.argsort(ids)
        self._ids, self._values = ids[order], values[order].astype(np.float32)
        self._new = {}

    def _settle(self) -> None:
        if self._new:
            new = np.fromiter(self._new, dtype=np.int64, count=len(self._new))
            values = np.fromiter(self._new.values(), dtype=np.float32, count=len(self._new))
            kept = ~np.isin(self._ids, new)
            self.replace(np.concatenate((self._ids[kept], new)), np.concatenate((self._values[kept], values)))
