"""`oni`, the network of ONI (arXiv 2410.23022, appendix): a rendered crop, statistics and message into a GRU of 512."""

import torch
from torch import Tensor, nn

from agents.networks.base import RecurrentPolicy, TensorObservation
from agents.networks.encoders import BottomLine
from agents.networks.font import render_table
from envs.base import View


class OniEncoder(nn.Module):
    """A 12x12-character crop as 3x72x72 pixels through three convolutions; statistics and message through MLPs."""

    def __init__(self, view: View) -> None:
        super().__init__()
        # uint8 [256 * 16, 3, 6, 6]: the pixels of every character in every colour.
        self.register_buffer("glyphs", torch.from_numpy(render_table()).reshape(4096, 3, 6, 6), persistent=False)
        self.crop = nn.Sequential(
            nn.Conv2d(3, 32, 8, stride=4),
            nn.ELU(),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.ELU(),
            nn.Conv2d(64, 128, 3, stride=2),
            nn.ELU(),
            nn.Flatten(),
        )
        with torch.no_grad():
            flat = self.crop(torch.zeros(1, 3, 6 * view.crop_height, 6 * view.crop_width)).shape[1]
        self.project = nn.Sequential(nn.Linear(flat, 512), nn.ELU())
        self.bottom_line = BottomLine(128)
        self.message = nn.Sequential(nn.Linear(view.message_bytes, 128), nn.ELU(), nn.Linear(128, 128), nn.ELU())
        self.features = 512 + self.bottom_line.features + 128

    def render(self, chars: Tensor, colors: Tensor) -> Tensor:
        """Pixels in [0, 1], [N, 3, 6 h, 6 w], of characters and colours [N, h, w]."""
        count, height, width = chars.shape
        cell = chars.to(torch.int64) * 16 + colors
        tiles = self.get_buffer("glyphs")[cell].permute(0, 3, 1, 4, 2, 5)
        return tiles.reshape(count, 3, 6 * height, 6 * width).to(torch.float32) / 255.0

    def forward(self, observation: TensorObservation) -> Tensor:
        pixels = self.render(observation["chars"], observation["colors"])
        message = observation["message"].to(torch.float32) / 255.0
        return torch.cat(
            [self.project(self.crop(pixels)), self.bottom_line(observation["blstats"]), self.message(message)], dim=-1
        )


class OniPolicy(RecurrentPolicy):
    """`OniEncoder` (795 features) and a GRU of 512."""

    view = View(crop_height=12, crop_width=12)

    def __init__(self, actions: int) -> None:
        encoder = OniEncoder(self.view)
        super().__init__(encoder, encoder.features, 512, actions)
