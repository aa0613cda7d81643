"""What an update did to the policy, in numbers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.language.losses import log_ratio
from learner.language.objective import Targets
from learner.language.settings import PolicySettings


@dataclass(frozen=True, slots=True)
class PolicyMetrics:
    """Over the action tokens that trained, each of one weight; 0 where none did. KL in nats a token."""

    tokens: int
    """Action tokens, those masked included."""
    masked_share: float
    """Share that was masked for staleness. 1: the update did nothing."""
    lag_mean: float
    """Weights versions between sampling and training, over all action tokens."""
    lag_max: int
    clip_fraction: float
    """Share whose gradient the clip took away: π / π_prox beyond it on the side that the advantage pushes to."""
    ratio_max: float
    """Largest π / π_prox."""
    update_kl: float
    """KL(π_prox ‖ π), k3: how far the update has gone."""
    behaviour_kl: float
    """KL(μ ‖ π_prox), k3: how far the sampling policy was, by staleness and numerics together."""
    importance_mean: float
    """Mean of π_prox / μ after the cap; far below 1 it hides a mismatch."""
    importance_capped: float
    """Share of π_prox / μ at the cap."""
    importance_ess: float
    """Effective sample size (Σw)² / (M Σw²) of w = π_prox / μ before the cap (Kong 1992): 1 on policy, 1/M at worst."""


@torch.no_grad()
def policy_metrics(targets: Targets, log_prob: Tensor, settings: PolicySettings) -> PolicyMetrics:
    """Metrics of a whole batch; log_prob [M], those of its micro-batches put together in the order of `targets`."""
    keep = targets.keep
    count = max(int(keep.sum()), 1)

    def mean(x: Tensor) -> float:
        return float(x[keep].double().sum()) / count

    step = log_ratio(log_prob, targets.proximal_log_prob)
    ratio = step.exp()
    drift = log_ratio(targets.proximal_log_prob, targets.behaviour_log_prob)
    up = (targets.advantage > 0) & (ratio > 1.0 + settings.clip_high)
    down = (targets.advantage < 0) & (ratio < 1.0 - settings.clip_low)
    w = drift[keep].double().exp()
    total = len(keep)
    return PolicyMetrics(
        tokens=total,
        masked_share=1.0 - int(keep.sum()) / max(total, 1),
        lag_mean=float(targets.lag.double().mean()) if total else 0.0,
        lag_max=int(targets.lag.max()) if total else 0,
        clip_fraction=mean(up | down),
        ratio_max=float(ratio[keep].max()) if bool(keep.any()) else 0.0,
        update_kl=mean(torch.expm1(step) - step),
        behaviour_kl=mean(torch.expm1(drift) - drift),
        importance_mean=mean(targets.importance),
        importance_capped=mean(drift.exp() >= settings.importance_cap),
        importance_ess=float(w.sum().square() / (count * w.square().sum())) if bool(keep.any()) else 0.0,
    )
