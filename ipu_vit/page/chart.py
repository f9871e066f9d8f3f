"""Curves as SVG, drawn by hand: a chart is some lines of text, and needs nothing to be seen."""

from __future__ import annotations

import html
import math
from typing import List, NamedTuple, Sequence, Tuple

Point = Tuple[float, float]

WIDTH, HEIGHT = 460, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 10, 26  # margins, which hold the numbers of the axes
_MOST_POINTS = 800  # of a curve: more than the pixels it is wide


class Curve(NamedTuple):
    """Points from left to right, and what they are."""

    name: str
    points: Sequence[Point]


def chart(title: str, curves: Sequence[Curve], end: float, unit: str = "", share: bool = False) -> str:
    """A figure with all curves over the same axes, from 0 to `end`; `share` writes values from 0 to 1 in percent.

    Values that are not finite are left out; a curve of one point is a dot. Empty without any point.
    """
    curves = [Curve(name, [point for point in points if math.isfinite(point[1])]) for name, points in curves]
    points = [point for curve in curves for point in curve.points]
    if not points:
        return ""
    frame = _Frame(end, ticks(min(y for _, y in points), max(y for _, y in points)))
    parts = [_grid(frame, share), *(_curve(frame, curve, number) for number, curve in enumerate(curves))]
    last = " · ".join(
        f'<span class="name{number}">{html.escape(curve.name)}</span> {_number(curve.points[-1][1], share)}{unit}'
        for number, curve in enumerate(curves)
        if curve.points
    )
    label = html.escape(title)
    return (
        f'<figure><figcaption><b>{label}</b> {last}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg></figure>'
    )


def ticks(lowest: float, highest: float) -> List[float]:
    """Three to seven round numbers, evenly spaced, from at or below the lowest value to at or above the highest."""
    if lowest == highest:
        margin = abs(lowest) / 2 or 1.0
        lowest, highest = lowest - margin, highest + margin
    step = 10.0 ** math.floor(math.log10((highest - lowest) / 2))
    factor = next(factor for factor in (1, 2, 5) if (highest - lowest) / (step * factor) <= 5)
    step *= factor
    first, last = math.floor(lowest / step + 1e-9), math.ceil(highest / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def thinned(points: Sequence[Point], most: int = _MOST_POINTS) -> Sequence[Point]:
    """The same curve to the eye in at most so many points: the lowest and the highest of each stretch."""
    if len(points) <= most:
        return points
    stretch = -(-2 * len(points) // most)
    kept = []
    for start in range(0, len(points), stretch):
        part = range(start, min(start + stretch, len(points)))
        low, high = min(part, key=lambda i: points[i][1]), max(part, key=lambda i: points[i][1])
        kept += [points[i] for i in sorted({low, high})]
    return kept


class _Frame(NamedTuple):
    """Where values lie on the picture: from 0 to `end` across, the first and last ticks at bottom and top."""

    end: float
    vertical: List[float]

    def x(self, value: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * value / self.end

    def y(self, value: float) -> float:
        lowest, highest = self.vertical[0], self.vertical[-1]
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (value - lowest) / (highest - lowest)


def _grid(frame: _Frame, share: bool) -> str:
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    rows = [
        f'<path d="M{_LEFT} {frame.y(value):.1f}H{right}"/>'
        f'<text class="y" x="{_LEFT - 6}" y="{frame.y(value) + 4:.1f}">{_number(value, share)}</text>'
        for value in frame.vertical
    ]
    columns = [
        f'<text class="x" x="{frame.x(value):.1f}" y="{bottom + 18}">{value:,.10g}</text>'
        for value in ticks(0, frame.end)
        if value <= frame.end
    ]
    return f'<g class="grid">{"".join(rows + columns)}</g>'


def _curve(frame: _Frame, curve: Curve, number: int) -> str:
    places = [(frame.x(x), frame.y(y)) for x, y in thinned(curve.points)]
    if len(places) == 1:
        (x, y), *_ = places
        return f'<circle class="fill{number}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline class="line{number}" points="{line}"/>'


def _number(value: float, share: bool) -> str:
    return f"{100 * value:.4g} %" if share else f"{value:.4g}"
