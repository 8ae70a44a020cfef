"""Ray Tune's side of a search. Imported only when Ray is configured and running."""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from planter.machine.importing import uncollected

with uncollected():  # each of Ray's processes begins with this file
    import ray
    import torch
    from ray import tune
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError
    from ray.tune.schedulers import FIFOScheduler
    from ray.tune.search import Searcher

    from planter.driver.backends.parcel import job_from_text, job_to_text, unpack
    from planter.driver.tasks.run_job import run_job
    from planter.driver.trials.budget import seconds_for
    from planter.driver.trials.jobs import Job, Outcome, Queue, beyond
    from planter.machine.memory import keep_memory

log = logging.getLogger(__name__)


class TrainingActor(tune.Trainable):
    """A warm process; one Ray trial is one job, and one `step`, or several where the job is
    compared with others on its way."""

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], parcel: dict[str, Any]
    ) -> None:
        self._context = unpack(parcel)
        torch.set_num_threads(self._context.study.resources.cpu)
        keep_memory()
        _hold_at_most(self._context.study.resources.memory_gb)
        self._job = job_from_text(config["job"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._job = job_from_text(new_config["job"])
        return True

    def step(self) -> dict[str, Any]:
        with _ended_after(seconds_for(self._context.study.resources, self._job)):
            outcome = run_job(self._context, self._job)
        if partial := "partial" in outcome:
            self._job = beyond(self._job)  # where the scheduler lets it go on, with another step
        # JSON under one key: Ray flattens nested results and drops empty mappings.
        return {"done": not partial, "outcome": json.dumps(outcome)}


@contextmanager
def _ended_after(seconds: float | None) -> Iterator[None]:
    """Ends this process when what is within has not come back by then: only so can what hangs in
    somebody's C code be stopped. The driver sees a worker that has died."""
    if seconds is None:
        yield
        return
    timer = threading.Timer(seconds, _end, [seconds])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _end(seconds: float) -> None:
    log.error("not done after %.0f s; this worker ends", seconds)
    os._exit(1)


def _hold_at_most(gigabytes: float | None) -> None:
    """Lets what this process asks for beyond so much memory fail, as an error of the training that
    asks, before the system kills it."""
    if gigabytes is not None:
        most = int(gigabytes * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


class JobSearcher(Searcher):
    """Feeds Ray Tune from a queue of ours instead of a search space."""

    def __init__(
        self,
        queue: Queue,
        workers: int,
        limit: Callable[[Job], float | None] = lambda job: None,
        room: Callable[[], float] = lambda: math.inf,
    ) -> None:
        super().__init__()
        self._queue = queue
        self._limit = limit
        self._room = room
        self._began: dict[str, float] = {}
        self._workers = workers
        self._running: dict[str, Job] = {}
        self._short: set[str] = set()
        self.error: BaseException | None = None

    def suggest(  # type: ignore[override]
        self, trial_id: str
    ) -> dict[str, Any] | str | None:
        # What our own code raises must reach our caller: Ray would wrap or swallow it.
        try:
            if self.error is not None or self._queue.complete():
                return str(Searcher.FINISHED)
            if len(self._running) >= min(self._workers, self._room()):
                return None  # a trial beyond the workers would start an actor to throw it away
            job = self._queue.next()
        except Exception as error:
            self.error = error
            return str(Searcher.FINISHED)
        if job is None:
            return None
        self._running[trial_id] = job
        self._began[trial_id] = time.monotonic()
        return {"job": job_to_text(job)}

    def goes_on(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether a job with a partial outcome goes on at once, with its next step."""
        try:
            onward = self._queue.compare(self._running[trial_id], json.loads(result["outcome"]))
        except Exception as error:
            self.error = self.error or error
            return False
        if onward is None:
            return False
        self._running[trial_id] = onward
        self._began[trial_id] = time.monotonic()
        return True

    def short_of_memory(self, trial_id: str) -> None:
        """A job's worker was ended, as its machine had little memory left: from now on there is one
        worker less at work, as two that were too much would be so again."""
        self._short.add(trial_id)
        self._workers = max(1, self._workers - 1)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        job = self._running.pop(trial_id)
        taken, most = time.monotonic() - self._began.pop(trial_id), self._limit(job)
        if error or result is None or "outcome" not in result:
            reason = "its worker process died"
            if most is not None and taken >= most:
                reason = f"not done after {most:g} s (resources.trial_minutes)"
            if trial_id in self._short:
                self._short.remove(trial_id)
                reason = (
                    "its worker process was ended, as the machine's memory ran short (a smaller "
                    "recipe.batch with recipe.accumulate takes less); now at most "
                    f"{self._workers} at a time"
                )
            outcome: Outcome = {"error": reason, "retry": True}
        else:
            outcome = json.loads(result["outcome"])
        try:
            self._queue.finish(job, outcome)
        except Exception as caught:
            self.error = self.error or caught

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        return True

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study's storage is the only truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""


class ParetoHalving(FIFOScheduler):
    """Ends a job that has come to a rung and is not among those that go on (`front/halving.py`, in
    the driver's books: `Sampling.compare`); keeps idle actors for the next job.

    A job that waits for others to reach its rung ends as well: its checkpoint is on disk, so that
    no actor is held, and it comes back as another job of the same trial. Without early stopping no
    job has partial outcomes.

    Ray Tune keeps one idle actor at most and, given the choice, throws away an actor that is still
    starting as soon as another is free; jobs shorter than a start would then never get their
    second worker (measured). And it gives its actors an environment of their own, for which Ray
    starts other processes than those it has begun to start for `own`, a Ray of this search: twice
    as many, each of which imports torch (measured).
    """

    def __init__(self, workers: int, searcher: JobSearcher, *, own: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._searcher = searcher
        self._workers = workers
        self._own = own
        self._raised = False

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if not self._raised:
            self._raised = True
            controller = tune_controller._tune_controller
            controller._actor_cache.increase_max(trial.placement_group_factory, self._workers)
            manager = controller._actor_manager
            manager._actor_task_failed = partial(self._died, controller, manager._actor_task_failed)
            if self._own:  # whose processes have this one's environment
                trainable = trial.get_trainable_cls()
                controller._class_cache._cache[trainable] = ray.remote(trainable)

    def _died(
        self,
        controller: Any,
        handle: Callable[..., None],
        tracked_actor_task: Any,
        exception: Exception,
    ) -> None:
        """Ray Tune knows one way for an actor to die. Of the others that Ray has, an end for want
        of memory and a machine that is gone, it makes an error that ends the whole search."""
        trial = controller._actor_to_trial.get(tracked_actor_task._tracked_actor)
        if isinstance(exception, OutOfMemoryError) and trial is not None:  # None as it ends
            self._searcher.short_of_memory(trial.trial_id)
        if isinstance(exception, (OutOfMemoryError, NodeDiedError)):
            exception = RayActorError(error_msg=str(exception))
        handle(tracked_actor_task, exception)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        on = self._searcher.goes_on(trial.trial_id, result)
        return str(FIFOScheduler.CONTINUE if on else FIFOScheduler.STOP)

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        return None


def run_tune(
    parcel: dict[str, Any],
    queue: Queue,
    workers: int,
    resources: Mapping[str, float],
    folder: Path,
    limit: Callable[[Job], float | None],
    room: Callable[[], float],
    *,
    own: bool,
) -> None:
    """Runs jobs on `workers` actors until the queue is complete; raises what it raised. `limit`
    says how many seconds a job may take, None without a limit; `room` how many actors there is room
    for now; `own` whether Ray was started for this search, by this process."""
    searcher = JobSearcher(queue, workers, limit, room)
    trainable = tune.with_parameters(TrainingActor, parcel=parcel)
    tune.run(
        tune.with_resources(trainable, dict(resources)),
        name="jobs",
        search_alg=searcher,
        scheduler=ParetoHalving(workers, searcher, own=own),
        num_samples=-1,
        reuse_actors=True,
        verbose=0,
        log_to_file=False,
        raise_on_failed_trial=False,
        storage_path=str(folder / "results"),
        trial_dirname_creator=lambda trial: trial.trial_id,
    )
    if searcher.error is not None:
        raise searcher.error
