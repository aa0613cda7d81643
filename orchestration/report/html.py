"""Pieces of HTML. Whatever is text goes through `escape` here, and nowhere is text put into a page otherwise."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from orchestration.report.svg import colour


@dataclass(frozen=True, slots=True)
class Cell:
    """A table's cell: text, and how it looks."""

    text: str
    kind: str = ""
    """CSS classes: `n` a number, `text` long text, `good`, `bad`, `warn`."""
    swatch: int | None = None
    """The colour of the series that it stands for."""
    small: str = ""
    """What is added in small print."""


def number(text: str, small: str = "") -> Cell:
    """A cell with a number."""
    return Cell(text, "n", small=small)


def table(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """A table that scrolls by itself where it is too wide."""
    made = [list(row) for row in rows]
    numeric = [bool(made) and "n" in made[0][at].kind.split() for at in range(len(columns))]
    heads = [
        f'<th class="n">{escape(name)}</th>' if right else f"<th>{escape(name)}</th>"
        for name, right in zip(columns, numeric, strict=True)
    ]
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in made)
    return f'<div class="scroll"><table><thead><tr>{"".join(heads)}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(cell: Cell) -> str:
    kind = f' class="{cell.kind}"' if cell.kind else ""
    small = f" <small>{escape(cell.small)}</small>" if cell.small else ""
    return f"<td{kind}>{_swatch(cell.swatch)}{escape(cell.text)}{small}</td>"


def _swatch(number: int | None) -> str:
    return "" if number is None else f'<span class="swatch" style="background:{colour(number)}"></span>'


def legend(names: Sequence[str]) -> str:
    """Names with the colours of series 0, 1, ..."""
    items = "".join(f"<li>{_swatch(at)}{escape(name)}</li>" for at, name in enumerate(names))
    return f'<ul class="legend">{items}</ul>'


def figure(title: str, svg: str, note: str = "", names: Sequence[str] = ()) -> str:
    """A chart with its title; nothing for an empty chart."""
    if not svg:
        return ""
    said = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<figure><h3>{escape(title)}</h3>{svg}{legend(names) if names else ''}{said}</figure>"


def charts(figures: Iterable[str]) -> str:
    """Figures side by side; nothing where there are none."""
    drawn = [f for f in figures if f]
    return f'<div class="charts">{"".join(drawn)}</div>' if drawn else ""


def section(title: str, *content: str, note: str = "") -> str:
    """A section with a heading; nothing where it would be empty."""
    inside = "".join(content)
    if not inside:
        return ""
    said = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{said}{inside}</section>"


def card(title: str, content: str) -> str:
    """A box with a heading."""
    return f'<div class="card"><h3>{escape(title)}</h3>{content}</div>'


def details(title: str, content: str) -> str:
    """What is shown when it is asked for; nothing for nothing."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>" if content else ""


def page(title: str, style: str, content: str) -> str:
    """A whole page that fetches nothing: its policy forbids it."""
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>{content}</body></html>\n"
    )
