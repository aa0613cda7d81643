"""What an update saw and did, as numbers for metrics."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from agents.language.episode import LanguageEpisode
from learner.language.batch import TokenBatch
from learner.language.episodes import TurnRewards
from learner.language.metrics import policy_metrics
from learner.language.model import ActionScores
from learner.language.objective import LanguageLoss, Objective, Targets


class Trained:
    """What the steps of an update saw, put together."""

    def __init__(self, actions: int, device: torch.device) -> None:
        self.norms: list[float] = []
        self._log_prob = torch.zeros(actions, device=device)
        self._proximal = torch.zeros(actions, device=device)
        self._importance = torch.ones(actions, device=device)
        self._read = torch.zeros(actions, dtype=torch.bool, device=device)
        self._sums: dict[str, Tensor] = {}

    def add(self, rows: Tensor, scores: ActionScores, targets: Targets, loss: LanguageLoss, parts: int) -> None:
        """One micro-batch of a step on one of `parts`; later passes over a token replace what was kept of it."""
        self._read[rows] = True
        self._log_prob[rows] = scores.log_prob.detach()
        self._proximal[rows] = targets.proximal_log_prob
        self._importance[rows] = targets.importance
        sums = {
            "total": parts * loss.total,
            "policy": parts * loss.policy,
            "value": parts * loss.value,
            "entropy": (targets.weight * scores.entropy).sum(),
            "kl": loss.kl,
            "weight": targets.weight.sum(),
        }
        for name, part in sums.items():
            self._sums[name] = self._sums.get(name, 0) + part.detach()

    def state(self) -> dict[str, Any]:
        """What `take_in` takes, on the CPU."""
        seen = {
            "log_prob": self._log_prob,
            "proximal": self._proximal,
            "importance": self._importance,
            "read": self._read,
        }
        return {name: x.cpu() for name, x in seen.items()} | {"sums": {k: v.cpu() for k, v in self._sums.items()}}

    def take_in(self, rows: Tensor, state: Mapping[str, Any]) -> None:
        """What another worker's steps saw of these action tokens [m]."""
        device = self._read.device
        self._log_prob[rows] = state["log_prob"].to(device)
        self._proximal[rows] = state["proximal"].to(device)
        self._importance[rows] = state["importance"].to(device)
        self._read[rows] = state["read"].to(device)
        for name, part in state["sums"].items():
            self._sums[name] = self._sums.get(name, 0) + part.to(device)

    def _weighted(self, **names: str) -> dict[str, float]:
        """Means over the tokens that were read, by their weights in the loss: how much of the batch was read is no matter.

        None where nothing was read: that is no entropy of 0.
        """
        weight = float(self._sums["weight"]) if self._sums else 0.0
        return (
            {f"policy/{shown}": float(self._sums[name]) / weight for shown, name in names.items()} if weight > 0 else {}
        )

    def metrics(self, targets: Targets, objective: Objective) -> dict[str, float]:
        """Over the tokens that were read; of losses, means over the steps."""
        read = self._read.nonzero().squeeze(1)
        seen = dataclasses.replace(
            targets, proximal_log_prob=self._proximal, importance=self._importance
        ).take(read)  # fmt: skip
        steps = max(len(self.norms), 1)
        found = policy_metrics(seen, self._log_prob[read], objective.policy_settings)
        losses = {name: float(self._sums[name]) / steps if self._sums else 0.0 for name in ("total", "policy", "value")}
        return {
            **{f"loss/{name}": value for name, value in losses.items()},
            **self._weighted(entropy="entropy", reference_kl="kl"),
            "policy/clipped": found.clip_fraction,
            "policy/ratio_max": found.ratio_max,
            "policy/update_kl": found.update_kl,
            "policy/behaviour_kl": found.behaviour_kl,
            "policy/importance_mean": found.importance_mean,
            "policy/importance_capped": found.importance_capped,
            "policy/importance_ess": found.importance_ess,
            "policy/grad_norm": sum(self.norms) / steps,
            "policy/steps": float(len(self.norms)),
            "batch/read_share": len(read) / max(len(self._read), 1),
            "batch/masked_share": 1.0 - float(targets.keep.double().mean()),
        }


def reward_metrics(episodes: Sequence[LanguageEpisode], rewards: TurnRewards) -> dict[str, float]:
    """Means over turns, but for what is said of episodes."""
    turns = [turn for episode in episodes for turn in episode.turns]
    groups: dict[int, set[float]] = {}
    for episode in episodes:
        groups.setdefault(episode.group, set()).add(episode.episode_return)
    return {
        **{f"reward/{name}": float(part.mean()) for name, part in rewards.parts().items()},
        "batch/return": sum(e.episode_return for e in episodes) / len(episodes),
        "batch/length": len(turns) / len(episodes),
        "batch/groups_that_differ": sum(len(returns) > 1 for returns in groups.values()) / len(groups),
        "grounded": sum(turn.grounded for turn in turns) / len(turns),
        "failures": sum(turn.failure is not None for turn in turns) / len(turns),
    }


def batch_metrics(batch: TokenBatch, actions: int, seconds: float) -> dict[str, float]:
    """Of its size; `seconds` that training on it took."""
    return {
        "batch/episodes": float(batch.episodes),
        "batch/tokens": float(len(batch.tokens)),
        "batch/action_tokens": float(actions),
        "batch/tokens_per_second": len(batch.tokens) / seconds,
    }


def value_metrics(targets: Targets) -> dict[str, float]:
    """Of the critic, where there is one."""
    if targets.value is None or targets.value_target is None or targets.value_weight is None:
        return {}
    used = targets.value_weight > 0
    value, target = targets.value[used], targets.value_target[used]
    spread = target.var(unbiased=False).clamp(min=1e-8)
    explained = 1.0 - (target - value).var(unbiased=False) / spread
    return {"value/mean": float(value.mean()), "value/explained_variance": float(explained)}
