"""What a search may cost before it begins no further training."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from planter.driver.jobs import Job
from planter.study import Budget, Resources


def seconds_for(resources: Resources, job: Job) -> float | None:
    """How long a job may take; candidates that are trained together take turns."""
    if resources.trial_minutes is None:
        return None
    return 60 * resources.trial_minutes * len(job.trials)


@dataclass
class Account:
    """The time of a command and the multiply-adds of its run against a budget."""

    budget: Budget
    began: float = field(default_factory=time.monotonic)

    def spent(self, trained: Callable[[], int]) -> str | None:
        """What is used up, in words; None while there is some of everything. `trained` says how
        many multiply-adds the run's trainings took."""
        hours, macs = self.budget.hours, self.budget.train_macs
        if hours is not None and time.monotonic() - self.began >= 3600 * hours:
            return f"budget.hours {hours:g} are over"
        if macs is not None and (taken := trained()) >= macs:
            return f"budget.train_macs {macs:g} are spent ({taken:.3g})"
        return None
