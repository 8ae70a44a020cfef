"""Jobs that nobody searches for: the teacher and the baselines, known by their points."""

from __future__ import annotations

from planter.driver.bounds import Latencies
from planter.driver.jobs import Job, Outcome, points_of
from planter.driver.networks import baseline_id
from planter.driver.storage import PointBook
from planter.study import Study


class Teacher:
    """Offers the teacher's training once. See `Proposer`."""

    def __init__(self, book: PointBook, latencies: Latencies) -> None:
        self._book = book
        self._latencies = latencies
        self._open = not book.has("teacher")
        self._handed = False
        self.error: str | None = None

    def next(self) -> Job | None:
        if not self._open or self._handed:
            return None
        self._handed = True
        return Job("teacher", "teacher")

    def finish(self, job: Job, outcome: Outcome) -> None:
        self._open = False
        if "error" in outcome:
            self.error = outcome["error"]
        else:
            points = points_of(job.id, "teacher", self._latencies.added(outcome))
            self._book.add(points, {}, {})

    def take_back(self, job: Job) -> None:
        self._handed = False

    def left(self) -> int:
        return int(self._open)

    def failures(self) -> dict[str, str]:
        """Why it failed, by its id."""
        return {} if self.error is None else {"teacher": self.error}


class Baselines:
    """Offers the study's baselines; those that are guided wait for the teacher. See `Proposer`.

    A baseline that failed is tried again when the study is continued.
    """

    def __init__(
        self, study: Study, book: PointBook, teacher: Teacher | None, latencies: Latencies
    ) -> None:
        self._study = study
        self._book = book
        self._latencies = latencies
        self._teacher = teacher
        self._failed: dict[str, str] = {}
        self._handed: set[str] = set()
        self._waiting = {
            baseline_id(study, baseline): index
            for index, baseline in enumerate(study.baselines)
            if not book.has(baseline_id(study, baseline))
        }

    def next(self) -> Job | None:
        for name, index in self._waiting.items():
            guided = self._study.baselines[index].kd is not None
            waits = guided and self._teacher is not None and self._teacher.left()
            if name in self._handed or waits:
                continue
            self._handed.add(name)
            return Job(name, "baseline", {"index": index})
        return None

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

    def failed(self) -> int:
        return len(self._failed)

    def failures(self) -> dict[str, str]:
        """Why baselines failed in this run of the driver, by id."""
        return dict(self._failed)
