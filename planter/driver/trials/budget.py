"""What a search may cost before it begins no further training."""

from __future__ import annotations

import time
from collections.abc import Callable

import optuna

from planter.driver.trials.jobs import Job
from planter.study.budget import Budget
from planter.study.schema import Resources

_SECONDS = "seconds_searched"
"""Attribute of the study of points: how long commands have been at work on the run."""
_WRITTEN_EVERY_S = 5.0


def seconds_for(resources: Resources, job: Job) -> float | None:
    """How long a job may take; candidates that are trained together take turns."""
    if resources.trial_minutes is None:
        return None
    return 60 * resources.trial_minutes * len(job.trials)


class Account:
    """The time and the multiply-adds of a run against a budget: those of all commands that have
    worked on it, in sum. The time stands in the books, written every few seconds of a search."""

    def __init__(self, budget: Budget, book: optuna.Study) -> None:
        self._budget = budget
        self._book = book
        self._before = float(book.user_attrs.get(_SECONDS, 0.0))
        self._began = self._written = time.monotonic()
        self._over = False

    def spent(self, trained: Callable[[], int]) -> str | None:
        """What is used up, in words; None while there is some of everything. `trained` says how
        many multiply-adds the run's trainings took."""
        hours, macs = self._budget.hours, self._budget.train_macs
        if hours is not None and (self._over or self._seconds() >= 3600 * hours):
            return f"budget.hours {hours:g} are over"
        if macs is not None and (taken := trained()) >= macs:
            return f"budget.train_macs {macs:g} are spent ({taken:.3g})"
        return None

    def ends(self) -> float | None:
        """When the hours are over, in seconds since 1970: by the clock, which workers on other
        machines have as well."""
        if self._budget.hours is None:
            return None
        return time.time() + 3600 * self._budget.hours - self._seconds()

    def close(self) -> None:
        """Takes the hours as over, as a worker has: its clock may be ahead."""
        self._over = True

    @property
    def due(self) -> bool:
        """Whether the time is to be written again."""
        return time.monotonic() - self._written >= _WRITTEN_EVERY_S

    def write(self) -> None:
        """Writes the time into the books."""
        self._book.set_user_attr(_SECONDS, round(self._seconds(), 3))
        self._written = time.monotonic()

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._began
