"""What every reward model is, how it learns, and where a new one is registered.

To add one (`hash`, `ranking`): one file beside `classification.py` that defines `KIND`, and one line in `_MODULES`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from reward_server.models.measures import Measures
from reward_server.settings import DistillerSettings
from reward_server.store import Labelled

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a reward model makes of N captions."""

    reward: NDArray[np.float32]
    """The intrinsic reward r_int: [N]."""
    probability: NDArray[np.float32]
    """p(y = 1), that the caption is helpful: [N]. (A model without one gives what captions can be ordered by.)"""


@dataclass(frozen=True, slots=True)
class RewardModelMetrics:
    """What is known of a version of a reward model when it is published."""

    labels: int
    """Labels known, those held out included."""
    positives: int
    steps: int
    """Gradient steps since the beginning."""
    converged: bool
    """Whether it agrees with its labels as `converge` asks."""
    train: Measures | None
    """Against (a sample of) the labels that it is trained on."""
    holdout: Measures | None
    """Against labels that it is never trained on."""
    fresh: Measures | None
    """Against the last labels as they came: predicted before the model was trained on them."""

    @property
    def accuracy(self) -> float | None:
        """On labels that it was not trained on: those held out, else the fresh ones; None before there are any."""
        unseen = self.holdout or self.fresh
        return None if unseen is None else unseen.accuracy


class RewardModel(ABC):
    """Maps captions to intrinsic rewards. This side of a reward model lives in the learner."""

    name: ClassVar[str]

    @abstractmethod
    def evaluate(self, captions: Sequence[str]) -> Evaluation:
        """Rewards and probabilities of normalised captions under the present parameters."""

    def score(self, captions: Sequence[str]) -> NDArray[np.float32]:
        """The intrinsic reward of each caption: [N]."""
        return self.evaluate(captions).reward

    @abstractmethod
    def state_dict(self) -> "dict[str, Tensor]": ...

    @abstractmethod
    def load_state_dict(self, state: "Mapping[str, Tensor]") -> None: ...


class RewardModelTrainer(ABC):
    """Fits a reward model to labels. This side lives where the labels are."""

    @property
    @abstractmethod
    def model(self) -> RewardModel:
        """The model that is trained."""

    @abstractmethod
    def add(self, labels: Sequence[Labelled]) -> None:
        """Takes new labels (captions that it knows already are passed over)."""

    @abstractmethod
    def train_round(self) -> bool:
        """One bounded round of training; False where nothing is left to learn from the labels at hand."""

    @property
    @abstractmethod
    def labels(self) -> int:
        """How many labels it knows."""

    @abstractmethod
    def metrics(self) -> RewardModelMetrics: ...

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that a resumed trainer needs to go on bit for bit, but for the captions' texts, which the store has."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any], texts: Callable[[Sequence[int]], Mapping[int, str]]) -> None:
        """`texts` looks captions up by id."""


@dataclass(frozen=True, slots=True)
class RewardModelKind:
    """How to make both sides of a reward model; `device` is a torch device name, `seed` any integer."""

    model: Callable[[DistillerSettings, str], RewardModel]
    trainer: Callable[[DistillerSettings, int, str], RewardModelTrainer]


_MODULES: dict[str, str] = {
    "classification": "reward_server.models.classification",
}
"""Name in the configuration (`reward.model`) -> module with `KIND`; imported on use, for torch is slow to import."""


def reward_model_names() -> tuple[str, ...]:
    return tuple(_MODULES)


def reward_model_kind(name: str) -> RewardModelKind:
    """The kind registered under `name`. Raises `ValueError` that lists the names there are."""
    if name not in _MODULES:
        raise ValueError(f"there is no reward model {name!r}; there are: {', '.join(sorted(_MODULES))}")
    kind = import_module(_MODULES[name]).KIND
    assert isinstance(kind, RewardModelKind)
    return kind


def build_reward_model(name: str, settings: DistillerSettings, device: str = "cpu") -> RewardModel:
    """A reward model without training, for versions to be loaded into. Raises `ValueError` for an unknown name."""
    return reward_model_kind(name).model(settings, device)
