"""Guards on learned rewards: bounded and centred, weighted by what is known of them, normalised each by itself."""

import numpy as np
import torch
from torch import Tensor

from learner.credit.attribution import Floats
from learner.parallel import ALONE, Workers


def squash(x: Floats, reference: float, bound: float) -> Floats:
    """b · (2 σ(2 (x − reference) / b) − 1): a sigmoid of the centred reward, in [−b, b], of slope 1 at the reference.

    "Preference as reward" (Fu et al. 2025, arXiv 2502.18770): bounded, growing fast at first and then hardly, centred.
    Here less ½, so that a turn at the reference is paid nothing and long episodes are not paid for their length.
    """
    # 2 σ(2 z) − 1 = tanh(z), which does not overflow.
    return bound * np.tanh((x - reference) / bound)


def certainty(deviation: Floats, unit: float) -> Floats:
    """Weights 1 / (1 + (d / u)²) in (0, 1]: the share of the variance that is signal, were that of u and the noise of d.

    d is the deviation among the heads of an ensemble (Lakshminarayanan et al. 2017, arXiv 1612.01474).
    """
    return 1.0 / (1.0 + np.square(deviation / unit))


def separate_advantage(advantages: Tensor, weights: Tensor, workers: Workers = ALONE) -> Tensor:
    """Σ_c w_c · (A_c − mean) / deviation; advantages [C, ...] one a component, weights [C]. Mean and deviation are those of
    the batch, of which `workers` may have a share each.

    Normalised one by one (GDPO, arXiv 2601.05242, section 3.1): the scale of a component no longer decides how much it
    counts, its weight does. A component that is the same everywhere adds 0.
    """
    flat = advantages.flatten(1)
    mean, variance = workers.moments(flat)
    centred, deviation = flat - mean[:, None], variance.sqrt()[:, None]
    normal = torch.where(deviation > 1e-6, centred / deviation.clamp(min=1e-8), torch.zeros_like(centred))
    return (weights[:, None] * normal).sum(0).reshape(advantages.shape[1:])
