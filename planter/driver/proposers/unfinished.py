"""What trainings took that gave no point, by the rows of their books."""

from __future__ import annotations

import json
from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from planter.driver.storage.open_rows import write_attributes
from planter.driver.trials.jobs import Outcome

PARTIAL, TOOK = "partial", "took"
"""Attributes of a row: what the trial scored on each rung, as JSON; multiply-adds and seconds that
one that failed had taken."""

Cost = tuple[int, float]
"""Multiply-adds and seconds."""


def write_failure(study: optuna.Study, row: FrozenTrial | Trial, outcome: Outcome) -> Cost | None:
    """Writes why a trial failed and what it took until then, which is returned; None where nothing
    is known to be trained."""
    took = (outcome.get("train_macs", 0), outcome.get("seconds", 0.0))
    known = {TOOK: list(took)} if took[0] else {}
    write_attributes(study, row, {**known, "error": outcome["error"]})
    return took if took[0] else None


def reason_of(row: FrozenTrial) -> str:
    """Why the trial of a row failed."""
    return str(row.user_attrs.get("error", "no reason is known"))


def cost_without_point(row: FrozenTrial) -> Cost | None:
    """What a row's trial took: all that is known of one that failed, of others what it took up to
    the last rung that it has reached, if any."""
    if row.state == TrialState.FAIL and TOOK in row.user_attrs:
        macs, seconds = row.user_attrs[TOOK]
        return int(macs), float(seconds)
    partial = partial_results(row)
    return cost_of(partial) if partial else None


def cost_of(partial: Sequence[Outcome]) -> Cost:
    """What the results of a trial on its rungs, the lowest first, took in sum."""
    seconds = float(sum(one["seconds"] for one in partial))
    return int(partial[-1]["train_macs"]), seconds


def partial_results(row: FrozenTrial) -> list[Outcome]:
    """What a trial scored on each rung it has reached, the lowest first."""
    return list(json.loads(row.user_attrs.get(PARTIAL, "[]")))
