"""Several trainings side by side on the cores of one process, each a thread at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Condition
from typing import Generic, TypeVar

import torch

Turn = TypeVar("Turn")
_AHEAD = 4  # turns that wait: what they hold is in memory


class Crew(Generic[Turn]):
    """Members that take the same turns one after another, each at its own pace.

    A thread that is done with one member's turn goes on with the member that has waited longest,
    so that no core waits while there are turns. An error of a member is raised by `hand_out` and
    `finish`.
    """

    def __init__(self, members: Sequence[Callable[[Turn], None]], pool: ThreadPoolExecutor) -> None:
        self._members = members
        self._pool = pool
        self._turns: list[deque[Turn]] = [deque() for _ in members]
        self._changed = Condition()
        self._error: BaseException | None = None

    def hand_out(self, turn: Turn) -> None:
        """Gives every member a turn; waits while one has too many before it."""
        self._wait(_AHEAD)
        with self._changed:
            for at, turns in enumerate(self._turns):
                turns.append(turn)
                if len(turns) == 1:
                    self._pool.submit(self._take, at)

    def finish(self) -> None:
        """Waits for all turns."""
        self._wait(1)

    def drop(self) -> None:
        """Forgets the turns that nobody has begun."""
        with self._changed:
            for turns in self._turns:
                while len(turns) > 1:
                    turns.pop()

    def _wait(self, fewer: int) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._error is not None or all(len(turns) < fewer for turns in self._turns)
            )
            if self._error is not None:
                raise self._error

    def _take(self, at: int) -> None:
        # The first turn of a member stays in its queue until it is done: one thread for each.
        turns = self._turns[at]
        try:
            self._members[at](turns[0])
        except BaseException as error:  # raised again where turns are handed out
            with self._changed:
                self._error = error
                self._changed.notify_all()
            return
        with self._changed:
            turns.popleft()
            if turns:
                self._pool.submit(self._take, at)
            self._changed.notify_all()


@contextmanager
def crew(members: Sequence[Callable[[Turn], None]], threads: int) -> Iterator[Crew[Turn]]:
    """A crew on so many threads, among which torch's cores are divided."""
    cores = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        threads, initializer=torch.set_num_threads, initargs=(max(cores // threads, 1),)
    )
    with pool:
        made = Crew(members, pool)
        try:
            yield made
        finally:
            made.drop()
    torch.set_num_threads(cores)  # what threads to come begin with, too
