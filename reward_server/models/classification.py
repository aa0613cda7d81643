"""ONI's classification reward: r(c) = 1 where a character network gives p(helpful | c) > threshold (ONI, section 3.2).

ONI asks the network about every caption, also where the judge has spoken. An agent then finds the captions that the network
is wrong about, the judge's own word notwithstanding: it earned its reward by "You can't go down here.", which the judge had
labelled unhelpful. So here p of a labelled caption is its label's, and the network speaks for those that have none
(`distiller.known_labels`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from envs.captions import caption_id
from reward_server.models.base import Evaluation, RewardModel, RewardModelKind
from reward_server.models.fitting import FittedTrainer, Texts, find_texts
from reward_server.models.known import KnownLabels
from reward_server.models.measures import Measures, measure
from reward_server.models.network import CharacterMLP, by_length, encode_captions
from reward_server.settings import DistillerSettings
from reward_server.store import Labelled

HIDDEN = (512, 512)
DROPOUT = 0.1
_IDS, _VALUES = "known.ids", "known.values"
"""Names of tensors beside the network's."""


class ClassificationModel(RewardModel):
    """The character network with two logits, its threshold, and what is known without it."""

    name = "classification"

    def __init__(self, settings: DistillerSettings, device: str = "cpu", seed: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):  # neither reads nor moves the global generator
            torch.manual_seed(seed)
            network = CharacterMLP(HIDDEN, outputs=2, dropout=DROPOUT, length=settings.caption_bytes)
        self.network = network.to(device).eval()
        self.device = torch.device(device)
        self.known = KnownLabels()
        """As the judge said; empty where the network speaks for all."""
        self._uses_labels = settings.known_labels
        self._threshold = settings.threshold
        self._length = settings.caption_bytes

    def evaluate(self, captions: Sequence[str]) -> Evaluation:
        p = self.known.lookup(np.array([caption_id(caption) for caption in captions], dtype=np.int64))
        rest = np.flatnonzero(np.isnan(p))
        p[rest] = self.probabilities([captions[int(i)] for i in rest])
        return Evaluation((p > self._threshold).astype(np.float32), p)

    def probabilities(self, captions: Sequence[str]) -> NDArray[np.float32]:
        """p(y = 1) of each caption by the network: [N]."""
        p = np.zeros(len(captions), dtype=np.float32)
        self.network.eval()
        with torch.inference_mode():
            for rows in by_length(captions):
                logits = self.network(self.encode([captions[i] for i in rows]))
                p[rows] = logits.softmax(1)[:, 1].cpu().numpy()
        return p

    def encode(self, captions: Sequence[str]) -> Tensor:
        """uint8 [N, width] on the model's device."""
        return torch.tensor(encode_captions(captions, self._length), device=self.device)

    def state_dict(self) -> dict[str, Tensor]:
        state = {name: tensor.detach().cpu().clone() for name, tensor in self.network.state_dict().items()}
        ids, values = self.known.arrays()
        return {**state, _IDS: torch.tensor(ids), _VALUES: torch.tensor(values)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.network.load_state_dict({name: x for name, x in state.items() if name not in (_IDS, _VALUES)})
        if self._uses_labels and _IDS in state:  # models of before have none
            self.known.replace(state[_IDS].numpy(), state[_VALUES].numpy())


class ClassificationTrainer(FittedTrainer[Labelled, str]):
    """Cross-entropy over the labels so far."""

    def __init__(self, settings: DistillerSettings, seed: int = 0, device: str = "cpu") -> None:
        self._model = ClassificationModel(settings, device, seed)
        super().__init__(self._model, settings, seed)
        self._model.network.seed_dropout(self._generator)

    @property
    def model(self) -> ClassificationModel:
        return self._model

    def _read(self, label: Labelled) -> tuple[int, str]:
        return label.caption_id, label.text

    def _predict(self, examples: Sequence[str]) -> NDArray[np.float32]:
        return self._model.probabilities(examples)

    def _hard(self, label: int) -> float:
        return float(label)

    def _loss(self, examples: Sequence[str], target: Tensor) -> Tensor:
        logits = self._model.network(self._model.encode(examples))
        return functional.cross_entropy(logits, torch.stack((1.0 - target, target), dim=1))

    def _compare(self, probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> Measures | None:
        return measure(probabilities, labels, self._settings.threshold)

    def _insert(self, key: int, example: str, label: int, probability: float, held: bool) -> None:
        super()._insert(key, example, label, probability, held)
        if self._settings.known_labels:
            self._model.known.add(key, probability if self._settings.soft_targets else float(label))

    def _example_state(self, examples: Sequence[str]) -> dict[str, Any]:
        return {}

    def _load_examples(self, ids: list[int], state: Mapping[str, Any], texts: Texts) -> list[str]:
        known = find_texts(ids, texts)
        return [known[i] for i in ids]


KIND = RewardModelKind(
    model=lambda settings, device: ClassificationModel(settings.distiller, device), trainer=ClassificationTrainer
)
