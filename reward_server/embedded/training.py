"""Training of the embedded judge, on the very prompts that it will be asked.

All prompts share a prefix of some hundred tokens. It is computed once a step, with gradient, and every example of the batch attends
to those keys and values; so an example costs only its own ten to forty tokens. The loss is on the label token alone.
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

    steps: int = 500
    batch_size: int = 64
    learning_rate: float = 3e-3
    warmup: int = 40
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
            vocab_size=vocabulary, hidden_size=settings.hidden_size, intermediate_size=settings.intermediate_size,
            num_hidden_layers=settings.layers, num_attention_heads=settings.heads, num_key_value_heads=settings.key_value_heads,
            head_dim=settings.head_dim, max_position_embeddings=4096, tie_word_embeddings=True, eos_token_id=eos, pad_token_id=pad,
            bos_token_id=None,
        )
    ).to(torch.float32)  # fmt: skip


def label_logits(model: Any, prefix: Sequence[int], suffixes: Sequence[Sequence[int]], label_ids: Sequence[int]) -> "torch.Tensor":
    """Logits `[B, 2]` of the two label tokens after prefix + suffix, with gradient.

    Suffixes are padded on the right: what follows the last real token cannot be seen by it, so no mask is needed.
    """
    import torch
    from transformers import DynamicCache

    batch = len(suffixes)
    longest = max(map(len, suffixes))
    tokens_BN = torch.tensor([[*s, *[0] * (longest - len(s))] for s in suffixes])
    last_B = torch.tensor([len(s) - 1 for s in suffixes])
    shared = model.model(input_ids=torch.tensor([list(prefix)]), use_cache=True).past_key_values
    cache = DynamicCache()
    for index, layer in enumerate(shared.layers):
        cache.update(layer.keys.expand(batch, -1, -1, -1), layer.values.expand(batch, -1, -1, -1), index)
    positions = torch.arange(len(prefix), len(prefix) + longest).expand(batch, -1)
    hidden_BNH = model.model(input_ids=tokens_BN, past_key_values=cache, position_ids=positions, use_cache=True).last_hidden_state
    last_BH = hidden_BNH[torch.arange(batch), last_B]
    return last_BH @ model.lm_head.weight[list(label_ids)].T


def train(model: Any, data: Encoded, label_ids: Sequence[int], settings: TrainingSettings, seed: int) -> Iterator[tuple[int, float]]:
    """Trains `model` in place by AdamW with warm-up and a cosine schedule; yields (steps done, cross-entropy in nats) after each step.

    Deterministic for a seed and a number of threads.
    """
    import torch

    torch.manual_seed(seed)
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))
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


def probabilities(model: Any, prefix: Sequence[int], suffixes: Sequence[Sequence[int]], label_ids: Sequence[int]) -> list[float]:
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
