"""Which pairs of captions the judge is asked to compare.

Captions that were met go into a reservoir of bounded size, in which every one of them is as likely to be (Vitter 1985,
algorithm R). Pairs are drawn from it: `uniform`, or `informative`. No pair is drawn twice; which of them the store has already
is the ledger's matter.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.captions import EMPTY_CAPTION_ID
from reward_server.settings import AnnotatorSettings
from reward_server.types import Pair, pair_id

CANDIDATES = 16
"""Random pairs that each informative one is chosen from."""

_TRIES = 64
"""At least half of all pairs are new wherever some are drawn at random: so many times none is found once in 2^128."""

Scores = Callable[[Sequence[str]], NDArray[np.floating]]
"""Scores of captions as log-odds against one another, [N]: of the newest ranking."""


class PairSource:
    """Draws pairs of the captions that were met. Deterministic for a seed, the captions' order and the scores.

    `informative` takes the pairs whose answers tell most about scores that are uncertain still. With the present scores s the
    probability of the first being better is p = 1 / (1 + exp(s2 - s1)), and an answer adds the Fisher information p (1 - p)
    to what is known of either score. With I the sum of it over a caption's pairs so far and a unit normal prior, the variance
    of a score is about 1 / (1 + I) (Laplace, diagonal), and the gain of a pair p (1 - p) (v1 + v2): the design that Guo et
    al. 2018 (IJCAI, "Experimental design under the Bradley-Terry model") call D-optimal, to first order and diagonal.
    """

    def __init__(self, settings: AnnotatorSettings, *, seed: int) -> None:
        self._informative = settings.pair_choice == "informative"
        self._size = settings.pair_reservoir
        self._per_caption = settings.pairs_per_caption
        self._random = np.random.default_rng(seed)
        self._ids: list[int] = []
        self._texts: list[str] = []
        self._met: set[int] = set()
        self._asked: set[int] = set()
        self._information: dict[int, float] = {}

    @property
    def due(self) -> int:
        """How many more pairs the captions met so far call for."""
        return int(self._per_caption * len(self._met)) - len(self._asked)

    def observe(self, captions: Iterable[tuple[int, str]]) -> None:
        """Takes captions (id, text); those met before are passed over."""
        for caption_id, text in captions:
            if caption_id == EMPTY_CAPTION_ID or caption_id in self._met:
                continue
            self._met.add(caption_id)
            if len(self._ids) < self._size:
                self._ids.append(caption_id)
                self._texts.append(text)
            elif (row := int(self._random.integers(len(self._met)))) < self._size:
                self._ids[row], self._texts[row] = caption_id, text

    def draw(self, count: int, scores: Scores | None = None) -> list[tuple[int, Pair]]:
        """Up to `count` new pairs (id, pair) of what is due; `scores` of the newest ranking, None before there is one."""
        count = min(count, self.due)
        if count <= 0 or len(self._ids) < 2:
            return []
        drawn = self._candidates(count * (CANDIDATES if self._informative else 1))
        if self._informative:
            drawn = self._best(drawn, count, scores)
        found: list[tuple[int, Pair]] = []
        for a, b in drawn.tolist():
            pair = Pair.of((self._ids[a], self._texts[a]), (self._ids[b], self._texts[b]))
            self._asked.add(pair.id)
            found.append((pair.id, pair))
        return found

    def _candidates(self, count: int) -> NDArray[np.int64]:
        """Up to `count` different pairs of rows that were not asked about: [M, 2]. All that are left where few are."""
        n = len(self._ids)
        few = n * (n - 1) // 2 <= 4 * count + 2 * len(self._asked)
        for _ in range(1 if few else _TRIES):
            if few:
                rows = np.stack(np.triu_indices(n, 1), axis=1)
            else:
                a = self._random.integers(n, size=2 * count)
                b = (a + self._random.integers(1, n, size=2 * count)) % n
                rows = np.unique(np.sort(np.stack((a, b), axis=1), axis=1), axis=0)
            asked = [pair_id(self._ids[a], self._ids[b]) in self._asked for a, b in rows.tolist()]
            rows = rows[~np.array(asked, dtype=np.bool_)]
            if len(rows):
                return self._random.permutation(rows)[:count]
        return np.zeros((0, 2), dtype=np.int64)

    def _best(self, rows: NDArray[np.int64], count: int, scores: Scores | None) -> NDArray[np.int64]:
        """The `count` rows that promise most, one after the other: each changes what the next promise."""
        if not len(rows):
            return rows
        unique, inverse = np.unique(rows, return_inverse=True)
        sides = inverse.reshape(rows.shape)
        s = (
            np.zeros(len(unique))
            if scores is None
            else np.asarray(scores([self._texts[i] for i in unique]), np.float64)
        )
        known = np.array([self._information.get(self._ids[i], 0.0) for i in unique])
        p = 1.0 / (1.0 + np.exp(np.clip(s[sides[:, 1]] - s[sides[:, 0]], -50.0, 50.0)))
        information = p * (1.0 - p)
        chosen: list[int] = []
        open_ = np.ones(len(rows), dtype=np.bool_)
        for _ in range(min(count, len(rows))):
            variance = 1.0 / (1.0 + known)
            gain = np.where(open_, information * variance[sides].sum(axis=1), -1.0)
            best = int(gain.argmax())
            open_[best] = False
            known[sides[best]] += information[best]
            chosen.append(best)
        for row, value in zip(unique.tolist(), known.tolist(), strict=True):
            self._information[self._ids[row]] = value
        return rows[np.array(chosen)]

    def state_dict(self) -> dict[str, Any]:
        return {
            "random": self._random.bit_generator.state,
            "ids": list(self._ids),
            "texts": list(self._texts),
            "met": sorted(self._met),
            "asked": sorted(self._asked),
            "information": dict(self._information),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._random.bit_generator.state = state["random"]
        self._ids, self._texts = list(state["ids"]), list(state["texts"])
        self._met, self._asked = set(state["met"]), set(state["asked"])
        self._information = dict(state["information"])
