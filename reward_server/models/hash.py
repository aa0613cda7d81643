"""ONI's retrieval reward: the label of a caption, looked up; 0 for a caption that has none (ONI, section 3.2)."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from envs.captions import caption_id
from reward_server.models.base import Evaluation, RewardModel, RewardModelKind, RewardModelMetrics, RewardModelTrainer
from reward_server.models.measures import measure
from reward_server.settings import DistillerSettings
from reward_server.store import Labelled

if TYPE_CHECKING:
    from torch import Tensor

_FRESH = 512


class HashModel(RewardModel):
    """A dictionary from captions, by id, to what the judge said."""

    name = "hash"

    def __init__(self) -> None:
        self.values: dict[int, float] = {}

    def evaluate(self, captions: Sequence[str]) -> Evaluation:
        values = np.array([self.values.get(caption_id(caption), 0.0) for caption in captions], dtype=np.float32)
        return Evaluation(values, values)

    def state_dict(self) -> "dict[str, Tensor]":
        import torch

        return {
            "ids": torch.tensor(list(self.values), dtype=torch.int64),
            "values": torch.tensor(list(self.values.values()), dtype=torch.float64),
        }

    def load_state_dict(self, state: "Mapping[str, Tensor]") -> None:
        self.values = dict(zip(state["ids"].tolist(), state["values"].tolist(), strict=True))


class HashTrainer(RewardModelTrainer[Labelled]):
    """Takes labels in; there is nothing to train. With `soft_targets` a caption's value is the judge's probability."""

    def __init__(self, settings: DistillerSettings, seed: int = 0, device: str = "cpu") -> None:
        self._settings = settings
        self._model = HashModel()
        self._labels: dict[int, tuple[int, float]] = {}
        self._fresh: deque[int] = deque(maxlen=_FRESH)
        """The last labels as they came. Without one the model says 0."""
        self._unsettled = False

    @property
    def model(self) -> HashModel:
        return self._model

    @property
    def labels(self) -> int:
        return len(self._labels)

    def add(self, labels: Sequence[Labelled]) -> None:
        for label in labels:
            if label.caption_id in self._labels:
                continue
            probability = float(label.label) if label.probability is None else label.probability
            self._labels[label.caption_id] = (label.label, probability)
            self._model.values[label.caption_id] = probability if self._settings.soft_targets else float(label.label)
            self._fresh.append(label.label)
            self._unsettled = True

    def train_round(self) -> bool:
        unsettled, self._unsettled = self._unsettled, False
        return unsettled

    def metrics(self) -> RewardModelMetrics:
        """`fresh` is what the model says of a caption before its label comes: 0."""
        labels = np.array([label for label, _ in self._labels.values()], dtype=np.int64)
        values = np.array(list(self._model.values.values()))
        fresh = np.array(self._fresh, dtype=np.int64)
        return RewardModelMetrics(
            labels=len(labels),
            positives=int(labels.sum()),
            steps=0,
            converged=True,
            train=measure(values, labels),
            holdout=None,
            fresh=measure(np.zeros(len(fresh)), fresh),
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "labels": [(i, label, probability) for i, (label, probability) in self._labels.items()],
            "fresh": list(self._fresh),
            "unsettled": self._unsettled,
        }

    def load_state_dict(self, state: Mapping[str, Any], texts: Callable[[Sequence[int]], Mapping[int, str]]) -> None:
        self._labels = {int(i): (int(label), float(p)) for i, label, p in state["labels"]}
        soft = self._settings.soft_targets
        self._model.values = {i: p if soft else float(label) for i, (label, p) in self._labels.items()}
        self._fresh = deque(state["fresh"], maxlen=_FRESH)
        self._unsettled = bool(state["unsettled"])


KIND = RewardModelKind(model=lambda settings, device: HashModel(), trainer=HashTrainer)
