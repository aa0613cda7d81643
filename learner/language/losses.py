"""Losses of action tokens, each a vector [M]; how they become one number is `aggregation_weights`, and nothing else.

Two ratios are kept apart, as in decoupled PPO (Hilton et al. 2021, arXiv 2110.00641; AReaL, arXiv 2505.24298, eq. 5):

    μ       behaviour: the engine that sampled the token, under the weights of its turn
    π_prox  proximal: the trainer's own log-probability at the start of the update
    π       the policy that is trained

    loss = −w · min(u A, clip(u, 1 − ε_low, 1 + ε_high) A),   u = π / π_prox,   w = min(π_prox / μ, C), a constant

w corrects for stale weights and for the numerical difference between engine and trainer (truncated importance sampling:
Ionides 2008; Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"); u bounds the
step of the update.
"""

import torch
from torch import Tensor

from learner.language.batch import ActionTokens
from learner.language.kl import MAX_LOG_RATIO
from learner.language.segments import segment_sum
from learner.language.settings import AGGREGATIONS


def log_ratio(log_prob: Tensor, other: Tensor) -> Tensor:
    """log π − log π', held to ±20, so that exp is finite. Beyond that the gradient is 0."""
    return (log_prob - other).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def importance_weight(proximal_log_prob: Tensor, behaviour_log_prob: Tensor, cap: float) -> Tensor:
    """[M]: w = min(π_prox / μ, cap), a constant."""
    return log_ratio(proximal_log_prob, behaviour_log_prob).detach().exp().clamp(max=cap)


def clipped_surrogate(
    *,
    log_prob: Tensor,
    proximal_log_prob: Tensor,
    advantage: Tensor,
    importance: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Tensor:
    """[M]: PPO's loss of each token (arXiv 1707.06347, eq. 7) times the constant `importance`; all arguments [M].

    The range is [1 − clip_low, 1 + clip_high]. `dual_clip` c > 1 (Ye et al. 2020, arXiv 1912.09729, eq. 5) bounds the loss of a
    token with A < 0 at −c A, where the ratio alone would let it grow without limit.
    """
    ratio = log_ratio(log_prob, proximal_log_prob).exp()
    gain = torch.minimum(ratio * advantage, ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantage)
    if dual_clip is not None:
        gain = torch.where(advantage < 0, torch.maximum(gain, dual_clip * advantage), gain)
    return -importance * gain


def value_loss(value: Tensor, old_value: Tensor, target: Tensor, clip: float | None) -> Tensor:
    """[M]: the larger of the squared errors of V and of V held to ±clip around the old one; all [M].

    The clipped value loss of OpenAI's PPO2 (Engstrom et al. 2020, arXiv 2005.12729, section 3). None: plain squared error.
    """
    error = (value - target).square()
    if clip is None:
        return error
    near = old_value + (value - old_value).clamp(-clip, clip)
    return torch.maximum(error, (near - target).square())


def aggregation_weights(
    mode: str, actions: ActionTokens, keep: Tensor, *, fixed_length: int | None = None
) -> Tensor:  # fmt: skip
    """[M]: weights with which losses are summed, 0 outside `keep` [M] bool. They are those of the *whole* batch, so the
    sums of its micro-batches add up to the loss of the batch however it is cut.

    - `token_mean`: 1 / kept tokens. Long episodes weigh more (DAPO, arXiv 2503.14476, eq. 8).
    - `episode_mean`: the mean within each episode, then over the episodes with a kept token (GRPO, eq. 3).
    - `fixed_length`: 1 / (episodes · fixed_length), whatever is kept: no bias by length (Dr. GRPO, arXiv 2503.20783).

    Nothing kept: all weights are 0, so is the loss, and so is its gradient.
    """
    kept = keep.to(torch.float32)
    if mode == "token_mean":
        return kept / kept.sum().clamp(min=1.0)
    if mode == "episode_mean":
        count = segment_sum(kept, actions.episode, actions.episodes)
        episodes = (count > 0).sum().clamp(min=1)
        return kept / (count.clamp(min=1.0)[actions.episode] * episodes)
    if mode == "fixed_length":
        if fixed_length is None or fixed_length < 1:
            raise ValueError(f"aggregation 'fixed_length' needs a fixed_length of at least 1, not {fixed_length}")
        return kept / (actions.episodes * fixed_length)
    raise ValueError(f"there is no aggregation {mode!r}; there are: {', '.join(AGGREGATIONS)}")


def fresh(lag: Tensor, max_lag: int | None) -> Tensor:
    """[M] bool: tokens of weights at most `max_lag` versions old (None: all); lag [M] int64. A lag below 0 is an error."""
    if len(lag) > 0 and int(lag.min()) < 0:
        raise ValueError(f"a turn was sampled by weights {-int(lag.min())} versions newer than those that are trained")
    return torch.ones_like(lag, dtype=torch.bool) if max_lag is None else lag <= max_lag
