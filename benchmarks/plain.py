"""The encoders as their definitions read: everything drawn, every convolution over everything, nothing computed once.

What `agents.networks` is tested against, and what Sample Factory trains where it is given the network alone.
"""

import torch
from torch import Tensor, nn

from agents.networks.crops import Encoder, TensorObservation
from agents.networks.fast import FastEncoder
from agents.networks.font import render_table
from agents.networks.oni import OniEncoder


class PlainEncoder(nn.Module):
    """An encoder with the parameters of `encoder`, and the same values and gradients."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.crop_features, self.rest_features = encoder.crop_features, encoder.rest_features
        tiles = torch.from_numpy(render_table()).reshape(4096, 3, 6, 6)
        self.register_buffer("tiles", tiles, persistent=False)

    def look(self, observation: TensorObservation) -> Tensor:
        """Features [N, C] of the crops."""
        encoder, cells_NHW = self.encoder, observation["chars"].long() * 16 + observation["colors"]
        if isinstance(encoder, OniEncoder):
            batch, height, width = cells_NHW.shape
            drawn = self.get_buffer("tiles")[cells_NHW].permute(0, 3, 1, 4, 2, 5)
            image = drawn.reshape(batch, 3, 6 * height, 6 * width).float() / 255.0
        elif isinstance(encoder, FastEncoder):
            image = (encoder.character(cells_NHW // 16) + encoder.colour(cells_NHW % 16)).permute(0, 3, 1, 2)
        else:
            raise TypeError(f"{type(encoder).__name__} has no plain form here")
        return encoder.project(encoder.crop(image))

    def forward(self, observation: TensorObservation) -> Tensor:
        """All features [N, C + D]."""
        return torch.cat([self.look(observation), self.encoder.read(observation)], dim=-1)
