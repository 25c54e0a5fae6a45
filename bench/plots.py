"""Small charts as inline SVG: no script, no fonts to load, colours from the page's style sheet.

Each chart is drawn for a width of 360 units, the width of a phone, and the page sets them in as many columns as fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH = 360
#: Classes of the page's style sheet, in the order in which series take them; the first is ours.
COLOURS = ("c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7")


class Series(NamedTuple):
    """A named line, points, or both, in one colour."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int
    line: bool = True
    points: bool = True


def bars(title: str, rows: Sequence[tuple[str, float, float, float, int]], unit: str) -> str:
    """Horizontal bars from zero: (name, value, low, high, colour) each, with the interval as a whisker."""
    left, right, step = 112, 62, 22
    height = 8 + step * len(rows)
    scale = (WIDTH - left - right) / max(high for _, _, _, high, _ in rows)
    parts = []
    for index, (name, value, low, high, colour) in enumerate(rows):
        y = 4 + step * index
        parts += [
            _text(left - 6, y + 14, name, "end"),
            f'<rect class="{COLOURS[colour]}" x="{left}" y="{y + 2}" width="{value * scale:.1f}" height="{step - 6}"/>',
            f'<path class="whisker" d="M{left + low * scale:.1f} {y + 10}H{left + high * scale:.1f}"/>',
            _text(left + high * scale + 5, y + 14, f"{_short(value)} {unit}"),
        ]
    return _figure(title, height, parts)


def lines(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    x_log: bool = True,
    y_log: bool = True,
    height: int = 230,
) -> str:
    """Lines and points over two axes, with a legend below."""
    left, right, top, bottom = 46, 12, 10, 36
    x_axis = _Axis([value for one in series for value in one.x], x_log, left, WIDTH - right)
    y_axis = _Axis([value for one in series for value in one.y], y_log, height - bottom, top)
    parts = []
    for tick in x_axis.ticks:
        x = x_axis(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {top}V{height - bottom}"/>')
        parts.append(_text(x, height - bottom + 14, _short(tick), "middle"))
    for tick in y_axis.ticks:
        y = y_axis(tick)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{WIDTH - right}"/>')
        parts.append(_text(left - 5, y + 4, _short(tick), "end"))
    for one in series:
        colour = COLOURS[one.colour % len(COLOURS)]
        points = [f"{x_axis(x):.1f} {y_axis(y):.1f}" for x, y in zip(one.x, one.y, strict=True)]
        if one.line:
            parts.append(f'<path class="line {colour}" d="M{"L".join(points)}"/>')
        if one.points:
            for point in points:
                cx, cy = point.split()
                parts.append(
                    f'<circle class="{colour}" cx="{cx}" cy="{cy}" r="3"><title>{escape(one.name)}</title></circle>'
                )
    parts.append(_text((left + WIDTH - right) / 2, height - 4, x_label, "middle"))
    legend, y = [], height + 12.0
    x = float(left)
    for one in series:
        width = 22 + 6.2 * len(one.name)
        if x + width > WIDTH and x > left:
            x, y = float(left), y + 16
        legend.append(f'<rect class="{COLOURS[one.colour % len(COLOURS)]}" x="{x}" y="{y - 8}" width="10" height="8"/>')
        legend.append(_text(x + 14, y, one.name))
        x += width
    return _figure(f"{title} ({y_label})", y + 6, [*parts, *legend])


class _Axis:
    """Maps values to positions from `start` to `end`, with ticks at round numbers."""

    def __init__(self, values: Sequence[float], log: bool, start: float, end: float) -> None:
        low, high = min(values), max(values)
        self._log, self._start, self._end = log, start, end
        if log:
            low, high = low / 1.15, high * 1.15
        else:
            margin = (high - low or abs(high) or 1.0) / 20
            low, high = low - margin, high + margin
        if log and high / low > 3:
            decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            steps = (1,) if high / low > 1000 else (1, 2, 5) if high / low > 8 else (1, 1.5, 2, 3, 4, 5, 7)
            self.ticks = [step * 10.0**n for n in decades for step in steps if low <= step * 10.0**n <= high]
        else:
            step = 10 ** math.floor(math.log10((high - low) / 2))
            step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= 6)
            self.ticks = [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
        self._low, self._high = low, high

    def __call__(self, value: float) -> float:
        if self._log:
            part = math.log(value / self._low) / math.log(self._high / self._low)
        else:
            part = (value - self._low) / (self._high - self._low)
        return self._start + part * (self._end - self._start)


def _short(value: float) -> str:
    """Three digits at least, as "0.12" or "3,720"."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _figure(title: str, height: float, parts: Sequence[str]) -> str:
    svg = f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title, quote=True)}">'
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}{''.join(parts)}</svg></figure>"
