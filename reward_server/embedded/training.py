"""Training of the embedded judge, on the very prompts that it will be asked.

All prompts share a prefix of some hundred tokens. It is computed once a step, with gradient, and every example of the
batch attends to those keys and values; so an example costs only its own ten to forty tokens. The loss is on the label
token alone.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

MAX_SUFFIX_TOKENS = 160
"""Longer examples are left out of training: there are hardly any."""


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """What the training does; part of the digest of a build."""

    steps: int = 300
    batch_size: int = 112
    learning_rate: float = 3e-3
    warmup: int = 30
    weight_decay: float = 0.05
    hidden_size: int = 192
    layers: int = 3
    heads: int = 4
    key_value_heads: int = 2
    head_dim: int = 32
    intermediate_size: int = 512


@dataclass(frozen=True)
class Encoded:
    """Prompts as token ids: the shared prefix once, the rest of each, its label (0 or 1)."""

    prefix: list[int]
    suffixes: list[list[int]]
    labels: list[int]


def new_model(settings: TrainingSettings, vocabulary: int, eos: int, pad: int, seed: int) -> Any:
    """A randomly initialised `Qwen3ForCausalLM` in float32 with tied embeddings."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=settings.hidden_size,
            intermediate_size=settings.intermediate_size,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.key_value_heads,
            head_dim=settings.head_dim,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            eos_token_id=eos,
            pad_token_id=pad,
            bos_token_id=None,
        )
    ).float()


def label_logits(
    model: Any, prefix: Sequence[int], suffixes: Sequence[Sequence[int]], label_ids: Sequence[int]
) -> "torch.Tensor":
    """Logits `[B, 2]` of the two label tokens after prefix + suffix, with gradient.

    The same function as `model(prefix + suffix).logits[-1, label_ids]` for each suffix, computed with the prefix's
    rows once: rows `[P + B*N, H]` go through the layers together and only attention tells them apart. Suffixes are
    padded on the right, where their last real token cannot see; the last layer is computed for those last tokens
    alone.
    """
    import torch

    batch, longest, shared = len(suffixes), max(map(len, suffixes)), len(prefix)
    padded = [[*s, *[0] * (longest - len(s))] for s in suffixes]
    rows_R = torch.tensor([*prefix, *(t for row in padded for t in row)])
    last_B = torch.tensor([shared + i * longest + len(s) - 1 for i, s in enumerate(suffixes)])
    positions_R = torch.cat([torch.arange(shared), torch.arange(shared, shared + longest).repeat(batch)])
    hidden_RH = model.model.embed_tokens(rows_R)
    cos, sin = model.model.rotary_emb(hidden_RH[None], positions_R[None])
    for index, layer in enumerate(model.model.layers):
        queried = last_B if index == len(model.model.layers) - 1 else None
        hidden_RH = _layer(layer, hidden_RH, cos[0], sin[0], batch, shared, queried)
    return model.model.norm(hidden_RH) @ model.lm_head.weight[list(label_ids)].T


