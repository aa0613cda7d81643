"""Credit for language-model agents: the same methods and estimator, on packed turns.

The estimator's features are the hidden states at each turn's last action token: what the model made of all that came, the
turn's own words included. **Shared** (`credit.backbone`): they come out of the policy's forward pass, no gradient goes back, and
`ProgressEstimator` learns from them as it does for recurrent agents. **Full** or **lora**: `SeparateEstimator` trains a model of
its own, whole or with adapters. Letters of shapes as in `learner.language.batch`, H the hidden size.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.credit.attribution import Attribution, CreditRule, Floats, Turns, whole
from learner.credit.estimator import ProgressEstimator
from learner.credit.features import Reader, turn_features
from learner.credit.registry import build_credit
from learner.credit.replay import EpisodeFeatures
from learner.credit.separate import SeparateEstimator, spoken_episodes
from learner.credit.settings import CreditSettings
from learner.credit.stages import Stage
from learner.language.advantages import token_rewards, whiten
from learner.language.batch import TokenBatch
from learner.language.losses import fresh
from learner.language.model import LanguageModel
from learner.language.objective import Objective, Rollouts
from learner.settings import RewardSettings


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
    """Credit while a language model learns: a method, and an estimator on the policy's own hidden states or on a model of its own.

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
        limit: int,
        seed: int,
        device: torch.device,
        backbone: LanguageModel | None = None,
    ) -> None:
        """width: H of the policy. limit: tokens of a pass. backbone: the estimator's own model; None: it shares the policy's.
        discount, bootstraps: γ of the objective, and whether it counts the value of the state in which an episode was cut (it
        has a critic), for `potential`: what has none takes a cut for the end."""
        self.settings = settings
        self.bootstraps = bootstraps
        self.method = build_credit(
            settings.method, CreditRule(reward.w_prog, reward.w_ground, discount, settings.conserve)
        )
        if self.method.is_advantage:
            raise ValueError(
                f"credit.method={settings.method} gives advantages, which learner.algorithm=rloo makes itself"
            )
        self._limit = limit
        self.estimator: ProgressEstimator | SeparateEstimator | None = None
        if self.method.needs_progress and reward.w_prog != 0.0:
            self.estimator = (
                ProgressEstimator(settings, width, seed=seed, device=device)
                if backbone is None
                else SeparateEstimator(settings, backbone, limit=limit, seed=seed, device=device)
            )
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
        policy: Reader,
        version: int,
    ) -> Attribution:
        """What each turn is paid; the episodes go to the estimator. outcome [E]: R, read where there is one."""
        progress: Floats | None = None
        if self.estimator is not None:
            progress, deviation = self._read(batch, policy, outcome, version)
            self._uncertainty = float(deviation.mean())
        if not self.bootstraps:
            batch = dataclasses.replace(batch, terminated=torch.ones_like(batch.terminated))
        turns = turns_of(
            batch, extrinsic=extrinsic, intrinsic=intrinsic, grounded=grounded, progress=progress, outcome=outcome
        )
        return self.method.attribute(turns)

    def contributions(self, batch: TokenBatch, policy: Reader) -> tuple[Floats, Floats]:
        """ĉ and the heads' deviation [K] of the batch's turns; 0 without an estimator."""
        return self._read(batch, policy, None)

    @torch.no_grad()
    def _read(
        self, batch: TokenBatch, policy: Reader, outcome: Floats | None, version: int = 0
    ) -> tuple[Floats, Floats]:
        """`contributions`; with `outcome` [E] the estimator learns from the episodes later."""
        estimator = self.estimator
        if estimator is None:
            return np.zeros(batch.turns), np.zeros(batch.turns)
        known = None if outcome is None else outcome.tolist()
        if isinstance(estimator, SeparateEstimator):
            found = estimator.contributions(batch)
            for spoken in [] if known is None else spoken_episodes(batch, known, version):
                estimator.observe(spoken)
            return found
        features = turn_features(policy, batch, self._limit)
        found = estimator.contributions(features.float())
        for episode in [] if known is None else episodes_of(features, batch, known, version):
            estimator.observe(episode)
        return found

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
