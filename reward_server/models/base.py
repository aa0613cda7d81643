"""What every reward model is, how it learns, and where a new one is registered.

To add one: one file beside `classification.py` that defines `KIND`, and one line in `reward_server/kinds.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from reward_server.kinds import KINDS
from reward_server.models.measures import Measures
from reward_server.settings import DistillerSettings, ModelSettings

if TYPE_CHECKING:
    from torch import Tensor


class Label(Protocol):
    """What every label has: `Labelled` of a caption, `LabelledPair` of two."""

    @property
    def label(self) -> int: ...
    @property
    def probability(self) -> float | None: ...


L = TypeVar("L", bound=Label)


TELLING = 30
"""Labels of both kinds that a measure needs before it is preferred: one label more moves it by some 3 %."""


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
    """Those that are not 0: helpful captions, pairs of which one is better."""
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
    def unseen(self) -> Measures | None:
        """On labels that it was not trained on: those held out, or the fresh ones while so few are held out that they tell
        little; None before there are any."""
        there = [measures for measures in (self.holdout, self.fresh) if measures is not None]
        telling = [measures for measures in there if measures.count >= TELLING and measures.auc is not None]
        return telling[0] if telling else max(there, key=lambda measures: measures.count, default=None)

    @property
    def accuracy(self) -> float | None:
        """On labels that it was not trained on."""
        return None if self.unseen is None else self.unseen.accuracy

    def quality(self) -> dict[str, float | None]:
        """What is logged, by name: how well labels are met that it was not trained on, and how many labels it has."""
        unseen = self.unseen
        counts = {"labels": self.labels, "positives": self.positives, "steps": self.steps}
        measured = {} if unseen is None else {
            "unseen": unseen.count,
            "balanced_accuracy": unseen.balanced_accuracy,
            "auc": unseen.auc,
            "calibration_error": unseen.ece,
            "loss": unseen.loss,
        }  # fmt: skip
        return {f"reward_model/{name}": value for name, value in {**counts, **measured}.items()}


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


class RewardModelTrainer(ABC, Generic[L]):
    """Fits a reward model to labels. This side lives where the labels are."""

    @property
    @abstractmethod
    def model(self) -> RewardModel:
        """The model that is trained."""

    @abstractmethod
    def add(self, labels: Sequence[L]) -> None:
        """Takes new labels (of captions or pairs that it knows already: passed over)."""

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


class ExperiencedModel(RewardModel):
    """A reward model that learns from what the agent meets, not from labels: every call of `learn` makes a version."""

    @abstractmethod
    def learn(self, source: str, ids: NDArray[np.int64], texts: Callable[[Sequence[int]], Sequence[str]]) -> None:
        """Learns from the captions [T, B] of the next steps of `source`; id 0 is no caption, `texts` looks others up."""

    @abstractmethod
    def training_state(self) -> dict[str, Any]:
        """What `state_dict` leaves out, for a checkpoint: all that learning depends on beside the parameters."""

    @abstractmethod
    def load_training_state(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True)
class RewardModelVersion:
    """A reward model as it travels to the learner: immutable, self-contained, about 2 MB for `classification`, and
    12 bytes for each label."""

    version: int
    """1 for the first; only grows. (A scorer without any is at version 0.)"""
    name: str
    """The kind of model, as in `reward.model`."""
    state: bytes
    """Its parameters as safetensors."""
    metrics: RewardModelMetrics | None
    """None for a model that is not trained on labels."""
    seconds: float
    """Time that making this version took."""

    def load_into(self, model: RewardModel) -> None:
        """Sets the parameters of `model`, which must be of the same kind and settings. Raises `ValueError`."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        if model.name != self.name:
            raise ValueError(f"a version of the reward model {self.name!r} cannot be loaded into {model.name!r}")
        try:
            parameters = load(self.state)
        except SafetensorError as error:
            raise ValueError(f"the parameters of the reward model {self.name!r} are no safetensors: {error}") from error
        model.load_state_dict(parameters)


@dataclass(frozen=True, slots=True)
class RewardModelKind:
    """How to make a reward model; `device` is a torch device name, `seed` any integer."""

    model: Callable[[ModelSettings, str], RewardModel]
    """The side that rewards, in the learner."""
    trainer: Callable[[DistillerSettings, int, str], RewardModelTrainer[Any]] | None = None
    """The side that learns from labels, in the reward server; None for what does not."""
    fixed: Callable[[ModelSettings], RewardModelVersion] | None = None
    """The first version of a model that no labels are needed for, made when the learner starts."""


def reward_model_names() -> tuple[str, ...]:
    return tuple(KINDS)


def reward_model_kind(name: str) -> RewardModelKind:
    """The kind registered under `name`. Raises `ValueError` that lists the names there are."""
    if name not in KINDS:
        raise ValueError(f"there is no reward model {name!r}; there are: {', '.join(sorted(KINDS))}")
    kind = import_module(KINDS[name].module).KIND
    assert isinstance(kind, RewardModelKind)
    return kind


def build_reward_model(name: str, settings: ModelSettings, device: str = "cpu") -> RewardModel:
    """A reward model without training, for versions to be loaded into. Raises `ValueError` for an unknown name."""
    return reward_model_kind(name).model(settings, device)


def build_trainer(name: str, settings: DistillerSettings, seed: int, device: str = "cpu") -> RewardModelTrainer[Any]:
    """What fits a reward model to labels. Raises `ValueError` for an unknown name, or one that learns from no labels."""
    trainer = reward_model_kind(name).trainer
    if trainer is None:
        raise ValueError(f"the reward model {name!r} is not trained on labels")
    return trainer(settings, seed, device)
