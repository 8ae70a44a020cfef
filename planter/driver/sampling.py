"""Sampled trials: an Optuna sampler proposes, and is told one point of each training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from planter.data import Data
from planter.driver.bounds import LATENCY, Latencies
from planter.driver.jobs import Job, Outcome, SearchStoppedError, points_of, seed_of
from planter.driver.networks import candidate_architecture
from planter.driver.storage import (
    METRICS,
    Direction,
    PointBook,
    experimental,
    open_study,
    read_result,
    write_result,
)
from planter.forms import form_names
from planter.front import covered, within
from planter.space import Candidate, Space
from planter.study import Study

FAMILY_METRICS: dict[str, Direction] = {"hypervolume": "maximize"}


def make_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """Optuna's sampler of a study's `sample.sampler`."""
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if name == "nsgaii":
        return optuna.samplers.NSGAIISampler(seed=seed)
    with experimental():
        return optuna.samplers.TPESampler(
            seed=seed, multivariate=True, group=True, constant_liar=True
        )


class Sampling:
    """The Optuna study `<name>/sampling`: one row a trial. See `Proposer`."""

    def __init__(
        self,
        study: Study,
        storage: BaseStorage,
        space: Space,
        data: Data,
        book: PointBook,
        reference: Sequence[float],
        latencies: Latencies,
    ) -> None:
        assert study.sample is not None
        self._settings = study
        self._trials = study.sample.trials
        self._space = space
        self._data = data
        self._book = book
        self._reference = reference
        self._latencies = latencies
        self._limits = study.objectives.bounds.limits()
        family = study.objectives.family
        metrics = FAMILY_METRICS if family else METRICS
        self._family = family
        self._study = open_study(storage, f"{study.name}/sampling", metrics)
        self._handed: dict[str, FrozenTrial] = {}
        self._space_failures = 0
        self.notices: list[str] = []
        self._interrupted: list[FrozenTrial] = []
        for row in self._study.get_trials():
            outcome = read_result(row)
            if row.state == TrialState.RUNNING and outcome is None:
                self._interrupted.append(row)
            elif outcome is not None:
                if row.state == TrialState.RUNNING:
                    self._tell(row, outcome)
                self._publish(row, outcome)

    def next(self) -> Job | None:
        while (trial := self._trial()) is not None:
            if (job := self._prepared(trial)) is not None:
                return job
            if self._space_failures > self._settings.resources.max_failures:
                raise SearchStoppedError(
                    f"{self._space_failures} trials of the search space failed: {self.notices[-1]}"
                )
        return None

    def finish(self, job: Job, outcome: Outcome) -> None:
        row = self._handed.pop(job.id)
        if "error" in outcome:
            self._fail(row.number, row._trial_id, outcome["error"])
            return
        outcome = self._latencies.added(outcome, row.user_attrs.get(LATENCY))
        write_result(self._study, row, outcome)
        self._tell(row, outcome)
        self._publish(row, outcome)

    def left(self) -> int:
        rows = self._study.get_trials(deepcopy=False)
        unasked = max(self._trials - len(rows), 0)
        return unasked + sum(row.state == TrialState.RUNNING for row in rows)

    def failed(self) -> int:
        """Trials of the book that failed, in this run of the driver or before."""
        rows = self._study.get_trials(deepcopy=False)
        return sum(row.state == TrialState.FAIL for row in rows)

    def _trial(self) -> Trial | None:
        """The next trial to prepare: an interrupted one, or a new one, or None."""
        row = self._interrupted.pop(0) if self._interrupted else None
        number = len(self._study.get_trials(deepcopy=False)) if row is None else row.number
        if row is None and number >= self._trials:
            return None
        # One sampler a trial: a single one with a fixed seed would, after a restart, propose its
        # first trials again.
        assert self._settings.sample is not None
        self._study.sampler = make_sampler(
            self._settings.sample.sampler, seed_of(self._settings.seed, _id(number))
        )
        return self._study.ask() if row is None else Trial(self._study, row._trial_id)

    def _prepared(self, trial: Trial) -> Job | None:
        """The job of an asked trial; None where its network is refused before training."""
        try:
            candidate: Candidate = self._space(trial)
            architecture = candidate_architecture(candidate, self._settings, self._data)
            # One cut off when it was timed is judged by what was measured then.
            self._latencies.learn(architecture, trial.user_attrs.get(LATENCY, {}))
            beyond, timed = self._latencies.weigh(self._limits, architecture, candidate.trained)
        except Exception as error:  # a space is the user's code: what it raises fails its trial
            reason = f"{type(error).__name__}: {error}"
            self.notices.append(f"{_id(trial.number)} failed: {reason}")
            self._space_failures += 1
            self._fail(trial.number, trial._trial_id, reason)
            return None
        if timed:
            trial.set_user_attr(LATENCY, timed)
        told = self._study._storage.get_trial(trial._trial_id).constraints
        for bound, value in beyond.items():
            if bound not in told:
                trial.set_constraint(bound, value)
        if any(value > 0 for value in beyond.values()):
            trial.set_user_attr("refused", beyond)
            self._study.tell(trial, state=TrialState.PRUNED)
            misses = ", ".join(f"{name} by {value:.0%}" for name, value in beyond.items())
            self.notices.append(f"{_id(trial.number)} refused before training: beyond {misses}")
            return None
        row = self._study._storage.get_trial(trial._trial_id)
        chosen = {"network": architecture.key(), "kernels": form_names(candidate.kernels)}
        job = Job(_id(trial.number), "sample", {"trial": row.params, **chosen})
        self._handed[job.id] = row
        return job

    def _tell(self, row: FrozenTrial, outcome: Outcome) -> None:
        points = points_of(_id(row.number), "sample", outcome)
        before = [p for p in self._book.points if p.trial != _id(row.number)]
        if self._family:
            self._study.tell(row.number, covered(points, self._reference, self._limits))
            return
        allowed = [point for point in points if within(point, self._limits)] or points
        best = max(
            allowed,
            key=lambda p: (
                covered([*before, p], self._reference, self._limits),
                p.accuracy,
                -p.macs,
            ),
        )
        self._study.tell(row.number, [best.accuracy, best.macs])

    def _publish(self, row: FrozenTrial, outcome: Outcome) -> None:
        points = points_of(_id(row.number), "sample", outcome)
        self._book.add(points, row.params, row.distributions)

    def _fail(self, number: int, trial_id: int, reason: str) -> None:
        self._study._storage.set_trial_user_attr(trial_id, "error", reason)
        self._study.tell(number, state=TrialState.FAIL)


def _id(number: int) -> str:
    return f"s{number:04d}"


def draw(space: Space, count: int, seed: int) -> list[Candidate | Exception]:
    """What a space returns, or raises, for `count` random trials that are written nowhere."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    found: list[Any] = []
    for _ in range(count):
        try:
            found.append(space(study.ask()))
        except Exception as error:  # the user's code: reported by the caller
            found.append(error)
    return found
