"""The pixels of a terminal's characters: every byte in each of the 16 colours, 6x6 pixels."""

import functools

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SIZE = 6
# The 16 colours of NetHack's terminal (VGA palette), RGB.
_PALETTE = np.array(
    [
        (0x00, 0x00, 0x00), (0xAA, 0x00, 0x00), (0x00, 0xAA, 0x00), (0xAA, 0x55, 0x00),
        (0x00, 0x00, 0xAA), (0xAA, 0x00, 0xAA), (0x00, 0xAA, 0xAA), (0xAA, 0xAA, 0xAA),
        (0x55, 0x55, 0x55), (0xFF, 0x55, 0x55), (0x55, 0xFF, 0x55), (0xFF, 0xFF, 0x55),
        (0x55, 0x55, 0xFF), (0xFF, 0x55, 0xFF), (0x55, 0xFF, 0xFF), (0xFF, 0xFF, 0xFF),
    ],
    dtype=np.float32,
)  # fmt: skip
# Black on black cannot be seen; NetHack's terminals show "black" objects in blue.
_PALETTE[0] = _PALETTE[4]


@functools.cache
def render_table() -> NDArray[np.uint8]:
    """uint8 [256, 16, 3, 6, 6]: characters drawn with Pillow's built-in bitmap font, shrunk to 6x6, in each colour."""
    font = ImageFont.load_default_imagefont()
    ink = np.zeros((256, SIZE, SIZE), dtype=np.float32)
    for code in range(33, 127):
        glyph = Image.new("L", (6, 11), 0)
        ImageDraw.Draw(glyph).text((0, 0), chr(code), fill=255, font=font)
        ink[code] = np.asarray(glyph.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32) / 255.0
    # Every character keeps an image of its own; none may fade away when it is shrunk.
    peak = ink.max(axis=(1, 2), keepdims=True)
    ink = np.where(peak > 0, ink / np.maximum(peak, 1e-6), 0.0)
    pixels = ink[:, None, None] * _PALETTE[None, :, :, None, None]
    return np.round(pixels).astype(np.uint8)
