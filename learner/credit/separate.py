"""A progress estimator of language-model episodes with a backbone of its own, whole or with adapters.

It reads the tokens of an episode as the policy did, and its gradient goes through all of the model that it reads them with. So it
is not bound to what the policy happens to keep of a turn, at the cost of a second model and of its training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learner.checkpoint import on_cpu
from learner.credit.attribution import Floats
from learner.credit.estimator import Estimator
from learner.credit.features import turn_features
from learner.credit.progress import ProgressHeads, episode_sums
from learner.credit.settings import CreditSettings
from learner.language.batch import EpisodeTokens, TokenBatch, TokenSequence, pack, unpack
from learner.language.model import LanguageModel, micro_batches, width_of


@dataclass(frozen=True, slots=True, eq=False)
class SpokenEpisode:
    """One finished episode, as the tokens of its turns."""

    tokens: EpisodeTokens
    outcome: float
    """R in [0, 1]."""
    version: int
    """Of the policy that was trained when it came."""

    @property
    def turns(self) -> int:
        """K."""
        return len(self.tokens.versions)

    @property
    def weight(self) -> float:
        """Every turn is kept."""
        return 1.0

    def state(self) -> dict[str, Any]:
        parts = [
            {"tokens": s.tokens.to(torch.int32), "action": s.action.clone(), "turn": s.turn.to(torch.int32)}
            for s in self.tokens.sequences
        ]
        return {"sequences": parts, "turns": self.turns, "outcome": self.outcome, "version": self.version}

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> "SpokenEpisode":
        """The inverse of `state`. What the estimator does not read (log-probabilities, versions of turns) is 0."""
        sequences = tuple(
            TokenSequence(
                tokens=part["tokens"].long(),
                action=part["action"],
                turn=part["turn"].long(),
                behaviour_log_prob=torch.zeros(len(part["tokens"])),
            )
            for part in state["sequences"]
        )
        tokens = EpisodeTokens(sequences, (0,) * int(state["turns"]), terminated=True)
        return SpokenEpisode(tokens, state["outcome"], state["version"])


class SeparateEstimator(Estimator[SpokenEpisode]):
    """Heads on the hidden states of a model of its own, which learns with them.

    There is one copy of the weights: what trains is what is used, and a version is what `publish` measured.
    """

    def __init__(
        self, settings: CreditSettings, backbone: LanguageModel, *, limit: int, seed: int, device: torch.device
    ) -> None:
        """limit: tokens of a pass. What of `backbone` is trained (all of it, or adapters) is trained here."""
        width = width_of(backbone.network)
        heads = ProgressHeads(
            width, hidden=settings.hidden, heads=settings.heads, constraint=settings.constraint, seed=seed
        )
        super().__init__(settings, heads, seed=seed, device=device)
        self.backbone = backbone
        self._limit = limit
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(self.heads.parameters()), "lr": settings.learning_rate},
                {"params": backbone.policy_parameters(), "lr": settings.backbone_learning_rate},
            ],
            weight_decay=0.0,
        )

    @torch.no_grad()
    def contributions(self, batch: TokenBatch) -> tuple[Floats, Floats]:
        """ĉ [K] of the batch's turns, guards applied; and the heads' deviation [K]."""
        if self.version == 0:
            return np.zeros(batch.turns), np.zeros(batch.turns)
        return self._guarded(self._read(batch))

    def _read(self, batch: TokenBatch) -> Tensor:
        """[M, K]"""
        return self.heads(turn_features(self.backbone.hidden, batch, self._limit).float())

    def _gradient(self, episodes: list[SpokenEpisode], mask: Tensor | None) -> float:
        """An episode may lie in several passes. So sums are read first, without gradient, and then each pass is read again with
        the derivative of the loss by its contributions: exactly the gradient of the whole batch, in the memory of one pass."""
        batch = self._pack(episodes)
        outcome = batch.tokens.new_tensor([each.outcome for each in episodes], dtype=torch.float32)
        with torch.no_grad():
            residual = self._episode_sums(batch, self._read(batch)) - outcome
        share = torch.ones_like(residual) if mask is None else mask
        share = share / share.sum().clamp(min=1.0)
        slope = 2.0 * residual * share
        for rows in micro_batches(batch.lengths.tolist(), self._limit):
            turn, contribution = self._of(batch, rows)
            (contribution * slope[:, batch.turn_episode[turn]]).sum().backward()  # pyright: ignore[reportUnknownMemberType]
        return float((residual.square() * share).sum())

    def _of(self, batch: TokenBatch, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Turns [k] that were played in these sequences, and their contributions [M, k]."""
        part = batch.take(torch.tensor(list(rows), device=batch.tokens.device))
        hidden = self.backbone.hidden(part)
        actions = batch.actions()
        ends = actions.last_of_turn[part.rows]
        return actions.turn[part.rows][ends], self.heads(hidden[part.predictor[ends] + 1].float())

    @staticmethod
    def _episode_sums(batch: TokenBatch, contribution: Tensor) -> Tensor:
        """[M, E]"""
        ones = contribution.new_ones(batch.turns)
        return episode_sums(contribution, ones, batch.turn_episode, batch.episodes)

    def _pack(self, episodes: Sequence[SpokenEpisode]) -> TokenBatch:
        return pack([each.tokens for each in episodes]).to(self.device)

    def _adopt(self) -> None:
        pass

    def _sums(self, episodes: list[SpokenEpisode]) -> Tensor:
        batch = self._pack(episodes)
        return self._episode_sums(batch, self._read(batch)).mean(0)

    def _mean(self, episodes: list[SpokenEpisode]) -> float:
        return float(self._read(self._pack(episodes)).mean())

    def _weights(self) -> dict[str, Any]:
        backbone = {name: p for name, p in self.backbone.network.named_parameters() if p.requires_grad}
        return {"heads": on_cpu(self.heads.state_dict()), "backbone": on_cpu(backbone)}

    def _load_weights(self, state: Mapping[str, Any]) -> None:
        self.heads.load_state_dict(state["heads"])
        with torch.no_grad():
            for name, parameter in self.backbone.network.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(state["backbone"][name])

    def _episode(self, state: Mapping[str, Any]) -> SpokenEpisode:
        return SpokenEpisode.from_state(state)


def spoken_episodes(batch: TokenBatch, outcome: Sequence[float], version: int) -> list[SpokenEpisode]:
    """The episodes of a batch for `SeparateEstimator.observe`; outcome [E] R of each, NaN where unknown."""
    return [
        SpokenEpisode(tokens, float(r), version)
        for tokens, r in zip(unpack(batch.to("cpu")), outcome, strict=True)
        if np.isfinite(r) and tokens.versions
    ]
