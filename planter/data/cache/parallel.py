"""Work on many images, on threads: Pillow and hashes let others run meanwhile."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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
    call: Callable[[Given], Made], items: Collection[Given], workers: int, told: str
) -> Iterator[Made]:
    """What `call` makes of each item, in their order, a few ahead of what is asked for; with a bar
    on a terminal that says what is `told`. Raises what it raises."""

    def several(some: list[Given]) -> list[Made]:
        return [call(one) for one in some]

    source = iter(items)
    ahead: deque[Future[list[Made]]] = deque()
    console = Console(stderr=True)
    shown = console.is_terminal and len(items) >= _SHOWN_FROM
    columns = TextColumn(told), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=console, transient=True, disable=not shown)
    with ThreadPoolExecutor(workers) as pool, bar:
        task = bar.add_task(told, total=len(items))
        try:
            while True:
                while len(ahead) < 3 * workers and (some := list(islice(source, _TOGETHER))):
                    ahead.append(pool.submit(several, some))
                if not ahead:
                    return
                made = ahead.popleft().result()
                yield from made
                bar.advance(task, len(made))
        finally:
            for future in ahead:
                future.cancel()
