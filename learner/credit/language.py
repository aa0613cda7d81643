"""Credit for language-model agents: the same methods and estimator, on packed turns.

The estimator's features are the hidden states at each turn's last action token: what the model made of all that came, the
turn's own words included. **Shared**: they come out of the policy's forward pass, no gradient goes back, and
`ProgressEstimator` learns from them as it does for recurrent agents. **Separate**: `SeparateEstimator` trains a backbone of
its own, whole or with adapters. Letters of shapes as in `learner.language.batch`, H the hidden size.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from learner.credit.attribution import Attribution, CreditRule, Floats, Turns, whole
from learner.credit.estimator import ProgressEstimator
from learner.credit.progress import ProgressHeads, episode_sums
from learner.credit.registry import build_credit
from learner.credit.replay import EpisodeFeatures
from learner.credit.settings import CreditSettings
from learner.credit.stages import Stage
from learner.language.advantages import token_rewards, whiten
from learner.language.batch import MicroBatch, TokenBatch
from learner.language.losses import fresh
from learner.language.model import micro_batches
from learner.language.objective import Objective, Rollouts
from learner.settings import RewardSettings


class Backbone(Protocol):
    """Reads whole sequences: the last hidden states [n, H] of a micro-batch's tokens [n]."""

    def __call__(self, batch: MicroBatch) -> Tensor: ...


def turn_features(read: Backbone, batch: TokenBatch, limit: int) -> Tensor:
    """[K, H]: the hidden states at the last action token of each turn, read in passes of at most `limit` tokens."""
    actions = batch.actions()
    found: dict[int, Tensor] = {}
    for rows in micro_batches(batch.lengths.tolist(), limit):
        part = batch.take(torch.tensor(rows, device=batch.tokens.device))
        ends = actions.last_of_turn[part.rows]
        hidden = read(part)[part.predictor[ends] + 1]
        found.update(zip(actions.turn[part.rows][ends].tolist(), hidden, strict=True))
    return torch.stack([found[turn] for turn in range(batch.turns)])


def episodes_of(
    features: Tensor, batch: TokenBatch, outcome: Sequence[float], version: int
) -> list[EpisodeFeatures]:  # fmt: skip
    """The episodes of a batch for `ProgressEstimator.observe`; features [K, H], outcome [E] R of each, NaN where unknown."""
    rows = batch.turn_episode.tolist()
    kept = features.detach().to("cpu", torch.float16)
    return [
        EpisodeFeatures(kept[[k for k, row in enumerate(rows) if row == e]], 1.0, float(r), version)
        for e, r in enumerate(outcome)
        if np.isfinite(r) and e in rows
    ]


def turns_of(
    batch: TokenBatch,
    *,
    extrinsic: Floats,
    intrinsic: Floats,
    grounded: NDArray[np.bool_],
    progress: Floats | None = None,
    outcome: Floats | None = None,
) -> Turns:
    """The turns of a batch for a `CreditMethod`: all arguments [K] but outcome [E]; rewards weighted as they are fused.

    What the method pays, `Attribution.total`, is `Rollouts.reward`: the objectives put it on each turn's last action token.
    Raises ValueError for an episode without a turn.
    """
    lengths = torch.bincount(batch.turn_episode, minlength=batch.episodes).cpu().numpy()
    return whole(
        lengths=lengths,
        extrinsic=extrinsic,
        intrinsic=intrinsic,
        progress=progress,
        grounded=grounded,
        terminated=batch.terminated.cpu().numpy(),
        outcome=outcome,
        group=batch.group.cpu().numpy(),
    )


def component_advantage(objective: Objective, rollouts: Rollouts, parts: Tensor, weights: Tensor) -> Tensor:
    """[M]: Σ_c w_c · (advantage of component c, whitened); parts [C, K] rewards of turns, weights [C].

    `separate_advantage` for language models: the objective's own rule on each component. Put it in place of
    `Targets.advantage`; the KL is then to be in the loss. Raises ValueError for an objective with one critic for the sum.
    """
    if objective.needs_value:
        raise ValueError(
            f"{type(objective).__name__} has one critic for all components; take rloo, grpo or reinforce++"
        )
    actions = rollouts.batch.actions()
    lag = rollouts.version - rollouts.batch.version[actions.turn]
    keep = fresh(lag, objective.policy_settings.max_lag)
    advantages = [
        whiten(objective.credit(rollouts, actions, token_rewards(part, actions), keep).advantage, keep)
        for part in parts
    ]
    return (weights[:, None] * torch.stack(advantages)).sum(0)


