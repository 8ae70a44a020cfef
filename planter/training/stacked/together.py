"""Trainings that go on at the same time in one process, a pass of each at a time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from torch import nn

from planter.training.batches import Batch
from planter.training.stacked.choice import is_faster
from planter.training.stacked.epoch import check_stack, first_batches, kind_of, stacked_epoch
from planter.training.stacked.network import stack
from planter.training.stacked.passes import Pass

log = logging.getLogger(__name__)
T = TypeVar("T")
Chosen = Callable[[Sequence[Pass], Sequence[Batch]], bool]
"""Whether these passes are to be made in a stack, which is known to be possible."""


class _Ended(BaseException):
    """Another training's process is being interrupted; no error of this one."""


class _Made(NamedTuple):
    """What came of a pass: its loss or what it raised; seconds are its share."""

    loss: float | Exception
    seconds: float


class Together(Generic[T]):
    """Runs several trainings, each to its end, and makes their passes at once where their networks
    are of one shape and `chosen` says so; one after another where not.

    All that a training does beside its passes is done by a thread of its own, one thread at a
    time: torch's random numbers and its caches are one for all. The passes are made by the thread
    that called.
    """

    def __init__(self, chosen: Chosen = is_faster) -> None:
        self._chosen = chosen
        self._turn = threading.Condition()
        self._waiting: dict[int, Pass] = {}
        self._made: dict[int, _Made] = {}
        self._away: dict[int, float] = {}
        self._places: dict[int, int] = {}
        self._open = 0
        self._over = False
        self._stacks: dict[object, tuple[list[nn.Module], nn.Module | None]] = {}

    def all(
        self, trainings: Sequence[Callable[[], T]], between: Callable[[], object] = lambda: None
    ) -> list[T | BaseException]:
        """What each training returned or raised. They give this object to `fit` as `together`.
        `between` is called when a pass of each has been made."""
        results: dict[int, T | BaseException] = {}
        self._open = len(trainings)
        threads = [
            threading.Thread(target=self._train, args=(at, one, results), daemon=True)
            for at, one in enumerate(trainings)
        ]
        try:
            with self._turn:
                for thread in threads:
                    thread.start()
                while True:
                    self._turn.wait_for(lambda: len(self._waiting) == self._open)
                    if not self._open:
                        break
                    passes, self._waiting = self._waiting, {}
                    self._made |= self._make(passes)
                    between()
                    self._turn.notify_all()
        finally:
            with self._turn:
                self._over = True
                self._turn.notify_all()
            for thread in threads:
                thread.join()
        return [results[at] for at in range(len(trainings))]

    def _train(
        self, at: int, training: Callable[[], T], results: dict[int, T | BaseException]
    ) -> None:
        with self._turn:
            self._places[threading.get_ident()] = at
            try:
                results[at] = training()
            except BaseException as error:
                results[at] = error
            finally:
                self._open -= 1
                self._turn.notify_all()

    def run(self, one: Pass) -> float:
        """See `Company.run`."""
        if self._over:
            raise _Ended
        me, began = threading.get_ident(), time.monotonic()
        self._waiting[me] = one
        self._turn.notify_all()
        self._turn.wait_for(lambda: me in self._made or self._over)
        if me not in self._made:
            raise _Ended
        made = self._made.pop(me)
        self._away[me] = self._away.get(me, 0.0) + time.monotonic() - began - made.seconds
        if isinstance(made.loss, Exception):
            raise made.loss
        return made.loss

    def clock(self) -> float:
        """See `Company.clock`."""
        return time.monotonic() - self._away.get(threading.get_ident(), 0.0)

    def _make(self, passes: dict[int, Pass]) -> dict[int, _Made]:
        alike: dict[object, list[int]] = {}
        # In the order of the trainings, whichever thread came first: one stack, the same sums.
        for thread in sorted(passes, key=self._places.__getitem__):
            one = passes[thread]
            kind = kind_of(one)
            alike.setdefault(thread if kind is None else kind, []).append(thread)
        made: dict[int, _Made] = {}
        for threads in alike.values():
            own = [passes[thread] for thread in threads]
            began = time.monotonic()
            try:
                whole = self._stack_of(own)
                losses: Sequence[float] = [] if whole is None else stacked_epoch(own, whole)
            except Exception as error:
                share = (time.monotonic() - began) / len(own)
                made |= {thread: _Made(error, share) for thread in threads}
                continue
            if whole is None:
                made |= {t: _alone(one) for t, one in zip(threads, own, strict=True)}
                continue
            share = (time.monotonic() - began) / len(own)
            made |= {t: _Made(loss, share) for t, loss in zip(threads, losses, strict=True)}
        return made

    def _stack_of(self, passes: Sequence[Pass]) -> nn.Module | None:
        """The stack of their networks; None where they are trained one after another."""
        if len(passes) == 1:
            return None
        models = [one.model for one in passes]
        key = kind_of(passes[0]), *map(id, models)  # those of models that are kept
        if key not in self._stacks:
            self._stacks[key] = models, self._tried(passes)
        return self._stacks[key][1]

    def _tried(self, passes: Sequence[Pass]) -> nn.Module | None:
        batches = first_batches(passes)
        try:
            check_stack(passes, batches)
        except ValueError as error:
            log.info("%d networks of one shape are trained one by one: %s", len(passes), error)
            return None
        if not self._chosen(passes, batches):
            log.info("%d networks are trained one by one, which is faster", len(passes))
            return None
        log.info("%d networks are trained in a stack", len(passes))
        return stack([one.model for one in passes])


def _alone(one: Pass) -> _Made:
    began = time.monotonic()
    try:
        loss: float | Exception = one.alone()
    except Exception as error:
        loss = error
    return _Made(loss, time.monotonic() - began)
