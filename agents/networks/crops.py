"""What an encoder is: features of the crop, which repeats from step to step, beside features of everything else."""

from abc import abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from agents.networks.distinct import hash_powers, hash_rows, once_each
from agents.sizes import few_sizes
from envs.base import View

TensorObservation = Mapping[str, Tensor]
"""Arrays of an observation with one leading batch axis: `chars` and `colors` uint8 [N, h, w], `blstats` int32 [N, 27],
`message` uint8 [N, M]."""


Then = Callable[[Tensor], Tensor]
"""What becomes of a crop's features [N, C], row by row: [N, G]."""


class Encoder(nn.Module):
    """Observations → features, in two halves: those of the crop, which repeats, and those of the rest, which does not."""

    crop_features: int
    """C, what `look` gives of a crop."""
    rest_features: int
    """D, what `read` gives of the rest."""

    def __init__(self, view: View) -> None:
        super().__init__()
        self.register_buffer("crop_powers", hash_powers(2 * view.crop_height * view.crop_width), persistent=False)

    @abstractmethod
    def look(self, chars: Tensor, colors: Tensor) -> Tensor:
        """Features [N, C] of crops uint8 [N, h, w]; nothing else may enter them."""

    @abstractmethod
    def read(self, observation: TensorObservation) -> Tensor:
        """Features [N, D] of the rest of the observation."""

    def each_crop(self, observation: TensorObservation, then: Then, memory: "CropMemory | None") -> Tensor:
        """`then(look(crop))` [N, G] of every crop; equal ones are computed once."""
        chars, colors = observation["chars"], observation["colors"]
        if memory is not None:
            return memory.recall(self, then, chars, colors)
        rows = torch.cat([chars.flatten(1), colors.flatten(1)], dim=1)
        keys = hash_rows(rows, self.get_buffer("crop_powers"))
        return once_each(keys, lambda where: then(self.look(chars[where], colors[where])))

    def forward(self, observation: TensorObservation) -> Tensor:
        """All features [N, C + D]."""
        return torch.cat([self.each_crop(observation, _as_it_is, None), self.read(observation)], dim=-1)


def _as_it_is(features: Tensor) -> Tensor:
    return features


class CropMemory:
    """The crops of the step before and what came of them, for one batch of environments under one set of weights."""

    def __init__(self) -> None:
        self._crops: Tensor | None = None
        self._results: Tensor | None = None

    def forget(self) -> None:
        """To be called when the weights change, or the batch is another one."""
        self._crops = self._results = None

    def recall(self, encoder: Encoder, then: Then, chars: Tensor, colors: Tensor) -> Tensor:
        """`then(look(crop))` [B, G] of crops [B, h, w]; only those that changed since the call before are computed."""
        crops = torch.stack([chars, colors], dim=1)
        if self._crops is None or self._results is None:
            self._crops, self._results = crops, then(encoder.look(chars, colors))
            return self._results
        changed = (crops != self._crops).flatten(1).any(dim=1).nonzero().squeeze(1)
        count = len(changed)
        if count:
            where = torch.cat([changed, changed.new_zeros(few_sizes(count) - count)])
            computed = then(encoder.look(chars[where], colors[where]))[:count]
            self._results = self._results.index_copy(0, changed, computed)
            self._crops = crops
        return self._results


class Windows(nn.Module):
    """The cells that each output of a strided window reads: `cells` [N, h, w] → `gather` [N, P, K]."""

    def __init__(self, index: Tensor) -> None:
        """`index` [P, K]: for each of P outputs, K positions in the flattened crop."""
        super().__init__()
        self.outputs, self.reads = index.shape
        self.register_buffer("index", index.reshape(-1), persistent=False)

    def gather(self, cells: Tensor) -> Tensor:
        return cells.flatten(1)[:, self.get_buffer("index")].reshape(-1, self.outputs, self.reads)