class LanguageCredit:
    """Credit while a language model learns: a method, and an estimator on the policy's own hidden states (shared backbone).

    The counterpart of `learner.credit.online.OnlineCredit`; episodes are whole here, so it keeps none in the making.
    """

    def __init__(
        self,
        settings: CreditSettings,
        reward: RewardSettings,
        *,
        discount: float,
        bootstraps: bool,
        width: int,
        seed: int,
        device: torch.device,
    ) -> None:
        """width: H of the model. discount, bootstraps: γ of the objective, and whether it counts the value of the state in which
        an episode was cut (it has a critic), for `potential`: what has none takes a cut for the end."""
        self.settings = settings
        self.bootstraps = bootstraps
        self.method = build_credit(
            settings.method, CreditRule(reward.w_prog, reward.w_ground, discount, settings.conserve)
        )
        if self.method.is_advantage:
            raise ValueError(
                f"credit.method={settings.method} gives advantages, which learner.algorithm=rloo makes itself"
            )
        self.estimator: ProgressEstimator | None = None
        if self.method.needs_progress and reward.w_prog != 0.0:
            self.estimator = ProgressEstimator(settings, width, seed=seed, device=device)
        weights = (reward.w_ext, reward.w_int, reward.w_prog, reward.w_ground)
        self.weights = torch.tensor([abs(w) for w in weights], device=device)
        """[4], of the components' advantages where each has its own."""
        self._uncertainty = 0.0
        """Mean deviation among the heads, of the newest batch."""
        self._stage = Stage(settings, self.estimator)

    @property
    def exploring(self) -> bool:
        """Staged: the policy does not learn yet."""
        return self._stage.exploring

    def attribute(
        self,
        batch: TokenBatch,
        *,
        extrinsic: Floats,
        intrinsic: Floats,
        grounded: NDArray[np.bool_],
        outcome: Floats,
        features: Tensor | None,
        version: int,
    ) -> Attribution:
        """What each turn is paid; the episodes go to the estimator. features [K, H] are wanted where there is one."""
        progress: Floats | None = None
        if self.estimator is not None:
            assert features is not None  # the learner reads them where there is an estimator
            progress, deviation = self.estimator.contributions(features.float())
            self._uncertainty = float(deviation.mean())
        if not self.bootstraps:
            batch = dataclasses.replace(batch, terminated=torch.ones_like(batch.terminated))
        turns = turns_of(
            batch, extrinsic=extrinsic, intrinsic=intrinsic, grounded=grounded, progress=progress, outcome=outcome
        )
        if self.estimator is not None and features is not None:
            for episode in episodes_of(features, batch, outcome.tolist(), version):
                self.estimator.observe(episode)
        return self.method.attribute(turns)

    def learn(self) -> None:
        """The estimator's part of an update of the policy."""
        self._stage.learn()

    def explored(self, turns: int) -> None:
        """Counts exploration; fits the estimator when there is enough of it, and ends that stage."""
        self._stage.explored(turns)

    def metrics(self) -> dict[str, float]:
        """How it stands: `progress/…`."""
        if self.estimator is None:
            return {}
        return {
            **self.estimator.metrics(),
            **self._stage.metrics(),
            "progress/uncertainty": self._uncertainty,
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "estimator": None if self.estimator is None else self.estimator.state_dict(),
            "stage": self._stage.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken."""
        if self.estimator is not None and state["estimator"] is not None:
            self.estimator.load_state_dict(state["estimator"])
        self._stage.load_state_dict(state["stage"])


class SeparateEstimator(nn.Module):
    """A backbone of the estimator's own with its heads. What of `backbone` requires a gradient is trained: all of it, or
    adapters."""

    def __init__(self, backbone: nn.Module, read: Backbone, heads: ProgressHeads, *, learning_rate: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = heads
        self._read = read
        trained = [p for p in self.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)

    def contributions(self, batch: TokenBatch, sequences: Sequence[Sequence[int]]) -> Tensor:
        """ĉ [M, K] of a batch, read in micro-batches of these rows of sequences; each sequence once."""
        found = torch.zeros(self.heads.heads, batch.turns, device=batch.tokens.device)
        with torch.no_grad():
            for rows in sequences:
                turn, contribution = self._of(batch, rows)
                found[:, turn] = contribution
        return found

    def step(self, batch: TokenBatch, outcome: Tensor, sequences: Sequence[Sequence[int]]) -> float:
        """One optimisation step on (Σ ĉ − R)²; outcome [E] in [0, 1]. Returns the loss before it.

        An episode may lie in several micro-batches. So sums are read first, without gradient, and then each micro-batch is
        read again with the derivative 2 (Σ ĉ − R) / (M E) of its contributions: exactly the gradient of the whole batch, in
        the memory of one part.
        """
        actions = batch.actions()
        found = self.contributions(batch, sequences)
        ones = torch.ones(batch.turns, device=found.device)
        residual = episode_sums(found, ones, batch.turn_episode, actions.episodes) - outcome
        slope = 2.0 * residual / residual.numel()
        self._optimizer.zero_grad(set_to_none=True)
        for rows in sequences:
            turn, contribution = self._of(batch, rows)
            (contribution * slope[:, batch.turn_episode[turn]]).sum().backward()  # pyright: ignore[reportUnknownMemberType]
        self._optimizer.step()
        return float(residual.square().mean())

    def _of(self, batch: TokenBatch, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Turns [k] of these sequences, and their contributions [M, k]."""
        part = batch.take(torch.tensor(list(rows), device=batch.tokens.device))
        hidden = self._read(part)
        actions = batch.actions()
        ends = actions.last_of_turn[part.rows]
        return actions.turn[part.rows][ends], self.heads(hidden[part.predictor[ends] + 1])


def decoder_reader(network: nn.Module) -> Backbone:
    """Reads with the decoder of a Hugging Face causal model, one sequence after the other."""
    model: Any = network

    def read(batch: MicroBatch) -> Tensor:
        parts = batch.tokens.split(batch.offsets.diff().tolist())
        return torch.cat([model.get_decoder()(input_ids=part[None]).last_hidden_state[0] for part in parts])

    return read
