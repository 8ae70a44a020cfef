"""A search that Ctrl-C ends before and after each of some jobs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from planter.driver.backends import local
from planter.driver.tasks.context import Context


def interrupt_around_jobs(
    monkeypatch: pytest.MonkeyPatch, trials: Iterable[str]
) -> list[tuple[str, str]]:
    """Makes the driver's own process raise KeyboardInterrupt once before and once after each of
    these jobs; what is still to come, as a list that shrinks."""
    do = local.run_job
    left = [(name, when) for name in trials for when in ("before", "after")]

    def killed(context: Context, job: Any) -> Any:
        if (job.id, "before") in left:
            left.remove((job.id, "before"))
            raise KeyboardInterrupt
        outcome = do(context, job)
        if (job.id, "after") in left:
            left.remove((job.id, "after"))
            raise KeyboardInterrupt
        return outcome

    monkeypatch.setattr(local, "run_job", killed)
    return left
