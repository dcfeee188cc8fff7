"""A line chart as SVG, on logarithmic axes: all that `recommender profile` needs of a plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 560, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 36, 84
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Okabe and Ito's, told apart with any colour vision."""
_STEPS = (1, 2, 5)
_LEGEND_COLUMNS = 3


@dataclass(frozen=True, slots=True)
class Series:
    """A named line through positive points (x, y). Dashed ones take the colour of the line before."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


def line_chart(title: str, x_name: str, series: Sequence[Series], limit: tuple[str, float] | None = None) -> str:
    """The chart as an SVG element; `limit` is a named horizontal line, left out where it is off the scale."""
    xs = sorted({x for line in series for x, _ in line.points})
    ys = [y for line in series for _, y in line.points]
    ticks = _ticks(min(ys), max(ys))
    low, high = ticks[0], ticks[-1]

    def across(x: float) -> float:
        share = math.log(x / xs[0]) / math.log(xs[-1] / xs[0]) if len(xs) > 1 else 0.5
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def down(y: float) -> float:
        return _HEIGHT - _BOTTOM - math.log(y / low) / math.log(high / low) * (_HEIGHT - _TOP - _BOTTOM)

    bottom = _HEIGHT - _BOTTOM
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" xmlns="http://www.w3.org/2000/svg" role="img" font-size="12"',
        f' aria-label="{escape(title)}" font-family="system-ui, sans-serif" fill="#333">',
        f'<text x="{_LEFT}" y="18" font-size="14" font-weight="600">{escape(title)}</text>',
    ]
    for y in ticks:
        parts.append(f'<path d="M{_LEFT} {down(y):.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{down(y) + 4:.1f}" text-anchor="end">{y:,g}</text>')
    for x in xs:
        parts.append(f'<path d="M{across(x):.1f} {_TOP}V{bottom}" stroke="#eee"/>')
        parts.append(f'<text x="{across(x):.1f}" y="{bottom + 16}" text-anchor="middle">{x:,g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{bottom + 34}" text-anchor="middle">{escape(x_name)}</text>')
    if limit is not None and low <= limit[1] <= high:
        y = down(limit[1])
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#c00" stroke-dasharray="2 3"/>')
        parts.append(f'<text x="{_LEFT + 6}" y="{y - 5:.1f}" fill="#c00">{escape(limit[0])}</text>')
    colour = -1
    for number, line in enumerate(series):
        colour += not line.dashed
        paint = _COLOURS[max(colour, 0) % len(_COLOURS)]
        dashes = ' stroke-dasharray="5 4"' if line.dashed else ""
        path = "L".join(f"{across(x):.1f} {down(y):.1f}" for x, y in line.points)
        parts.append(f'<path d="M{path}" fill="none" stroke="{paint}" stroke-width="2"{dashes}/>')
        parts += [
            f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="3" fill="{paint}">'
            f"<title>{escape(line.name)}: {y:,.4g} at {x:,g}</title></circle>"
            for x, y in line.points
        ]
        left = _LEFT + number % _LEGEND_COLUMNS * (_WIDTH - _LEFT - _RIGHT) / _LEGEND_COLUMNS
        top = bottom + 52 + number // _LEGEND_COLUMNS * 16
        parts.append(f'<path d="M{left:.1f} {top}h20" stroke="{paint}" stroke-width="2"{dashes}/>')
        parts.append(f'<text x="{left + 26:.1f}" y="{top + 4}">{escape(line.name)}</text>')
    return "\n".join([*parts, "</svg>"])


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers 1, 2, 5, 10, … from the one at or below `low` to the one at or above `high`."""
    ladder = [
        step * 10.0**power
        for power in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
        for step in _STEPS
    ]
    first = max(index for index, tick in enumerate(ladder) if tick <= low * (1 + 1e-9))
    last = min(index for index, tick in enumerate(ladder) if tick >= high * (1 - 1e-9))
    return ladder[first : max(last, first + 1) + 1]
