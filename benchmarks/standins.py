"""Stand-ins for the worker classes of `orchestration.ray_workers` that play and learn nothing: what is left is the runtime.

They load neither torch nor an environment, so hundreds of them fit on one machine. Their answers are made into the real
`RolloutReport` and `FeedResult` where they arrive, in the coordinator, which has these classes loaded anyway.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from orchestration.config import Config

if TYPE_CHECKING:
    from agents.report import RolloutReport
    from orchestration.results import FeedResult

Blob = NDArray[np.uint8]
_EPISODES = 4
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class Load:
    """What a stand-in pretends to do; it travels in `Config.env.options`."""

    rollout_s: float
    """Seconds, asleep, that a rollout call takes."""
    trajectory_bytes: int
    """Above Ray's limit for answers that travel in the message itself (100 kB), as those of real trajectories are."""
    weights_bytes: int


@dataclass(frozen=True, slots=True)
class _Answer:
    """Becomes `make(*arguments)` where it is unpickled."""

    make: Callable[..., Any]
    arguments: tuple[Any, ...]

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.make, self.arguments


class IdleRolloutWorker:
    """Has the interface of `RolloutWorker`; a call sleeps and brings zeros."""

    def __init__(self, config: Config, rundir: Path, index: int, incarnation: int) -> None:
        self._load = Load(**config.env.options)
        self._name = f"actor-{index:02d}"
        self._steps = config.actors.envs * config.actors.rollout_length
        self._calls = 0
        # The first call is as much shorter as spreads the actors over the time of one call: real ones do not march in step.
        self._phase = index * _GOLDEN % 1.0
        self._idle_since = time.perf_counter()

    def collect(
        self, weights: Mapping[str, Blob], version: int, reward_model_version: int | None
    ) -> tuple[Blob, tuple[_Answer, float]]:
        """A trajectory's worth of bytes; the report of it, and the seconds this worker waited for the call."""
        waited = time.perf_counter() - self._idle_since
        if self._load.rollout_s:
            time.sleep(self._load.rollout_s * (1.0 if self._calls else self._phase))
        trajectory = np.zeros(self._load.trajectory_bytes, np.uint8)
        report = _Answer(_report, (self._name, version, self._steps, self._calls, trajectory.nbytes))
        self._calls += 1
        self._idle_since = time.perf_counter()
        return trajectory, (report, waited)

    def close(self) -> None:
        """Nothing to close."""


class IdleLearnerWorker:
    """Has the interface of `LearnerWorker` but for checkpoints; every trajectory brings a new version of the weights."""

    UPDATE_S = 0.0
    """Seconds, asleep, that it takes over each."""

    def __init__(self, config: Config, rundir: Path, state: Mapping[str, Any] | None) -> None:
        self._weights = {"weights": np.zeros(Load(**config.env.options).weights_bytes, np.uint8)}
        self._samples = config.learner.batch_size
        self._version = 0
        self._idle_since = time.perf_counter()

    def beat(self) -> None:
        """A sign of life."""

    def begin(self) -> tuple[int, Mapping[str, Blob]]:
        """Version and weights to begin with."""
        return self._version, self._weights

    def feed(
        self, source: str, trajectory: Blob, captions: Sequence[tuple[int, str]], episodes: Sequence[Any] = ()
    ) -> tuple[_Answer, Mapping[str, Blob]]:
        """One update that changes nothing, and its weights."""
        waited = time.perf_counter() - self._idle_since
        time.sleep(self.UPDATE_S)
        self._version += 1
        self._idle_since = time.perf_counter()
        return _Answer(_feed_result, (self._version, self._samples, waited)), self._weights


class BusyLearnerWorker(IdleLearnerWorker):
    """Takes longer over a trajectory than an actor."""

    UPDATE_S = 0.4


def _report(source: str, version: int, steps: int, call: int, trajectory_bytes: int) -> "RolloutReport":
    from agents.report import FinishedEpisode, RolloutReport
    from envs.vector import EpisodeEnd

    episodes = tuple(
        FinishedEpisode(
            t=index,
            end=EpisodeEnd(
                env_index=index,
                episode_index=call,
                seeds={"core": "0", "disp": "0"},
                episode_return=0.0,
                length=100,
                success=False,
                metrics={},
                terminated=True,
            ),
        )
        for index in range(_EPISODES)
    )
    return RolloutReport(
        source=source,
        policy_version=version,
        steps=steps,
        new_captions=(),
        episodes=episodes,
        failures=(),
        trajectory_bytes=trajectory_bytes,
        env_s=0.0,
        inference_s=0.0,
        other_s=0.0,
    )


def _feed_result(version: int, samples: int, waited_s: float) -> "FeedResult":
    from learner.update import Update
    from orchestration.results import FeedResult

    metrics: dict[str, float] = dict.fromkeys(("loss/policy", "loss/value", "loss/entropy", "grad_norm"), 0.0)
    update = Update(version, samples, metrics, lag_mean=0.0, lag_max=0, reward_s=0.0, train_s=0.0)
    return FeedResult(
        updates=(update,),
        intrinsic_returns={(index, index): 0.0 for index in range(_EPISODES)},
        policy_version=version,
        reward_model_version=0,
        samples_dropped=0,
        liked=(),
        disliked=(),
        scores={},
        reward_s=0.0,
        waited_s=waited_s,
    )
