"""Jobs done one after another, in the driver's process."""

from __future__ import annotations

from dataclasses import replace

from planter.driver.backends.stacking import stacking
from planter.driver.tasks.context import Context
from planter.driver.tasks.run_job import run_job
from planter.driver.trials.jobs import Queue
from planter.machine.torch_state import threads_of_torch


def run_here(context: Context, queue: Queue) -> None:
    """Does what a queue has, until there is nothing; on as many threads as a worker has."""
    queue = stacking(queue, context.study)
    here = replace(context, data=context.data.to(context.device))
    with threads_of_torch(context.study.resources.cpu):
        while (job := queue.next()) is not None:
            outcome = run_job(here, job)
            while "partial" in outcome and (onward := queue.compare(job, outcome)) is not None:
                job = onward
                outcome = run_job(here, job)
            queue.finish(job, outcome)
