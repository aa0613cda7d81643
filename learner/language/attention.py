"""Causal attention within packed sequences, as an attention implementation of `transformers`.

N tokens of several sequences lie in one row. Each attends to the tokens before it in its own sequence, so the cost is
the sum of the squared lengths, and no mask of N² is made. Positions are given to the model apart (`position_ids`).
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from learner.language.batch import filler

PACKED = "yendor_packed"
"""The name under which `transformers` knows it."""

_LAYERS = frozenset({"full_attention", "sliding_attention"})
_UNKNOWN = ("softcap", "s_aux", "position_bias", "sinks")
"""What other architectures add to attention and this one does not do."""


class PackingError(NotImplementedError):
    """The architecture's attention does more than this implementation."""


def may_pack(model: PreTrainedModel) -> bool:
    """Whether `model` lets its attention be replaced and mixes tokens by attention alone (no state-space layers)."""
    kinds = set(getattr(model.config, "layer_types", None) or ("full_attention",))
    stateful = bool(getattr(model, "_is_stateful", False))
    return bool(getattr(model, "_supports_attention_backend", False)) and kinds <= _LAYERS and not stateful


def packing(offsets: Tensor, lengths: list[int]) -> dict[str, Any]:
    """Keyword arguments of a model's `forward` for sequences that begin at `offsets` [S + 1]; flash attention's names."""
    ends = offsets.to(torch.int32)
    longest = max(lengths)
    return {
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
        "sequence_lengths": lengths,
    }


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query [1, A, N, D]; key, value [1, K, N, D] with A a multiple of K. Returns [1, N, A, D].

    Takes the arguments of `packing`. On CUDA in half precision one variable-length flash kernel does all sequences;
    elsewhere each sequence is one causal call. Raises `PackingError` for what some architectures add to attention.
    """
    for name in _UNKNOWN:
        if kwargs.get(name) is not None:
            raise PackingError(f"{type(module).__name__} uses {name}")
    if attention_mask is not None:
        raise PackingError(f"{type(module).__name__} gives its own mask")
    window = sliding_window or getattr(module, "sliding_window", None)
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        return _flash(query, key, value, scaling, window, kwargs), None
    outputs: list[Tensor] = []
    lengths = cast("list[int]", kwargs["sequence_lengths"])
    parts = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    for part in parts:
        length = part[0].shape[2]
        # Filler lies behind the sequence, where none of its tokens looks.
        q, k, v = (pad(x, (0, 0, 0, filler(length, x.device))) for x in part)
        band = _band(q.shape[2], window, q.device) if window is not None and window < length else None
        mixed = scaled_dot_product_attention(
            q, k, v, attn_mask=band, is_causal=band is None, dropout_p=dropout, scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip
        outputs.append(mixed[:, :, :length])
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _flash(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None, kwargs: dict[str, Any]
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    mixed = varlen_attn(
        q, k, v, kwargs["cu_seq_lens_q"], kwargs["cu_seq_lens_k"], kwargs["max_length_q"], kwargs["max_length_k"],
        scale=scaling, window_size=(-1 if window is None else window - 1, 0), enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    assert isinstance(mixed, Tensor)
    return mixed.unsqueeze(0)


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """[L, L] bool: the token itself and the `window` − 1 before it."""
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (distance >= 0) & (distance < window)


AttentionInterface.register(PACKED, packed_attention)
