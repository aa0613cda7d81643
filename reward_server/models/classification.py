"""ONI's classification reward: r(c) = 1 where a character network gives p(helpful | c) > threshold (ONI, section 3.2).

The network is trained with cross-entropy on the judge's labels. ONI takes a fixed number of steps whenever labels
come. Where few labels are positive that leaves the network at "nothing is helpful" for long, so rounds here go on
until the network agrees with either kind of label (`converge`), or stops getting better (`patience`).
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from reward_server.models.base import (
    Evaluation,
    RewardModel,
    RewardModelKind,
    RewardModelMetrics,
    RewardModelTrainer,
)
from reward_server.models.measures import Measures, measure
from reward_server.models.network import CharacterMLP, encode_captions
from reward_server.settings import DistillerSettings
from reward_server.store import Labelled

HIDDEN = (512, 512)
DROPOUT = 0.1
_CHUNK = 128
"""Captions in one forward pass: sorted by length, short ones do not pay for long ones, and memory stays low."""
_MEASURED = 1024
"""Most labels that agreement is measured on after a round."""
_FRESH = 512
"""Predictions of labels to come that `RewardModelMetrics.fresh` looks back on."""


class ClassificationModel(RewardModel):
    """The character network with two logits, and its threshold."""

    name = "classification"

    def __init__(self, settings: DistillerSettings, device: str = "cpu", seed: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):  # neither reads nor moves the global generator
            torch.manual_seed(seed)
            network = CharacterMLP(HIDDEN, outputs=2, dropout=DROPOUT, length=settings.caption_bytes)
        self.network = network.to(device).eval()
        self.device = torch.device(device)
        self._threshold = settings.threshold
        self._length = settings.caption_bytes

    def evaluate(self, captions: Sequence[str]) -> Evaluation:
        p = self.probabilities(captions)
        return Evaluation((p > self._threshold).astype(np.float32), p)

    def probabilities(self, captions: Sequence[str]) -> NDArray[np.float32]:
        """p(y = 1) of each caption: [N]."""
        order = sorted(range(len(captions)), key=lambda i: len(captions[i]))
        p = np.zeros(len(captions), dtype=np.float32)
        self.network.eval()
        with torch.inference_mode():
            for start in range(0, len(order), _CHUNK):
                rows = order[start : start + _CHUNK]
                logits = self.network(self.encode([captions[i] for i in rows]))
                p[rows] = logits.softmax(1)[:, 1].cpu().numpy()
        return p

    def encode(self, captions: Sequence[str]) -> Tensor:
        """uint8 [N, width] on the model's device."""
        return torch.tensor(encode_captions(captions, self._length), device=self.device)

    def state_dict(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in self.network.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.network.load_state_dict(dict(state))


class ClassificationTrainer(RewardModelTrainer):
    """Adam on cross-entropy over the labels so far. Deterministic for a seed, on one device and thread count."""

    def __init__(self, settings: DistillerSettings, seed: int = 0, device: str = "cpu") -> None:
        self._model = ClassificationModel(settings, device, seed)
        self._settings = settings
        self._optimiser = torch.optim.Adam(self._model.network.parameters(), lr=settings.learning_rate, fused=True)
        self._generator = torch.Generator(device=device).manual_seed(seed)
        self._model.network.seed_dropout(self._generator)
        self._random = np.random.default_rng(seed)
        self._ids: list[int] = []
        self._texts: list[str] = []
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

    @property
    def model(self) -> ClassificationModel:
        return self._model

    @property
    def labels(self) -> int:
        return len(self._ids)

    def add(self, labels: Sequence[Labelled]) -> None:
        new = [label for label in labels if label.caption_id not in self._known]
        if not new:
            return
        if self._steps:
            predicted = self._model.probabilities([label.text for label in new])
            self._fresh.extend((float(p), label.label) for p, label in zip(predicted, new, strict=True))
        for label in new:
            self._insert(label.caption_id, label.text, label.label, label.probability, self._holds(label.caption_id))
        self._unsettled = True
        self._stale = 0
        self._best = (0.0, float("-inf"))

    def train_round(self) -> bool:
        trained = np.flatnonzero(~np.asarray(self._held, dtype=bool))
        if not self._unsettled or not len(trained):
            return False
        settings = self._settings
        draw = self._sampler(trained)
        self._model.network.train()
        for _ in range(settings.steps_per_update if self.labels < settings.warm_labels else 1):
            self._step(draw())
        self._model.network.eval()
        self._train = self._measure(self._sample(trained))
        assert self._train is not None
        standing = (self._train.balanced_accuracy, -self._train.loss)
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
            positives=sum(self._labels),
            steps=self._steps,
            converged=self._agrees(),
            train=self._train,
            holdout=self._measure(held[-_MEASURED:]),
            fresh=measure(fresh[:, 0], fresh[:, 1].astype(np.int64), self._settings.threshold),
        )

    # -- training -----------------------------------------------------------------------------------------------

    def _step(self, rows: NDArray[np.intp]) -> None:
        target = torch.tensor(self._targets(rows), dtype=torch.float32, device=self._model.device)
        logits = self._model.network(self._model.encode([self._texts[i] for i in rows]))
        loss = functional.cross_entropy(logits, torch.stack((1.0 - target, target), dim=1))
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self._optimiser.step()
        self._steps += 1

    def _targets(self, rows: NDArray[np.intp]) -> list[float]:
        """p(y = 1) to train on: the label, or with `soft_targets` the judge's probability where it gave one."""
        return [self._probabilities[i] if self._settings.soft_targets else float(self._labels[i]) for i in rows]

    def _sampler(self, trained: NDArray[np.intp]) -> Callable[[], NDArray[np.intp]]:
        """Draws batches of rows without repetition within a batch; `balanced`: half of each kind, with repetition."""
        size = min(self._settings.batch_size, len(trained))
        positive = np.asarray(self._labels)[trained] == 1
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
        p = self._model.probabilities([self._texts[i] for i in rows])
        return measure(p, np.asarray(self._labels)[rows], self._settings.threshold)

    def _agrees(self) -> bool:
        return self._train is not None and self._train.balanced_accuracy >= self._settings.converge

    # -- labels -------------------------------------------------------------------------------------------------

    def _holds(self, caption_id: int) -> bool:
        """Whether a new label is held out. Ids are hashes, so their low digits are as good as random."""
        late = self.labels >= self._settings.holdout_after
        return late and caption_id % 10_000 < self._settings.holdout * 10_000

    def _insert(self, caption_id: int, text: str, label: int, probability: float | None, held: bool) -> None:
        self._known.add(caption_id)
        self._ids.append(caption_id)
        self._texts.append(text)
        self._labels.append(label)
        self._probabilities.append(float(label) if probability is None else probability)
        self._held.append(held)

    # -- checkpoints --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self._model.state_dict(),
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
        }

    def load_state_dict(self, state: Mapping[str, Any], texts: Callable[[Sequence[int]], Mapping[int, str]]) -> None:
        ids: list[int] = state["ids"].tolist()
        known = texts(ids)
        missing = sum(i not in known for i in ids)
        if missing:
            raise ValueError(
                f"{missing} of the {len(ids)} captions that the reward model was trained on are not in the annotation "
                "store; put back the `annotations.sqlite` that belongs to the checkpoint"
            )
        self._model.load_state_dict(state["network"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._generator.set_state(state["generator"])
        self._random.bit_generator.state = state["random"]
        rows = zip(ids, state["labels"].tolist(), state["probabilities"].tolist(), state["held"].tolist(), strict=True)
        for rest in (self._ids, self._texts, self._labels, self._probabilities, self._held):
            rest.clear()
        self._known.clear()
        for caption_id, label, probability, held in rows:
            self._insert(caption_id, known[caption_id], label, probability, held)
        self._fresh = deque(((p, int(y)) for p, y in state["fresh"].tolist()), maxlen=_FRESH)
        self._steps = int(state["steps"])
        self._unsettled = bool(state["unsettled"])
        self._stale = int(state["stale"])
        self._best = (float(state["best"][0]), float(state["best"][1]))
        trained = np.flatnonzero(~np.asarray(self._held, dtype=bool))
        self._train = self._measure(trained[-_MEASURED:]) if self._steps else None


def _model(settings: DistillerSettings, device: str) -> RewardModel:
    return ClassificationModel(settings, device)


def _trainer(settings: DistillerSettings, seed: int, device: str) -> RewardModelTrainer:
    return ClassificationTrainer(settings, seed, device)


KIND = RewardModelKind(model=_model, trainer=_trainer)
