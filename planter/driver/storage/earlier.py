"""What a sampler is told of a trial, and of those of earlier runs before its own first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import optuna
from optuna.trial import FrozenTrial

from planter.driver.storage.open_rows import key_of, storage_of
from planter.driver.storage.retrying import RetryingStorage
from planter.driver.trials.bounds import excess
from planter.driver.trials.given import Earlier
from planter.front.objectives import values_of
from planter.front.points import Point, adding_most, covered, front_of

WARM_START = "warm_start"
"""Attribute of a row: the trial of an earlier run that it tells of."""


def told(
    points: Sequence[Point],
    front: Sequence[Point],
    reference: Sequence[float],
    limits: Mapping[str, float],
    objectives: Sequence[str],
    *,
    family: bool,
) -> list[float]:
    """The values of a trial of these points, beside the `front` of all others: those of the point
    that adds most hypervolume or, of a `family`, the hypervolume of its own points."""
    if family:
        return [covered(points, reference, limits, objectives)]
    return values_of(adding_most(points, front, reference, limits, objectives).values, objectives)


def is_earlier(row: FrozenTrial) -> bool:
    """Whether a row tells of a trial of an earlier run, and is none of this one."""
    return WARM_START in row.user_attrs


def add_earlier(
    study: optuna.Study,
    earlier: Sequence[Earlier],
    reference: Sequence[float],
    limits: Mapping[str, float],
    objectives: Sequence[str],
    *,
    family: bool,
) -> None:
    """Adds the trials of earlier runs that are no rows yet, told as trials of this study would have
    been in their order: against its reference point, with its bounds as constraints."""
    there = {row.user_attrs.get(WARM_START) for row in study.get_trials(deepcopy=False)}
    rows, front = [], list[Point]()
    for one in earlier:
        values = told(one.points, front, reference, limits, objectives, family=family)
        front = front_of([*front, *one.points], limits, objectives)
        if one.source in there:
            continue
        rows.append(
            optuna.trial.create_trial(
                values=values,
                params=one.draw.params,
                distributions=one.draw.distributions,
                user_attrs={WARM_START: one.source},
                constraints=excess(limits, [point.values for point in one.points]),
            )
        )
    storage = storage_of(study)
    if isinstance(storage, RetryingStorage):
        storage.add_finished(key_of(study), rows)
    else:
        study.add_trials(rows)
