"""Successive halving for accuracy against macs: whose training goes on past a rung."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from planter.pareto import hypervolume, pareto_rank

Points = Sequence[tuple[float, float]]
"""(accuracy, macs) of each network of a trial."""
Order = Callable[[Mapping[str, Points], int], list[str]]
"""The best so many of some trials, best first."""


def by_rank(trials: Mapping[str, Points], most: int, reference: Sequence[float]) -> list[str]:
    """The best `most` trials by non-dominated rank, best first; a trial has that of its best point.

    Within a rank the trial comes first that adds most hypervolume, from `reference` (accuracy,
    macs), to what is chosen already: so networks of every size go on, not several of one. Of equal
    ones the more accurate, then the earlier.
    """
    owners = [trial for trial, points in trials.items() for _ in points]
    ranks: dict[str, int] = {}
    every = [point for points in trials.values() for point in points]
    for trial, rank in zip(owners, pareto_rank(every), strict=True):
        ranks[trial] = min(int(rank), ranks.get(trial, int(rank)))
    chosen: list[str] = []
    covered: list[tuple[float, float]] = []
    for rank in sorted(set(ranks.values())):
        left = [trial for trial in trials if ranks.get(trial) == rank]
        while left and len(chosen) < most:
            best = max(
                left,
                key=lambda trial: (
                    hypervolume([*covered, *trials[trial]], reference),
                    max(accuracy for accuracy, _ in trials[trial]),
                ),
            )
            left.remove(best)
            chosen.append(best)
            covered += trials[best]
    return chosen


class Rungs:
    """Where trials stand on a ladder of rungs, shares of a training, and who may climb on.

    A trial that has reached a rung waits there. It goes on as soon as it is among the best `keep`
    of all that have reached the rung, whether they went on or not, and `wait` have: earlier there
    is too little to compare with. This is ASHA's rule (Li et al. 2020, A System for Massively
    Parallel Hyperparameter Tuning, alg. 2) with a rank in the place of a loss.
    """

    def __init__(self, count: int, keep: float, wait: int, order: Order) -> None:
        self._reached: list[dict[str, Points]] = [{} for _ in range(count)]
        self._waiting: dict[str, int] = {}
        self._keep = keep
        self._wait = wait
        self._order = order

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
            if len(reached) < self._wait and not last:
                continue
            most = max(math.floor(self._keep * len(reached) + 1e-9), 1)
            if any(self._waiting.get(trial) == rung for trial in reached):
                best = self._order(reached, most)
                found = [t for t in best if self._waiting.get(t) == rung] + found
            # Those that go on are on their way to the rungs above.
            last = last and not found
        return found
