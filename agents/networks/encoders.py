"""Pieces of encoders that the networks share: bottom-line statistics, messages, and the palette of the terminal."""

import torch
from torch import Tensor, nn

from agents.networks.distinct import hash_powers, hash_rows, once_each

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
        self.register_buffer("powers", hash_powers(length), persistent=False)
        self.embedding = nn.Embedding(buckets, width)
        nn.init.normal_(self.embedding.weight, std=1.0)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ELU())
        self.features = width

    def forward(self, message: Tensor) -> Tensor:
        return once_each(hash_rows(message, self.get_buffer("powers")), lambda where: self._encode(message[where]))

    def _encode(self, message: Tensor) -> Tensor:
        wide = message.to(torch.int64)
        first, second, third = wide[:, :-2], wide[:, 1:-1], wide[:, 2:]
        trigram = (first * 65_537 + second * 257 + third) * 2_654_435_761 % self.buckets
        used = (third != 0).to(self.embedding.weight.dtype)
        total = torch.einsum("um,umw->uw", used, self.embedding(trigram))
        mean = total / used.sum(dim=1, keepdim=True).clamp(min=1.0).sqrt()
        return self.mlp(mean)
