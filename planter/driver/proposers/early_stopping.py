"""Early stopping: partial results in the books of sampled trials or children, and who goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from planter.driver.proposers.unfinished import PARTIAL, Cost, cost_of, partial_results
from planter.driver.storage.open_rows import write_attributes
from planter.driver.trials.jobs import Outcome
from planter.front.halving import Order, Points, Rungs
from planter.study.section import EarlyStopping

CLIMBED = "climbed"
"""Attribute of a row beside PARTIAL: how many rungs the trial was let past. It is written before
the training goes on, so that a kill takes nobody's place away."""


class Stopping:
    """The rungs of the trials in one book; each trial by its id. See `Rungs`."""

    def __init__(
        self, settings: EarlyStopping, study: optuna.Study, order: Order, *, free: bool = False
    ) -> None:
        self._shares = settings.rungs
        self._study = study
        self._rungs = Rungs(len(self._shares), settings.keep, settings.wait, order, free=free)
        self._rows: dict[str, FrozenTrial] = {}
        self._partial: dict[str, list[Outcome]] = {}
        self._climbed: dict[str, int] = {}

    def read(self, trial: str, row: FrozenTrial, points: Sequence[Points]) -> bool:
        """Takes over what the books say of a trial, `points` by rung; whether it waits."""
        self._rows[trial] = row
        self._partial[trial] = partial_results(row)
        self._climbed[trial] = int(row.user_attrs.get(CLIMBED, 0))
        for rung, reached in enumerate(points[: len(self._shares)]):
            self._rungs.record(trial, rung, reached)
        waits = row.state == TrialState.RUNNING and len(points) > self._climbed[trial]
        if not waits:
            self._rungs.leave(trial)
        return waits

    def ahead(self, trial: str, epochs: int) -> list[int]:
        """After which of its epochs a training is still to be compared."""
        rungs = [max(round(share * epochs), 1) for share in self._shares]
        return rungs[self._climbed.get(trial, 0) :]

    def reach(self, trial: str, row: FrozenTrial, partial: Outcome, points: Points) -> Cost:
        """Writes what a trial scored on its next rung; it waits there. What it took so far."""
        self._rows[trial] = row
        self._partial.setdefault(trial, []).append(partial)
        self._write(trial, PARTIAL, json.dumps(self._partial[trial]))
        self._rungs.record(trial, len(self._partial[trial]) - 1, points)
        return cost_of(self._partial[trial])

    def ready(self, *, last: bool) -> list[str]:
        """See `Rungs.ready`."""
        return self._rungs.ready(last=last)

    def let_on(self, trial: str) -> FrozenTrial:
        """Writes that a trial goes on; its row."""
        self._climbed[trial] = self._climbed.get(trial, 0) + 1
        self._write(trial, CLIMBED, self._climbed[trial])
        self._rungs.leave(trial)
        return self._rows[trial]

    def stop(self) -> list[str]:
        """Closes the rows of all that wait; their ids."""
        stopped = self._rungs.waiting
        for trial in stopped:
            self._study.tell(self._rows[trial].number, state=TrialState.PRUNED)
            self._rungs.leave(trial)
        return stopped

    def seconds(self, trial: str) -> float:
        """What a trial's training took up to its last rung."""
        return float(sum(partial["seconds"] for partial in self._partial.get(trial, [])))

    def _write(self, trial: str, key: str, value: Any) -> None:
        write_attributes(self._study, self._rows[trial], {key: value})
