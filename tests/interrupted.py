"""A search that Ctrl-C ends: before and after each of some jobs, or at one of some writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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


@contextmanager
def interrupted_at(write: int, *methods: tuple[Any, str]) -> Iterator[None]:
    """While it lasts, the so manieth call of these methods, (owner, name), raises
    KeyboardInterrupt instead."""
    count = 0

    def killing(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def method(*arguments: Any, **keywords: Any) -> Any:
            nonlocal count
            count += 1
            if count == write:
                raise KeyboardInterrupt
            return real(*arguments, **keywords)

        patch.setattr(owner, name, method)

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in methods:
            killing(owner, name)
        yield
