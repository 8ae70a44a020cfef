"""From a job to its outcome. Runs in a Ray worker or in the driver's process."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from planter.driver.run_folder.logs import logged_to
from planter.driver.run_folder.settings import drop_checkpoints
from planter.driver.tasks.context import Context, locked, nothing
from planter.driver.tasks.evolved import adopt, evolve
from planter.driver.tasks.final import train_point
from planter.driver.tasks.plain import train_baseline, train_start
from planter.driver.tasks.planting import grow, plant_round
from planter.driver.tasks.sampled import sample
from planter.driver.tasks.teacher import train_teacher
from planter.driver.trials.jobs import STACK, Job, Outcome, SearchStoppedError
from planter.machine.disk import NoSpaceError
from planter.training.distributed import ProcessLostError
from planter.training.loop import PausedError
from planter.training.stacked.together import Together

log = logging.getLogger(__name__)

Task = Callable[[Context, Job], Outcome]
"""Trains, scores and saves what a job asks for."""

TASKS: dict[str, Task] = {
    "teacher": train_teacher,
    "baseline": train_baseline,
    "start": train_start,
    "plant": plant_round,
    "grow": grow,
    "sample": sample,
    "evolve": evolve,
    "adopt": adopt,
    "final": train_point,
}
"""By the kind of job."""


def repeat(context: Context, job: Job) -> Outcome:
    """Does the jobs that `steps` hold one after the other, the last of them under this job's own
    id; what an earlier try has saved already is not done again. The last one's outcome."""
    steps = [Job(**step) for step in job.params["steps"]]
    outcome: Outcome = {}
    for step in steps:
        if step.id != job.id and any((context.run / "models" / step.id).glob("*/arch.json")):
            continue
        (context.run / "trials" / step.id).mkdir(parents=True, exist_ok=True)
        outcome = step.outcomes(TASKS[step.kind](context, step))[step.id]
        if "error" in outcome:
            return outcome
        drop_checkpoints(context.run / "trials" / step.id)
    return outcome


TASKS["repeat"] = repeat


def run_job(context: Context, job: Job) -> Outcome:
    """Does the task of a job; an exception becomes an `error`. Raises KeyError for a job of no
    known kind: that is no trial's failure. Those of a stack are done together."""
    context.ends = job.ends
    return _run_stack(context, job) if job.kind == STACK else _run(context, job)


def _run_stack(context: Context, job: Job) -> Outcome:
    """Does the jobs in `jobs`, their trainings at once where that is faster."""
    parts = job.parts()
    together: Together[Outcome] = Together()
    alone, context.together, context.tick = context.tick, together, nothing
    try:
        outcomes = together.all([partial(_run, context, part) for part in parts], alone)
    finally:
        context.together, context.tick = None, alone
    trials: dict[str, Outcome] = {}
    for part, outcome in zip(parts, outcomes, strict=True):
        if isinstance(outcome, BaseException):
            raise outcome
        trials[part.id] = outcome
    return {"trials": trials}


def _run(context: Context, job: Job) -> Outcome:
    task = TASKS[job.kind]
    folders = [context.run / "trials" / trial for trial in job.trials]
    began = context.clock()
    with ExitStack() as stack:
        try:
            for folder in sorted(folders):
                # A worker whose driver was killed may still be at this trial: it goes on alone.
                stack.enter_context(locked(folder / ".lock"))
                stack.enter_context(logged_to(folder / "log.txt"))
            log.info("%s %s starts", job.kind, ", ".join(job.trials))
            outcome = task(context, job)
        except (NoSpaceError, SearchStoppedError) as error:
            reason = (isinstance(error, NoSpaceError) and error.strerror) or str(error)
            log.error("%s cannot go on: %s", ", ".join(job.trials), reason)
            return {"error": reason, "stop": True}
        except PausedError as paused:
            log.info("%s %s", ", ".join(job.trials), paused)
            return {"paused": str(paused)}
        except ProcessLostError as error:
            log.error("%s: %s", ", ".join(job.trials), error)
            return {"error": str(error), "retry": True}
        except Exception as error:  # whatever the user's code or torch raises fails this trial
            log.error("%s failed\n%s", ", ".join(job.trials), traceback.format_exc())
            return {"error": f"{type(error).__name__}: {error}"}
        for folder in folders if "partial" not in outcome else []:
            drop_checkpoints(folder)
        outcome["seconds"] = round(context.clock() - began, 3)
        log.info("%s ends after %.1f s", ", ".join(job.trials), outcome["seconds"])
    return outcome
