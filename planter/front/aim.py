"""Where another network would add most to a front: told from exact costs, before any training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from planter.front.pareto import hypervolume, pareto_front

_LEAST_SLOPE = 0.02
"""Accuracy that a network of half the multiply-adds is taken to lose at least, below a front's
cheapest point."""
_STEEPER = 1.3
"""How much faster accuracy falls there than in the front's cheapest part."""
_PRIOR = 3.0
"""Children of an edit that its expected surprise, none, weighs as much as."""


class Place(NamedTuple):
    """A network as the front sees it."""

    accuracy: float
    macs: float


class Forecast:
    """What accuracy a network of so many multiply-adds is likely to have, by those trained so far.

    Between two points of the front it is that of the line between them, over the logarithm of
    macs; below the cheapest it falls on, faster; above the dearest it stays.
    """

    def __init__(self, points: Sequence[Place]) -> None:
        mask = pareto_front([tuple(point) for point in points])
        kept = {p.macs: p for p, on in zip(points, mask, strict=True) if on}
        self._front = [kept[macs] for macs in sorted(kept)]

    def accuracy(self, macs: float) -> float:
        """Expected accuracy, 0..1. Raises ValueError of a forecast without points."""
        if not self._front:
            raise ValueError("nothing is trained yet that a forecast could rest on")
        first, last = self._front[0], self._front[-1]
        if macs >= last.macs:
            return last.accuracy
        if macs <= first.macs:
            slope = _LEAST_SLOPE
            if len(self._front) > 1:
                slope = max(slope, _STEEPER * _slope(first, self._front[1]))
            return max(first.accuracy - slope * math.log2(first.macs / macs), 0.0)
        right = next(i for i, point in enumerate(self._front) if point.macs >= macs)
        left = self._front[right - 1]
        return left.accuracy + _slope(left, self._front[right]) * math.log2(macs / left.macs)


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
