"""`fast`, the default network: small enough that two CPU cores act and learn thousands of steps a second."""

import torch
from torch import Tensor, nn

from agents.networks.base import RecurrentPolicy
from agents.networks.crops import Encoder, TensorObservation, Windows
from agents.networks.distinct import hash_powers, hash_rows, once_each
from agents.networks.encoders import BottomLine, TrigramMessage
from envs.base import View

_KERNEL, _STRIDE = 3, 2


class FastEncoder(Encoder):
    """Crop: summed embeddings of character and colour, two strided 3x3 convolutions, FC; statistics; message trigrams.

    The first convolution is computed once for each distinct window of 3x3 characters.
    """

    def __init__(self, view: View) -> None:
        super().__init__(view)
        self.character = nn.Embedding(256, 16)
        self.colour = nn.Embedding(16, 16)
        self.crop = nn.Sequential(
            nn.Conv2d(16, 32, _KERNEL, stride=_STRIDE),
            nn.ReLU(),
            nn.Conv2d(32, 64, _KERNEL, stride=_STRIDE),
            nn.ReLU(),
            nn.Flatten(),
        )
        self._rows, self._columns = (_strided(n) for n in (view.crop_height, view.crop_width))
        self.project = nn.Sequential(nn.Linear(64 * _strided(self._rows) * _strided(self._columns), 256), nn.ReLU())
        self.bottom_line = BottomLine(64)
        self.message = TrigramMessage(view.message_bytes, 64)
        self.crop_features, self.rest_features = 256, self.bottom_line.features + self.message.features
        positions = torch.arange(view.crop_height * view.crop_width).reshape(view.crop_height, view.crop_width)
        index = positions.unfold(0, _KERNEL, _STRIDE).unfold(1, _KERNEL, _STRIDE)
        self.windows = Windows(index.reshape(self._rows * self._columns, _KERNEL * _KERNEL))
        self.register_buffer("window_powers", hash_powers(_KERNEL * _KERNEL), persistent=False)

    def look(self, chars: Tensor, colors: Tensor) -> Tensor:
        cells_NPK = self.windows.gather(chars.to(torch.int64) * 16 + colors)
        keys_NP = hash_rows(cells_NPK, self.get_buffer("window_powers"))
        maps = once_each(keys_NP, lambda where: self._first(cells_NPK.flatten(0, 1)[where]))
        # Channels lie last in memory: the layout that CPUs and tensor cores convolve fastest.
        maps = maps.reshape(-1, self._rows, self._columns, maps.shape[-1]).permute(0, 3, 1, 2)
        return self.project(self.crop[2:](maps))

    def _first(self, cells_MK: Tensor) -> Tensor:
        """The first convolution and its activation, [M, 32], of windows of cells."""
        convolution, activation = self.crop[0], self.crop[1]
        assert isinstance(convolution, nn.Conv2d)
        embedded = self.character(cells_MK // 16) + self.colour(cells_MK % 16)  # [M, 9, 16]
        weight = convolution.weight.flatten(2).transpose(1, 2).flatten(1)  # as [32, 9 * 16]
        return activation(nn.functional.linear(embedded.flatten(1), weight, convolution.bias))

    def read(self, observation: TensorObservation) -> Tensor:
        return torch.cat([self.bottom_line(observation["blstats"]), self.message(observation["message"])], dim=-1)


def _strided(n: int) -> int:
    """Output length of a valid convolution of kernel 3 and stride 2."""
    return (n - _KERNEL) // _STRIDE + 1


class FastPolicy(RecurrentPolicy):
    """`FastEncoder` and a GRU of 256."""

    view = View(crop_height=15, crop_width=15)

    def __init__(self, actions: int) -> None:
        super().__init__(FastEncoder(self.view), 256, actions)
