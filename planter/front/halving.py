"""Successive halving for a metric against costs: whose training goes on past a rung."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from planter.front.objectives import OBJECTIVES, SEARCHED, directions
from planter.front.pareto import pareto_rank

Points = Sequence[Sequence[float]]
"""The values of each network of a trial, by the objectives of its study: metric, then costs."""
Order = Callable[[Mapping[str, Points], int], list[str]]
"""The best so many of some trials, best first."""


def by_rank(
    trials: Mapping[str, Points], most: int, objectives: Sequence[str] = SEARCHED
) -> list[str]:
    """The best `most` trials by non-dominated rank, best first; a trial has that of its best point.

    Within a rank that trial comes first whose nearest network is nearest to the front: lacks least
    of the metric to the best one that costs no more. (The hypervolume a trial adds is no help
    there: behind the front it is nothing.) Of equal ones the earlier.
    """
    owners = [trial for trial, points in trials.items() for _ in points]
    if not owners:
        return []
    values = np.array([point for points in trials.values() for point in points])
    merit = values[:, 0] if OBJECTIVES[objectives[0]].maximise else -values[:, 0]
    lacks = _best_of_no_more(merit, values[:, 1:]) - merit
    ranks = pareto_rank(values, directions(objectives))
    places: dict[str, tuple[int, float]] = {}
    for trial, rank, gap in zip(owners, ranks, lacks, strict=True):
        least, nearest = places.get(trial, (int(rank), float(gap)))
        places[trial] = min(least, int(rank)), min(nearest, float(gap))
    return sorted(places, key=places.__getitem__)[:most]


def _best_of_no_more(merit: NDArray[np.float64], costs: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each network `[networks]` the best merit of those that are dearer in none of the `costs`
    `[networks, costs]`."""
    if costs.shape[1] > 1:
        return np.array([merit[(costs <= own).all(axis=1)].max() for own in costs])
    (cost,) = costs.T
    by_cost = np.argsort(cost, kind="stable")
    best = np.maximum.accumulate(merit[by_cost])
    found: NDArray[np.float64] = best[np.searchsorted(cost[by_cost], cost, side="right") - 1]
    return found


def by_aim(
    trials: Mapping[str, Points],
    aims: Mapping[str, float],
    most: int,
    objectives: Sequence[str] = SEARCHED,
) -> list[str]:
    """The best `most` trials by how far their network is ahead of the metric that it was aimed at,
    or behind it; of equal ones the first by name.

    For networks that differ in size on purpose, each aimed at a place of its own: by rank, a
    cheaper one that is less accurate is as good as any, and all of a chain of halves are equal.
    """
    merit = OBJECTIVES[objectives[0]].merit_of
    reached = {trial: points[0][0] for trial, points in trials.items() if points}
    ahead = {trial: merit(value) - merit(aims[trial]) for trial, value in reached.items()}
    return sorted(ahead, key=lambda trial: (-ahead[trial], trial))[:most]


class Rungs:
    """Where trials stand on a ladder of rungs, shares of a training, and who may climb on.

    A trial that has reached a rung waits there. It goes on as soon as it is among the best `keep`
    of all that have reached the rung, whether they went on or not, and `wait` have: earlier there
    is too little to compare with. With `free`, those that come earlier do not wait but go on. This
    is ASHA's rule (Li et al. 2020, A System for Massively Parallel Hyperparameter Tuning, alg. 2)
    with a rank in the place of a loss.
    """

    def __init__(
        self, count: int, keep: float, wait: int, order: Order, *, free: bool = False
    ) -> None:
        self._reached: list[dict[str, Points]] = [{} for _ in range(count)]
        self._waiting: dict[str, int] = {}
        self._keep = keep
        self._wait = wait
        self._order = order
        self._free = free

    def record(self, trial: str, rung: int, points: Points) -> None:
        """A trial has reached a rung and waits there."""
        self._reached[rung][trial] = points
        self._waiting[trial] = rung

    def leave(self, trial: str) -> None:
        """A trial waits no longer: it goes on, or its training is over."""
        self._waiting.pop(trial, None)

    @property
    def waiting(self) -> list[str]:
        """The trials that wait for others to be compared with, or in vain."""
        return list(self._waiting)

    def ready(self, *, last: bool = False) -> list[str]:
        """The trials that may go on now: those on the highest rung first, the best of a rung first.

        `last` says that nobody else is on the way to any rung: then even a rung that fewer than
        `wait` have reached lets its best go on, one at least.
        """
        found: list[str] = []
        for rung, reached in enumerate(self._reached):
            few = len(reached) < self._wait
            if few and self._free:
                found = sorted(t for t in reached if self._waiting.get(t) == rung) + found
            if few and (self._free or not last):
                continue
            most = max(math.floor(self._keep * len(reached) + 1e-9), 1)
            if any(self._waiting.get(trial) == rung for trial in reached):
                best = self._order(reached, most)
                found = [t for t in best if self._waiting.get(t) == rung] + found
            # Those that go on are on their way to the rungs above.
            last = last and not found
        return found
