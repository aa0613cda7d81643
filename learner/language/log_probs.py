"""Log-probabilities and entropies of tokens, in chunks of rows: [M, V] in float32 is never held whole.

One row of a 152 k vocabulary is 600 kB in float32; 32 k tokens would take 20 GB, and autograd several times that. Here the
forward pass keeps two numbers a row (log Z, entropy), and the backward pass computes each chunk's logits again: one more
product with the head (four instead of three) is the price.

Logits are softmaxed in float32 whatever their type. Log-probabilities of a sampled token belong to the distribution
that it was sampled from: give the temperature of sampling.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

DEFAULT_CHUNK = 1024
"""Rows at once. 1024 rows of a 152 k vocabulary take 0.6 GB a copy."""


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Of M tokens, in float32 (float64 for float64 inputs)."""

    log_prob: Tensor
    """[M]: log π(token)."""
    entropy: Tensor
    """[M]: of the distribution that the token was drawn from, in nats."""


def scores_from_hidden(
    hidden: Tensor,
    head: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    chunk: int = DEFAULT_CHUNK,
) -> TokenScores:
    """Scores of `target` [M] under logits (hidden [M, H] · headᵀ [H, V] + bias [V]) / temperature.

    `hidden` are the last hidden states at the *predicting* positions (`MicroBatch.predictor`). Gradients reach hidden,
    head and bias; that of the head is summed over chunks in float32.
    """
    _check(hidden, target, head.shape[0], temperature, chunk)
    if hidden.shape[1] != head.shape[1]:
        raise ValueError(f"hidden states of width {hidden.shape[1]} do not fit a head of width {head.shape[1]}")
    return TokenScores(*_FromHidden.apply(hidden, head, bias, target, temperature, chunk))


def scores_from_logits(
    logits: Tensor, target: Tensor, *, temperature: float = 1.0, chunk: int = DEFAULT_CHUNK
) -> TokenScores:  # fmt: skip
    """Scores of `target` [M] under logits [M, V] / temperature, for a model that gives nothing but logits.

    A logit of −inf forbids a token: probability 0, no share in the entropy, no gradient.
    """
    _check(logits, target, logits.shape[1], temperature, chunk)
    return TokenScores(*_FromLogits.apply(logits, target, temperature, chunk))


def _check(rows: Tensor, target: Tensor, vocabulary: int, temperature: float, chunk: int) -> None:
    if target.shape != rows.shape[:1]:
        raise ValueError(f"{len(target)} tokens do not fit {len(rows)} rows of hidden states or logits")
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, not {temperature}; greedy sampling has no log-probabilities")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, not {chunk}")
    # On a GPU the gather itself asserts this; a look from here would make the CPU wait.
    if target.device.type == "cpu" and len(target) > 0 and not 0 <= int(target.min()) <= int(target.max()) < vocabulary:
        raise ValueError(
            f"token ids from {int(target.min())} to {int(target.max())} leave a vocabulary of {vocabulary}"
        )


def _copy_wide(logits: Tensor, temperature: float) -> Tensor:
    """Scaled logits in float32 (float64 stays) that may be overwritten."""
    wide = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32, copy=True)
    return wide if temperature == 1.0 else wide.div_(temperature)


