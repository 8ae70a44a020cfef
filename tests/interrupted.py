"""A search that Ctrl-C ends: before and after each of some jobs, or at some writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
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
    calls = 0

    def killing(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def method(*arguments: Any, **keywords: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == write:
                raise KeyboardInterrupt
            return real(*arguments, **keywords)

        patch.setattr(owner, name, method)

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in methods:
            killing(owner, name)
        yield


def interrupted_later_and_later(
    search: Callable[[], Any], *methods: tuple[Any, str], least: int
) -> Any:
    """What a search gives whose first command ends at its first call of these methods, (owner,
    name), the second at its second, and so on: `least` times or more."""
    writes = count(1)

    def cut_off() -> Any:
        with interrupted_at(next(writes), *methods):
            return search()

    return until_it_ends(cut_off, least)


def until_it_ends(
    search: Callable[[], Any], least: int, by: type[BaseException] = KeyboardInterrupt
) -> Any:
    """What a search gives that is begun again wherever an interruption ends it, which is to be so
    often at `least`."""
    for interruptions in range(100):
        try:
            found = search()
        except by:
            continue
        assert interruptions >= least
        return found
    raise AssertionError("it gets nowhere")
