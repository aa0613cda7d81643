"""The progress estimator as it goes on learning: what trains, and the version of it that is used."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Generic

import numpy as np
import torch
from torch import Tensor

from learner.checkpoint import on_cpu
from learner.credit.attribution import Floats
from learner.credit.calibration import NO_CALIBRATION, Calibration, calibrate
from learner.credit.guards import certainty, squash
from learner.credit.progress import ProgressHeads, ensemble, episode_sums, progress_loss
from learner.credit.replay import E, EpisodeFeatures, EpisodeReplay, FeatureBatch, join
from learner.credit.settings import CreditSettings

_MAX_GRAD_NORM = 10.0


class Estimator(ABC, Generic[E]):
    """Learns from episodes in one form or another; published by version, as the reward model is. Version 0 says 0 of every turn.

    Everything drawn (episodes, which are held out, which head sees which) comes from a generator of its own. What reads
    episodes and takes gradient steps on them is a subclass's.
    """

    optimizer: torch.optim.Optimizer
    rates: ClassVar[str] = "credit.learning_rate"
    """Keys to lower where it diverges."""

    def __init__(self, settings: CreditSettings, heads: ProgressHeads, *, seed: int, device: torch.device) -> None:
        self.settings = settings
        self.device = device
        self.version = 0
        self.calibration: Calibration = NO_CALIBRATION
        self.loss = float("nan")
        """Of the last gradient step."""
        self.reference = 0.0
        """Mean contribution of the version that is used: what `squash` centres by."""
        self.heads = heads.to(device)
        """Those that train."""
        self._generator = torch.Generator().manual_seed(seed)
        self._steps = 0
        keep = {"min_episodes": settings.min_episodes, "max_age": settings.max_age}
        self.replay: EpisodeReplay[E] = EpisodeReplay(settings.replay_turns, **keep)
        self.held_out: EpisodeReplay[E] = EpisodeReplay(max(int(settings.replay_turns * settings.holdout), 2), **keep)

    def observe(self, episode: E) -> None:
        """Takes a finished episode, to learn from or to hold out."""
        drawn = float(torch.rand((), generator=self._generator))
        (self.held_out if drawn < self.settings.holdout else self.replay).add(episode)

    @property
    def ready(self) -> bool:
        """Whether there is enough to learn from."""
        return self.replay.ready

    def learn(self, steps: int) -> None:
        """So many gradient steps, and a new version after every `publish_every` of them. Nothing before it is `ready`."""
        for _ in range(steps if self.ready else 0):
            self._step()
            if self._steps % self.settings.publish_every == 0:
                self.publish()

    def _step(self) -> None:
        if self._steps == 0:
            self.heads.set_scale(self.replay.mean_turns())
        episodes = self.replay.sample(self.settings.batch_episodes, self._generator)
        self.loss = self._gradient(episodes, self._mask(len(episodes)))
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(trained, _MAX_GRAD_NORM)
        if not np.isfinite(self.loss) or not bool(norm.isfinite()):
            raise FloatingPointError(
                f"the progress estimator's loss is not finite after {self._steps} steps (loss {self.loss}, gradient norm "
                f"{norm.item()}); lower {self.rates}"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)  # no memory while the policy trains
        self._steps += 1

    def _mask(self, episodes: int) -> Tensor | None:
        """[M, E]: each head of an ensemble learns from every other episode, of its own choice."""
        heads = self.settings.heads
        if heads == 1:
            return None
        return (torch.rand(heads, episodes, generator=self._generator) < 0.5).float().to(self.device)

    @torch.no_grad()
    def publish(self) -> None:
        """Makes what trains the version that is used, and measures it on the episodes held out."""
        self._adopt()
        self.version += 1
        if held := self._measured():
            sums = self._sums(held).double().cpu().numpy()
            self.calibration = calibrate(sums, np.array([each.outcome for each in held], np.float64))
        if self.settings.squash is not None:
            self.reference = self._mean(self.replay.sample(self.settings.batch_episodes, self._generator))

    def _measured(self) -> list[E]:
        """Episodes held out that a version is measured on."""
        return self.held_out.episodes

    def _guarded(self, contribution: Tensor) -> tuple[Floats, Floats]:
        """ĉ [K] of what the heads say [M, K], guards applied; and the heads' deviation [K]. 0 before the first version."""
        mean, deviation = (x.double().cpu().numpy() for x in ensemble(contribution))
        if self.version == 0:
            return np.zeros_like(mean), np.zeros_like(deviation)
        if self.settings.squash is not None:
            mean = squash(mean, self.reference, self.settings.squash)
        if self.settings.uncertainty is not None:
            mean = mean * certainty(deviation, self.settings.uncertainty)
        return mean, deviation

    def metrics(self) -> dict[str, float]:
        """How it stands."""
        lost, won = self.replay.counts
        return {
            "progress/version": float(self.version),
            "progress/loss": self.loss,
            "progress/episodes_low": float(lost),
            "progress/episodes_high": float(won),
            **self.calibration.metrics(),
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            **self._weights(),
            "optimizer": on_cpu(self.optimizer.state_dict()),
            "generator": self._generator.get_state(),
            "version": self.version,
            "steps": self._steps,
            "loss": self.loss,
            "reference": self.reference,
            "calibration": [float(x) for x in self.calibration.metrics().values()],
            "replay": self.replay.state_dict(),
            "held_out": self.held_out.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken."""
        self._load_weights(state)
        self.optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"])
        self.version, self._steps = state["version"], state["steps"]
        self.loss, self.reference = state["loss"], state["reference"]
        episodes, *rest = state["calibration"]
        self.calibration = Calibration(int(episodes), *rest)
        self.replay.load_state_dict(state["replay"], self._episode)
        self.held_out.load_state_dict(state["held_out"], self._episode)

    # What a subclass knows.

    @abstractmethod
    def _gradient(self, episodes: list[E], mask: Tensor | None) -> float:
        """Adds the gradient of `progress_loss` on these episodes to what trains; the loss."""

    @abstractmethod
    def _adopt(self) -> None:
        """Makes what trains what is used."""

    @abstractmethod
    def _sums(self, episodes: list[E]) -> Tensor:
        """[E]: Σ ĉ of each, the mean over the heads that are used."""

    @abstractmethod
    def _mean(self, episodes: list[E]) -> float:
        """Mean ĉ of a turn of these episodes, by the heads that are used."""

    @abstractmethod
    def _weights(self) -> dict[str, Any]:
        """What trains, and what is used, copied to the CPU."""

    @abstractmethod
    def _load_weights(self, state: Mapping[str, Any]) -> None:
        """Takes what `_weights` gave."""

    @abstractmethod
    def _episode(self, state: Mapping[str, Any]) -> E:
        """The episode whose `state` this is."""


class ProgressEstimator(Estimator[EpisodeFeatures]):
    """Heads on features [L, F] that another network gives, to which no gradient goes back."""

    def __init__(self, settings: CreditSettings, features: int, *, seed: int, device: torch.device) -> None:
        heads = ProgressHeads(
            features, hidden=settings.hidden, heads=settings.heads, constraint=settings.constraint, seed=seed
        )
        super().__init__(settings, heads, seed=seed, device=device)
        self._used = copy.deepcopy(self.heads).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.heads.parameters(), lr=settings.learning_rate)

    @torch.no_grad()
    def contributions(self, features: Tensor) -> tuple[Floats, Floats]:
        """ĉ [K] of features [K, F] under the newest version, guards applied; and the heads' deviation [K]."""
        if self.version == 0:
            return np.zeros(len(features)), np.zeros(len(features))
        return self._guarded(self._used(features))

    def _gradient(self, episodes: list[EpisodeFeatures], mask: Tensor | None) -> float:
        batch = join(episodes, self.device)
        loss = progress_loss(_sums(self.heads, batch), batch.outcome, mask)
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        return loss.item()

    def _adopt(self) -> None:
        self._used.load_state_dict(self.heads.state_dict())

    def _sums(self, episodes: list[EpisodeFeatures]) -> Tensor:
        return _sums(self._used, join(episodes, self.device)).mean(0)

    def _mean(self, episodes: list[EpisodeFeatures]) -> float:
        batch = join(episodes, self.device)
        return float((self._used(batch.features).mean(0) * batch.weight).sum() / batch.weight.sum())

    def _weights(self) -> dict[str, Any]:
        return {"training": on_cpu(self.heads.state_dict()), "used": on_cpu(self._used.state_dict())}

    def _load_weights(self, state: Mapping[str, Any]) -> None:
        self.heads.load_state_dict(state["training"])
        self._used.load_state_dict(state["used"])

    def _episode(self, state: Mapping[str, Any]) -> EpisodeFeatures:
        return EpisodeFeatures.from_state(state)


def _sums(heads: ProgressHeads, batch: FeatureBatch) -> Tensor:
    """[M, E]"""
    return episode_sums(heads(batch.features), batch.weight, batch.episode, batch.episodes)
