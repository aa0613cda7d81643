"""A reward model trained once from a labelled collection and then fixed, as in Motif (Klissarov et al. 2023, arXiv 2310.00166).

What it is made from (`reward.offline_path`) is either an annotation store, trained on when the run starts, or a file that
`save_model` wrote: parameters in safetensors whose metadata say everything else (`Artifact`). Motif's own is a ranking trained
on pairs; a store without pairs gives a classification.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reward_server.kinds import KINDS, Source
from reward_server.models.base import (
    TELLING,
    Evaluation,
    RewardModel,
    RewardModelKind,
    RewardModelMetrics,
    RewardModelTrainer,
    RewardModelVersion,
    build_reward_model,
    build_trainer,
)
from reward_server.models.measures import Measures
from reward_server.settings import DistillerSettings, ModelSettings
from reward_server.store import AnnotationStore
from reward_server.types import JudgeKey

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "yendor-reward-model-1"
_SQLITE = b"SQLite format 3\0"
_MEASURED_SHARE = 0.2
"""Of few labels, kept from a model that is there to be measured."""
_ARTIFACT = "artifact"
"""Name of the tensor that carries the artifact's description inside a model's state: its JSON as bytes."""


class OfflineModelError(ValueError):
    """What `reward.offline_path` names cannot be used. The message names the file, the cause and what to do."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a trained model is, beside its parameters."""

    kind: str
    """`hash`, `classification` or `ranking`."""
    settings: Mapping[str, Any]
    """Of the distiller: what rewards depend on (thresholds, bytes of a caption) and what it was trained with."""
    key: Mapping[str, str]
    """Prompt, goal, model, mode and sampling of the labels."""
    labels: int
    metrics: Mapping[str, Any]
    """As the distiller measures them. `holdout` may be of a model that was trained without a fifth of the labels."""

    def measured(self) -> RewardModelMetrics | None:
        """The metrics as an object; None where they are of another form."""
        try:
            parts: dict[str, Any] = {
                name: None if self.metrics[name] is None else Measures(**self.metrics[name])
                for name in ("train", "holdout", "fresh")
            }
            return RewardModelMetrics(**{**self.metrics, **parts})
        except (TypeError, KeyError):
            return None


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A trained reward model that is fixed from now on."""

    artifact: Artifact
    state: "Mapping[str, Tensor]"
    seconds: float
    """That training took; 0 for one that was read from a file."""


class OfflineModel(RewardModel):
    """A reward model of another kind whose parameters do not change. Empty until a state is loaded."""

    name = "offline"

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self._inner: RewardModel | None = None
        self._artifact: Artifact | None = None

    def evaluate(self, captions: Sequence[str]) -> Evaluation:
        if self._inner is None:
            raise RuntimeError("the offline reward model has no parameters yet")
        return self._inner.evaluate(captions)

    def state_dict(self) -> "dict[str, Tensor]":
        if self._inner is None or self._artifact is None:
            return {}
        return whole_state(TrainedModel(self._artifact, self._inner.state_dict(), 0.0))

    def load_state_dict(self, state: "Mapping[str, Tensor]") -> None:
        if _ARTIFACT not in state:
            return
        artifact = _artifact(bytes(state[_ARTIFACT].numpy().tobytes()).decode(), "the state of a reward model")
        settings = ModelSettings(distiller=DistillerSettings(**artifact.settings))
        self._inner = build_reward_model(artifact.kind, settings, self._device)
        self._inner.load_state_dict({name: tensor for name, tensor in state.items() if name != _ARTIFACT})
        self._artifact = artifact


def whole_state(model: TrainedModel) -> "dict[str, Tensor]":
    """Parameters and description as tensors alone: a version that stands for itself."""
    import torch

    text = json.dumps(asdict(model.artifact))
    return {**model.state, _ARTIFACT: torch.from_numpy(np.frombuffer(text.encode(), dtype=np.uint8).copy())}


def train_model(
    store_path: str | Path,
    settings: DistillerSettings,
    *,
    kind: str | None = None,
    key: JudgeKey | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda line: None,
) -> TrainedModel:
    """Trains a reward model on all labels of a store, until it agrees with them or gets no better.

    `kind`: `ranking` where the store has pairs, else `classification`, unless given. `key`: that with most labels of the
    kind, unless given. `settings.interval_s` and the like, which share a core with a run, do not matter here. Raises
    `OfflineModelError` where the store has too few labels, and `AnnotationStoreError` where it cannot be read.
    """
    began = time.monotonic()
    with AnnotationStore(store_path, read_only=True) as store:
        kind = kind or ("ranking" if store.pairs.counts()[0] else "classification")
        if kind not in KINDS or not KINDS[kind].source.asks_judge:
            trained = ", ".join(name for name, known in KINDS.items() if known.source.asks_judge)
            raise OfflineModelError(f"{kind!r} is no reward model that is trained on labels; there are: {trained}")
        table = store.pairs if KINDS[kind].source is Source.PAIRS else store
        keys = store.keys()
        counts = {known: len(table.labelled_ids(known)) for known in keys}
        key = key or max(counts, key=lambda known: counts[known], default=None)
        if key is None or counts.get(key, 0) < settings.min_labels:
            there = 0 if key is None else counts.get(key, 0)
            what = "pairs" if table is store.pairs else "captions"
            raise OfflineModelError(
                f"{store_path}: {there} labels of {what} are too few for a {kind} model "
                f"(distiller.min_labels={settings.min_labels}); label more"
            )
        labels, _ = table.labels_since(0, key)

    def fitted(settings: DistillerSettings, what: str) -> RewardModelTrainer[Any]:
        trainer = build_trainer(kind, settings, seed, device)
        trainer.add(labels)
        rounds = 0
        while trainer.train_round():
            rounds += 1
            measured = trainer.metrics().train
            if measured is not None:
                agreement, loss = measured.balanced_accuracy, measured.loss
                progress(f"{what}round {rounds}: agreement {agreement:.3f}, loss {loss:.4f}")
        return trainer

    trainer = fitted(settings, "")
    metrics = trainer.metrics()
    if settings.holdout and kind != "hash" and (metrics.holdout is None or metrics.holdout.count < TELLING):
        # So few labels are all wanted for the model itself: another one, trained without a share of them, is measured.
        aside = replace(settings, holdout_after=0, holdout=max(settings.holdout, _MEASURED_SHARE))
        metrics = replace(metrics, holdout=fitted(aside, "to be measured, ").metrics().holdout)
    artifact = Artifact(kind, asdict(settings), asdict(key), len(labels), asdict(metrics))
    return TrainedModel(artifact, trainer.model.state_dict(), time.monotonic() - began)


def save_model(model: TrainedModel, path: str | Path) -> None:
    """Writes the model as one safetensors file, whole or not at all."""
    from safetensors.torch import save

    target = Path(path)
    partial = target.with_name(target.name + ".part")
    metadata = {"format": FORMAT, _ARTIFACT: json.dumps(asdict(model.artifact))}
    partial.write_bytes(save(dict(model.state), metadata))
    partial.replace(target)


def read_model(path: str | Path) -> TrainedModel:
    """The model in a file of `save_model`. Raises `OfflineModelError` for a file that is none."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
        state = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise OfflineModelError(f"{path}: neither an annotation store nor a reward model: {error}") from error
    if metadata.get("format") != FORMAT:
        raise OfflineModelError(f"{path}: a safetensors file, but no reward model of format {FORMAT}")
    return TrainedModel(_artifact(metadata.get(_ARTIFACT, ""), str(path)), state, 0.0)


