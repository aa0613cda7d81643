"""The progress estimator as it goes on learning: heads that train, and the version of them that is used."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learner.credit.attribution import Floats
from learner.credit.calibration import NO_CALIBRATION, Calibration, calibrate
from learner.credit.guards import certainty, squash
from learner.credit.progress import ProgressHeads, ensemble, episode_sums, progress_loss
from learner.credit.replay import EpisodeFeatures, EpisodeReplay, join
from learner.credit.settings import CreditSettings

_MAX_GRAD_NORM = 10.0


class ProgressEstimator:
    """Learns from episodes of features [L, F]; published by version, as the reward model is. Version 0 says 0 of every turn.

    Everything drawn (episodes, which are held out, which head sees which) comes from a generator of its own.
    """

    def __init__(self, settings: CreditSettings, features: int, *, seed: int, device: torch.device) -> None:
        self.settings = settings
        self.device = device
        self.version = 0
        self.calibration: Calibration = NO_CALIBRATION
        self.loss = float("nan")
        """Of the last gradient step."""
        self.reference = 0.0
        """Mean contribution of the version that is used: what `squash` centres by."""
        self._generator = torch.Generator().manual_seed(seed)
        self._training = ProgressHeads(
            features, hidden=settings.hidden, heads=settings.heads, constraint=settings.constraint, seed=seed
        ).to(device)
        self._used = copy.deepcopy(self._training).requires_grad_(False)
        self._optimizer = torch.optim.Adam(self._training.parameters(), lr=settings.learning_rate)
        self._steps = 0
        keep = {"min_episodes": settings.min_episodes, "max_age": settings.max_age}
        self.replay = EpisodeReplay(settings.replay_turns, **keep)
        self.held_out = EpisodeReplay(max(int(settings.replay_turns * settings.holdout), 2), **keep)

    def observe(self, episode: EpisodeFeatures) -> None:
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
            self._training.set_scale(self.replay.mean_turns())
        batch = join(self.replay.sample(self.settings.batch_episodes, self._generator), self.device)
        sums = episode_sums(self._training(batch.features), batch.weight, batch.episode, batch.episodes)
        loss = progress_loss(sums, batch.outcome, self._mask(batch.episodes))
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        torch.nn.utils.clip_grad_norm_(self._training.parameters(), _MAX_GRAD_NORM)
        self.loss = loss.item()
        if not np.isfinite(self.loss):
            raise FloatingPointError(
                f"the progress estimator's loss is not finite after {self._steps} steps; lower credit.learning_rate"
            )
        self._optimizer.step()
        self._steps += 1

    def _mask(self, episodes: int) -> Tensor | None:
        """[M, E]: each head of an ensemble learns from every other episode, of its own choice."""
        heads = self.settings.heads
        if heads == 1:
            return None
        return (torch.rand(heads, episodes, generator=self._generator) < 0.5).float().to(self.device)

    @torch.no_grad()
    def publish(self) -> None:
        """Makes the heads as they are the version that is used, and measures it on the episodes held out."""
        self._used.load_state_dict(self._training.state_dict())
        self.version += 1
        held = self.held_out.episodes
        if held:
            sums, outcome = self._sums(held)
            self.calibration = calibrate(sums, outcome)
        if self.settings.squash is not None:
            recent = join(self.replay.sample(self.settings.batch_episodes, self._generator), self.device)
            self.reference = float((self._used(recent.features).mean(0) * recent.weight).sum() / recent.weight.sum())

    def _sums(self, episodes: list[EpisodeFeatures]) -> tuple[Floats, Floats]:
        batch = join(episodes, self.device)
        sums = episode_sums(self._used(batch.features), batch.weight, batch.episode, batch.episodes).mean(0)
        return sums.double().cpu().numpy(), batch.outcome.double().cpu().numpy()

    @torch.no_grad()
    def contributions(self, features: Tensor) -> tuple[Floats, Floats]:
        """ĉ [K] of features [K, F] under the newest version, guards applied; and the heads' deviation [K]."""
        if self.version == 0:
            return np.zeros(len(features)), np.zeros(len(features))
        mean, deviation = (x.double().cpu().numpy() for x in ensemble(self._used(features)))
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
            "training": {k: v.detach().cpu().clone() for k, v in self._training.state_dict().items()},
            "used": {k: v.detach().cpu().clone() for k, v in self._used.state_dict().items()},
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
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
        self._training.load_state_dict(state["training"])
        self._used.load_state_dict(state["used"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"])
        self.version, self._steps = state["version"], state["steps"]
        self.loss, self.reference = state["loss"], state["reference"]
        episodes, *rest = state["calibration"]
        self.calibration = Calibration(int(episodes), *rest)
        self.replay.load_state_dict(state["replay"])
        self.held_out.load_state_dict(state["held_out"])
