"""The character network that reads captions: ONI's message encoder, computed without spending time on padding.

A caption is at most `length` bytes of UTF-8, padded with zero bytes. Positions whose whole receptive field is padding
all have one and the same value, so every layer computes the text and one position of padding, and repeats the
latter where a window needs more. The result is what the plain stack gives for the padded caption; the cost follows
the longest caption of a batch instead of `length`.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

CAPTION_BYTES = 256
"""Bytes of a caption that ONI's network reads; what comes behind is cut off."""

_CHUNK = 16

_KERNELS: tuple[tuple[int, int], ...] = ((7, 3), (7, 3), (3, 1), (3, 1), (3, 1), (3, 3))
"""(kernel, pool) of each convolution; a pool of 1 is none."""


def encode_captions(captions: Sequence[str], length: int = CAPTION_BYTES) -> NDArray[np.uint8]:
    """Captions as bytes: uint8 [N, width], zero-padded to the longest of them plus one, at most `length`.

    The zero behind the longest caption is the position that stands for all padding in `CharacterEncoder`.
    """
    rows = [caption.encode("utf-8", "surrogatepass")[:length] for caption in captions]
    width = min(max((len(row) for row in rows), default=0) + 1, length)
    return np.frombuffer(b"".join(row.ljust(width, b"\0") for row in rows), dtype=np.uint8).reshape(len(rows), width)


def by_length(captions: Sequence[str]) -> Iterator[list[int]]:
    """Rows of captions in chunks for one forward pass each: short ones do not pay for long ones, and memory stays low."""
    order = sorted(range(len(captions)), key=lambda i: len(captions[i]))
    for start in range(0, len(order), _CHUNK):
        yield order[start : start + _CHUNK]


class SeededDropout(nn.Module):
    """Dropout that draws from a generator of its own, so that training neither reads nor moves torch's global one."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None
        """Where masks come from; set by whoever trains. It must live on the device of the input."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        if self.generator is None:
            raise RuntimeError("SeededDropout trains only with a generator: set `generator` first")
        keep = torch.rand(x.shape, generator=self.generator, device=x.device) >= self.p
        return x * keep / (1.0 - self.p)


class CharacterEncoder(nn.Module):
    """Embedding 256x32, six convolutions of 64 channels, a fully connected layer: bytes [N, <= length] -> [N, 128]."""

    def __init__(
        self, length: int = CAPTION_BYTES, embedding: int = 32, channels: int = 64, features: int = 128
    ) -> None:
        super().__init__()
        self.length = length
        self.embedding = nn.Embedding(256, embedding)
        inputs = (embedding, *[channels] * (len(_KERNELS) - 1))
        self.convolutions = nn.ModuleList(
            nn.Conv1d(n, channels, kernel) for n, (kernel, _) in zip(inputs, _KERNELS, strict=True)
        )
        self.positions = self._positions(length)
        self.project = nn.Linear(channels * self.positions, features)

    @staticmethod
    def _positions(length: int) -> int:
        """Positions that the convolutions leave of `length` bytes (5 of 256)."""
        for kernel, pool in _KERNELS:
            length = (length - kernel + 1) // pool
        if length < 1:
            raise ValueError("the character network needs captions of at least 123 bytes: raise `caption_bytes`")
        return length

    def forward(self, bytes_NL: Tensor) -> Tensor:
        """uint8 [N, L], L <= length; where L < length, the last position must be padding (zero) in every row."""
        x = bytes_NL.long().unsqueeze(2)  # [N, L, C]
        full = self.length  # what the padded length would be; x holds a prefix whose last position is all the rest
        for number, (convolution, (kernel, pool)) in enumerate(zip(self.convolutions, _KERNELS, strict=True)):
            held = x.shape[1]
            full = full - kernel + 1
            # Output held-1 reads nothing but padding, so it stands for all that follow.
            x = _extend(x, min(held, full) + kernel - 1)
            x = functional.relu(_convolve(convolution, x) if number else self._first(convolution, x.squeeze(2)))
            if pool > 1:
                full = full // pool
                held = min((x.shape[1] - 2 + pool) // pool + 1, full)  # up to the first window of only padding
                x = _extend(x, held * pool).unflatten(1, (held, pool)).amax(2)
        return functional.relu(self.project(_extend(x, self.positions).transpose(1, 2).flatten(1)))

    def _first(self, convolution: nn.Module, bytes_NL: Tensor) -> Tensor:
        """The first convolution of the embedded bytes, [N, L - kernel + 1, O]: a sum of rows of a table that holds, for each
        byte at each place of the kernel, what it adds. A fifteenth of the arithmetic."""
        assert isinstance(convolution, nn.Conv1d)
        outputs, _, kernel = convolution.weight.shape
        table = torch.einsum("ec,ock->keo", self.embedding.weight, convolution.weight).reshape(-1, outputs)
        places = torch.arange(kernel, device=bytes_NL.device) * self.embedding.num_embeddings
        windows = bytes_NL.unfold(1, kernel, 1) + places
        sums = functional.embedding_bag(windows.reshape(-1, kernel), table, mode="sum")
        assert convolution.bias is not None
        return (sums + convolution.bias).unflatten(0, (bytes_NL.shape[0], -1))


def _convolve(convolution: nn.Module, x: Tensor) -> Tensor:
    """`nn.Conv1d` of [N, L, C] as one matrix product: [N, L - kernel + 1, O].

    A library's convolution is prepared anew for every shape that it meets, and captions come in ever new ones.
    """
    assert isinstance(convolution, nn.Conv1d)
    outputs, inputs, kernel = convolution.weight.shape
    windows = x.unfold(1, kernel, 1).transpose(2, 3).reshape(-1, kernel * inputs)
    weight = convolution.weight.transpose(1, 2).reshape(outputs, -1)
    return functional.linear(windows, weight, convolution.bias).unflatten(0, (x.shape[0], -1))


def _extend(x: Tensor, length: int) -> Tensor:
    """The last position repeated, or the surplus cut off, to `length`: [N, L, C] -> [N, length, C]."""
    missing = length - x.shape[1]
    if missing <= 0:
        return x[:, :length]
    return torch.cat((x, x[:, -1:].expand(-1, missing, -1)), dim=1)


class CharacterMLP(nn.Module):
    """`CharacterEncoder` and a perceptron with dropout behind each hidden layer: bytes [N, L] -> [N, outputs]."""

    def __init__(self, hidden: Sequence[int], outputs: int, dropout: float, length: int = CAPTION_BYTES) -> None:
        super().__init__()
        self.encoder = CharacterEncoder(length)
        layers: list[nn.Module] = []
        width = self.encoder.project.out_features
        for size in hidden:
            layers += [nn.Linear(width, size), nn.ReLU(), SeededDropout(dropout)]
            width = size
        self.head = nn.Sequential(*layers, nn.Linear(width, outputs))

    def seed_dropout(self, generator: torch.Generator) -> None:
        for module in self.modules():
            if isinstance(module, SeededDropout):
                module.generator = generator

    def forward(self, bytes_NL: Tensor) -> Tensor:
        return self.head(self.encoder(bytes_NL))
