"""How well probabilities go with labels."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

CALIBRATION_BINS = 10


@dataclass(frozen=True, slots=True)
class Measures:
    """Agreement of predicted probabilities p(y = 1) with `count` labels.

    For pairs p is that of the first being better, and what is not about ties leaves them out.
    """

    count: int
    positives: int
    loss: float
    """Mean cross-entropy, in nats; of a pair that ties, against one half."""
    accuracy: float
    """Share of labels that the thresholded probability agrees with; pair accuracy."""
    balanced_accuracy: float
    """Mean of that share over the kinds of label that occur: a constant answer reaches 0.5 where both do. Of pairs: over
    decided ones and ties; a pair counts as met where p lies nearer to its target (0, 1/2, 1) than to another."""
    auc: float | None
    """Area under the ROC curve; None where one kind of label is missing."""
    ece: float
    """Expected calibration error over ten equal bins."""


def measure(
    probabilities: NDArray[np.floating], labels: NDArray[np.integer], threshold: float = 0.5
) -> Measures | None:
    """Measures of probabilities [N] against labels [N] in {0, 1}; None where there are none."""
    if len(labels) == 0:
        return None
    p = np.asarray(probabilities, dtype=np.float64)
    positive = np.asarray(labels) == 1
    agrees = (p > threshold) == positive
    kinds = [agrees[mask].mean() for mask in (positive, ~positive) if mask.any()]
    right = np.clip(np.where(positive, p, 1.0 - p), 1e-7, 1.0)
    return Measures(
        count=len(p),
        positives=int(positive.sum()),
        loss=float(-np.log(right).mean()),
        accuracy=float(agrees.mean()),
        balanced_accuracy=float(np.mean(kinds)),
        auc=area_under_roc(p, positive),
        ece=expected_calibration_error(p, positive),
    )


def measure_pairs(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> Measures | None:
    """Measures of probabilities [N] that the first is better, against labels [N]: 1 or 2 is better, or neither (0).

    None where no pair is decided.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    tie, first = np.asarray(labels) == 0, np.asarray(labels) == 1
    decided = measure(p[~tie], first[~tie].astype(np.int64))
    if decided is None:
        return None
    target = np.where(tie, 0.5, first.astype(np.float64))
    met = np.abs(p - target) <= 0.25
    kinds = [met[mask].mean() for mask in (tie, ~tie) if mask.any()]
    q = np.clip(p, 1e-7, 1.0 - 1e-7)
    loss = -(target * np.log(q) + (1.0 - target) * np.log1p(-q)).mean()
    return replace(decided, count=len(p), loss=float(loss), balanced_accuracy=float(np.mean(kinds)))


def area_under_roc(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float | None:
    """P(a positive scores higher than a negative), ties as one half (Mann-Whitney U over mean ranks)."""
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if n_positive == 0 or n_negative == 0:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(counts) - (counts - 1) / 2.0
    rank_sum = float(mean_ranks[inverse][positive].sum())
    return (rank_sum - n_positive * (n_positive + 1) / 2.0) / (n_positive * n_negative)


def expected_calibration_error(probabilities: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """Mean |share of positives - mean probability| over ten equal bins of probability, weighted by their counts."""
    bins = np.minimum((probabilities * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gap = np.bincount(bins, weights=positive - probabilities, minlength=CALIBRATION_BINS)
    return float(np.abs(gap).sum() / len(probabilities))
