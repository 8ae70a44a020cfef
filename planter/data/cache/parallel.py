"""Work on many images, on threads: Pillow and hashes let others run meanwhile."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")
_TOGETHER = 8
"""Items of a task: handing one over takes as long as a small image does."""
_SHOWN_FROM = 256
"""Fewer are done before a bar could be read."""


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def in_order(
    call: Callable[[list[Given]], Iterable[Made]],
    items: Collection[Given],
    workers: int,
    told: str,
) -> Iterator[Made]:
    """What `call` makes of each item, of several at a time, in their order, a few ahead of what is
    asked for; with a bar on a terminal that says what is `told`. Raises what it raises."""

    def several(some: list[Given]) -> list[Made]:
        return list(call(some))

    source = iter(items)
    ahead: deque[Future[list[Made]]] = deque()
    with ThreadPoolExecutor(workers) as pool, _bar(told, len(items)) as advance:
        try:
            while True:
                while len(ahead) < 3 * workers and (some := list(islice(source, _TOGETHER))):
                    ahead.append(pool.submit(several, some))
                if not ahead:
                    return
                made = ahead.popleft().result()
                yield from made
                advance(len(made))
        finally:
            for future in ahead:
                future.cancel()


@contextmanager
def _bar(told: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how many of all are done, on a terminal and where there are enough."""
    if total < _SHOWN_FROM:
        yield lambda count: None
        return
    # Not at the top: a set that is found in the cache needs none of it.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    console = Console(stderr=True)
    columns = TextColumn(told), BarColumn(), MofNCompleteColumn(), Remaining()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(told, total=total)
        yield lambda count: bar.advance(task, count)
