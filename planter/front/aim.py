"""Where another network would add most to a front: told from exact costs, before any training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from planter.front.pareto import hypervolume

_LEAST_SLOPE = 0.02
"""Accuracy that a network of half the multiply-adds is taken to lose at least, below a front's
cheapest point."""
_STEEPER = 1.3
"""How much faster accuracy falls there than in the front's cheapest part."""
_NEAR = 0.01
"""Accuracy below the hull that is as good as on it."""
_PRIOR = 3.0
"""Children of an edit that its expected surprise, none, weighs as much as."""


class Place(NamedTuple):
    """A network as the front sees it."""

    accuracy: float
    macs: float


class Forecast:
    """What accuracy a network of so many multiply-adds may have, by those trained so far.

    It is that of the front's concave hull over the logarithm of macs, the straight lines that no
    point lies above; below the cheapest point it falls on, faster; above the dearest it stays.
    """

    def __init__(self, points: Sequence[Place]) -> None:
        hull: list[Place] = []
        for point in sorted(
            {Place(*point) for point in points}, key=lambda p: (p.macs, p.accuracy)
        ):
            if hull and hull[-1].macs == point.macs:
                hull.pop()
            while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], point):
                hull.pop()
            hull.append(point)
        while len(hull) > 1 and hull[-2].accuracy >= hull[-1].accuracy:
            hull.pop()  # dearer and no better
        self._hull = hull

    def accuracy(self, macs: float) -> float:
        """Expected accuracy, 0..1. Raises ValueError of a forecast without points."""
        if not self._hull:
            raise ValueError("nothing is trained yet that a forecast could rest on")
        first, last = self._hull[0], self._hull[-1]
        if macs >= last.macs:
            return last.accuracy
        if macs <= first.macs:
            slope = _LEAST_SLOPE
            if len(self._hull) > 1:
                slope = max(slope, _STEEPER * _slope(first, self._hull[1]))
            return max(first.accuracy - slope * math.log2(first.macs / macs), 0.0)
        right = next(i for i, point in enumerate(self._hull) if point.macs >= macs)
        left = self._hull[right - 1]
        return left.accuracy + _slope(left, self._hull[right]) * math.log2(macs / left.macs)

    def lags(self, place: Place) -> bool:
        """Whether a point is so far below the hull that others are better parents of smaller
        networks than it."""
        return place.accuracy < self.accuracy(place.macs) - _NEAR


def _slope(cheaper: Place, dearer: Place) -> float:
    """Accuracy gained by twice the multiply-adds."""
    return (dearer.accuracy - cheaper.accuracy) / math.log2(dearer.macs / cheaper.macs)


@dataclass
class Surprises:
    """By how much children did better than was forecast, by the edit that made them."""

    _seen: dict[str, list[float]] = field(default_factory=dict)

    def add(self, edit: str, surprise: float) -> None:
        self._seen.setdefault(edit, []).append(surprise)

    def expected(self, edit: str, prior: float = 0.0) -> float:
        """The mean of what was seen, drawn to `prior` while that is little."""
        seen = self._seen.get(edit, [])
        return (sum(seen) + _PRIOR * prior) / (len(seen) + _PRIOR)


def gain(place: Place, front: Sequence[Place], reference: Sequence[float]) -> float:
    """The hypervolume that a point adds to a front; 0 where it is dominated."""
    before = [tuple(point) for point in front]
    return hypervolume([*before, tuple(place)], reference) - hypervolume(before, reference)


def worth(gained: float, macs: float, macs_left: float, trainings_left: int) -> float:
    """Hypervolume for what a training uses up: its share of the multiply-adds that are left, and
    one of the trainings that are left."""
    return gained / (macs / macs_left + 1 / max(trainings_left, 1)) if macs_left > 0 else 0.0
