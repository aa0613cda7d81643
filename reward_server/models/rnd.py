"""Random network distillation on captions: novelty is what a predictor cannot guess of a random network's output.

Burda et al. 2018 (arXiv 1810.12894): a target network f is drawn at random and stays; a predictor g of the same shape with
two more layers is trained to match it on what the agent meets; the reward is e(c) = mean over features of (g(c) - f(c))^2, divided
by a running deviation of the discounted intrinsic returns (section 2.4). Only a share of what is met is trained on.

What is novel here is the caption, as bytes, which is where the judge's rewards fall too: so the two differ in what they reward and
not in where. (In the paper it is the next screen.) The paper whitens observations, lest the target's features say little about
them (section 2.4). Bytes cannot be whitened; the features themselves are, once, by the first captions that are met.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from envs.captions import EMPTY_CAPTION_ID
from reward_server.models.base import Evaluation, ExperiencedModel, RewardModelKind, RewardModelVersion
from reward_server.models.network import CAPTION_BYTES, CharacterMLP, by_length, encode_captions
from reward_server.settings import ModelSettings, RndSettings

FEATURES = 128
HIDDEN = (128, 128)
"""The predictor's layers beyond the target's."""
MIN_SCALE = 0.1
"""Least deviation that features are divided by: where the first captions hardly differ, or there is one only."""


class RndModel(ExperiencedModel):
    """Target, predictor, and the deviation of intrinsic returns so far. Deterministic for a seed."""

    name = "rnd"

    def __init__(self, settings: RndSettings, device: str = "cpu", seed: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):  # neither reads nor moves the global generator
            torch.manual_seed(seed)
            self.target = CharacterMLP((), FEATURES, dropout=0.0).to(device).eval()
            self.predictor = CharacterMLP(HIDDEN, FEATURES, dropout=0.0).to(device).eval()
            for network in (self.target, self.predictor):
                network.apply(_orthogonal)
        self.target.requires_grad_(False)
        self.centre_F = torch.zeros(FEATURES, device=device)
        self.scale = 0.0
        """Mean and deviation of the target's features over the first captions; a scale of 0: there were none yet."""
        self.device = torch.device(device)
        self._settings = settings
        self._optimiser = torch.optim.Adam(self.predictor.parameters(), lr=settings.learning_rate, fused=True)
        self._random = np.random.default_rng(seed)
        self.returns = RunningVariance()
        self._open: dict[str, NDArray[np.float64]] = {}
        """The discounted intrinsic return so far of each environment of each source."""

    def evaluate(self, captions: Sequence[str]) -> Evaluation:
        error = self.errors(captions)
        reward = error / self.returns.deviation
        return Evaluation(reward.astype(np.float32), (reward / (1.0 + reward)).astype(np.float32))

    def errors(self, captions: Sequence[str]) -> NDArray[np.float64]:
        """e(c) before it is normalised: [N]."""
        found = np.zeros(len(captions))
        with torch.inference_mode():
            for rows in by_length(captions):
                found[rows] = self._errors([captions[i] for i in rows]).cpu().numpy()
        return found

    def learn(self, source: str, ids: NDArray[np.int64], texts: Callable[[Sequence[int]], Sequence[str]]) -> None:
        """First the returns under the predictor as it is, then one step on a random share of the steps."""
        unique, inverse = np.unique(ids, return_inverse=True)
        said = unique != EMPTY_CAPTION_ID
        error = np.zeros(len(unique))
        captions = list(texts(unique[said].tolist()))
        if not captions:
            return
        if not self.scale:
            self._whiten(captions)
        error[said] = self.errors(captions)
        self._add_returns(source, error[inverse].reshape(ids.shape))
        drawn = self._random.random(ids.size) < self._settings.share
        visits = np.bincount(inverse.reshape(-1)[drawn], minlength=len(unique))[said]
        self._step([captions[i] for i in np.flatnonzero(visits).tolist()], visits[visits > 0])

    def _add_returns(self, source: str, error_TB: NDArray[np.float64]) -> None:
        running = self._open.get(source)
        if running is None or len(running) != error_TB.shape[1]:
            running = np.zeros(error_TB.shape[1])
        returns_TB = np.empty_like(error_TB)
        for t, error_B in enumerate(error_TB):
            running = running * self._settings.discount + error_B
            returns_TB[t] = running
        self._open[source] = running
        self.returns.add(returns_TB)

    def _step(self, captions: Sequence[str], visits: NDArray[np.integer]) -> None:
        """One gradient step on the mean error over visits."""
        if not captions:
            return
        weight = torch.tensor(visits / visits.sum(), dtype=torch.float32, device=self.device)
        loss = (self._errors(captions) * weight).sum()
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        self._optimiser.step()

    def _whiten(self, captions: Sequence[str]) -> None:
        with torch.no_grad():
            features_NF = torch.cat(
                [self.target(self._bytes([captions[i] for i in rows])) for rows in by_length(captions)]
            )
        self.centre_F = features_NF.mean(0)
        self.scale = max(float((features_NF - self.centre_F).square().mean().sqrt()), MIN_SCALE)

    def _errors(self, captions: Sequence[str]) -> Tensor:
        bytes_NL = self._bytes(captions)
        target_NF = (self.target(bytes_NL) - self.centre_F) / (self.scale or 1.0)
        return (self.predictor(bytes_NL) - target_NF).square().mean(1)

    def _bytes(self, captions: Sequence[str]) -> Tensor:
        return torch.tensor(encode_captions(captions, CAPTION_BYTES), device=self.device)

    def state_dict(self) -> dict[str, Tensor]:
        """Networks and normaliser: all that rewards depend on, and all that a version holds."""
        networks = {"target": self.target, "predictor": self.predictor}
        state = {
            f"{name}.{k}": v.detach().cpu().clone()
            for name, net in networks.items()
            for k, v in net.state_dict().items()
        }
        numbers = torch.tensor([*self.returns.state, self.scale], dtype=torch.float64)
        return {**state, "centre": self.centre_F.cpu().clone(), "numbers": numbers}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, network in (("target", self.target), ("predictor", self.predictor)):
            prefix = f"{name}."
            network.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        *running, self.scale = (float(x) for x in state["numbers"])
        self.returns.state = tuple(running)
        self.centre_F = state["centre"].to(self.device)

    def training_state(self) -> dict[str, Any]:
        return {
            "optimiser": copy.deepcopy(self._optimiser.state_dict()),
            "random": self._random.bit_generator.state,
            "open": {source: running.tolist() for source, running in self._open.items()},
        }

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        self._optimiser.load_state_dict(state["optimiser"])
        self._random.bit_generator.state = state["random"]
        self._open = {source: np.array(running) for source, running in state["open"].items()}


