"""Screens of a terminal as the cells that change from one to the next, as columns of plain values.

A change is a span of one row, from its first to its last cell that differs. The colour of a cell is left out where it is
what one would guess: that of the cell before where the character is the same, otherwise the colour in which the
character last appeared anywhere. In NetHack that is right for all but a few cells.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLANK = ord(" ")
_DIGITS = "0123456789abcdef"


class CellPacker:
    """Makes the columns of screens that follow one another, batch by batch. Screens are as in `agents.observer.Cells`."""

    def __init__(self, first: NDArray[np.uint8]) -> None:
        """`first` [2, rows, columns]: the first screen of all, which is stored elsewhere as text."""
        self._usual = np.zeros(256, np.uint8)
        """[256], the colour in which each character last appeared."""
        # As a reader does: in the order in which the cells of the first screen stand.
        self._usual[first[0].ravel()] = _shown(first[0], first[1]).ravel()
        self._width = first.shape[2]
        self._parts: list[tuple[NDArray[Any], ...]] = []

    def add(self, screens: NDArray[np.uint8]) -> None:
        """Takes L more screens: [L + 1, 2, rows, columns], of which the first is the one before."""
        count, width = len(screens) - 1, self._width
        # First whole rows, of which few change; then their cells, [N, columns].
        screen, row = _changed(screens)
        chars, colors = screens[:, 0], screens[:, 1]
        was, now = chars[screen, row], chars[screen + 1, row]
        ink_was, ink = _shown(was, colors[screen, row]), _shown(now, colors[screen + 1, row])
        other = now != was
        differs = other | (ink != ink_was)
        first = differs.argmax(axis=1)
        end = width - differs[:, ::-1].argmax(axis=1)
        end[~differs.any(axis=1)] = 0  # only what lies under blanks has changed
        columns = np.arange(width)
        inside = (columns >= first[:, None]) & (columns < end[:, None])
        text, ink = now[inside], ink[inside]
        odd = np.flatnonzero(self._guess(text, ink, other[inside], ink_was[inside]) != ink)
        real = end > 0
        spans = np.bincount(screen[real], minlength=count)
        self._parts.append((spans, (row * width + first)[real], (end - first)[real], text, odd, ink[odd]))

    def columns(self) -> dict[str, Any]:
        """Those of the screens that were added since the last call.

        `width` of the terminal; `spans` of each screen; `at` (row · width + column) and `size` of each span; `text` of all
        spans; `odd`, the cells of `text` whose colour is not the guessed one, each counted from the one before, and `ink`,
        their colours, a hexadecimal digit each.
        """
        parts, self._parts = self._parts, []
        begins = np.cumsum([0, *(len(text) for _, _, _, text, _, _ in parts)])
        spans, at, size, text, _, ink = (np.concatenate(column) for column in zip(*parts, strict=True))
        odd = np.concatenate([part[4] + begin for part, begin in zip(parts, begins[:-1], strict=True)])
        return {
            "width": self._width,
            "spans": spans,
            "at": at,
            "size": size,
            "text": text.tobytes().decode("latin-1"),
            "odd": np.diff(odd, prepend=0),
            "ink": "".join(_DIGITS[each] for each in ink.tolist()),
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
        usual = self._usual
        chain = np.empty_like(inks)
        chain[1:] = inks[:-1]
        begins = np.ones(len(order), np.bool_)
        begins[1:] = shown[1:] != shown[:-1]
        chain[begins] = usual[shown[begins]]
        guessed[order] = chain
        ends = np.roll(begins, -1)
        usual[shown[ends]] = inks[ends]
        return guessed


def _shown(chars: NDArray[np.uint8], colors: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colours as digits, and 0 where nothing is shown: there a terminal keeps whatever was there."""
    shown = colors & np.uint8(15)
    shown[chars == _BLANK] = 0
    return shown


def _changed(screens: NDArray[np.uint8]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Of L + 1 screens, the rows that differ from those of the screen before: numbers of the screen, from 0 for the
    second, and of the row, in order."""
    _, planes, rows, columns = screens.shape
    # Eight cells at once where that comes out even.
    words = screens.view(np.uint64) if columns % 8 == 0 else screens
    other = np.flatnonzero(words[1:] != words[:-1]) // words.shape[3]
    marked = np.zeros((len(screens) - 1) * rows, np.bool_)
    marked[other // (planes * rows) * rows + other % rows] = True
    return np.divmod(np.flatnonzero(marked), rows)


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


def text_of(screen: NDArray[np.uint8]) -> str:
    """The text of a terminal [2, rows, columns], without the blanks at the ends of rows."""
    return "\n".join(row.tobytes().decode("latin-1").rstrip() for row in screen[0])


def colors_of(screen: NDArray[np.uint8]) -> str:
    """Its colours, a hexadecimal digit for each character of `text_of`."""
    lines = text_of(screen).split("\n")
    return "\n".join(
        "".join(_DIGITS[ink] for ink in row[: len(line)].tolist())
        for line, row in zip(lines, _shown(screen[0], screen[1]), strict=True)
    )