def _forward(
    logits_of: Callable[[int, int], Tensor], target: Tensor, chunk: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """log-probability, entropy, log Z, each [M]; `logits_of(low, high)` gives scaled logits [high − low, V]."""
    log_prob, entropy, log_z = (torch.empty(len(target), dtype=dtype, device=target.device) for _ in range(3))
    for low in range(0, len(target), chunk):
        high = min(low + chunk, len(target))
        logits = logits_of(low, high)
        z = logits.logsumexp(dim=1)
        log_prob[low:high] = logits.gather(1, target[low:high, None]).squeeze(1) - z
        log_p = logits.sub_(z[:, None])
        p = log_p.exp()
        entropy[low:high] = -(p * log_p.nan_to_num_(neginf=0.0)).sum(dim=1)
        log_z[low:high] = z
    return log_prob, entropy, log_z


def _logits_gradient(
    logits: Tensor, target: Tensor, log_z: Tensor, entropy: Tensor, by_log_prob: Tensor | None, by_entropy: Tensor | None
) -> Tensor:  # fmt: skip
    """Gradient by the scaled logits of one chunk [m, V], which are overwritten.

    ∂ log p(a) / ∂ z_j = 1[j = a] − p_j;  ∂ H / ∂ z_j = −p_j (log p_j + H).
    """
    log_p = logits.sub_(log_z[:, None])
    p = log_p.exp()
    factor = torch.zeros_like(log_z) if by_log_prob is None else -by_log_prob
    if by_entropy is None:
        gradient = p.mul_(factor[:, None])
    else:
        inner = log_p.nan_to_num_(neginf=0.0).add_(entropy[:, None]).mul_(-by_entropy[:, None])
        gradient = p.mul_(inner.add_(factor[:, None]))
    if by_log_prob is not None:
        gradient.scatter_add_(1, target[:, None], by_log_prob[:, None])
    return gradient


def _part(gradient: Tensor | None, low: int, high: int) -> Tensor | None:
    return None if gradient is None else gradient[low:high]


class _FromHidden(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, bias: Tensor | None, target: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        def logits_of(low: int, high: int) -> Tensor:
            return _copy_wide(torch.nn.functional.linear(hidden[low:high], head, bias), temperature)

        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        log_prob, entropy, log_z = _forward(logits_of, target, chunk, dtype)
        ctx.save_for_backward(hidden, head, bias, target, log_z, entropy)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.set_materialize_grads(False)
        return log_prob, entropy

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  (the decorator hides the name of ctx)
        ctx: Any, *grad_outputs: Any
    ) -> tuple[Tensor | None, ...]:
        by_log_prob, by_entropy = grad_outputs
        hidden, head, bias, target, log_z, entropy = ctx.saved_tensors
        hidden_wanted, head_wanted, bias_wanted = ctx.needs_input_grad[:3]
        by_hidden = torch.empty_like(hidden) if hidden_wanted else None
        by_head = torch.zeros_like(head, dtype=log_z.dtype) if head_wanted else None
        by_bias = torch.zeros_like(bias, dtype=log_z.dtype) if bias_wanted else None
        for low in range(0, len(target), ctx.chunk):
            high = min(low + ctx.chunk, len(target))
            logits = _copy_wide(torch.nn.functional.linear(hidden[low:high], head, bias), ctx.temperature)
            gradient = _logits_gradient(
                logits, target[low:high], log_z[low:high], entropy[low:high],
                _part(by_log_prob, low, high), _part(by_entropy, low, high),
            ).div_(ctx.temperature)  # fmt: skip
            if by_bias is not None:
                by_bias += gradient.sum(dim=0)
            narrow = gradient.to(hidden.dtype)
            if by_hidden is not None:
                by_hidden[low:high] = narrow @ head
            if by_head is not None:
                by_head += narrow.T @ hidden[low:high]
        return (
            by_hidden,
            None if by_head is None else by_head.to(head.dtype),
            None if by_bias is None else by_bias.to(bias.dtype),
            None,
            None,
            None,
        )


class _FromLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, temperature: float, chunk: int) -> tuple[Tensor, Tensor]:
        def logits_of(low: int, high: int) -> Tensor:
            return _copy_wide(logits[low:high], temperature)

        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        log_prob, entropy, log_z = _forward(logits_of, target, chunk, dtype)
        ctx.save_for_backward(logits, target, log_z, entropy)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.set_materialize_grads(False)
        return log_prob, entropy

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  (the decorator hides the name of ctx)
        ctx: Any, *grad_outputs: Any
    ) -> tuple[Tensor | None, ...]:
        by_log_prob, by_entropy = grad_outputs
        logits, target, log_z, entropy = ctx.saved_tensors
        by_logits = torch.empty_like(logits)
        for low in range(0, len(target), ctx.chunk):
            high = min(low + ctx.chunk, len(target))
            by_logits[low:high] = _logits_gradient(
                _copy_wide(logits[low:high], ctx.temperature), target[low:high], log_z[low:high], entropy[low:high],
                _part(by_log_prob, low, high), _part(by_entropy, low, high),
            ).div_(ctx.temperature)  # fmt: skip
        return by_logits, None, None, None
