"""ONI's ranking reward: a score of captions learnt from pairs by Bradley and Terry's model, normalised, thresholded.

The network is ONI's: its character encoder, then 128 -> 256 -> 512 -> 1. With scores s the first of two captions is better
with probability softmax(s1, s2)_1, and the loss is L = -(1/B) sum_j y_j log softmax(s1, s2)_j, where a tie has the target
(1/2, 1/2) (ONI, section 3.2; Bradley and Terry 1952). The reward is z = (s - mean) / deviation where z exceeds the threshold,
otherwise 0.

In ONI mean and deviation are running averages over a network that changes, and its released code leaves them out. Here
they are those of the captions compared so far, scored by the very network of a version, and belong to that version.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from reward_server.models.base import Evaluation, RewardModel, RewardModelKind
from reward_server.models.fitting import FittedTrainer, Texts, chosen, find_texts
from reward_server.models.measures import Measures, measure_pairs
from reward_server.models.network import CharacterMLP, by_length, encode_captions
from reward_server.pair_table import LabelledPair
from reward_server.settings import DistillerSettings

HIDDEN = (256, 512)
MIN_DEVIATION = 0.1
"""Scores are log-odds: differences below a tenth (52.5 to 47.5) are no preference, and are not made large."""
_NORMALISED = 4096
"""Most captions that mean and deviation are taken over, the newest."""

_Sides = tuple[int, int, str, str]
"""Ids and texts of the two captions."""


class RankingModel(RewardModel):
    """The character network with one score, and the mean and deviation that it is normalised by."""

    name = "ranking"

    def __init__(self, settings: DistillerSettings, device: str = "cpu", seed: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):  # neither reads nor moves the global generator
            torch.manual_seed(seed)
            network = CharacterMLP(HIDDEN, outputs=1, dropout=0.0, length=settings.caption_bytes)
        self.network = network.to(device).eval()
        self.device = torch.device(device)
        self.mean = 0.0
        self.deviation = 1.0
        self._threshold = settings.rank_threshold
        self._length = settings.caption_bytes

    def evaluate(self, captions: Sequence[str]) -> Evaluation:
        z = (self.scores(captions) - self.mean) / self.deviation
        reward = np.where(z > self._threshold, z, 0.0).astype(np.float32)
        return Evaluation(reward, (1.0 / (1.0 + np.exp(-z))).astype(np.float32))

    def scores(self, captions: Sequence[str]) -> NDArray[np.float64]:
        """The network's own scores s, log-odds against one another: [N]."""
        s = np.zeros(len(captions))
        self.network.eval()
        with torch.inference_mode():
            for rows in by_length(captions):
                s[rows] = self.forward([captions[i] for i in rows]).cpu().numpy()
        return s

    def forward(self, captions: Sequence[str]) -> Tensor:
        """The scores with gradient: [N]."""
        bytes_NL = torch.tensor(encode_captions(captions, self._length), device=self.device)
        return self.network(bytes_NL).squeeze(1)

    def normalise(self, captions: Sequence[str]) -> None:
        """Takes mean and deviation of the scores of `captions`."""
        s = self.scores(captions)
        self.mean, self.deviation = float(s.mean()), max(float(s.std()), MIN_DEVIATION)

    def state_dict(self) -> dict[str, Tensor]:
        state = {name: tensor.detach().cpu().clone() for name, tensor in self.network.state_dict().items()}
        return {**state, "normaliser": torch.tensor([self.mean, self.deviation], dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.network.load_state_dict({name: tensor for name, tensor in state.items() if name != "normaliser"})
        self.mean, self.deviation = (float(x) for x in state["normaliser"])


class RankingTrainer(FittedTrainer[LabelledPair, _Sides]):
    """Bradley and Terry's loss over the pairs so far."""

    def __init__(self, settings: DistillerSettings, seed: int = 0, device: str = "cpu") -> None:
        self._model = RankingModel(settings, device, seed)
        self._trained_on: set[int] = set()
        """Captions of pairs that are not held out."""
        super().__init__(self._model, settings, seed, max_grad_norm=settings.max_grad_norm)

    @property
    def model(self) -> RankingModel:
        return self._model

    def _read(self, label: LabelledPair) -> tuple[int, _Sides]:
        return label.pair_id, (label.first_id, label.second_id, label.first, label.second)

    def _predict(self, examples: Sequence[_Sides]) -> NDArray[np.float32]:
        texts = list(dict.fromkeys(text for pair in examples for text in pair[2:]))
        score = dict(zip(texts, self._model.scores(texts).tolist(), strict=True))
        margin = np.array([score[first] - score[second] for _, _, first, second in examples])
        return (1.0 / (1.0 + np.exp(-margin))).astype(np.float32)

    def _hard(self, label: int) -> float:
        return (0.5, 1.0, 0.0)[label]

    def _loss(self, examples: Sequence[_Sides], target: Tensor) -> Tensor:
        texts = list(dict.fromkeys(text for pair in examples for text in pair[2:]))
        row = {text: i for i, text in enumerate(texts)}
        sides_B2 = torch.tensor([[row[first], row[second]] for _, _, first, second in examples])
        scores_B2 = self._model.forward(texts)[sides_B2.to(self._model.device)]
        return functional.cross_entropy(scores_B2, torch.stack((target, 1.0 - target), dim=1))

    def _compare(self, probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> Measures | None:
        return measure_pairs(probabilities, labels)

    def _holds(self, key: int, example: _Sides) -> bool:
        """Pairs with a caption that is held out: one whose captions are both known tells how well an order is filled in,
        and nothing of captions never compared."""
        del key
        late, share = self.labels >= self._settings.holdout_after, self._settings.holdout / 2
        return late and any(chosen(side, share) and side not in self._trained_on for side in example[:2])

    def _insert(self, key: int, example: _Sides, label: int, probability: float, held: bool) -> None:
        super()._insert(key, example, label, probability, held)
        if not held:
            self._trained_on.update(example[:2])

    def _changed(self) -> None:
        newest = dict.fromkeys(text for pair in reversed(self._examples) for text in pair[2:])
        self._model.normalise(list(newest)[:_NORMALISED])

    def _example_state(self, examples: Sequence[_Sides]) -> dict[str, Any]:
        return {"sides": torch.tensor([pair[:2] for pair in examples], dtype=torch.int64).reshape(-1, 2)}

    def _load_examples(self, ids: list[int], state: Mapping[str, Any], texts: Texts) -> list[_Sides]:
        sides: list[tuple[int, int]] = [(a, b) for a, b in state["sides"].tolist()]
        known = find_texts(list(dict.fromkeys(i for pair in sides for i in pair)), texts)
        return [(a, b, known[a], known[b]) for a, b in sides]


KIND = RewardModelKind(model=lambda settings, device: RankingModel(settings.distiller, device), trainer=RankingTrainer)
