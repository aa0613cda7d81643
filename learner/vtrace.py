"""V-trace (IMPALA, Espeholt et al. 2018, arXiv 1802.01561, section 4.1), also where episodes end or are cut in the middle."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class VTrace:
    """Targets of one batch of segments."""

    target: Tensor
    """[T, B], vs of eq. 1: what the critic is regressed on."""
    advantage: Tensor
    """[T, B], r + γ vs' − V(x), where vs' is the target of the next state.

    Without the importance weight ρ of eq. 4: PPO's ratio carries it, and its gradient at the start is the same.
    """


def vtrace(
    *,
    log_ratio: Tensor,
    reward: Tensor,
    value: Tensor,
    bootstrap: Tensor,
    final_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    discount: float,
    rho: float = 1.0,
    c: float = 1.0,
) -> VTrace:
    """V-trace targets and advantages of B segments of T steps.

    log_ratio [T, B]: log π(a|x) − log μ(a|x), target over behaviour policy. value [T, B]: V(x_t) under the target policy.
    bootstrap [B]: V(x_T). final_value [T, B]: the value of the observation that a *truncated* step led to; read
    only there. terminated, truncated [T, B], bool. All other tensors are floating point.

    A terminated step has no next value; a truncated one bootstraps from `final_value`; neither passes a trace on.
    """
    ratio = log_ratio.exp()
    rho_TB = ratio.clamp(max=rho)
    c_TB = ratio.clamp(max=c)
    ended = terminated | truncated
    following = torch.cat([value[1:], bootstrap.unsqueeze(0)])
    next_value = torch.where(truncated, final_value, following).masked_fill(terminated, 0.0)
    delta = rho_TB * (reward + discount * next_value - value)
    trace = (discount * c_TB).masked_fill(ended, 0.0)

    excess = torch.zeros_like(bootstrap)
    excesses: list[Tensor] = []
    for delta_B, trace_B in zip(delta.flip(0).unbind(0), trace.flip(0).unbind(0), strict=True):
        excess = delta_B + trace_B * excess
        excesses.append(excess)
    target = value + torch.stack(excesses[::-1])

    following_target = torch.cat([target[1:], bootstrap.unsqueeze(0)])
    next_target = torch.where(truncated, final_value, following_target).masked_fill(terminated, 0.0)
    return VTrace(target=target, advantage=reward + discount * next_target - value)
