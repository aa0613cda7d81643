"""What reward models that are networks fitted to labels share: batches, rounds until they agree, labels held out.

ONI takes a fixed number of steps whenever labels come. Where few labels are positive that leaves the network at "nothing is
helpful" for long, so rounds here go on until the network agrees with its labels (`converge`), or stops getting better
(`patience`).
"""

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from reward_server.models.base import L, RewardModelMetrics, RewardModelTrainer
from reward_server.models.measures import Measures
from reward_server.settings import DistillerSettings

_MEASURED = 1024
"""Most labels that agreement is measured on after a round."""
_FRESH = 512
"""Predictions of labels to come that `RewardModelMetrics.fresh` looks back on."""

E = TypeVar("E")
"""What one label is about: a caption's text, or the two captions of a pair."""


class Trainable(Protocol):
    """A model with a network."""

    @property
    def network(self) -> nn.Module: ...
    @property
    def device(self) -> torch.device: ...

    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


class FittedTrainer(RewardModelTrainer[L], Generic[L, E]):
    """Adam on a loss over the labels so far. Deterministic for a seed, on one device and thread count."""

    def __init__(
        self, model: Trainable, settings: DistillerSettings, seed: int, *, max_grad_norm: float | None = None
    ) -> None:
        self._fitted = model
        self._settings = settings
        self._max_grad_norm = max_grad_norm
        self._optimiser = torch.optim.Adam(model.network.parameters(), lr=settings.learning_rate, fused=True)
        self._generator = torch.Generator(device=model.device).manual_seed(seed)
        self._random = np.random.default_rng(seed)
        self._ids: list[int] = []
        self._examples: list[E] = []
        self._labels: list[int] = []
        self._probabilities: list[float] = []
        self._held: list[bool] = []
        self._known: set[int] = set()
        self._fresh: deque[tuple[float, int]] = deque(maxlen=_FRESH)
        self._steps = 0
        self._unsettled = False
        self._stale = 0
        self._best = (0.0, float("-inf"))
        self._train: Measures | None = None

    # -- what kinds of model differ in --------------------------------------------------------------------------

    @abstractmethod
    def _read(self, label: L) -> tuple[int, E]:
        """The id of what a label is about, and that itself."""

    @abstractmethod
    def _predict(self, examples: Sequence[E]) -> NDArray[np.float32]:
        """The probability that a label's kind has, of each example: [N]."""

    @abstractmethod
    def _hard(self, label: int) -> float:
        """The probability that a label stands for."""

    @abstractmethod
    def _loss(self, examples: Sequence[E], target: Tensor) -> Tensor:
        """The mean loss of a batch against target probabilities [N]."""

    @abstractmethod
    def _compare(self, probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> Measures | None:
        """Measures of predictions [N] against labels [N]."""

    @abstractmethod
    def _example_state(self, examples: Sequence[E]) -> dict[str, Any]:
        """What a checkpoint needs of examples beside their ids and texts."""

    @abstractmethod
    def _load_examples(self, ids: list[int], state: Mapping[str, Any], texts: "Texts") -> list[E]:
        """The examples again, from `_example_state`. Raises ValueError where the store lacks captions."""

    def _changed(self) -> None:
        """A round ended: the network is another one."""

    # -- rounds -------------------------------------------------------------------------------------------------

    @property
    def labels(self) -> int:
        return len(self._ids)

    def add(self, labels: Sequence[L]) -> None:
        read = [(label, *self._read(label)) for label in labels]
        new = [(label, key, example) for label, key, example in read if key not in self._known]
        if not new:
            return
        if self._steps:
            predicted = self._predict([example for _, _, example in new])
            self._fresh.extend((float(p), label.label) for p, (label, _, _) in zip(predicted, new, strict=True))
        for label, key, example in new:
            probability = self._hard(label.label) if label.probability is None else label.probability
            self._insert(key, example, label.label, probability, self._holds(key, example))
        self._unsettled = True
        self._stale = 0
        self._best = (0.0, float("-inf"))

    def train_round(self) -> bool:
        trained = np.flatnonzero(~np.asarray(self._held, dtype=bool))
        if not self._unsettled or not len(trained):
            return False
        settings = self._settings
        draw = self._sampler(trained)
        self._fitted.network.train()
        for _ in range(settings.steps_per_update if self.labels < settings.warm_labels else 1):
            self._step(draw())
        self._fitted.network.eval()
        self._changed()
        self._train = self._measure(self._sample(trained))
        standing = (1.0, 0.0) if self._train is None else (self._train.balanced_accuracy, -self._train.loss)
        # Better agreement, or the same at a loss that is lower by more than noise.
        better = standing[0] > self._best[0] or standing[1] > self._best[1] + 0.01
        self._stale = 0 if better else self._stale + 1
        self._best = (max(standing[0], self._best[0]), max(standing[1], self._best[1]))
        self._unsettled = not self._agrees() and self._stale < settings.patience
        return True

    def metrics(self) -> RewardModelMetrics:
        held = np.flatnonzero(np.asarray(self._held, dtype=bool))
        fresh = np.asarray(self._fresh, dtype=np.float64).reshape(-1, 2)
        return RewardModelMetrics(
            labels=self.labels,
            positives=sum(label != 0 for label in self._labels),
            steps=self._steps,
            converged=self._agrees(),
            train=self._train,
            holdout=self._measure(held[-_MEASURED:]),
            fresh=self._compare(fresh[:, 0], fresh[:, 1].astype(np.int64)),
        )

    def _step(self, rows: NDArray[np.intp]) -> None:
        target = torch.tensor(self._targets(rows), dtype=torch.float32, device=self._fitted.device)
        loss = self._loss([self._examples[i] for i in rows], target)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        if self._max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self._fitted.network.parameters(), self._max_grad_norm)
        self._optimiser.step()
        self._steps += 1

    def _targets(self, rows: NDArray[np.intp]) -> list[float]:
        """What to train on: the label, or with `soft_targets` the judge's probability where it gave one."""
        if self._settings.soft_targets:
            return [self._probabilities[i] for i in rows]
        return [self._hard(self._labels[i]) for i in rows]

    def _sampler(self, trained: NDArray[np.intp]) -> Callable[[], NDArray[np.intp]]:
        """Draws batches of rows without repetition within a batch; `balanced`: half of labels 0 and half of the others,
        with repetition."""
        size = min(self._settings.batch_size, len(trained))
        positive = np.asarray(self._labels)[trained] != 0
        if self._settings.balanced and positive.any() and not positive.all():
            weights = np.where(positive, 0.5 / positive.sum(), 0.5 / (~positive).sum())
            return lambda: self._random.choice(trained, size=size, p=weights)
        return lambda: self._random.choice(trained, size=size, replace=False)

    def _sample(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """The rows that agreement is measured on: all, or the newest half and a random half of `_MEASURED`."""
        if len(rows) <= _MEASURED:
            return rows
        older, newest = rows[: -_MEASURED // 2], rows[-_MEASURED // 2 :]
        return np.concatenate((self._random.choice(older, size=_MEASURED // 2, replace=False), newest))

    def _measure(self, rows: NDArray[np.intp]) -> Measures | None:
        if not len(rows):
            return None
        return self._compare(self._predict([self._examples[i] for i in rows]), np.asarray(self._labels)[rows])

    def _agrees(self) -> bool:
        if self._train is None:
            return self._steps > 0
        return self._train.balanced_accuracy >= self._settings.converge

    # -- labels -------------------------------------------------------------------------------------------------

    def _holds(self, key: int, example: E) -> bool:
        """Whether a new label is held out."""
        del example
        return self.labels >= self._settings.holdout_after and chosen(key, self._settings.holdout)

    def _insert(self, key: int, example: E, label: int, probability: float, held: bool) -> None:
        self._known.add(key)
        self._ids.append(key)
        self._examples.append(example)
        self._labels.append(label)
        self._probabilities.append(probability)
        self._held.append(held)

    # -- checkpoints --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self._fitted.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "generator": self._generator.get_state(),
            "random": self._random.bit_generator.state,
            "ids": torch.tensor(self._ids, dtype=torch.int64),
            "labels": torch.tensor(self._labels, dtype=torch.int8),
            "probabilities": torch.tensor(self._probabilities, dtype=torch.float64),
            "held": torch.tensor(self._held, dtype=torch.bool),
            "fresh": torch.tensor(list(self._fresh), dtype=torch.float64),
            "steps": self._steps,
            "unsettled": self._unsettled,
            "stale": self._stale,
            "best": self._best,
            **self._example_state(self._examples),
        }

    def load_state_dict(self, state: Mapping[str, Any], texts: "Texts") -> None:
        ids: list[int] = state["ids"].tolist()
        examples = self._load_examples(ids, state, texts)
        self._fitted.load_state_dict(state["network"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._generator.set_state(state["generator"])
        self._random.bit_generator.state = state["random"]
        for rest in (self._ids, self._examples, self._labels, self._probabilities, self._held):
            rest.clear()
        self._known.clear()
        rows = (state[name].tolist() for name in ("labels", "probabilities", "held"))
        for key, example, label, probability, held in zip(ids, examples, *rows, strict=True):
            self._insert(key, example, label, probability, held)
        self._fresh = deque(((p, int(y)) for p, y in state["fresh"].tolist()), maxlen=_FRESH)
        self._steps = int(state["steps"])
        self._unsettled = bool(state["unsettled"])
        self._stale = int(state["stale"])
        self._best = (float(state["best"][0]), float(state["best"][1]))
        trained = np.flatnonzero(~np.asarray(self._held, dtype=bool))
        self._train = self._measure(trained[-_MEASURED:]) if self._steps else None


def chosen(key: int, share: float) -> bool:
    """Whether an id is among a fixed `share` of all. Ids are hashes, so their low digits are as good as random."""
    return key % 10_000 < share * 10_000


Texts = Callable[[Sequence[int]], Mapping[int, str]]
"""Looks captions up by id."""


def find_texts(ids: Sequence[int], texts: Texts) -> Mapping[int, str]:
    """The texts of all `ids`. Raises `ValueError` where some are missing."""
    known = texts(ids)
    missing = sum(i not in known for i in ids)
    if missing:
        raise ValueError(
            f"{missing} of the {len(ids)} captions that the reward model was trained on are not in the annotation "
            "store; put back the `annotations.sqlite` that belongs to the checkpoint"
        )
    return known
