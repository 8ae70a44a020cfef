"""Jobs whose training is divided among processes: done by the driver, before its workers start."""

from __future__ import annotations

import torch

from planter.driver.backends.local import run_here
from planter.driver.tasks.context import Context
from planter.driver.trials.jobs import Job, Outcome, Queue, divided
from planter.study.schema import Study


def run_divided(context: Context, queue: Queue) -> Queue:
    """Does the jobs at the head of a queue that are divided among processes, which this process
    starts: a worker has the cores and GPUs of one training. Returns what is left for workers."""
    teacher = context.study.teacher
    if teacher is None or teacher.processes == 1:
        return queue
    head = _Head(queue, context.study)
    run_here(context, head)
    head.over = True
    if context.device == "cuda":
        torch.cuda.empty_cache()  # workers share the GPUs with this process
    return head


class _Head(Queue):
    """A queue that ends before the first job that is not divided, and goes on with that one when it
    is `over`."""

    def __init__(self, queue: Queue, study: Study) -> None:
        self._queue = queue
        self._study = study
        self._held: Job | None = None
        self.over = False

    def next(self) -> Job | None:
        job, self._held = self._held or self._queue.next(), None
        if job is not None and not self.over and not divided(job, self._study):
            self._held, job = job, None
        return job

    def compare(self, job: Job, outcome: Outcome) -> Job | None:
        return self._queue.compare(job, outcome)

    def finish(self, job: Job, outcome: Outcome) -> object:
        return self._queue.finish(job, outcome)

    def complete(self) -> bool:
        return self._queue.complete()
