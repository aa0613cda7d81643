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
from learner.credit.features import read_turns, turn_features
from learner.credit.progress import ProgressHeads, episode_sums
from learner.credit.settings import CreditSettings
from learner.language.batch import EpisodeTokens, TokenBatch, TokenSequence, pack, unpack
from learner.language.model import LanguageModel, micro_batches, width_of


@dataclass(frozen=True, slots=True, eq=False)
class SpokenEpisode:
    """One finished episode, as the tokens of its turns, and no more of them than the estimator reads."""

    tokens: tuple[Tensor, ...]
    """[L] int32, of each sequence."""
    turn: tuple[Tensor, ...]
    """[L] int32, of each: the turn of an action token, −1 elsewhere."""
    turns: int
    """K."""
    outcome: float
    """R in [0, 1]."""
    version: int
    """Of the policy that was trained when it came."""

    @property
    def weight(self) -> float:
        """Every turn is kept."""
        return 1.0

    @staticmethod
    def of(episode: EpisodeTokens, outcome: float, version: int) -> "SpokenEpisode":
        """Copies what is read of an episode: its tensors may be views of a whole batch."""
        none = torch.tensor(-1, device=episode.sequences[0].turn.device)
        return SpokenEpisode(
            tuple(s.tokens.to("cpu", torch.int32, copy=True) for s in episode.sequences),
            tuple(torch.where(s.action, s.turn, none).to("cpu", torch.int32) for s in episode.sequences),
            len(episode.versions),
            outcome,
            version,
        )

    def episode(self) -> EpisodeTokens:
        """As `pack` takes it; log-probabilities and versions are 0, as nobody reads them."""
        sequences = tuple(
            TokenSequence(
                tokens=tokens.long(), action=turn >= 0, turn=turn.long(), behaviour_log_prob=torch.zeros(len(tokens))
            )
            for tokens, turn in zip(self.tokens, self.turn, strict=True)
        )
        return EpisodeTokens(sequences, (0,) * self.turns, terminated=True)

    def state(self) -> dict[str, Any]:
        return {
            "tokens": [each.clone() for each in self.tokens],
            "turn": [each.clone() for each in self.turn],
            "turns": self.turns,
            "outcome": self.outcome,
            "version": self.version,
        }

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> "SpokenEpisode":
        """The inverse of `state`."""
        return SpokenEpisode(
            tuple(state["tokens"]), tuple(state["turn"]), state["turns"], state["outcome"], state["version"]
        )


class SeparateEstimator(Estimator[SpokenEpisode]):
    """Heads on the hidden states of a model of its own, which learns with them.

    There is one copy of the weights: what trains is what is used, and a version is what `publish` measured, on so many of the
    episodes held out as a gradient step has.
    """

    rates = "credit.learning_rate or credit.backbone_learning_rate"

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
                {"params": self._trained(), "lr": settings.backbone_learning_rate},
            ],
            weight_decay=0.0,
            fused=True,
        )

    @torch.no_grad()
    def contributions(self, batch: TokenBatch) -> tuple[Floats, Floats]:
        """ĉ [K] of the batch's turns, guards applied; and the heads' deviation [K]."""
        if self.version == 0:
            return np.zeros(batch.turns), np.zeros(batch.turns)
        return self._guarded(self._read(batch))

    def _trained(self) -> list[torch.nn.Parameter]:
        return list(self._trained_by_name().values())

    def _trained_by_name(self) -> dict[str, torch.nn.Parameter]:
        """What of the backbone a gradient can reach: not a head that makes logits with weights of its own."""
        network = self.backbone.network
        head: Any = network.get_output_embeddings()
        tied = head is not None and head.weight is network.get_input_embeddings().weight
        apart = set[int]() if head is None or tied else {id(p) for p in head.parameters()}
        return {name: p for name, p in network.named_parameters() if p.requires_grad and id(p) not in apart}

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
            turn, hidden = read_turns(self.backbone.hidden, batch, rows)
            contribution = self.heads(hidden.float())
            (contribution * slope[:, batch.turn_episode[turn]]).sum().backward()  # pyright: ignore[reportUnknownMemberType]
        return float((residual.square() * share).sum())

    @staticmethod
    def _episode_sums(batch: TokenBatch, contribution: Tensor) -> Tensor:
        """[M, E]"""
        ones = contribution.new_ones(batch.turns)
        return episode_sums(contribution, ones, batch.turn_episode, batch.episodes)

    def _pack(self, episodes: Sequence[SpokenEpisode]) -> TokenBatch:
        return pack([each.episode() for each in episodes]).to(self.device)

    def _measured(self) -> list[SpokenEpisode]:
        held = self.held_out
        return held.sample(self.settings.batch_episodes, self._generator) if held.episodes else []

    def _adopt(self) -> None:
        pass

    def _sums(self, episodes: list[SpokenEpisode]) -> Tensor:
        batch = self._pack(episodes)
        return self._episode_sums(batch, self._read(batch)).mean(0)

    def _mean(self, episodes: list[SpokenEpisode]) -> float:
        return float(self._read(self._pack(episodes)).mean())

    def _weights(self) -> dict[str, Any]:
        return {"heads": on_cpu(self.heads.state_dict()), "backbone": on_cpu(self._trained_by_name())}

    def _load_weights(self, state: Mapping[str, Any]) -> None:
        self.heads.load_state_dict(state["heads"])
        with torch.no_grad():
            for name, parameter in self._trained_by_name().items():
                parameter.copy_(state["backbone"][name])

    def _episode(self, state: Mapping[str, Any]) -> SpokenEpisode:
        return SpokenEpisode.from_state(state)


def spoken_episodes(batch: TokenBatch, outcome: Sequence[float], version: int) -> list[SpokenEpisode]:
    """The episodes of a batch for `SeparateEstimator.observe`; outcome [E] R of each, NaN where unknown."""
    return [
        SpokenEpisode.of(tokens, float(r), version)
        for tokens, r in zip(unpack(batch), outcome, strict=True)
        if np.isfinite(r) and tokens.versions
    ]
