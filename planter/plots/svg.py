"""Small charts as SVG text, for places that show a picture but run no script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from planter.plots.ticks import log_ticks

_WIDTH, _HEIGHT = 640, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 16, 30, 52
_INK = "#59636e"


class Line(NamedTuple):
    """Points (x, y) of one colour: a line through them, a step line, or the points alone."""

    name: str
    points: Sequence[tuple[float, float]]
    color: str
    kind: str = "line"


def chart(lines: Sequence[Line], across: str, up: str, *, log: bool = False) -> str:
    """A chart of lines and points on white, the x axis logarithmic with `log`. Points that are not
    finite are left out."""
    shown = [
        line._replace(points=[p for p in line.points if all(map(math.isfinite, p))])
        for line in lines
    ]
    xs = [x for line in shown for x, _ in line.points] or [1, 10]
    ys = [y for line in shown for _, y in line.points] or [0, 1]
    left, right = _span([math.log10(x) for x in xs] if log else xs)
    low, high = _span(ys)

    def at(x: float, y: float) -> tuple[float, float]:
        share = ((math.log10(x) if log else x) - left) / (right - left)
        return (
            _LEFT + share * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - (y - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM),
        )

    base = _HEIGHT - _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
    ]
    for tick in _ticks(left, right, log=log):
        x = at(tick, low)[0]
        parts.append(f'<path d="M{x:.1f} {_TOP}V{base}" stroke="#e3e7eb"/>')
        parts.append(_text(x, base + 18, _short(tick), "middle"))
    for tick in _ticks(low, high):
        y = at(xs[0], tick)[1]
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#e3e7eb"/>')
        parts.append(_text(_LEFT - 6, y + 4, _short(tick), "end"))
    parts.append(_text((_LEFT + _WIDTH) / 2, _HEIGHT - 10, across, "middle"))
    parts.append(_text(8, 18, up, "start"))
    along = _WIDTH - _RIGHT
    for line in reversed(shown):  # names from the right
        parts.append(_text(along, 18, line.name, "end", line.color))
        along -= 8 * len(line.name) + 14
    for line in shown:
        parts.append(_drawn(line, [at(x, y) for x, y in line.points]))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _drawn(line: Line, places: Sequence[tuple[float, float]]) -> str:
    if line.kind == "points":
        return "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{line.color}"/>' for x, y in places
        )
    path = ""
    for x, y in places:
        join = f"H{x:.1f}V{y:.1f}" if line.kind == "step" else f"L{x:.1f} {y:.1f}"
        path += join if path else f"M{x:.1f} {y:.1f}"
    return f'<path d="{path}" fill="none" stroke="{line.color}" stroke-width="2"/>'


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis: the values and a twentieth more on either side."""
    low, high = min(values), max(values)
    more = (high - low) / 20 or abs(low) / 10 or 1.0
    return low - more, high + more


def _ticks(low: float, high: float, *, log: bool = False) -> list[float]:
    """About five round values within an axis; with `log`, whose ends are powers of ten."""
    if log:
        every = log_ticks(10.0**low, 10.0**high)
        return [tick for tick in every if low <= math.log10(tick) <= high]
    step = 10 ** math.floor(math.log10((high - low) / 5))
    step *= next(times for times in (1, 2, 5, 10) if (high - low) / (step * times) <= 6)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _short(value: float) -> str:
    """12k, 3.5M, 0.25."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _text(x: float, y: float, text: str, anchor: str, color: str = _INK) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{escape(text)}</text>'
    )