def _layer(layer: Any, hidden: Any, cos: Any, sin: Any, batch: int, shared: int, queried: "torch.Tensor | None") -> Any:
    """One decoder layer on all rows, or with `queried` rows only as its output."""
    import torch

    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    heads = (-1, attention.head_dim)
    keys = _rotate(attention.k_norm(attention.k_proj(normed).unflatten(-1, heads)), cos, sin)
    values = attention.v_proj(normed).unflatten(-1, heads)
    if queried is not None:
        hidden, normed, cos, sin = hidden[queried], normed[queried], cos[queried], sin[queried]
    queries = _rotate(attention.q_norm(attention.q_proj(normed).unflatten(-1, heads)), cos, sin) * attention.scaling
    if queried is not None:
        offset_B1 = (queried - shared).reshape(batch, 1) % ((len(keys) - shared) // batch)
        mixed = _suffix_attention(queries, keys, values, batch, shared, offset_B1)
    else:
        steps_1N = torch.arange((len(keys) - shared) // batch)[None]
        mixed = torch.cat(
            [
                _prefix_attention(queries[:shared], keys[:shared], values[:shared]),
                _suffix_attention(queries[shared:], keys, values, batch, shared, steps_1N),
            ]
        )
    hidden = hidden + attention.o_proj(mixed)
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def _rotate(x_RAD: Any, cos_RD: Any, sin_RD: Any) -> Any:
    """Rotary position embedding in Qwen's layout: the two halves of a head are the two coordinates."""
    import torch

    first, second = x_RAD.chunk(2, dim=-1)
    return x_RAD * cos_RD[:, None] + torch.cat((-second, first), dim=-1) * sin_RD[:, None]


def _prefix_attention(queries_PAD: Any, keys_PKD: Any, values_PKD: Any) -> Any:
    """Causal attention within the prefix, `[P, A*D]` (A query heads, K key heads)."""
    import torch

    q, k, v = (x.transpose(0, 1)[None] for x in (queries_PAD, keys_PKD, values_PKD))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0, enable_gqa=True)
    return out[0].transpose(0, 1).flatten(1)


def _suffix_attention(queries: Any, keys: Any, values: Any, batch: int, shared: int, steps: "torch.Tensor") -> Any:
    """Attention of suffix rows to the prefix and to their own suffix up to `steps` (`[B or 1, Q]`), as `[B*Q, A*D]`.

    Scores on the prefix are one large product for the whole batch; both parts share one softmax.
    """
    import torch

    kinds, width = keys.shape[1], keys.shape[2]
    q_KXD = queries.unflatten(1, (kinds, -1)).permute(1, 0, 2, 3).reshape(kinds, -1, width)  # X = batch, query, group
    shared_KXP = q_KXD @ keys[:shared].permute(1, 2, 0)
    q_BKYD = q_KXD.unflatten(1, (batch, -1)).transpose(0, 1)  # Y = query, group
    k_BKDN = keys[shared:].unflatten(0, (batch, -1)).permute(0, 2, 3, 1)
    own_BKYN = q_BKYD @ k_BKDN
    groups = queries.shape[1] // kinds
    hidden_BYN = (torch.arange(own_BKYN.shape[-1]) > steps[..., None]).repeat_interleave(groups, 1)
    own_BKYN = own_BKYN.masked_fill(hidden_BYN[:, None], -torch.inf)
    scores = torch.cat([shared_KXP.unflatten(1, (batch, -1)).transpose(0, 1), own_BKYN], -1).softmax(-1)
    weights_BKYP, weights_BKYN = scores.split([shared, own_BKYN.shape[-1]], -1)
    v_BKND = values[shared:].unflatten(0, (batch, -1)).transpose(1, 2)
    from_prefix = weights_BKYP.transpose(0, 1).flatten(1, 2) @ values[:shared].transpose(0, 1)
    out_BKYD = from_prefix.unflatten(1, (batch, -1)).transpose(0, 1) + weights_BKYN @ v_BKND
    return out_BKYD.unflatten(2, (-1, groups)).permute(0, 2, 1, 3, 4).reshape(queries.shape[0], -1)


def train(
    model: Any, data: Encoded, label_ids: Sequence[int], settings: TrainingSettings, seed: int
) -> Iterator[tuple[int, float]]:
    """Trains `model` in place by AdamW with warm-up and cosine decay; yields (steps done, cross-entropy in nats).

    Deterministic for a seed and a number of threads.
    """
    import torch

    torch.manual_seed(seed)
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), fused=True)
    model.train()
    for step, batch in zip(range(settings.steps), _batches(data, settings.batch_size, seed), strict=False):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, settings)
        logits_B2 = label_logits(model, data.prefix, [data.suffixes[i] for i in batch], label_ids)
        loss = torch.nn.functional.cross_entropy(logits_B2, torch.tensor([data.labels[i] for i in batch]))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        yield step + 1, loss.item()


def probabilities(
    model: Any, prefix: Sequence[int], suffixes: Sequence[Sequence[int]], label_ids: Sequence[int]
) -> list[float]:
    """P(label = 1) of each prompt, in order."""
    import torch

    model.eval()
    order = sorted(range(len(suffixes)), key=lambda i: len(suffixes[i]))
    found = [0.0] * len(suffixes)
    with torch.inference_mode():
        for start in range(0, len(order), 64):
            part = order[start : start + 64]
            logits = label_logits(model, prefix, [suffixes[i] for i in part], label_ids)
            for index, p in zip(part, logits.softmax(-1)[:, 1].tolist(), strict=True):
                found[index] = p
    return found


def _schedule(step: int, settings: TrainingSettings) -> float:
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def _batches(data: Encoded, size: int, seed: int) -> Iterator[list[int]]:
    """Endless epochs of batches of similar lengths (little padding), in random order."""
    rng = random.Random(f"batches {seed}")
    indices = [i for i, s in enumerate(data.suffixes) if len(s) <= MAX_SUFFIX_TOKENS]
    while True:
        rng.shuffle(indices)
        epoch: list[list[int]] = []
        for start in range(0, len(indices), size * 16):
            chunk = sorted(indices[start : start + size * 16], key=lambda i: len(data.suffixes[i]))
            epoch += [chunk[i : i + size] for i in range(0, len(chunk), size)]
        rng.shuffle(epoch)
        yield from epoch
