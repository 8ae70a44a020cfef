"""Children of trained networks: a sampler draws how they are made, the front tells of whom."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

from optuna.trial import FrozenTrial, Trial, TrialState

from planter.driver.proposers.early_stopping import Stopping
from planter.driver.proposers.offspring import Left, Selection, draw_edit
from planter.driver.proposers.proposer import Exhausted, Notice, Proposer, SearchContext
from planter.driver.proposers.samplers import make_sampler
from planter.driver.proposers.unfinished import (
    PARTIAL,
    Cost,
    cost_without_point,
    partial_results,
    reason_of,
    write_failure,
)
from planter.driver.storage.open_rows import row_of, take_up, write_attributes
from planter.driver.storage.points import Direction, open_study, read_result, write_result
from planter.driver.trials.child import Offspring, child_id
from planter.driver.trials.jobs import Job, Outcome, points_of, seed_of
from planter.front.halving import Points, by_aim
from planter.front.objectives import values_of
from planter.front.points import Point, within

GAIN: dict[str, Direction] = {"gain": "maximize"}
OFFSPRING, PASSED_OVER = "offspring", "passed_over"
"""Attributes of a row: the child as it was decided on, written before its job is handed out; why
another was drawn in its place."""
STARTS = "starts"
"""Attribute of the study."""
_KNOWN_GOOD = 4
"""First children of a search whose settings are not drawn: a sampler knows nothing before them."""
_DRAWS = 8
"""Draws of which one is trained: the first that promises a good part of what settings nobody drew
would bring, or else the last."""
_GOOD_PART = 0.5
_IN_VAIN = 40
"""Draws in a row of which no child can come, after which no more are drawn."""


class Evolving(Proposer):
    """The Optuna study `<name>/evolve`: one row a draw, told the hypervolume that its child added
    to the front, for what its training took. Networks taken in from elsewhere (`evolve.start`) are
    points without a row.

    What a row keeps as `offspring` is trained, however often the search is interrupted. With early
    stopping every child ends its job on a rung and waits; `next` alone says who goes on, so that it
    is the same one after an interruption.
    """

    method = "evolve"
    kinds = ("evolve", "adopt")
    representative = ("evolve",)
    takes_turns = True

    def __init__(self, context: SearchContext) -> None:
        settings = context.study.evolve
        assert settings is not None
        self._context = context
        self._settings = settings
        self._selection = Selection(context)
        self._limits, self._objectives = context.limits, context.study.objectives.names
        self._study = open_study(context.storage, f"{context.study.name}/evolve", GAIN)
        stopping = settings.early_stopping
        # The first ones are parents of others: if they waited, all would come of the same few.
        self._stopping: Stopping | None = None
        if stopping is not None:
            self._stopping = Stopping(stopping, self._study, self._best, free=True)
        self._on_rungs: dict[str, tuple[FrozenTrial, Offspring]] = {}
        self._aims: dict[str, float] = {}
        self._stopped = 0
        self._running: dict[str, tuple[FrozenTrial, Offspring]] = {}
        self._waiting: list[tuple[FrozenTrial, Offspring]] = []
        self._undecided: list[FrozenTrial] = []
        self._taken_in = self._starts()
        self._adopting = {n: f for n, f in self._taken_in.items() if not context.book.has(n)}
        self._handed_out: set[str] = set()
        self._failures: dict[str, str] = {}
        self._left: dict[str, Cost] = {}
        """What trainings without a point took."""
        self._notices: list[Notice] = []
        self._exhausted: Exhausted | None = None
        self._passed = 0
        """Rows in a row that were passed over."""
        self._resting: tuple[int, ...] | None = None
        """How many points there were, and children on their way, when draws were last in vain."""
        self._done = 0
        rows = self._study.get_trials()
        self._asked = sum(row.state != TrialState.WAITING for row in rows)
        self._enqueued = len(rows) > self._asked  # and not asked for: the search was cut off
        for row in rows:
            self._take_over(row)

    @classmethod
    def of(cls, context: SearchContext) -> Self | None:
        """None for a study without children."""
        return None if context.study.evolve is None else cls(context)

    def next(self) -> Job | None:
        for name, folder in self._adopting.items():
            if name not in self._handed_out:
                self._handed_out.add(name)
                return Job(name, "adopt", {"folder": folder})
        if self._adopting:
            return None
        job = self._taken_up(last=False) or self._begun()
        # With nobody on the way to a rung, and none to come, those there have the others alone.
        while job is None and self._on_rungs and not self._running:
            job = self._taken_up(last=True)
            if job is None and not self._stop_the_rest():
                return None  # until the budget has more
            job = job or self._begun()
        return job

    def _taken_up(self, *, last: bool) -> Job | None:
        """The job of a child that was interrupted, or that waited on a rung and goes on."""
        while self._waiting or self._let_on(last=last):
            row, child = self._waiting.pop(0)
            if (gone := self._selection.gone(child.parent)) is None:
                return self._handed(row, child)
            self._pass_over(row, gone)
            self._notices.append(Notice(f"{child_id(row.number)} cannot be trained: {gone}"))
        return None

    def _begun(self) -> Job | None:
        """The job of a new child."""
        # Asked all the time, also while every draw is in vain: each one would be another row.
        if self._others() and self._resting == self._standing():
            return None
        while self._wants_more() and self._selection.possible():
            if (found := self._decided()) is not None:
                return self._handed(*found)
            if self._others():
                self._resting = self._standing()
                return None  # what they become may have children
        return None

    def compare(self, job: Job, outcome: Outcome, *, go_on: bool) -> Job | None:
        """See `Proposer.compare`: every child waits."""
        assert self._stopping is not None
        row, child = self._running[job.id]
        partial: Outcome = {**outcome["partial"], "seconds": outcome["seconds"]}
        partial = self._context.latencies.added(partial)
        self._aims[job.id] = child.accuracy
        figures = self._figures(job.id, partial)
        self._left[job.id] = self._stopping.reach(job.id, row, partial, figures)
        self._selection.begun(child)
        return None

    def finish(self, job: Job, outcome: Outcome) -> None:
        if job.id in self._adopting:
            del self._adopting[job.id]
            if "error" in outcome:
                self._failures[job.id] = outcome["error"]
            else:
                outcome = self._context.latencies.added(outcome)
                self._context.book.add(points_of(job.id, self.method, outcome), {}, {})
            return
        row, child = self._running.pop(job.id)
        if "error" in outcome:
            self._failures[job.id] = outcome["error"]
            self._selection.refuse(child, outcome["error"])
            if (cost := write_failure(self._study, row, outcome)) is not None:
                self._left[job.id] = cost
            self._study.tell(row.number, state=TrialState.FAIL)
            return
        if "partial" in outcome:  # in the books already
            self._on_rungs[job.id] = (row, child)
            return
        outcome = self._context.latencies.added(outcome)
        if self._stopping is not None:
            seconds = outcome["seconds"] + self._stopping.seconds(job.id)
            outcome = {**outcome, "seconds": seconds}
        write_result(self._study, row, outcome)
        self._close(row, child, outcome)

    def take_back(self, job: Job) -> None:
        if job.id in self._adopting:
            self._handed_out.discard(job.id)
        else:
            self._waiting.append(self._running.pop(job.id))

    def left(self) -> int:
        more = self._settings.trials - self._booked() if self._exhausted is None else 0
        return len(self._on_their_way()) + len(self._adopting) + max(more, 0)

    def done(self) -> int:
        children = self._booked() - len(self._on_their_way())
        return children + len(self._taken_in) - len(self._adopting)

    def failures(self) -> dict[str, str]:
        return dict(self._failures)

    def unfinished(self) -> dict[str, Cost]:
        """See `cost_without_point`."""
        done = {point.trial for point in self._context.book.points}
        return {child: cost for child, cost in self._left.items() if child not in done}

    def exhausted(self) -> Exhausted | None:
        return self._exhausted

    def results(self, points: Sequence[Point]) -> list[Point]:
        """Children: what was taken in was there before."""
        return [point for point in points if point.method == self.method and point.parent]

    def remedy(self) -> str:
        return f"more are trained with --set evolve.trials={2 * max(self._settings.trials, 1)}"

    def needed(self) -> set[str]:
        """The parents of children that are still to be trained, and those that may have more: on
        the run's own front, which is kept anyway, they need not be."""
        parents = {child.parent.partition("/")[0] for _, child in self._on_their_way()}
        return parents | (self._selection.parents_kept() if self._wants_more() else set())

    def notices(self) -> list[Notice]:
        told, self._notices = [*self._notices, *map(Notice, self._selection.told())], []
        return told

    def _starts(self) -> dict[str, str]:
        """The folders of networks that are taken in, by the ids they have for good."""
        known: dict[str, str] = dict(self._study.user_attrs.get(STARTS, {}))
        new = [f for f in self._context.prepared.starts if f not in known.values()]
        if new:
            known |= {f"a{n:02d}": folder for n, folder in enumerate(new, len(known) + 1)}
            self._study.set_user_attr(STARTS, known)
        return known

    def _take_over(self, row: FrozenTrial) -> None:
        """What the books say of a row, from before the search was interrupted."""
        written, outcome = row.user_attrs.get(OFFSPRING), read_result(row)
        child = None if written is None else Offspring(**json.loads(written))
        name = child_id(row.number)
        if (cost := cost_without_point(row)) is not None:
            self._left[name] = cost
        waits = child is not None and self._read_rungs(name, row, child)
        if row.state == TrialState.FAIL:
            self._failures[name] = reason_of(row)
            if child is not None:
                self._selection.refuse(child, self._failures[name])
        elif child is None:
            if PASSED_OVER in row.user_attrs:
                self._passed += 1
                if row.state == TrialState.RUNNING:
                    self._study.tell(row.number, state=TrialState.PRUNED)
            elif row.state == TrialState.RUNNING:
                self._undecided.append(row)
        elif outcome is not None:
            self._close(row, child, outcome)
        elif waits:
            self._on_rungs[name] = (row, child)
        elif row.state == TrialState.RUNNING:
            self._waiting.append((row, child))
        elif PARTIAL in row.user_attrs and PASSED_OVER not in row.user_attrs:
            self._stopped += 1
        if child is not None:
            self._selection.note(child)
            self._passed = 0

    def _read_rungs(self, name: str, row: FrozenTrial, child: Offspring) -> bool:
        """Takes the partial results of a row over; whether it waits to be compared."""
        if self._stopping is None:
            return False
        partial = partial_results(row)
        if partial:
            self._aims[name] = child.accuracy
            self._selection.begun(child)
        return self._stopping.read(name, row, [self._figures(name, one) for one in partial])

    def _figures(self, name: str, partial: Outcome) -> Points:
        """What a child is compared by; nothing of one beyond the bounds."""
        points = points_of(name, self.method, partial)
        return [values_of(p.values, self._objectives) for p in points if within(p, self._limits)]

    def _best(self, children: Mapping[str, Points], most: int) -> list[str]:
        return by_aim(children, self._aims, most, self._objectives)

    def _let_on(self, *, last: bool) -> bool:
        """Lets one that waits on a rung go on; whether one may, and the budget has enough left."""
        for name in self._stopping.ready(last=last) if self._stopping is not None else []:
            assert self._stopping is not None
            if self._to_take(name, self._on_rungs[name][1]) <= self._context.macs_left():
                _, child = self._on_rungs.pop(name)
                self._waiting.append((self._stopping.let_on(name), child))
                return True
        return False

    def _stop_the_rest(self) -> bool:
        """Ends the trainings that wait where nobody is left whom they could be compared with, and
        more of the budget would not change that; whether it did."""
        assert self._stopping is not None
        dear = self._wants_more() and self._context.macs_left() < math.inf
        if dear or self._stopping.ready(last=True):
            return False
        stopped = self._stopping.stop()
        for name in stopped:
            del self._on_rungs[name]
        self._stopped += len(stopped)
        self._notices.append(Notice(f"stopped early: {', '.join(stopped)}", stopped))
        return True

    def _others(self) -> list[tuple[FrozenTrial, Offspring]]:
        """The children that train or wait on a rung."""
        return [*self._running.values(), *self._on_rungs.values()]

    def _on_their_way(self) -> list[tuple[FrozenTrial, Offspring]]:
        return [*self._others(), *self._waiting]

    def _to_take(self, name: str, child: Offspring) -> int:
        """What a child is expected to take from now on."""
        return max(child.train_macs - self._left.get(name, (0, 0.0))[0], 0)

    def _booked(self) -> int:
        """Children that are trained, were stopped, failed, or are on their way."""
        failed = sum(name.startswith("e") for name in self._failures)
        return self._done + self._stopped + failed + len(self._on_their_way())

    def _wants_more(self) -> bool:
        return self._exhausted is None and self._booked() < self._settings.trials

    def _standing(self) -> tuple[int, ...]:
        """What decides on whether a child can come of draws."""
        return len(self._context.book.points), len(self._running), len(self._on_rungs)

    def _handed(self, row: FrozenTrial, child: Offspring) -> Job:
        name = child_id(row.number)
        self._running[name] = (row, child)
        params: dict[str, Any] = {key: getattr(child, key) for key in ("parent", "edits", "recipe")}
        if self._stopping is not None:
            params["rungs"] = self._stopping.ahead(name, child.recipe["epochs"])
        return Job(name, "evolve", params, macs=self._to_take(name, child))

    def _decided(self) -> tuple[FrozenTrial, Offspring] | None:
        """A row and its child: the best of a few draws; None where no child can come of them."""
        running = [child.place(self._objectives) for _, child in self._others()]
        left = Left(self._context.macs_left(), self._settings.trials - self._booked())
        promise = self._selection.promise(running, left)
        in_vain = 0
        while True:
            trial = self._trial()
            child = self._selection.decided(draw_edit(trial, self._settings), running, left)
            if isinstance(child, str):
                self._pass_over(trial, child)
                in_vain += 1
                if self._others() and in_vain >= _DRAWS:
                    return None
                if not self._others() and self._passed >= _IN_VAIN:
                    self._exhausted = Exhausted(self._why(child), by_bounds=False)
                    return None
                continue
            last = trial.number < _KNOWN_GOOD or self._passed >= _DRAWS - 1
            worth = self._selection.worth_of(child, running, left)
            if last or worth >= _GOOD_PART * promise:
                self._passed = 0
                self._selection.note(child)
                write_attributes(self._study, trial, {OFFSPRING: json.dumps(child.to_data())})
                return row_of(self._study, trial), child
            self._pass_over(trial, f"promises {worth:.3g}, others up to {promise:.3g}")

    def _why(self, reason: str) -> str:
        done = f"evolving ends with {self._booked()} of {self._settings.trials} children"
        return f"{done}: of {_IN_VAIN} draws in a row none could be trained ({reason})"

    def _trial(self) -> Trial:
        """A trial to draw from: one that was left undecided, or a new one."""
        row = self._undecided.pop(0) if self._undecided else None
        number = self._asked if row is None else row.number
        # One sampler a trial: see Sampling.
        self._study.sampler = make_sampler(
            self._settings.sampler, seed_of(self._context.study.seed, child_id(number))
        )
        if row is not None:
            return take_up(self._study, row)
        if number < _KNOWN_GOOD and not self._enqueued:
            self._study.enqueue_trial(self._selection.known_good())
        self._enqueued, self._asked = False, self._asked + 1
        return self._study.ask()

    def _pass_over(self, trial: Trial | FrozenTrial, reason: str) -> None:
        self._passed += 1
        write_attributes(self._study, trial, {PASSED_OVER: reason})
        self._study.tell(trial.number, state=TrialState.PRUNED)

    def _close(self, row: FrozenTrial, child: Offspring, outcome: Outcome) -> None:
        """Tells what a child has gained, and publishes its point."""
        (point,) = points_of(child_id(row.number), self.method, outcome)
        if row.state == TrialState.RUNNING:
            self._study.tell(row.number, self._selection.gained(point))
        self._selection.learn(child, point)
        self._context.book.add([point], row.params, row.distributions)
        self._done += 1