def _orthogonal(module: nn.Module) -> None:
    """The paper's initialisation. torch's own shrinks what a layer passes on, until captions hardly differ."""
    if isinstance(module, nn.Linear | nn.Conv1d):
        nn.init.orthogonal_(module.weight, 2.0**0.5)
        assert module.bias is not None
        nn.init.zeros_(module.bias)


class RunningVariance:
    """Mean and variance of all numbers so far (Chan et al. 1979), begun as in the paper's code: mean 0, variance 1."""

    def __init__(self) -> None:
        self.state: tuple[float, ...] = (0.0, 1.0, 1e-4)
        """Mean, variance, weight."""

    @property
    def deviation(self) -> float:
        return max(self.state[1] ** 0.5, 1e-8)

    def add(self, values: NDArray[np.floating]) -> None:
        mean, variance, count = self.state
        n = float(values.size)
        delta, total = float(values.mean()) - mean, count + n
        spread = variance * count + float(values.var()) * n + delta * delta * count * n / total
        self.state = (mean + delta * n / total, spread / total, total)


def _model(settings: ModelSettings, device: str) -> RndModel:
    return RndModel(settings.rnd, device, settings.seed)


def _fixed(settings: ModelSettings) -> RewardModelVersion:
    from safetensors.torch import save

    return RewardModelVersion(1, RndModel.name, save(_model(settings, "cpu").state_dict()), None, 0.0)


KIND = RewardModelKind(model=_model, fixed=_fixed)
