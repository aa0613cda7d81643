"""The intrinsic reward of captions on the learner's side: each caption is scored once per version, then looked up."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.captions import EMPTY_CAPTION_ID
from reward_server.models.base import (
    ExperiencedModel,
    RewardModel,
    RewardModelMetrics,
    RewardModelVersion,
    reward_model_kind,
)
from reward_server.settings import ModelSettings

_TOP_SCORED = 64
"""Captions that one `top` scores at most. A run meets tens of thousands, most of them once, long ago; scoring all of them
under every version would take seconds of the learner's time."""
CAPACITY = 1 << 16
"""Captions that a scorer knows at most, of some 300 bytes each."""
_FORGOTTEN = 1 / 8
"""Share of them that goes at once where there are too many: what came last longest ago."""


@dataclass(frozen=True, slots=True)
class ScoredCaption:
    """A caption as the summary shows it."""

    text: str
    probability: float
    """p(y = 1) under the present version: what captions are ordered by."""
    reward: float
    """r_int under the present version."""
    count: int
    """Steps that brought it, since it is known."""
    reward_sum: float
    """r_int summed over those steps, each under the version of its time, before counts and weights."""


@dataclass(frozen=True, slots=True)
class TopCaptions:
    """The captions at both ends of the reward model's liking."""

    liked: tuple[ScoredCaption, ...]
    """Best first."""
    disliked: tuple[ScoredCaption, ...]
    """Worst first."""


def build_scorer(model: str, settings: ModelSettings) -> "CaptionScorer":
    """A scorer for the reward model registered as `model`; at version 1 where that needs no labels, otherwise at 0.

    Raises `OfflineModelError` and `JudgeError` where the model's files cannot be used.
    """
    kind = reward_model_kind(model)
    scorer = CaptionScorer(kind.model(settings, "cpu"))
    if kind.fixed is not None:
        scorer.update(kind.fixed(settings))
    return scorer


_COLUMNS = ("_rewards", "_probabilities", "_scored", "_seen", "_reward_sums", "_came")
"""What is known of captions, by row."""


