"""Which episodes of one actor are recorded, whoever plays them: a network or a language model."""

import hashlib
import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

_MAX_FAILED = 20
"""So many episodes of one actor are kept because the environment raised."""


def is_sampled(seed: int, episode_id: str, rate: float) -> bool:
    """Whether an episode is one of the share `rate`: decided by a hash, so the same in every run with this seed."""
    digest = hashlib.blake2b(f"{seed}:{episode_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < rate * 2**64


class Selection:
    """A share `rate` of the episodes, those whose id matches a pattern of `asked`, the extremes so far, and those that
    failed."""

    def __init__(self, seed: int, rate: float, asked: Sequence[str]) -> None:
        self.rate = rate
        self._seed = seed
        self._asked = tuple(asked)
        self.best = -math.inf
        """The highest return so far."""
        self._worst = math.inf
        self._failed = 0

    def chosen(self, episode_id: str) -> str | None:
        """Why an episode is recorded whatever comes of it: `asked` or `rate`; None where it is not."""
        if any(fnmatchcase(episode_id, pattern) for pattern in self._asked):
            return "asked"
        return "rate" if is_sampled(self._seed, episode_id, self.rate) else None

    def ended(self, value: float) -> str | None:
        """Counts an episode with the return `value`; says whether it is the `best` or the `worst` so far."""
        best, worst = value > self.best, value < self._worst
        self.best, self._worst = max(self.best, value), min(self._worst, value)
        return "best" if best else "worst" if worst else None

    def failed(self) -> str | None:
        """Counts an episode whose environment raised: `failed`, or None where enough of them are kept."""
        self._failed += 1
        return "failed" if self._failed <= _MAX_FAILED else None
