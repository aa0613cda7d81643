"""The APPO objective: PPO's clipped surrogate on V-trace advantages, clipped value loss, entropy bonus."""

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.parallel import ALONE, Workers
from learner.settings import LearnerSettings


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss and its parts, each a scalar; `total` carries the gradient."""

    total: Tensor
    policy: Tensor
    value: Tensor
    entropy: Tensor
    """Mean entropy of the policy in nats (not its negative)."""
    clipped: Tensor
    """Share of samples whose ratio lies outside the clip range."""
    kl: Tensor
    """Estimate of KL(behaviour ‖ policy) in nats: mean of ratio − 1 − log ratio."""


def appo_loss(
    *,
    log_probs: Tensor,
    action: Tensor,
    behaviour_log_prob: Tensor,
    value: Tensor,
    behaviour_value: Tensor,
    advantage: Tensor,
    target: Tensor,
    settings: LearnerSettings,
) -> Loss:
    """The loss of N samples: log_probs [N, A] normalised; everything else [N]. `advantage` and `target` are constants.

    Policy: −min(ρ A, clip(ρ, 1/(1+ε), 1+ε) A) (PPO, arXiv 1707.06347 eq. 7, with the symmetric range of Sample
    Factory). Value: the larger of the squared errors of V and of V clipped to ±`value_clip` around the behaviour's.
    """
    log_ratio = log_probs.gather(1, action.unsqueeze(1)).squeeze(1) - behaviour_log_prob
    ratio = log_ratio.exp()
    low, high = 1.0 / (1.0 + settings.ratio_clip), 1.0 + settings.ratio_clip
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
    near = behaviour_value + (value - behaviour_value).clamp(-settings.value_clip, settings.value_clip)
    value_loss = torch.maximum((value - target).square(), (near - target).square()).mean()
    entropy = -(log_probs.exp() * log_probs).sum(dim=1).mean()
    policy_loss = -surrogate.mean()
    total = policy_loss + settings.value_coefficient * value_loss - settings.entropy_coefficient * entropy
    with torch.no_grad():
        clipped = ((ratio < low) | (ratio > high)).to(ratio.dtype).mean()
        kl = (ratio - 1.0 - log_ratio).mean()
    return Loss(total, policy_loss, value_loss, entropy, clipped, kl)


def normalise(advantage: Tensor, workers: Workers = ALONE) -> Tensor:
    """Zero mean and unit deviation over the batch, of which `workers` may have a share each; a constant batch becomes zero."""
    mean, variance = workers.moments(advantage.flatten())
    return (advantage - mean) / (variance.sqrt() + 1e-8)
