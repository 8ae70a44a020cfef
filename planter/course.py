"""How a search came to its front: the hypervolume over trainings and over what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from planter.front import Point, covered


class Step(NamedTuple):
    """Where a search stood after a training: how many it had finished, their multiply-adds in sum,
    the hypervolume of the points so far."""

    trial: str
    trainings: int
    train_macs: int
    hypervolume: float


def course(
    points: Sequence[Point], reference: Sequence[float], limits: Mapping[str, float]
) -> list[Step]:
    """A step for each training, in the order of `points`, which is that of the database. Teacher
    and baselines cost but add no hypervolume; trainings that failed left no cost behind."""
    by_trial: dict[str, list[Point]] = {}
    for point in points:
        by_trial.setdefault(point.trial, []).append(point)
    steps: list[Step] = []
    so_far: list[Point] = []
    macs = 0
    for trial, own in by_trial.items():
        so_far += own
        macs += own[0].train_macs
        volume = covered(so_far, reference, limits)
        steps.append(Step(trial, len(steps) + 1, macs, volume))
    return steps
