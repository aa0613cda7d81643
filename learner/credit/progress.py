"""The progress estimator's head: from features of turns to contributions ĉ_t whose sum is an episode's outcome R.

SPA (Wang et al. 2025, arXiv 2505.20732), section 3.2: ĉ_t = MLP(h_t), fitted by (Σ_t ĉ_t − R)². What h_t is, is another's
matter: the core's state and the action of a recurrent agent, the hidden state at a turn's last token of a language model.
Letters of shapes: M heads, K turns, E episodes, F features, D the layer's width.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

Constraint = Callable[[Tensor, Tensor], Tensor]


def _bounded(x: Tensor, scale: Tensor) -> Tensor:
    return torch.tanh(x / scale)


def _non_negative(x: Tensor, scale: Tensor) -> Tensor:
    return functional.softplus(x) / scale


def _unit(x: Tensor, scale: Tensor) -> Tensor:
    return -torch.expm1(-functional.softplus(x) / scale)


CONSTRAINTS: dict[str, Constraint] = {
    "none": lambda x, scale: x / scale,
    "bounded": _bounded,
    "non_negative": _non_negative,
    "unit": _unit,
}
"""How the last layer becomes a contribution: any number, in [−1, 1], at least 0, in [0, 1)."""


class ProgressHeads(nn.Module):
    """M independent two-layer perceptrons on features of turns.

    The last layer is divided by `scale`, which the first training step sets to the root of the mean number of turns (for
    the constraints from 0, to that number): steps of the optimiser then move an episode's sum by as much, however long it is.
    """

    def __init__(self, features: int, *, hidden: int, heads: int, constraint: str, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.constraint = constraint
        draw = torch.randn(heads, features + 1, hidden, generator=generator)
        self.inner = nn.Parameter(draw[:, :features] / math.sqrt(features))
        self.inner_bias = nn.Parameter(0.1 * draw[:, features])
        # Small, not 0: heads that begin alike would never disagree.
        self.outer = nn.Parameter(0.1 * torch.randn(heads, hidden, generator=generator) / math.sqrt(hidden))
        self.outer_bias = nn.Parameter(torch.zeros(heads))
        self.register_buffer("scale", torch.ones(()))

    @property
    def heads(self) -> int:
        """M."""
        return len(self.outer_bias)

    def set_scale(self, turns: float) -> None:
        """Fits the scale to episodes of so many turns."""
        from_zero = self.constraint in ("non_negative", "unit")
        self.get_buffer("scale").fill_(max(turns, 1.0) if from_zero else math.sqrt(max(turns, 1.0)))

    def forward(self, features: Tensor) -> Tensor:
        """ĉ [M, K] of features [K, F]."""
        wide = features.to(self.inner.dtype)
        inner = torch.relu(torch.einsum("kf,mfd->mkd", wide, self.inner) + self.inner_bias[:, None])
        x = torch.einsum("mkd,md->mk", inner, self.outer) + self.outer_bias[:, None]
        return CONSTRAINTS[self.constraint](x, self.get_buffer("scale"))


def episode_sums(contribution: Tensor, weight: Tensor, episode: Tensor, episodes: int) -> Tensor:
    """[M, E]: Σ_t w_t ĉ_t; contribution [M, K], weight [K] (turns that a kept one stands for), episode [K] rows."""
    sums = contribution.new_zeros(contribution.shape[0], episodes)
    return sums.index_add(1, episode, contribution * weight)


def progress_loss(sums: Tensor, outcome: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of (Σ ĉ − R)² over heads and episodes; sums [M, E], outcome [E], mask [M, E]: episodes that a head learns from."""
    squares = (sums - outcome).square()
    if mask is None:
        return squares.mean()
    return (squares * mask).sum() / mask.sum().clamp(min=1.0)


def ensemble(contribution: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation [K] over the heads of ĉ [M, K]; one head has the deviation 0."""
    return contribution.mean(0), contribution.std(0, unbiased=False)
