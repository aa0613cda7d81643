"""The scorer of captions beside a learner: how it is built, and what live view and traces are told of it."""

import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from envs.captions import EMPTY_CAPTION_ID
from orchestration.config import Config
from orchestration.configuration import is_traced, learns_intrinsic
from orchestration.seeds import derive_seed
from orchestration.summary import CaptionScore
from reward_server.scorer import CAPACITY, CaptionScorer, build_scorer

_SHOWN = 5
_REFRESH_S = 5.0

Scores = tuple[CaptionScore, ...]


def scorer_of(config: Config) -> CaptionScorer | None:
    """What gives captions their intrinsic reward; None where nothing does."""
    if not learns_intrinsic(config):
        return None
    settings = config.model_settings(derive_seed(config.run.seed, "reward model"))
    return build_scorer(config.reward.model, settings)


class ToldScores:
    """What traces are told of r_int: of each caption once under each version of the reward model, and again after very many."""

    def __init__(self, config: Config, scorer: CaptionScorer | None) -> None:
        self._scorer = scorer if is_traced(config) else None
        self._told: set[int] = set()
        self._version = 0

    def new(self, caption_id: NDArray[np.int64], r_int: NDArray[np.float32]) -> Mapping[int, float]:
        """r_int by id of those captions (of any shape, as `r_int`) that were not told before under this version. Nothing of one
        that is not known: what it earns is not what the model says of it."""
        if self._scorer is None or not self._scorer.version:
            return {}
        if self._scorer.version != self._version or len(self._told) > CAPACITY:
            self._told, self._version = {EMPTY_CAPTION_ID}, self._scorer.version
        ids, first = np.unique(caption_id, return_index=True)
        known = self._scorer.knows(ids)
        found = zip(ids[known].tolist(), r_int.ravel()[first[known]].tolist(), strict=True)
        new = {caption: value for caption, value in found if caption not in self._told}
        self._told.update(new)
        return new


class CaptionViews:
    """Asks the scorer every few seconds: it takes a while of the learner's time."""

    def __init__(self, scorer: CaptionScorer | None) -> None:
        self._scorer = scorer
        self.liked: Scores = ()
        self.disliked: Scores = ()
        self._refreshed = -_REFRESH_S

    def refresh(self) -> None:
        """Looks again, if it is due."""
        if self._scorer is None or time.perf_counter() - self._refreshed < _REFRESH_S:
            return
        self._refreshed = time.perf_counter()
        self.liked, self.disliked = favourites(self._scorer)


def favourites(scorer: CaptionScorer) -> tuple[Scores, Scores]:
    """The captions that the reward model likes most and least, the frequent ones first among equals."""
    top = scorer.top(_SHOWN)
    liked, disliked = (
        tuple(CaptionScore(caption.text, caption.probability, caption.count) for caption in captions)
        for captions in (top.liked, top.disliked)
    )
    return liked, disliked
