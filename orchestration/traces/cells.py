"""Screens of a terminal as the cells that change from one to the next, as columns of plain values.

A change is a span of one row, from its first to its last cell that differs. The colour of a cell is left out where it is
what one would guess: that of the cell before where the character is the same, otherwise the colour in which the
character last appeared anywhere. In NetHack that is right for all but a few cells.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLANK = ord(" ")
_DIGITS = "0123456789abcdef"


@dataclass(slots=True)
class _State:
    """What the next screen is compared with."""

    chars: NDArray[np.uint8]
    """[rows, columns]"""
    colors: NDArray[np.uint8]
    """[rows, columns]; 0 where blank."""
    usual: NDArray[np.uint8]
    """[256], the colour in which each character last appeared."""


class CellPacker:
    """Makes the columns of screens [L, rows, columns] that follow one another, batch by batch."""

    def __init__(self, chars: NDArray[np.uint8], colors: NDArray[np.int8]) -> None:
        """`chars`, `colors` [rows, columns]: the first screen of all, which is stored elsewhere as text."""
        chars, shown = _normal(chars[None], colors[None])
        self._state = _State(chars[0].copy(), shown[0].copy(), np.zeros(256, np.uint8))
        # As a reader does: in the order in which the cells of the first screen stand.
        self._state.usual[chars[0].ravel()] = shown[0].ravel()

    def pack(self, chars: NDArray[np.uint8], colors: NDArray[np.int8]) -> dict[str, Any]:
        """The columns: `width` of the terminal; `spans` of each screen; `at` (row · width + column) and `size` of each
        span; `text` of all spans; `odd`, the cells of `text` whose colour is not the guessed one, each counted from the one before, and
        `ink`, their colours, a hexadecimal digit each."""
        chars, colors = _normal(chars, colors)
        state = self._state
        before = np.concatenate([state.chars[None], chars[:-1]])
        before_colors = np.concatenate([state.colors[None], colors[:-1]])
        other = chars != before
        differs = other | (colors != before_colors)
        screen, row = np.nonzero(differs.any(axis=2))
        width = chars.shape[2]
        rows = differs[screen, row]
        first = rows.argmax(axis=1)
        size = width - rows[:, ::-1].argmax(axis=1) - first
        # The cells of all spans, one after the other.
        column = _ranges(first, size)
        cell = (np.repeat(screen, size), np.repeat(row, size), column)
        text, ink = chars[cell], colors[cell]
        odd = np.flatnonzero(self._guess(text, ink, other[cell], before_colors[cell]) != ink)
        state.chars, state.colors = chars[-1].copy(), colors[-1].copy()
        return {
            "width": width,
            "spans": np.bincount(screen, minlength=len(chars)),
            "at": row * width + first,
            "size": size,
            "text": text.tobytes().decode("latin-1"),
            "odd": np.diff(odd, prepend=0),
            "ink": "".join(_DIGITS[each] for each in ink[odd].tolist()),
        }

    def _guess(
        self, text: NDArray[np.uint8], ink: NDArray[np.uint8], other: NDArray[np.bool_], before: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        """The colour that a reader guesses for each cell. [N]

        `before` is the one that was there; where the character is an `other` one now, it is the colour of the newest
        cell before with that character, among those that are other ones too, and that of `usual` where there is none.
        """
        guessed = before.copy()
        new = np.flatnonzero(other)
        order = new[np.argsort(text[new], kind="stable")]
        shown, inks = text[order], ink[order]
        usual = self._state.usual
        chain = np.empty_like(inks)
        chain[1:] = inks[:-1]
        begins = np.ones(len(order), np.bool_)
        begins[1:] = shown[1:] != shown[:-1]
        chain[begins] = usual[shown[begins]]
        guessed[order] = chain
        ends = np.roll(begins, -1)
        usual[shown[ends]] = inks[ends]
        return guessed


def _normal(chars: NDArray[np.uint8], colors: NDArray[np.int8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Colours as digits, and none where nothing is shown: there a terminal keeps whatever was there."""
    shown = colors.view(np.uint8) & 15
    shown[chars == _BLANK] = 0
    return chars, shown


def _ranges(first: NDArray[np.intp], size: NDArray[np.intp]) -> NDArray[np.intp]:
    """first[0], first[0] + 1, ... (size[0] of them), first[1], ..."""
    offset = np.cumsum(size) - size
    return np.arange(size.sum()) + np.repeat(first - offset, size)


class CellUnpacker:
    """Puts screens together again."""

    def __init__(self, screen: str, colors: str) -> None:
        """The first screen of all, as `EnvReset` has it. Raises `ValueError` where a colour is no digit."""
        self._rows = [list(row) for row in screen.split("\n")]
        inks = [[int(sign, 16) for sign in row] for row in colors.split("\n")]
        self._usual: dict[str, int] = {}
        self._inks: list[list[int]] = []
        for at, row in enumerate(self._rows):
            known = inks[at] if at < len(inks) else []
            self._inks.append([*known, *[0] * (len(row) - len(known))])
            self._usual.update(zip(row, self._inks[at], strict=True))
        self._texts, self._colors = [""] * len(self._rows), [""] * len(self._rows)
        for at in range(len(self._rows)):
            self._show(at)

    def unpack(self, columns: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Screen and colours after each step. Raises `IndexError`, `KeyError`, `TypeError` or `ValueError` where the
        columns do not fit together."""
        width, text, odd, ink = (columns[name] for name in ("width", "text", "odd", "ink"))
        strange: dict[int, int] = {}
        place = 0
        for gap, sign in zip(odd, ink, strict=True):
            place += gap
            strange[place] = int(sign, 16)
        span = read = 0
        for count in columns["spans"]:
            for at, size in zip(columns["at"][span : span + count], columns["size"][span : span + count], strict=True):
                row, column = divmod(at, width)
                self._write(row, column, text[read : read + size], strange, read)
                read += size
            span += count
            yield "\n".join(self._texts), "\n".join(self._colors)
        if read != len(text) or span != len(columns["at"]):
            raise ValueError(f"{len(text)} cells, {read} of them in spans")

    def _write(self, row: int, column: int, text: str, strange: Mapping[int, int], read: int) -> None:
        signs, inks, usual = self._rows[row], self._inks[row], self._usual
        if column + len(text) > len(signs):
            missing = column + len(text) - len(signs)
            signs += [" "] * missing
            inks += [0] * missing
        for at, sign in enumerate(text):
            place = column + at
            other = signs[place] != sign
            color = strange.get(read + at)
            if color is None:
                color = usual.get(sign, 0) if other else inks[place]
            signs[place], inks[place] = sign, color
            if other:
                usual[sign] = color
        self._show(row)

    def _show(self, row: int) -> None:
        text = "".join(self._rows[row]).rstrip()
        self._texts[row] = text
        self._colors[row] = "".join([_DIGITS[ink] for ink in self._inks[row][: len(text)]])


def text_of(chars: NDArray[np.uint8]) -> str:
    """The text of a terminal [rows, columns], without the blanks at the ends of rows."""
    return "\n".join(row.tobytes().decode("latin-1").rstrip() for row in chars)


def colors_of(chars: NDArray[np.uint8], colors: NDArray[np.int8]) -> str:
    """Its colours, a hexadecimal digit for each character of `text_of`."""
    _, shown = _normal(chars[None], colors[None])
    lines = text_of(chars).split("\n")
    return "\n".join(
        "".join(_DIGITS[ink] for ink in row[: len(line)].tolist()) for line, row in zip(lines, shown[0], strict=True)
    )
