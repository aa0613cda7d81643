"""Weights from which a small language model repeats what it has read, before any training.

A model of a few million parameters that begins with random weights learns to copy last and least, and in a world of text
nearly every command names something that has just been read. The circuit that does it is known (induction heads: Elhage et
al. 2021, "A Mathematical Framework for Transformer Circuits"; Olsson et al. 2022, arXiv 2209.11895): a head of the first
layer writes beside each token which token came before it; a head of the next looks for the place that came after the token
at hand, and adds what stands there to what is said next. Training then starts from there, as in the "mimetic" initialisation
of Trockman and Kolter (arXiv 2305.09828). All weights are free to change.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class InductionCircuit:
    """Sizes of the weights, found by trying on random text that repeats after 3 to 300 tokens."""

    constant: float = 6.0
    """First coordinate of every embedding; the others are of order 1. It is what attention by distance alone reads."""
    spare: float = 0.2
    """Deviation of the half of an embedding that the token before is written over."""
    final_norm: float = 0.06
    """Embeddings of order 1 would make logits too large by this factor."""
    distance_gain: float = 6.0
    """Of the scores of the head that looks one token back."""
    distance_bands: int = 5
    """It reads so many of the rotary frequencies, from the highest."""
    match_gain: float = 10.0
    """Of the scores of the head that looks for the same token."""
    match_skips: int = 6
    """It reads none of so many, from the highest, for its scores shall not depend on the distance: with Qwen3's base of a
    million and heads of 32 what is left turns by half a radian over a hundred tokens, or less."""
    copy: float = 2.0
    """How much louder than the token at hand the one that followed it is."""
    noise: float = 0.005
    """Deviation of what is added to all weights of both attentions."""


@torch.no_grad()
def build_induction_circuit(model: Any, seed: int, circuit: InductionCircuit | None = None) -> None:
    """Sets embeddings, the last norm and the first two layers' attention of a `Qwen3ForCausalLM` in place.

    The model must have tied embeddings, at least two layers and as many key-value heads as heads, which together are as wide
    as the model: with fewer, values cannot tell all tokens apart. Raises ValueError otherwise. Reproducible from `seed`.
    """
    circuit = InductionCircuit() if circuit is None else circuit
    config = model.config
    width, head_width, heads = config.hidden_size, config.head_dim, config.num_attention_heads
    if not (config.num_key_value_heads == heads and heads * head_width == width and width % 2 == 0):
        raise ValueError(
            f"an induction circuit needs heads that are together as wide as the model ({width}) and as many key-value heads; "
            f"there are {heads} of {head_width}, and {config.num_key_value_heads} key-value heads"
        )
    if config.num_hidden_layers < 2 or not config.tie_word_embeddings:
        raise ValueError("an induction circuit needs two layers and tied embeddings")
    draw = _Draw(seed, circuit.noise)
    half = width // 2
    embedding = model.model.embed_tokens.weight
    embedding.copy_(draw.normal(*embedding.shape))
    embedding[:, half:] *= circuit.spare
    embedding[:, 0] = circuit.constant
    model.model.norm.weight.fill_(circuit.final_norm)
    token = torch.eye(half, width)
    token[0, 0] = 0.0
    before = torch.eye(width)[half:]
    _look_back(model.model.layers[0].self_attn, config, circuit, draw)
    _move(model.model.layers[0].self_attn, token, before, 1.0, draw)
    _match(model.model.layers[1].self_attn, config, circuit, token, before, draw)
    _move(model.model.layers[1].self_attn, token, token, circuit.copy, draw)


class _Draw:
    """Random matrices."""

    def __init__(self, seed: int, noise: float) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._noise = noise

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self._generator)

    def orthogonal(self, size: int) -> torch.Tensor:
        """(size, size)."""
        return torch.linalg.qr(self.normal(size, size))[0]

    def near(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self._noise * self.normal(*weight.shape)


def _look_back(attention: Any, config: Any, circuit: InductionCircuit, draw: _Draw) -> None:
    """All heads' scores are highest one token back, whatever the tokens: keys are turned by one position."""
    head_width, pairs = config.head_dim, config.head_dim // 2
    query, key = (torch.zeros(config.num_attention_heads, head_width, config.hidden_size) for _ in range(2))
    for band in range(min(circuit.distance_bands, pairs)):
        angle = config.rope_parameters["rope_theta"] ** (-band / pairs)
        query[:, band, 0] = 1.0
        key[:, band, 0] = math.cos(angle)
        key[:, band + pairs, 0] = math.sin(angle)
    _score(attention, query.flatten(0, 1), key.flatten(0, 1), circuit.distance_gain, draw)


def _match(
    attention: Any, config: Any, circuit: InductionCircuit, token: torch.Tensor, before: torch.Tensor, draw: _Draw
) -> None:
    """Scores are highest where the token before was the token at hand; every head compares other coordinates."""
    head_width, pairs, half = config.head_dim, config.head_dim // 2, len(token)
    read = torch.ones(head_width, 1)
    for low in (0, pairs):
        read[low : low + min(circuit.match_skips, pairs - 1)] = 0.0
    parts: list[torch.Tensor] = []
    for _ in range(config.num_attention_heads):
        rows = torch.cat([draw.orthogonal(half) for _ in range(math.ceil(head_width / half))])
        parts.append(rows[:head_width] * read)
    compared = torch.cat(parts)
    _score(attention, compared @ token, compared @ before, circuit.match_gain, draw)


def _score(attention: Any, query: torch.Tensor, key: torch.Tensor, gain: float, draw: _Draw) -> None:
    attention.q_proj.weight.copy_(draw.near(query))
    attention.k_proj.weight.copy_(draw.near(key))
    attention.q_norm.weight.fill_(math.sqrt(gain))
    attention.k_norm.weight.fill_(math.sqrt(gain))


def _move(attention: Any, read: torch.Tensor, written: torch.Tensor, factor: float, draw: _Draw) -> None:
    """What is read of a place, `factor` times, is written where the attention looks from."""
    mixed = draw.orthogonal(read.shape[1])[:, : len(read)]
    attention.v_proj.weight.copy_(draw.near(mixed @ read))
    attention.o_proj.weight.copy_(draw.near(factor * written.T @ mixed.T))
