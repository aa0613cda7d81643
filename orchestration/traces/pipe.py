"""Objects full of numpy arrays through a pipe, without a copy of an array on the sender's side.

What a rollout tells of many environments are columns of a few large arrays. Each of those goes through the pipe once and as it
lies in memory; the columns are told as places in it.
"""

import io
import pickle
import struct
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_COUNT = struct.Struct("<Q")
_LARGE = 2**14
"""Bytes of an array from which on it is not copied into the pickle: a write of its own costs as much as copying them."""


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        owner = obj.base if type(obj) is np.ndarray else None
        if type(owner) is not np.ndarray or not owner.flags.c_contiguous:
            return NotImplemented
        return _view, (owner, _address(obj) - _address(owner), obj.shape, obj.strides, obj.dtype.str)


def _address(array: NDArray[Any]) -> int:
    return array.__array_interface__["data"][0]


def _view(owner: NDArray[Any], offset: int, shape: Sequence[int], strides: Sequence[int], dtype: str) -> NDArray[Any]:
    return np.ndarray(shape, dtype, owner, offset, strides)  # pyright: ignore[reportArgumentType]  (arrays are buffers)


def send(pipe: IO[bytes], message: Any) -> None:
    """Writes one message to an unbuffered pipe: a pickle, then the arrays that it refers to.

    An array that is a view makes the whole array that it is a view of go along. Raises `OSError` where nobody reads.
    """
    large: list[memoryview] = []

    def copied(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < _LARGE:
            return True
        large.append(view)
        return False

    pickled = io.BytesIO()
    _Pickler(pickled, protocol=5, buffer_callback=copied).dump(message)
    parts = [pickled.getbuffer(), *large]
    _write(pipe, b"".join(_COUNT.pack(count) for count in (len(parts), *(part.nbytes for part in parts))))
    for part in parts:
        _write(pipe, part)


def _write(pipe: IO[bytes], data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[pipe.write(view) :]


def receive(pipe: IO[bytes]) -> Any:
    """Reads what `send` wrote. Raises `EOFError` where the pipe has ended, also within a message."""
    (count,) = _COUNT.unpack(_read(pipe, _COUNT.size))
    sizes = [_COUNT.unpack(_read(pipe, _COUNT.size))[0] for _ in range(count)]
    pickled, *buffers = [_read(pipe, size) for size in sizes]
    return pickle.loads(pickled, buffers=buffers)


def _read(pipe: IO[bytes], size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        got = pipe.readinto(view)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType, reportUnknownMemberType]
        if not got:
            raise EOFError
        view = view[got:]
    return data
