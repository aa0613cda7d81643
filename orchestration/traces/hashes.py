"""Hashes of observations."""

import functools
import hashlib
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HASH_BYTES = 6


def observation_hash(observation: Mapping[str, NDArray[Any]]) -> str:
    """blake2b (48 bits) over names, dtypes, shapes and bytes of the arrays, in the order of their names."""
    (found,) = hashes_of({name: array[None] for name, array in observation.items()})
    return found


def hashes_of(observations: Mapping[str, NDArray[Any]]) -> Iterator[str]:
    """`observation_hash` of each of L observations, whose arrays are [L, ...]."""
    count = len(next(iter(observations.values()), ()))
    if not count:
        return
    parts: list[NDArray[np.uint8]] = []
    for name in sorted(observations):
        array = np.ascontiguousarray(observations[name])
        described = np.frombuffer(_described(name, array.dtype, array.shape[1:]), np.uint8)
        parts.append(np.broadcast_to(described, (count, len(described))))
        parts.append(array.reshape(count, -1).view(np.uint8))
    rows = np.concatenate(parts, axis=1)
    size, data = rows.shape[1], memoryview(rows.tobytes())
    for at in range(0, count * size, size):
        yield hashlib.blake2b(data[at : at + size], digest_size=_HASH_BYTES).hexdigest()


def key_hashes(observation: Mapping[str, NDArray[Any]]) -> str:
    """`EnvStep.key_hashes` of one observation."""
    return "".join(column for _, column in key_columns({name: array[None] for name, array in observation.items()}))


def key_columns(observations: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, str]]:
    """Each key in the order of names, with two hexadecimal digits (the low byte of CRC-32) of each of the L arrays [L, ...]
    that it has: an array that does not change repeats them, which takes no room."""
    for name in sorted(observations):
        array = observations[name]
        size, data = array[:1].nbytes, memoryview(array.tobytes())
        yield name, bytes(zlib.crc32(data[at * size : (at + 1) * size]) & 0xFF for at in range(len(array))).hex()


@functools.lru_cache(maxsize=256)
def _described(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    return f"{name}:{dtype.str}:{shape};".encode()
