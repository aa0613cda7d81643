"""Pieces of encoders that the networks share: bottom-line statistics, messages, and the palette of the terminal."""

import torch
from torch import Tensor, nn

BLSTATS = 27
# Divisors of NetHack's bottom-line statistics, in the order of NLE's blstats, so that usual values lie within ±1.
# 0 hides a statistic: the score would tell the reward, depth and level the task's answer, and the condition and
# alignment are bit masks or labels that a linear scale cannot carry (ONI zeroes the same five).
_DIVISORS = (
    79, 21, 125, 25, 25, 25, 25, 25, 25, 0, 100, 100, 0, 1000, 50, 50, 10, 10, 10, 1000, 5000, 3, 5, 4, 0, 0, 0,
)  # fmt: skip
# x, y, strength %, six attributes | score | hp, max hp | depth | gold, energy, max energy, armour class, monster level,
# experience level, experience points, time, hunger, burden, dungeon number | level number, condition, alignment


class BottomLine(nn.Module):
    """Scaled statistics, clipped to ±5, beside an MLP of them: [N, 27] → [N, 27 + width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        divisors = torch.tensor(_DIVISORS, dtype=torch.float32)
        scale = torch.where(divisors > 0, 1.0 / divisors.clamp(min=1.0), torch.zeros(()))
        self.register_buffer("scale", scale, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(BLSTATS, width), nn.ELU(), nn.Linear(width, width), nn.ELU())
        self.features = BLSTATS + width

    def forward(self, blstats: Tensor) -> Tensor:
        scaled = (blstats.to(torch.float32) * self.get_buffer("scale")).clamp(-5.0, 5.0)
        return torch.cat([scaled, self.mlp(scaled)], dim=-1)


class TrigramMessage(nn.Module):
    """The message line as a bag of hashed byte trigrams: uint8 [N, M] → [N, width].

    Steps repeat their messages (most are empty), so each distinct one of the batch is encoded once.
    """

    def __init__(self, length: int, width: int, buckets: int = 2048) -> None:
        super().__init__()
        self.buckets = buckets
        self.register_buffer("powers", _hash_powers(length), persistent=False)
        self.embedding = nn.Embedding(buckets, width)
        nn.init.normal_(self.embedding.weight, std=1.0)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ELU())
        self.features = width

    def forward(self, message: Tensor) -> Tensor:
        wide = message.to(torch.int64)
        first, second, third = wide[:, :-2], wide[:, 1:-1], wide[:, 2:]
        where, inverse = _unique((wide * self.get_buffer("powers")).sum(dim=1))
        trigram = (first[where] * 65_537 + second[where] * 257 + third[where]) * 2_654_435_761 % self.buckets
        used = (third[where] != 0).to(self.embedding.weight.dtype)
        total = torch.einsum("um,umw->uw", used, self.embedding(trigram))
        mean = total / used.sum(dim=1, keepdim=True).clamp(min=1.0).sqrt()
        return self.mlp(mean)[inverse]


def _hash_powers(length: int) -> Tensor:
    """[length] int64 coefficients of a polynomial row hash with 64-bit wrap-around."""
    value, powers = 1, list[int]()
    for _ in range(length):
        powers.append(value)
        value = (value * 6_364_136_223_846_793_005 + 1) % (1 << 63)
    return torch.tensor(powers, dtype=torch.int64)


def _unique(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The index of one row of each distinct key, and for each row which of these it equals."""
    distinct, inverse = torch.unique(keys, return_inverse=True)
    where = torch.empty(distinct.shape[0], dtype=torch.int64, device=keys.device)
    where[inverse] = torch.arange(keys.shape[0], device=keys.device)
    return where, inverse
