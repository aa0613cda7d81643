"""Estimates of KL(π ‖ π_ref) from sampled tokens, and what each is as a loss and as a reward.

With x = log π(a) − log π_ref(a) and a ~ π (Schulman 2020, "Approximating KL divergence"):

| estimator | value | as a value | its gradient, in expectation |
|---|---|---|---|
| k1 | x | unbiased, may be negative | **zero**: E[∇ log π] = 0, so k1 is no loss |
| k2 | x² / 2 | biased, ≥ 0, little variance | ∇ KL(π ‖ π_ref): the reverse KL, which PPO's penalty means |
| k3 | exp(−x) − 1 + x | unbiased, ≥ 0 | ∇ KL(π_ref ‖ π): the forward KL (the term of GRPO) |

As a reward (a penalty on the token) an estimate is a constant: the policy gradient carries it, and only its value counts.
Samples of an older policy make all of these approximate; they are not reweighted.
"""

import torch
from torch import Tensor

from learner.language.settings import KL_ESTIMATORS

MAX_LOG_RATIO = 20.0
"""Log-ratios are held to ±20 before exp: e^20 = 5e8 stays finite in float32 when it is squared or summed."""


def kl_estimate(estimator: str, log_prob: Tensor, reference_log_prob: Tensor) -> Tensor:
    """[M]: the estimate at each token, with gradient to `log_prob`; log-probabilities [M] of the sampled tokens.

    Raises `ValueError` for an unknown estimator.
    """
    x = log_prob - reference_log_prob
    if estimator == "k1":
        return x
    if estimator == "k2":
        return 0.5 * x.square()
    if estimator == "k3":
        x = x.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        return torch.expm1(-x) + x
    raise ValueError(f"there is no KL estimator {estimator!r}; there are: {', '.join(KL_ESTIMATORS)}")
