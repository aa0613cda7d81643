"""Learning curves as a self-contained SVG."""

from collections.abc import Mapping, Sequence
from html import escape

Curve = Sequence[tuple[float, float | None]]
"""(environment steps, value); a value of None is left out."""

_COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#0a7ea4", "#57606a", "#bf3989")
_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 720, 340, 56, 20, 20, 46


def learning_curves(kinds: Mapping[str, Sequence[Curve]], label: str, top: float = 1.0) -> str:
    """One thin line a run, one colour a kind; values in [0, `top`] against steps."""
    steps = max((x for curves in kinds.values() for curve in curves for x, _ in curve), default=1.0)
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(x: float, y: float) -> str:
        return f"{_LEFT + width * x / steps:.1f},{_TOP + height * (1.0 - min(max(y / top, 0.0), 1.0)):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _TOP + height * (1.0 - tick)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#d0d7de"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick * top:g}</text>')
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = _LEFT + width * share
        parts.append(
            f'<text x="{x:.1f}" y="{_TOP + height + 18}" text-anchor="middle">{steps * share / 1000:,.0f}k</text>'
        )
    parts.append(f'<text x="{_LEFT + width / 2}" y="{_HEIGHT - 8}" text-anchor="middle">environment steps</text>')
    parts.append(f'<text x="{_LEFT}" y="{_TOP - 6}">{escape(label)}</text>')
    for curves, colour in zip(kinds.values(), _COLOURS, strict=False):
        for curve in curves:
            points = " ".join(place(x, y) for x, y in curve if y is not None)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
    for row, (kind, colour) in enumerate(zip(kinds, _COLOURS, strict=False)):
        y = _TOP + 18 + 18 * row
        parts.append(f'<path d="M{_LEFT + 14} {y - 4}h22" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{_LEFT + 42}" y="{y}">{escape(kind)}</text>')
    return "\n".join([*parts, "</svg>\n"])
