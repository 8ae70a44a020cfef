"""Where another network would add most to a front: told from exact costs, before any training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from planter.front.objectives import OBJECTIVES, SEARCHED, metric_merit, values_of
from planter.front.pareto import hypervolume

_LEAST_SLOPE = 0.02
"""Of the metric, what a network of half the cost is taken to lose at least, below a front's
cheapest point, and one of twice the cost to gain above the only one."""
_STEEPER = 1.3
"""How much faster the metric falls there than in the front's cheapest part."""
_FLATTER = 1 / 1.3
"""How much slower it rises above the dearest point than in the front's dearest part."""
_NEAR = 0.01
"""Of the metric, what is as good below the hull as on it."""
_PRIOR = 3.0
"""Children of an edit that its expected surprise, none, weighs as much as."""


class Place(NamedTuple):
    """A network as the front sees it: its metric such that more is better, a negative loss; its
    first cost, and the second where the study has one."""

    metric: float
    cost: float
    second: float | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any], objectives: Sequence[str]) -> Place:
        """That of a point, by the objectives of its study."""
        return cls(metric_merit(values, objectives), *values_of(values, objectives[1:]))

    def values(self, objectives: Sequence[str]) -> tuple[float, ...]:
        """Those of a point that is there, by the objectives of its study."""
        value = self.metric if OBJECTIVES[objectives[0]].maximise else -self.metric
        return (value, self.cost) if self.second is None else (value, self.cost, self.second)


class Forecast:
    """What metric, more being better, a network of such a cost may have, by those trained so far.

    It is that of the front's concave hull over the logarithm of the cost, the straight lines that
    no point lies above; below the cheapest point it falls on, faster, down to `least`. Above the
    dearest it rises on, more slowly; where dearer ones were no better, it stays.
    """

    def __init__(self, points: Sequence[Place], least: float = 0.0) -> None:
        self._least = least
        hull: list[Place] = []
        known = {Place(point[0], point[1]) for point in points}
        for point in sorted(known, key=lambda p: (p.cost, p.metric)):
            if hull and hull[-1].cost == point.cost:
                hull.pop()
            while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], point):
                hull.pop()
            hull.append(point)
        dearest = hull[-1:]
        while len(hull) > 1 and hull[-2].metric >= hull[-1].metric:
            hull.pop()  # dearer and no better
        self._hull = hull
        self._rises_on = hull[-1:] == dearest

    def metric(self, cost: float) -> float:
        """What is expected. Raises ValueError of a forecast without points."""
        if not self._hull:
            raise ValueError("nothing is trained yet that a forecast could rest on")
        first, last = self._hull[0], self._hull[-1]
        slope = _LEAST_SLOPE
        if cost >= last.cost:
            if len(self._hull) > 1:
                slope = _FLATTER * _slope(self._hull[-2], last)
            return last.metric + self._rises_on * slope * math.log2(cost / last.cost)
        if cost <= first.cost:
            if len(self._hull) > 1:
                slope = max(slope, _STEEPER * _slope(first, self._hull[1]))
            return max(first.metric - slope * math.log2(first.cost / cost), self._least)
        right = next(i for i, point in enumerate(self._hull) if point.cost >= cost)
        left = self._hull[right - 1]
        return left.metric + _slope(left, self._hull[right]) * math.log2(cost / left.cost)

    def lags(self, place: Place) -> bool:
        """Whether a point is so far below the hull that others are better parents of smaller
        networks than it."""
        return place.metric < self.metric(place.cost) - _NEAR


def _slope(cheaper: Place, dearer: Place) -> float:
    """What twice the cost gains."""
    return (dearer.metric - cheaper.metric) / math.log2(dearer.cost / cheaper.cost)


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


def gain(
    place: Place,
    front: Sequence[Place],
    reference: Sequence[float],
    objectives: Sequence[str] = SEARCHED,
) -> float:
    """The hypervolume that a point adds to a front; 0 where it is dominated."""
    before = [point.values(objectives) for point in front]
    after = [*before, place.values(objectives)]
    return hypervolume(after, reference, objectives) - hypervolume(before, reference, objectives)


def worth(gained: float, macs: float, macs_left: float, trainings_left: int) -> float:
    """Hypervolume for what a training uses up: its share of the multiply-adds that are left, and
    one of the trainings that are left."""
    return gained / (macs / macs_left + 1 / max(trainings_left, 1)) if macs_left > 0 else 0.0
