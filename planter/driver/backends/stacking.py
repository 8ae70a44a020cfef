"""A queue whose jobs of one shape are handed out together."""

from __future__ import annotations

from planter.driver.trials.jobs import STACK, Job, Outcome, Queue
from planter.driver.trials.stacks import shape_of_job, stack_of
from planter.study.schema import Study


def stacking(queue: Queue, study: Study) -> Queue:
    """The queue itself, or one that hands out as many jobs at a time as `resources.stack` says."""
    return queue if study.resources.stack == 1 else _Stacking(queue, study)


class _Stacking(Queue):
    """Takes jobs out of a queue while they are of one shape. The books know the single ones alone,
    and see as many of them at work at a time as that many workers would have."""

    def __init__(self, queue: Queue, study: Study) -> None:
        self._queue = queue
        self._study = study
        self._held: Job | None = None
        self._alone: set[str] = set()
        """Of jobs whose worker died: one of them may be the reason."""

    def next(self) -> Job | None:
        first, self._held = self._held or self._queue.next(), None
        shape = None if first is None else self._shape(first)
        if first is None or shape is None:
            return first
        jobs = [first]
        while len(jobs) < self._study.resources.stack:
            job = self._queue.next()
            if job is None:
                break
            if self._shape(job) != shape:
                self._held = job
                break
            jobs.append(job)
        return first if len(jobs) == 1 else stack_of(jobs)

    def _shape(self, job: Job) -> str | None:
        return None if job.id in self._alone else shape_of_job(job, self._study)

    def compare(self, job: Job, outcome: Outcome) -> Job | None:
        return self._queue.compare(job, outcome)

    def finish(self, job: Job, outcome: Outcome) -> None:
        jobs = job.parts() if job.kind == STACK else [job]
        if outcome.get("retry"):
            self._alone |= {one.id for one in jobs}
        found = job.outcomes(outcome) if job.kind == STACK else {job.id: outcome}
        # What ends the search comes last: the others are in the books by then.
        for one in sorted(jobs, key=lambda one: bool(found[one.id].get("stop"))):
            self._queue.finish(one, found[one.id])

    def complete(self) -> bool:
        return self._queue.complete()
