"""Objects full of numpy arrays through a pipe, without a copy of a large array on the sender's side.

What a rollout tells of many environments are places in the arrays of a call (`agents.observer.EpisodeSteps`): those go through the
pipe once a message, as they lie in memory.
"""

import io
import pickle
import struct
from typing import IO, Any

_COUNT = struct.Struct("<Q")
_LARGE = 2**14
"""Bytes of an array from which on it is not copied into the pickle: a write of its own costs as much as copying them."""


def send(pipe: IO[bytes], message: Any) -> None:
    """Writes one message to an unbuffered pipe: a pickle, then the large arrays of it. Raises `OSError` where nobody reads."""
    large: list[memoryview] = []

    def copied(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < _LARGE:
            return True
        large.append(view)
        return False

    pickled = io.BytesIO()
    pickle.Pickler(pickled, protocol=5, buffer_callback=copied).dump(message)
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
