"""The screens of an episode, each distinct one once, each distinct row of them once."""

from itertools import zip_longest


class ScreenTable:
    """Numbers screens. Two steps of a game differ in a few rows, so rows are what is worth being stored once."""

    def __init__(self) -> None:
        self.rows: list[str] = []
        """The text of each distinct row."""
        self.inks: list[str] = []
        """The colours of each distinct row: a hexadecimal digit for each character; empty where they are not known."""
        self.screens: list[list[int]] = []
        """The rows of each distinct screen."""
        self._row_ids: dict[tuple[str, str], int] = {}
        self._screen_ids: dict[tuple[str, str], int] = {}

    def add(self, screen: str, colors: str = "") -> int:
        """The number of a screen, the same for the same one. `colors` has the lines of `screen`, or is empty.

        Lines of known colours may be shorter than the text, also empty: the rest is light grey, 7.
        """
        known = self._screen_ids.get((screen, colors))
        if known is not None:
            return known
        self._screen_ids[screen, colors] = number = len(self.screens)
        rows = screen.split("\n")
        inks = [line or "7" for line in colors.split("\n")][: len(rows)] if colors else []
        fill = "7" if colors else ""
        self.screens.append([self._row(row, ink) for row, ink in zip_longest(rows, inks, fillvalue=fill)])
        return number

    def _row(self, row: str, ink: str) -> int:
        known = self._row_ids.get((row, ink))
        if known is None:
            self._row_ids[row, ink] = known = len(self.rows)
            self.rows.append(row)
            self.inks.append(ink)
        return known
