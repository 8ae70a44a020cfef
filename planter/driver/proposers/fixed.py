"""Jobs that nobody searches for: the teacher and the baselines, known by their points."""

from __future__ import annotations

from typing import Self

from planter.costs.macs import cost
from planter.driver.proposers.proposer import Proposer, SearchContext
from planter.driver.trials.cost import training_macs
from planter.driver.trials.jobs import ANOTHER_NAME, Job, Outcome, SearchStoppedError, points_of
from planter.driver.trials.networks import baseline_id


class Teacher(Proposer):
    """Offers the teacher's training once."""

    method = "teacher"
    kinds = ("teacher",)
    representative = ()
    after_teacher = False

    def __init__(self, context: SearchContext) -> None:
        self._book = context.book
        self._latencies = context.latencies
        self._open = not self._book.has("teacher")
        self._handed = False
        self._error: str | None = None

    @classmethod
    def of(cls, context: SearchContext) -> Self | None:
        """None for a study without a teacher."""
        return None if context.study.teacher is None else cls(context)

    def next(self) -> Job | None:
        if not self._open or self._handed:
            return None
        self._handed = True
        return Job("teacher", "teacher")

    def finish(self, job: Job, outcome: Outcome) -> None:
        self._open = False
        if "error" in outcome:
            self._error = outcome["error"]
        else:
            points = points_of(job.id, "teacher", self._latencies.added(outcome))
            self._book.add(points, {}, {})

    def take_back(self, job: Job) -> None:
        self._handed = False

    def left(self) -> int:
        return int(self._open)

    def done(self) -> int:
        return int(not self._open)

    def failed(self) -> int:
        """0: a study does not go on without its teacher."""
        return 0

    def failures(self) -> dict[str, str]:
        return {} if self._error is None else {"teacher": self._error}

    def raise_if_hopeless(self) -> None:
        if self._error is not None:
            # Points of before and after another teacher could not stand on one front.
            raise SearchStoppedError(
                f"the teacher failed: {self._error}",
                f"{ANOTHER_NAME} where `teacher` did, else --accept-changes",
            )


class Baselines(Proposer):
    """Offers the study's baselines; those that are guided wait for the teacher.

    A baseline that failed is tried again when the study is continued.
    """

    method = "baseline"
    kinds = representative = ("baseline",)
    after_teacher = False

    def __init__(self, context: SearchContext) -> None:
        study, book = context.study, context.book
        self._context = context
        self._study = study
        self._book = book
        self._latencies = context.latencies
        self._failed: dict[str, str] = {}
        self._handed: set[str] = set()
        self._waiting = {
            baseline_id(study, baseline): index
            for index, baseline in enumerate(study.baselines)
            if not book.has(baseline_id(study, baseline))
        }

    def next(self) -> Job | None:
        for name, index in self._waiting.items():
            settings = self._study.baselines[index]
            guided = settings.kd is not None and not settings.frozen
            waits = guided and self._study.teacher is not None and not self._book.has("teacher")
            macs = self._train_macs(name, guided=guided)
            if name in self._handed or waits or macs > self._context.macs_left():
                continue
            self._handed.add(name)
            return Job(name, "baseline", {"index": index}, macs=macs)
        return None

    def _train_macs(self, name: str, *, guided: bool) -> int:
        prepared = self._context.prepared
        planned = prepared.networks[name]
        if not planned.trained:
            return 0
        teacher = prepared.teacher_macs if guided else 0
        macs, images = cost(planned.architecture).macs, len(prepared.data.train)
        return training_macs(macs, planned.recipe, images, teacher)

    def finish(self, job: Job, outcome: Outcome) -> None:
        del self._waiting[job.id]
        if "error" in outcome:
            self._failed[job.id] = outcome["error"]
        else:
            points = points_of(job.id, "baseline", self._latencies.added(outcome))
            self._book.add(points, {}, {})

    def take_back(self, job: Job) -> None:
        self._handed.discard(job.id)

    def left(self) -> int:
        return len(self._waiting)

    def done(self) -> int:
        return len(self._study.baselines) - len(self._waiting)

    def failures(self) -> dict[str, str]:
        return dict(self._failed)
