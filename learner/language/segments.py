"""Sums and scans over packed segments: runs of one flat tensor, without padding and without a loop over elements."""

import torch
from torch import Tensor


def first_of_runs(segment: Tensor) -> Tensor:
    """[M] bool: whether an element is the first of its run of equal neighbours in `segment` [M]."""
    first = torch.ones_like(segment, dtype=torch.bool)
    first[1:] = segment[1:] != segment[:-1]
    return first


def last_of_runs(segment: Tensor) -> Tensor:
    """[M] bool: whether an element is the last of its run of equal neighbours in `segment` [M]."""
    last = torch.ones_like(segment, dtype=torch.bool)
    last[:-1] = segment[1:] != segment[:-1]
    return last


def segment_sum(x: Tensor, segment: Tensor, segments: int) -> Tensor:
    """[segments]: the sum of x [M] over each segment; `segment` [M] in 0..segments − 1. An empty segment sums to 0."""
    return x.new_zeros(segments).index_add(0, segment, x)


def reverse_scan(x: Tensor, decay: Tensor, longest: int) -> Tensor:
    """y[i] = x[i] + decay[i] · y[i + 1] with y[M] = 0; x, decay [M]. A decay of 0 ends a segment at its element.

    `longest` is at least the length of the longest segment (M always serves). Recursive doubling (Hillis and Steele
    1986, "Data parallel algorithms"): log2(longest) vector operations, and sums by pairs, so that the error in
    float32 grows with the logarithm of the length. Differentiable.
    """
    if x.shape != decay.shape or x.dim() != 1:
        raise ValueError(f"a scan takes two vectors of one length, not {tuple(x.shape)} and {tuple(decay.shape)}")
    step = 1
    while step < min(longest, len(x)):
        x = x + decay * _shifted(x, step)
        decay = decay * _shifted(decay, step)
        step *= 2
    return x


def _shifted(x: Tensor, step: int) -> Tensor:
    """x[i + step] at i, 0 past the end."""
    return torch.cat([x[step:], x.new_zeros(step)])