def holds_labels(path: str | Path) -> bool:
    """Whether the file is an annotation store, by its first bytes. Raises `OfflineModelError` where it cannot be read."""
    try:
        with Path(path).expanduser().open("rb") as file:
            return file.read(len(_SQLITE)) == _SQLITE
    except OSError as error:
        raise OfflineModelError(f"{path}: cannot be read: {error.strerror or error}") from error


def _artifact(text: str, where: str) -> Artifact:
    try:
        tree: dict[str, Any] = json.loads(text)
        known = {field.name for field in fields(DistillerSettings)}
        tree["settings"] = {name: value for name, value in tree["settings"].items() if name in known}
        return Artifact(**tree)
    except (ValueError, TypeError, KeyError) as error:
        raise OfflineModelError(f"{where}: its description cannot be read: {error}") from error


def _fixed(settings: ModelSettings) -> RewardModelVersion:
    from safetensors.torch import save

    if settings.offline_path is None:
        raise OfflineModelError("reward.model=offline needs reward.offline_path")
    path = Path(settings.offline_path).expanduser()
    stored = holds_labels(path)
    model = train_model(path, settings.distiller, seed=settings.seed) if stored else read_model(path)
    return RewardModelVersion(1, OfflineModel.name, save(whole_state(model)), model.artifact.measured(), model.seconds)


KIND = RewardModelKind(model=lambda settings, device: OfflineModel(device), fixed=_fixed)
