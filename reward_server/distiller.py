"""The distiller: turns the labels in the store into versions of a reward model."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from safetensors.torch import save as save_tensors

from reward_server.models.base import RewardModel, RewardModelVersion, build_trainer
from reward_server.settings import DistillerSettings
from reward_server.types import JudgeKey


class LabelSource(Protocol):
    """Where labels come from: the annotation store for captions, its `pairs` for pairs."""

    def labels_since(self, cursor: int, key: JudgeKey, /) -> tuple[Sequence[Any], int]: ...
    def texts(self, ids: Sequence[int], /) -> Mapping[int, str]: ...


class Distiller:
    """Reads labels behind its cursor and trains, one bounded round a call.

    `update` depends on the labels and the seed alone, never on the clock. Pacing is apart: `due` says whether the
    settings let the next round begin, for callers that share a core with something else. What a round took is counted in
    processor time (`busy`, of the thread that calls `update`): where it yields to the training it takes long, not much.
    Its methods may be called from any thread; `state_dict` waits for a round that goes on.
    """

    def __init__(
        self,
        store: LabelSource,
        key: JudgeKey,
        settings: DistillerSettings,
        *,
        model: str = "classification",
        seed: int = 0,
        device: str = "cpu",
        clock: Callable[[], float] = time.monotonic,
        busy: Callable[[], float] = time.thread_time,
    ) -> None:
        self._store = store
        self._key = key
        self._settings = settings
        self._name = model
        self._trainer = build_trainer(model, settings, seed, device)
        self._clock = clock
        self._busy = busy
        self._guard = threading.RLock()
        self._cursor = 0
        self._version = 0
        self._above = 0
        self._due_at = clock()
        self.seconds = 0.0
        """Time spent in `update` so far."""

    @property
    def version(self) -> int:
        """The newest version published; 0 before the first."""
        return self._version

    @property
    def labels(self) -> int:
        """Labels taken from the store so far."""
        return self._trainer.labels

    @property
    def model(self) -> RewardModel:
        """The model that is trained. Only for the thread that calls `update`."""
        return self._trainer.model

    def due(self) -> bool:
        """Whether `interval_s` has passed since the last round, and training stays below `max_share` of a core."""
        return self._clock() >= self._due_at

    def skip_to(self, version: int) -> None:
        """Numbers what is published from now on above `version`: for a distiller that was started anew while the
        learner has a version of its predecessor. Never waits for a round that goes on."""
        self._above = max(self._above, version)

    def update(self) -> RewardModelVersion | None:
        """Takes new labels and trains one round. None where there is nothing to learn, or too few labels yet.

        Raises `AnnotationStoreError` where the store cannot be read.
        """
        with self._guard:
            started, busy = self._clock(), self._busy()
            labels, self._cursor = self._store.labels_since(self._cursor, self._key)
            self._trainer.add(labels)
            if self._trainer.labels < self._settings.min_labels or not self._trainer.train_round():
                return None
            self._version = max(self._version, self._above) + 1
            version = self._publish(self._clock() - started)
            self._pace(started, self._busy() - busy)
            return version

    def current(self) -> RewardModelVersion | None:
        """The newest version again, without training: for a learner that begins, or a resumed run."""
        with self._guard:
            return self._publish(0.0) if self._version else None

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint. Captions' texts are not in it: a resumed distiller needs the same store."""
        with self._guard:
            return {
                "name": self._name,
                "cursor": self._cursor,
                "version": self._version,
                "seconds": self.seconds,
                "trainer": self._trainer.state_dict(),
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on bit for bit where `state_dict` was taken.

        Load the annotator first: it sets labels aside that were given after the checkpoint. Raises `ValueError` for
        the state of another kind of model, or where the store lacks captions that the model was trained on.
        """
        if state["name"] != self._name:
            raise ValueError(
                f"the checkpoint holds a reward model {state['name']!r}, and `reward.model` asks for {self._name!r}"
            )
        with self._guard:
            self._trainer.load_state_dict(state["trainer"], self._store.texts)
            self._cursor = int(state["cursor"])
            self._version = int(state["version"])
            self.seconds = float(state["seconds"])

    def _publish(self, seconds: float) -> RewardModelVersion:
        parameters = save_tensors(self._trainer.model.state_dict())
        return RewardModelVersion(self._version, self._name, parameters, self._trainer.metrics(), seconds)

    def _pace(self, started: float, busy_s: float) -> None:
        """Sets the time of the next round after one that began at `started` and took `busy_s` of a processor."""
        now = self._clock()
        self.seconds += now - started
        self._due_at = max(now, started + max(self._settings.interval_s, busy_s / self._settings.max_share))
