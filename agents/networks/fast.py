"""`fast`, the default network: small enough that two CPU cores act and learn thousands of steps a second."""

import torch
from torch import Tensor, nn

from agents.networks.base import RecurrentPolicy, TensorObservation
from agents.networks.encoders import BottomLine, TrigramMessage
from envs.base import View


class FastEncoder(nn.Module):
    """Crop: summed embeddings of character and colour, two strided 3x3 convolutions, FC; statistics; message trigrams."""

    def __init__(self, view: View) -> None:
        super().__init__()
        self.character = nn.Embedding(256, 16)
        self.colour = nn.Embedding(16, 16)
        self.crop = nn.Sequential(
            nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2), nn.ReLU(), nn.Flatten()
        )
        height, width = (_strided(_strided(n)) for n in (view.crop_height, view.crop_width))
        self.project = nn.Sequential(nn.Linear(64 * height * width, 256), nn.ReLU())
        self.bottom_line = BottomLine(64)
        self.message = TrigramMessage(view.message_bytes, 64)
        self.features = 256 + self.bottom_line.features + self.message.features

    def forward(self, observation: TensorObservation) -> Tensor:
        # One lookup in the table of all 256 x 16 sums is cheaper than two lookups and a sum for every cell.
        table = (self.character.weight[:, None] + self.colour.weight[None]).reshape(4096, -1)
        cell = observation["chars"].to(torch.int32) * 16 + observation["colors"]
        crop = nn.functional.embedding(cell, table).permute(0, 3, 1, 2)
        return torch.cat(
            [
                self.project(self.crop(crop)),
                self.bottom_line(observation["blstats"]),
                self.message(observation["message"]),
            ],
            dim=-1,
        )


def _strided(n: int) -> int:
    """Output length of a valid convolution of kernel 3 and stride 2."""
    return (n - 3) // 2 + 1


class FastPolicy(RecurrentPolicy):
    """`FastEncoder` and a GRU of 256."""

    view = View(crop_height=15, crop_width=15)

    def __init__(self, actions: int) -> None:
        encoder = FastEncoder(self.view)
        super().__init__(encoder, encoder.features, 256, actions)
