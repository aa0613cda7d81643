"""`oni`, the network of ONI (arXiv 2410.23022, appendix): a rendered crop, statistics and message into a GRU of 512."""

import torch
from torch import Tensor, nn

from agents.networks.base import RecurrentPolicy
from agents.networks.crops import Encoder, TensorObservation, Windows
from agents.networks.distinct import once_each
from agents.networks.encoders import BottomLine
from agents.networks.font import SIZE, render_table
from envs.base import View

_KERNEL, _STRIDE = 8, 4
_CELLS = 256 * 16
"""Characters times colours."""


class OniEncoder(Encoder):
    """A 12x12-character crop as 3x72x72 pixels through three convolutions; statistics and message through MLPs.

    The pixels are never drawn as a whole: a window of the first convolution (8x8 pixels, every 4) lies on 2x2 characters of
    6x6 pixels, so its output depends on four characters and on where in them it begins, and each distinct such window is
    computed once.
    """

    def __init__(self, view: View) -> None:
        super().__init__(view)
        # uint8 [256 * 16, 3, 6, 6]: the pixels of every character in every colour.
        self.register_buffer(
            "glyphs", torch.from_numpy(render_table()).reshape(_CELLS, 3, SIZE, SIZE), persistent=False
        )
        self.crop = nn.Sequential(
            nn.Conv2d(3, 32, _KERNEL, stride=_STRIDE),
            nn.ELU(),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.ELU(),
            nn.Conv2d(64, 128, 3, stride=2),
            nn.ELU(),
            nn.Flatten(),
        )
        with torch.no_grad():
            flat = self.crop(torch.zeros(1, 3, SIZE * view.crop_height, SIZE * view.crop_width)).shape[1]
        self.project = nn.Sequential(nn.Linear(flat, 512), nn.ELU())
        self.bottom_line = BottomLine(128)
        self.message = nn.Sequential(nn.Linear(view.message_bytes, 128), nn.ELU(), nn.Linear(128, 128), nn.ELU())
        self.crop_features, self.rest_features = 512, self.bottom_line.features + 128
        self._rows, self._columns = ((SIZE * n - _KERNEL) // _STRIDE + 1 for n in (view.crop_height, view.crop_width))
        corners, phases, pixels = _window_tables(self._rows, self._columns, view.crop_width)
        self.windows = Windows(corners)
        self.register_buffer("phases", phases, persistent=False)
        self.register_buffer("pixels", pixels, persistent=False)

    def look(self, chars: Tensor, colors: Tensor) -> Tensor:
        cells_NPK = self.windows.gather(chars.to(torch.int64) * 16 + colors)
        phases_P = self.get_buffer("phases")
        keys_NP = phases_P
        for corner in range(self.windows.reads):
            keys_NP = keys_NP * _CELLS + cells_NPK[..., corner]
        maps = once_each(keys_NP, lambda where: self._first(cells_NPK, phases_P, where))
        # Channels lie last in memory: the layout that CPUs and tensor cores convolve fastest.
        maps = maps.reshape(-1, self._rows, self._columns, maps.shape[-1]).permute(0, 3, 1, 2)
        return self.project(self.crop[2:](maps))

    def _first(self, cells_NPK: Tensor, phases_P: Tensor, where: Tensor) -> Tensor:
        """The first convolution and its activation, [M, 32], of the windows at the flat indices `where` [M]."""
        tiles = self.get_buffer("glyphs")[cells_NPK.flatten(0, 1)[where]]  # [M, 4, 3, 6, 6]
        pixels = tiles.flatten(1).gather(1, self.get_buffer("pixels")[phases_P[where % len(phases_P)]])
        convolution, activation = self.crop[0], self.crop[1]
        assert isinstance(convolution, nn.Conv2d)
        return activation(
            nn.functional.linear(pixels.to(torch.float32) / 255.0, convolution.weight.flatten(1), convolution.bias)
        )

    def read(self, observation: TensorObservation) -> Tensor:
        message = observation["message"].to(torch.float32) / 255.0
        return torch.cat([self.bottom_line(observation["blstats"]), self.message(message)], dim=-1)


def _window_tables(rows: int, columns: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each window of the first convolution the four characters under it [P, 4] (as positions in the flattened crop) and
    its phase [P]; and for each phase, which pixels of the four tiles [4 * 3 * 6 * 6] it reads [phases, 3 * 8 * 8]."""
    offsets = sorted({_STRIDE * i % SIZE for i in range(SIZE)})  # 0, 2, 4: a window spans two characters each way
    assert max(offsets) + _KERNEL <= 2 * SIZE
    corners: list[list[int]] = []
    phases: list[int] = []
    for i in range(rows):
        for j in range(columns):
            y, x = _STRIDE * i // SIZE, _STRIDE * j // SIZE
            corners.append([(y + dy) * width + x + dx for dy in (0, 1) for dx in (0, 1)])
            phases.append(offsets.index(_STRIDE * i % SIZE) * len(offsets) + offsets.index(_STRIDE * j % SIZE))
    tiles = torch.arange(4 * 3 * SIZE * SIZE).reshape(2, 2, 3, SIZE, SIZE)
    block = tiles.permute(2, 0, 3, 1, 4).reshape(3, 2 * SIZE, 2 * SIZE)
    pixels = [block[:, y : y + _KERNEL, x : x + _KERNEL].reshape(-1) for y in offsets for x in offsets]
    return torch.tensor(corners), torch.tensor(phases), torch.stack(pixels)


class OniPolicy(RecurrentPolicy):
    """`OniEncoder` (795 features) and a GRU of 512."""

    view = View(crop_height=12, crop_width=12)

    def __init__(self, actions: int) -> None:
        super().__init__(OniEncoder(self.view), 512, actions)
