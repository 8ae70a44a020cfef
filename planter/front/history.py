"""How a search came to its front: the hypervolume over trainings and over what they cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from planter.front.objectives import SEARCHED
from planter.front.points import Point, covered

_BREAK_S = 600.0
"""What is longer without any training counts as a break of the search, not as its work."""


class Stopped(NamedTuple):
    """A training without a point, stopped early, failed or on its way: what it is known to have
    taken, and after how many others it took it."""

    trial: str
    train_macs: int
    seconds: float
    after: int


class Step(NamedTuple):
    """Where a search stood after a training: how many there were, their multiply-adds in sum, the
    hypervolume of the points so far."""

    trial: str
    trainings: int
    train_macs: int
    hypervolume: float


def history(
    points: Sequence[Point],
    reference: Sequence[float],
    limits: Mapping[str, float],
    stopped: Sequence[Stopped] = (),
    objectives: Sequence[str] = SEARCHED,
) -> list[Step]:
    """A step for each training, in the order of `points`, which is that of the database, and for
    each of the `stopped` ones between them. Teacher and baselines cost but add no hypervolume, and
    so do the stopped ones; one that failed before its first epoch was over has no cost."""
    by_trial: dict[str, list[Point]] = {}
    for point in points:
        by_trial.setdefault(point.trial, []).append(point)
    trainings = [(trial, own[0].train_macs, own) for trial, own in by_trial.items()]
    for before, one in enumerate(sorted(stopped, key=lambda one: one.after)):
        trainings.insert(one.after + before, (one.trial, one.train_macs, []))
    steps: list[Step] = []
    so_far: list[Point] = []
    macs = 0
    for trial, train_macs, own in trainings:
        so_far += own
        macs += train_macs
        volume = covered(so_far, reference, limits, objectives)
        steps.append(Step(trial, len(steps) + 1, macs, volume))
    return steps


def elapsed(trainings: Iterable[tuple[float, float]]) -> float:
    """Seconds from the begin of the first of some trainings, (begin, end) in seconds, to the end of
    the last, without breaks of more than ten minutes in which none went on."""
    total, until = 0.0, None
    for begin, end in sorted(trainings):
        if until is None:
            until = begin
        # What lies between two trainings is starting, scoring and writing, unless it is a break.
        since = begin if begin - until > _BREAK_S else until
        total += max(end - since, 0.0)
        until = max(until, end)
    return total
