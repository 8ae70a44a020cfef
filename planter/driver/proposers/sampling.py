"""Sampled trials: an Optuna sampler proposes, and is told one point of each training."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Self

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from planter.driver.proposers.early_stopping import Stopping
from planter.driver.proposers.proposer import Exhausted, Notice, Proposer, SearchContext
from planter.driver.proposers.redraws import (
    BOUNDS,
    IN_A_ROW,
    PRUNED,
    RECIPES,
    REDRAWN,
    REFUSED,
    REPEATED,
    Streak,
    Trained,
    is_redrawn,
    trained_under,
)
from planter.driver.proposers.samplers import make_sampler
from planter.driver.proposers.unfinished import (
    Cost,
    cost_without_point,
    partial_results,
    reason_of,
    write_failure,
)
from planter.driver.storage.earlier import add_earlier, is_earlier, told
from planter.driver.storage.open_rows import row_of, take_up
from planter.driver.storage.points import (
    Direction,
    metrics_of,
    open_study,
    read_result,
    write_result,
)
from planter.driver.storage.requests import Enqueued
from planter.driver.trials.bounds import LATENCY
from planter.driver.trials.cost import candidate_macs
from planter.driver.trials.jobs import (
    Job,
    Outcome,
    SearchStoppedError,
    beyond,
    number_of,
    points_of,
    seed_of,
    trial_id,
)
from planter.driver.trials.networks import candidate_architecture, recipes_of
from planter.front.halving import Points, by_rank
from planter.front.objectives import values_of
from planter.front.pareto import hypervolume
from planter.front.points import within
from planter.kernels.forms import form_names
from planter.study.space import Candidate

FAMILY_METRICS: dict[str, Direction] = {"hypervolume": "maximize"}


class Sampling(Proposer):
    """The Optuna study `<name>/sampling`: one row a draw.

    `sample.trials` counts what is trained, or failed in training. A draw of which nothing is
    trained (networks beyond the bounds, the space raised TrialPruned, the parameters of an earlier
    trial) is told to the sampler as PRUNED and drawn again; `exhausted` says why not without end.
    """

    method = "sample"
    kinds = representative = ("sample",)
    takes_turns = True

    def __init__(self, context: SearchContext) -> None:
        study, prepared = context.study, context.prepared
        space = prepared.space
        assert study.sample is not None
        assert space is not None
        self._settings = study
        self._trials, self._sampler = study.sample.trials, study.sample.sampler
        self._space, self._data = space, prepared.data
        self._book = context.book
        self._reference = context.reference
        self._latencies = context.latencies
        self._macs_left = context.macs_left
        self._teacher_macs = prepared.teacher_macs
        self._dear: tuple[FrozenTrial, int] | None = None
        """A draw that waits for more of the budget."""
        self._limits, self._objectives = study.objectives.bounds.limits(), study.objectives.names
        self._family = family = study.objectives.family
        metrics = FAMILY_METRICS if family else metrics_of(self._objectives)
        self._study = open_study(context.storage, f"{study.name}/sampling", metrics)
        self._handed: dict[str, FrozenTrial] = {}
        self._space_failures = 0
        self._streak = Streak()
        self._trained = Trained(space)
        self._exhausted: Exhausted | None = None
        self._notices: list[Notice] = []
        self._left: dict[str, Cost] = {}
        self._interrupted: list[FrozenTrial] = []
        stopping = study.sample.early_stopping
        self._stopping = None if stopping is None else Stopping(stopping, self._study, self._best)
        rules = self._reference, self._limits, self._objectives
        add_earlier(self._study, prepared.earlier, *rules, family=family)
        self._given = Enqueued(self._study, prepared.enqueued, space, prepared.ranges)
        drawn = [row for row in self._study.get_trials() if row.state != TrialState.WAITING]
        rows = [row for row in drawn if not is_earlier(row)]
        # Counted along: to read all rows after each of a trial's writes would take longest of all.
        self._asked = len(drawn)
        self._counted = sum(not is_redrawn(row) for row in rows)
        self._open = {row.number for row in rows if row.state == TrialState.RUNNING}
        self._failures = {
            trial_id(row.number): reason_of(row) for row in rows if row.state == TrialState.FAIL
        }
        for row in rows:
            self._trained.read(row)
            outcome = read_result(row)
            waits = self._read_rungs(row)
            if row.state == TrialState.RUNNING and outcome is None and not waits:
                self._interrupted.append(row)
            elif outcome is not None:
                if row.state == TrialState.RUNNING:
                    self._tell(row, outcome)
                self._publish(row, outcome)
        self._stop_the_rest()

    @classmethod
    def of(cls, context: SearchContext) -> Self | None:
        """None for a study that samples nothing."""
        return None if context.study.sample is None else cls(context)

    def next(self) -> Job | None:
        while (trial := self._trial()) is not None:
            if (job := self._prepared(trial)) is not None:
                self._notices += map(Notice, self._streak.end())
                return job
            if self._dear is not None:
                return None
            if self._streak.over:
                self._draw_no_more()
            if self._space_failures > self._settings.resources.max_failures:
                last = self._notices[-1].text
                raise SearchStoppedError(
                    f"{self._space_failures} trials of the search space failed: {last}"
                )
        return None

    def compare(self, job: Job, outcome: Outcome, *, go_on: bool) -> Job | None:
        """See `Proposer.compare`: the trial may wait for others, also in vain."""
        assert self._stopping is not None
        row = self._handed[job.id]
        partial: Outcome = {**outcome["partial"], "seconds": outcome["seconds"]}
        partial = self._latencies.added(partial, row.user_attrs.get(LATENCY))
        figures = self._figures(job.id, partial)
        self._left[job.id] = self._stopping.reach(job.id, row, partial, figures)
        ready = self._stopping.ready(last=self._nobody_else(job.id)) if go_on else []
        if job.id not in ready:
            return None
        self._stopping.let_on(job.id)
        return beyond(job)

    def finish(self, job: Job, outcome: Outcome) -> None:
        """See `Proposer.finish`. A partial outcome is in the books already."""
        row = self._handed.pop(job.id)
        if "error" in outcome:
            self._trained.drop(row)
            self._fail(row, outcome)
        elif "partial" not in outcome:
            outcome = self._latencies.added(outcome, row.user_attrs.get(LATENCY))
            if self._stopping is not None:
                outcome = {
                    **outcome,
                    "seconds": outcome["seconds"] + self._stopping.seconds(job.id),
                }
            write_result(self._study, row, outcome)
            self._tell(row, outcome)
            self._publish(row, outcome)
        self._stop_the_rest()

    def take_back(self, job: Job) -> None:
        self._interrupted.append(self._handed.pop(job.id))

    def left(self) -> int:
        return (0 if self._all_drawn() else self._trials - self._counted) + len(self._open)

    def done(self) -> int:
        return self._counted - len(self._open)

    def failures(self) -> dict[str, str]:
        return dict(self._failures)

    def unfinished(self) -> dict[str, Cost]:
        """See `cost_without_point`."""
        done = {point.trial for point in self._book.points}
        return {trial: cost for trial, cost in self._left.items() if trial not in done}

    def _read_rungs(self, row: FrozenTrial) -> bool:
        """Takes the partial results of a row over; whether it waits to be compared."""
        name = trial_id(row.number)
        if (cost := cost_without_point(row)) is not None:
            self._left[name] = cost
        if self._stopping is None:
            return False
        reached = [self._figures(name, partial) for partial in partial_results(row)]
        return self._stopping.read(name, row, reached)

    def _figures(self, trial: str, partial: Outcome) -> Points:
        """What the networks of a trial that keep to the bounds are compared by."""
        points = points_of(trial, "sample", partial)
        return [values_of(p.values, self._objectives) for p in points if within(p, self._limits)]

    def _best(self, trials: Mapping[str, Points], most: int) -> list[str]:
        """The trials of a rung that are to go on, the best first."""
        if self._family:
            by, names = self._reference, self._objectives
            reach = {name: hypervolume(points, by, names) for name, points in trials.items()}
            return sorted(trials, key=reach.__getitem__, reverse=True)[:most]
        return by_rank(trials, most, self._objectives)

    def _nobody_else(self, trial: str | None = None) -> bool:
        """Whether no other trial than this one is on its way to a rung."""
        others = set(self._handed) - {trial}
        return self._all_drawn() and not others and not self._interrupted and not self._dear

    def _all_drawn(self) -> bool:
        """Whether no further trial is drawn."""
        return self._exhausted is not None or self._counted >= self._trials

    def _draw_no_more(self) -> None:
        """Ends the drawing where nothing to train comes of it."""
        why = (
            f"sampling ends with {self._counted} of {self._trials} trials: of {IN_A_ROW} draws in "
            f"a row none gave a network to train ({self._streak.why()}); {self._streak.advice()}"
        )
        self._exhausted = Exhausted(why, by_bounds=BOUNDS in self._streak.kinds())
        self._notices += map(Notice, [*self._streak.end(), why])
        self._stop_the_rest()

    def _stop_the_rest(self) -> None:
        """Ends the trainings that wait when nobody is left whom they could be compared with."""
        stopping = self._stopping
        if stopping is None or not self._nobody_else() or stopping.ready(last=True):
            return
        if stopped := stopping.stop():
            self._open -= set(map(number_of, stopped))
            self._notices.append(Notice(f"stopped early: {', '.join(stopped)}", stopped))

    def notices(self) -> list[Notice]:
        told, self._notices = self._notices, []
        return told

    def exhausted(self) -> Exhausted | None:
        return self._exhausted

    def remedy(self) -> str:
        return f"more of them are trained with --set sample.trials={2 * max(self._trials, 1)}"

    def _waiting_row(self) -> FrozenTrial | None:
        """The trial that waits and may go on."""
        if self._stopping is None:
            return None
        ready = self._stopping.ready(last=self._nobody_else())
        return self._stopping.let_on(ready[0]) if ready else None

    def _trial(self) -> Trial | None:
        """The next trial to prepare: interrupted, one that waited and goes on, new, or None."""
        row: FrozenTrial | None = None
        if self._dear is not None and self._dear[1] <= self._macs_left():
            (row, _), self._dear = self._dear, None
        elif self._dear is None and self._interrupted:
            row = self._interrupted.pop(0)
        row = row or self._waiting_row()
        number = self._asked if row is None else row.number
        if row is None and (self._all_drawn() or self._dear is not None):
            return None
        # One sampler a trial: a single one with a fixed seed would, after a restart, propose its
        # first trials again.
        seed = seed_of(self._settings.seed, trial_id(number))
        self._study.sampler = make_sampler(self._sampler, seed)
        if row is not None:
            return take_up(self._study, row)
        self._notices += map(Notice, self._given.give())
        trial = self._study.ask()
        self._asked += 1
        self._counted += 1
        self._open.add(trial.number)
        return trial

    def _prepared(self, trial: Trial) -> Job | None:
        """The job that trains the candidate which the search space returns for a trial. None if
        nothing is trained: the candidate is infeasible, was trained before, or was pruned by the
        space, or the space raised an error. The trial is closed in these cases."""
        try:
            candidate: Candidate = self._space(trial)
            recipes = trained_under(candidate, self._settings)
            first = self._trained.before(trial.number, trial.params, candidate, recipes)
            if first is not None:
                for bound, value in first.constraints.items():  # it is the same network
                    trial.set_constraint(bound, value)
                why = f"the network of {trial_id(first.number)} once more"
                self._redraw(trial, REPEATED, why)
                return None
            architecture = candidate_architecture(candidate, self._settings, self._data)
            # One cut off when it was timed is judged by what was measured then.
            self._latencies.learn(architecture, trial.user_attrs.get(LATENCY, {}))
            weighed = self._latencies.weigh(self._limits, architecture, candidate.trained)
            part = None if weighed.refused else [*weighed.fitting]
            if part is not None and part != candidate.trained:
                candidate = candidate.only(part)
                architecture = candidate_architecture(candidate, self._settings, self._data)
            else:
                part = None
        except optuna.TrialPruned as pruned:
            self._redraw(trial, PRUNED, str(pruned) or "the space raised TrialPruned")
            return None
        except Exception as error:  # a space is the user's code: what it raises fails its trial
            place = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
            self._notices.append(Notice(f"{trial_id(trial.number)} failed: {reason}", failed=True))
            self._space_failures += 1
            self._fail(trial, {"error": reason})
            return None
        if weighed.latency_ms:
            trial.set_user_attr(LATENCY, weighed.latency_ms)
        told = row_of(self._study, trial).constraints
        for bound, value in weighed.beyond.items():
            if bound not in told:
                trial.set_constraint(bound, value)
        if weighed.refused:
            misses = [
                f"{name} by {value:.0%}" for name, value in weighed.beyond.items() if value > 0
            ]
            self._redraw(trial, BOUNDS, f"beyond {', '.join(misses)}", weighed.beyond)
            return None
        rungs, epochs = None, recipes_of(candidate, self._settings).network.epochs
        if self._stopping is not None:
            rungs = self._stopping.ahead(trial_id(trial.number), epochs)
        macs = candidate_macs(
            candidate, self._settings, self._data, self._teacher_macs, rungs[0] if rungs else None
        )
        if macs > self._macs_left():
            self._dear = (row_of(self._study, trial), macs)
            return None
        trial.set_user_attr(RECIPES, recipes)
        row = row_of(self._study, trial)
        chosen: dict[str, Any] = {
            "network": architecture.key(),
            "kernels": form_names(candidate.kernels),
        }
        if part is not None:
            chosen["trained"] = part
        if rungs is not None:
            chosen["rungs"] = rungs
        given = {"trial": row.params, **chosen}
        job = Job(trial_id(trial.number), "sample", given, macs=macs, epochs=epochs)
        self._trained.add(row)
        self._handed[job.id] = row
        return job

    def _redraw(
        self, trial: Trial, kind: str, reason: str, beyond: Mapping[str, float] | None = None
    ) -> None:
        """Tells the sampler of a draw that is not trained; it uses up none of the trials."""
        trial.set_user_attr(*((REDRAWN, reason) if beyond is None else (REFUSED, dict(beyond))))
        self._close(trial.number, state=TrialState.PRUNED)
        self._counted -= 1
        self._streak.add(trial_id(trial.number), kind, reason)

    def _tell(self, row: FrozenTrial, outcome: Outcome) -> None:
        points = points_of(trial_id(row.number), "sample", outcome)
        before = [p for p in self._book.front if p.trial != trial_id(row.number)]
        rules = self._reference, self._limits, self._objectives
        values = told(points, before, *rules, family=self._family)
        self._close(row.number, values)

    def _publish(self, row: FrozenTrial, outcome: Outcome) -> None:
        points = points_of(trial_id(row.number), "sample", outcome)
        self._book.add(points, row.params, row.distributions)

    def _fail(self, row: FrozenTrial | Trial, outcome: Outcome) -> None:
        name = trial_id(row.number)
        if (cost := write_failure(self._study, row, outcome)) is not None:
            self._left[name] = cost
        self._close(row.number, state=TrialState.FAIL)
        self._failures[name] = outcome["error"]

    def _close(
        self,
        number: int,
        values: Sequence[float] | None = None,
        state: TrialState | None = None,
    ) -> None:
        self._study.tell(number, values, state=state)
        self._open.discard(number)
