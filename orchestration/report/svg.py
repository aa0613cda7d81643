"""Charts as SVG text. Colours are CSS variables (`--c0`, `--c1`, ...), so that a page may have a light and a dark set."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 250
_LEFT, _TOP, _RIGHT, _BOTTOM = 52, 14, 14, 38
COLOURS = 8
"""Colours there are; more series begin again."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart, and the band around it where it stands for several runs."""

    name: str
    colour: int
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dashed: bool = False


def colour(number: int) -> str:
    """The CSS colour of series `number`."""
    return f"var(--c{number % COLOURS})"


def number_text(value: float) -> str:
    """A number as an axis shows it: `0.25`, `12`, `1.5k`, `2M`."""
    size = abs(value)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit:
            return f"{value / limit:.4g}{unit}"
    return f"{value:.3g}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from `low` to `high`, or to just beyond them."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / max(count - 1, 1)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_range: tuple[float, float] | None = None,
    x_text: Callable[[float], str] = number_text,
) -> str:
    """Lines with bands over common axes; values that are not finite are left out. Empty text where there are none."""
    drawn = [s for s in map(_finite, series) if len(s.x)]
    if not drawn:
        return ""
    values = [v for s in drawn for v in (*s.y, *s.low, *s.high)]
    low, high = y_range or (min(0.0, *values), max(values))
    y_ticks = ticks(low, high if high > low else low + 1.0)
    low, high = min(low, y_ticks[0]), max(high, y_ticks[-1])
    right = max(max(s.x) for s in drawn)
    x_ticks = [t for t in ticks(0.0, right) if t <= right * 1.001]
    across, down = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM

    def px(x: float) -> float:
        return _LEFT + across * x / (right or 1.0)

    def py(y: float) -> float:
        return _TOP + down * (high - y) / (high - low)

    parts = [_open(WIDTH, HEIGHT)]
    for tick in y_ticks:
        parts.append(f'<path class="grid" d="M{_LEFT} {py(tick):.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{py(tick) + 4:.1f}" text-anchor="end">{number_text(tick)}</text>')
    parts += [
        f'<text x="{px(tick):.1f}" y="{HEIGHT - 21}" text-anchor="middle">{escape(x_text(tick))}</text>'
        for tick in x_ticks
    ]
    middle = _LEFT + across / 2
    parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    for s in drawn:
        if s.low:
            there = [f"{px(x):.1f},{py(y):.1f}" for x, y in zip(s.x, s.high, strict=True)]
            back = [f"{px(x):.1f},{py(y):.1f}" for x, y in zip(reversed(s.x), reversed(s.low), strict=True)]
            parts.append(f'<polygon class="band" points="{" ".join(there + back)}" fill="{colour(s.colour)}"/>')
    for s in drawn:
        points = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in zip(s.x, s.y, strict=True))
        dash = ' stroke-dasharray="5 4"' if s.dashed else ""
        title = f"<title>{escape(s.name)}: {number_text(s.y[-1])} at {escape(x_text(s.x[-1]))}</title>"
        parts.append(f'<polyline points="{points}" stroke="{colour(s.colour)}"{dash}>{title}</polyline>')
        parts.append(
            f'<circle cx="{px(s.x[-1]):.1f}" cy="{py(s.y[-1]):.1f}" r="3" fill="{colour(s.colour)}">{title}</circle>'
        )
    return "".join([*parts, "</svg>"])


def _finite(series: Series) -> Series:
    kept = [n for n, (x, y) in enumerate(zip(series.x, series.y, strict=True)) if math.isfinite(x + y)]
    low, high = ([values[n] for n in kept] if values else [] for values in (series.low, series.high))
    return Series(
        series.name,
        series.colour,
        [series.x[n] for n in kept],
        [series.y[n] for n in kept],
        low,
        high,
        series.dashed,
    )


def stacked_bars(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], kinds: Sequence[str]) -> str:
    """Horizontal bars of shares that sum to at most 1: (name of the row, (kind, share)...); colours follow `kinds`."""
    height, bar = 24 * len(rows) + 8, 15
    parts = [_open(WIDTH, height)]
    for row, (name, shares) in enumerate(rows):
        y, x = 24 * row + 4, 128.0
        parts.append(f'<text x="120" y="{y + 12}" text-anchor="end">{escape(name)}</text>')
        scale = WIDTH - _RIGHT - x
        parts.append(f'<rect class="empty" x="{x}" y="{y}" width="{scale}" height="{bar}" rx="2"/>')
        for kind, share in shares:
            width = scale * max(min(share, 1.0), 0.0)
            title = f"<title>{escape(name)}, {escape(kind)}: {share:.0%}</title>"
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{bar}" fill="{colour(kinds.index(kind))}">'
                f"{title}</rect>"
            )
            if width > 34:
                parts.append(
                    f'<text class="inside" x="{x + width / 2:.1f}" y="{y + 11.5}" text-anchor="middle">{share:.0%}</text>'
                )
            x += width
    return "".join([*parts, "</svg>"])


@dataclass(frozen=True, slots=True)
class Bar:
    """A value against its limit."""

    name: str
    value: float | None
    """None: not measured."""
    limit: float


def limit_bars(bars: Sequence[Bar], *, standalone: bool = False) -> str:
    """Horizontal bars in [0, 1], each with a mark at the most that it may be; red (`--bad`) where it is more."""
    step, left = 26, 140
    height = step * len(bars) + 30
    scale = WIDTH - left - 52
    parts = [_open(WIDTH, height, standalone=standalone)]
    for row, bar in enumerate(bars):
        y = step * row + 6
        parts.append(f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{escape(bar.name)}</text>')
        parts.append(f'<rect class="empty" x="{left}" y="{y}" width="{scale}" height="15" rx="2"/>')
        if bar.value is not None:
            fill = "var(--good)" if bar.value <= bar.limit else "var(--bad)"
            width = max(scale * min(max(bar.value, 0.0), 1.0), 1.5)
            parts.append(f'<rect x="{left}" y="{y}" width="{width:.1f}" height="15" rx="2" fill="{fill}"/>')
        mark = left + scale * bar.limit
        parts.append(f'<path class="mark" d="M{mark:.1f} {y - 3}v21"><title>at most {bar.limit:g}</title></path>')
        parts.append(
            f'<text x="{left + scale + 8}" y="{y + 12}">{"–" if bar.value is None else f"{bar.value:.3f}"}</text>'
        )
    parts.append(f'<text class="label" x="{left}" y="{height - 6}">bar: found; mark: at most</text>')
    return "".join([*parts, "</svg>\n"])


def _open(width: float, height: float, *, standalone: bool = False) -> str:
    style = f"<style>{STANDALONE}</style>" if standalone else ""
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img">{style}'


CHART_STYLE = """
svg text { font: 11px system-ui, sans-serif; fill: var(--dim); }
svg .label { fill: var(--dim); }
svg .inside { fill: #fff; font-size: 10px; }
svg .grid { stroke: var(--line); fill: none; }
svg .empty { fill: var(--line); }
svg .mark { stroke: var(--text); stroke-width: 2; }
svg .band { opacity: .18; }
svg polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
"""
STANDALONE = (
    "svg { --text: #1f2328; --dim: #59636e; --line: #e4e7eb; --good: #1a7f37; --bad: #cf222e; background: #fff; }"
    + CHART_STYLE
)
"""What a chart needs that stands alone."""
