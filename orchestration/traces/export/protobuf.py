"""The wire format of protocol buffers, as much as writing takes: fields as bytes, to be joined into messages.

Source: https://protobuf.dev/programming-guides/encoding/.
"""

import struct

_MASK = 2**64 - 1


def varint(field: int, value: int) -> bytes:
    """An integer, enum or bool; negative numbers as 64-bit two's complement."""
    return _number(field << 3) + _number(value & _MASK)


def fixed64(field: int, value: int) -> bytes:
    """An unsigned 64-bit number in eight bytes."""
    return _number(field << 3 | 1) + struct.pack("<Q", value & _MASK)


def double(field: int, value: float) -> bytes:
    """A 64-bit floating-point number."""
    return _number(field << 3 | 1) + struct.pack("<d", value)


def string(field: int, value: str) -> bytes:
    """A text, which must be valid Unicode."""
    return message(field, value.encode())


def message(field: int, value: bytes) -> bytes:
    """A message, or bytes."""
    return _number(field << 3 | 2) + _number(len(value)) + value


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