class CaptionScorer:
    """Knows captions by id and rewards them under the newest version of the reward model.

    Invariant: `RewardModel.evaluate` sees a caption that is known at most once per version. Before the first version, and for the
    empty caption, the reward is 0; so it is for an id whose text is not known, which `count` counts in `unknown`: it has not
    come yet, or the caption is one of those forgotten over `capacity`, until it is told of again (`agents.telling`), which
    the actor is asked for.
    """

    def __init__(self, model: RewardModel, capacity: int = CAPACITY) -> None:
        self._model = model
        self._capacity = capacity
        self._version = 0
        self._rows: dict[int, int] = {}
        self._texts: list[str] = []
        self._rewards = np.zeros(0, dtype=np.float32)
        self._probabilities = np.zeros(0, dtype=np.float32)
        self._scored = np.zeros(0, dtype=np.int64)
        """The version that each caption was last scored under."""
        self._seen = np.zeros(0, dtype=np.int64)
        self._reward_sums = np.zeros(0, dtype=np.float64)
        self._came = np.zeros(0, dtype=np.int64)
        """When each caption came last, in calls of `observe` and `count`."""
        self._calls = 0
        self.metrics: RewardModelMetrics | None = None
        """What is known of the version that is scored under."""
        self.unknown = 0
        """Steps whose caption had no text yet, or none any more: they earned nothing."""
        self.evaluated = 0
        """Captions scored so far, over all versions."""

    @property
    def version(self) -> int:
        return self._version

    @property
    def captions(self) -> int:
        """Different captions known."""
        return len(self._texts)

    def observe(self, captions: Iterable[tuple[int, str]]) -> None:
        """Takes (id, text) of captions; of those known already it learns that they came."""
        told: list[int] = []
        for caption_id, text in captions:
            if caption_id == EMPTY_CAPTION_ID:
                continue
            row = self._rows.setdefault(caption_id, len(self._texts))
            if row == len(self._texts):
                self._texts.append(text)
            told.append(row)
        if len(self._texts) > len(self._seen):
            self._grow(max(2 * len(self._seen), len(self._texts), 256))
        self._calls += 1
        self._came[told] = self._calls
        if len(self._texts) > self._capacity:
            self._forget(len(self._texts) - round(self._capacity * (1 - _FORGOTTEN)))

    def knows(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Of which of these different ids [N] the text is known."""
        return self._find(ids) >= 0

    def texts(self, ids: Iterable[int]) -> list[str]:
        """The texts of captions that are known. Raises `KeyError` for one that is not."""
        return [self._texts[self._rows[caption_id]] for caption_id in ids]

    def update(self, version: RewardModelVersion) -> None:
        """Scores under `version` from now on. An older one than the present is an error (`ValueError`)."""
        if version.version < self._version:
            raise ValueError(f"version {version.version} of the reward model came after version {self._version}")
        if version.version > self._version:
            version.load_into(self._model)
            self._version, self.metrics = version.version, version.metrics

    def lookup(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """The intrinsic reward r_int of caption ids, of any shape (such as [T, B])."""
        unique, inverse = np.unique(ids, return_inverse=True)
        rewards = np.zeros(len(unique), dtype=np.float32)
        rows = self._find(unique)
        known = rows >= 0
        self._score(rows[known])
        rewards[known] = self._rewards[rows[known]]
        return rewards[inverse].reshape(ids.shape)

    def count(self, ids: NDArray[np.int64]) -> tuple[int, ...]:
        """Counts each step's caption, and what it earns, for `top`; the ids that are not known. Apart from `lookup`, for a
        trajectory may be looked up more than once."""
        unique, counts = np.unique(ids, return_counts=True)
        rows = self._find(unique)
        known = rows >= 0
        self._score(rows[known])
        missing = ~known & (unique != EMPTY_CAPTION_ID)
        self.unknown += int(counts[missing].sum())
        self._calls += 1
        self._came[rows[known]] = self._calls
        self._seen[rows[known]] += counts[known]
        self._reward_sums[rows[known]] += self._rewards[rows[known]].astype(np.float64) * counts[known]
        return tuple(unique[missing].tolist())

    def learn(self, source: str, ids: NDArray[np.int64]) -> None:
        """The captions [T, B] of the next steps of `source`, for a model that learns from what is met; it is another
        version then. Nothing for all others, and before the first version."""
        if not isinstance(self._model, ExperiencedModel) or not self._version:
            return
        known = self._find(np.unique(ids)) >= 0
        self._model.learn(source, np.where(np.isin(ids, np.unique(ids)[known]), ids, EMPTY_CAPTION_ID), self._texts_of)
        self._version += 1

    def take_over(self, version: int) -> None:
        """Goes on in place of a scorer that was at `version`: a model that learns from what is met is another from then on."""
        if isinstance(self._model, ExperiencedModel) and self._version:
            self._version = max(self._version, version) + 1

    def _texts_of(self, ids: Sequence[int]) -> list[str]:
        return [self._texts[self._rows[i]] for i in ids]

    def top(self, n: int) -> TopCaptions:
        """The `n` captions liked most and least under the present version, the oftener counted first among equals.
        Both are empty before the first version. Captions that did not come since that version are scored a few a call,
        the oftener counted first; the others are left out."""
        if not self._version:
            return TopCaptions((), ())
        rows = np.arange(len(self._texts))
        due = rows[self._scored[rows] < self._version]
        self._score(due[np.argsort(-self._seen[due], kind="stable")[: max(_TOP_SCORED, 2 * n)]])
        rows = rows[self._scored[rows] == self._version]
        probability, seen = self._probabilities[rows], self._seen[rows]
        return TopCaptions(
            liked=tuple(self._caption(row) for row in np.lexsort((-seen, -probability))[:n]),
            disliked=tuple(self._caption(row) for row in np.lexsort((-seen, probability))[:n]),
        )

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: captions, how often they were met, and the model with its version."""
        n = len(self._texts)
        return {
            "version": self._version,
            "model": self._model.state_dict(),
            "training": self._model.training_state() if isinstance(self._model, ExperiencedModel) else None,
            "ids": list(self._rows),
            "texts": list(self._texts),
            "seen": self._seen[:n].tolist(),
            "reward_sums": self._reward_sums[:n].tolist(),
            "came": self._came[:n].tolist(),
            "calls": self._calls,
            "unknown": self.unknown,
            "evaluated": self.evaluated,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Scores are not kept: under the same parameters they come out the same."""
        self._model.load_state_dict(state["model"])
        if isinstance(self._model, ExperiencedModel):
            self._model.load_training_state(state["training"])
        self._version = int(state["version"])
        self._texts = list(state["texts"])
        self._rows = {int(caption_id): row for row, caption_id in enumerate(state["ids"])}
        n = len(self._texts)
        self._seen = np.zeros(0, dtype=np.int64)
        self._scored = np.zeros(0, dtype=np.int64)
        self._grow(max(n, 256))
        self._seen[:n] = state["seen"]
        self._reward_sums[:n] = state["reward_sums"]
        # Checkpoints of before do not say: what came least may go first.
        self._came[:n] = state.get("came", state["seen"])
        self._calls = int(state.get("calls", max(state["seen"], default=0)))
        self.unknown = int(state["unknown"])
        self.evaluated = int(state["evaluated"])

    def _find(self, unique: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of ids; -1 where the text is not known."""
        return np.fromiter((self._rows.get(i, -1) for i in unique.tolist()), dtype=np.int64, count=len(unique))

    def _score(self, rows: NDArray[np.int64]) -> None:
        """Scores those of the rows that have no score under the present version, in one batch."""
        due = rows[self._scored[rows] < self._version]
        if len(due):
            evaluation = self._model.evaluate([self._texts[row] for row in due])
            self._rewards[due] = evaluation.reward
            self._probabilities[due] = evaluation.probability
            self._scored[due] = self._version
            self.evaluated += len(due)

    def _forget(self, count: int) -> None:
        """Makes room: the captions that came last longest ago are as if they had never come."""
        n = len(self._texts)
        kept = np.sort(np.argsort(self._came[:n], kind="stable")[count:])
        ids = list(self._rows)
        self._texts = [self._texts[row] for row in kept]
        self._rows = {ids[row]: at for at, row in enumerate(kept)}
        for name in _COLUMNS:
            column = getattr(self, name)
            column[: len(kept)] = column[kept]
            column[len(kept) : n] = 0

    def _grow(self, size: int) -> None:
        for name in _COLUMNS:
            old = getattr(self, name)
            new = np.zeros(size, dtype=old.dtype)
            kept = min(len(old), size)
            new[:kept] = old[:kept]
            setattr(self, name, new)

    def _caption(self, row: np.intp) -> ScoredCaption:
        return ScoredCaption(
            text=self._texts[row],
            probability=float(self._probabilities[row]),
            reward=float(self._rewards[row]),
            count=int(self._seen[row]),
            reward_sum=float(self._reward_sums[row]),
        )
