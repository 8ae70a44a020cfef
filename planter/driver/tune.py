"""Ray Tune's side of a search. Imported only when Ray is configured and running."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from planter.driver.cluster import job_from_text, job_to_text, unpack
from planter.driver.jobs import Job, Outcome
from planter.memory import keep_memory


class TrainingActor(tune.Trainable):
    """A warm process; one Ray trial is one job is one `step`."""

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], parcel: dict[str, Any]
    ) -> None:
        self._worker = unpack(parcel)
        torch.set_num_threads(self._worker.study.resources.cpu)
        keep_memory()
        self._job = job_from_text(config["job"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._job = job_from_text(new_config["job"])
        return True

    def step(self) -> dict[str, Any]:
        # JSON under one key: Ray flattens nested results and drops empty mappings.
        return {"done": True, "outcome": json.dumps(self._worker.do(self._job))}


class JobSearcher(Searcher):
    """Feeds Ray Tune from a queue of ours instead of a search space."""

    def __init__(
        self,
        propose: Callable[[], Job | None],
        finish: Callable[[Job, Outcome], None],
        complete: Callable[[], bool],
        workers: int,
    ) -> None:
        super().__init__()
        self._propose = propose
        self._finish = finish
        self._complete = complete
        self._workers = workers
        self._running: dict[str, Job] = {}
        self.error: BaseException | None = None

    def suggest(  # type: ignore[override]
        self, trial_id: str
    ) -> dict[str, Any] | str | None:
        # What our own code raises must reach our caller: Ray would wrap or swallow it.
        try:
            if self.error is not None or self._complete():
                return str(Searcher.FINISHED)
            if len(self._running) >= self._workers:
                return None  # a trial beyond the workers would start an actor to throw it away
            job = self._propose()
        except Exception as error:
            self.error = error
            return str(Searcher.FINISHED)
        if job is None:
            return None
        self._running[trial_id] = job
        return {"job": job_to_text(job)}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        job = self._running.pop(trial_id)
        if error or result is None or "outcome" not in result:
            outcome: Outcome = {"error": "its worker process died", "retry": True}
        else:
            outcome = json.loads(result["outcome"])
        try:
            self._finish(job, outcome)
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


class WarmActors(FIFOScheduler):
    """Keeps idle actors for the next job.

    Ray Tune keeps one idle actor at most and, given the choice, throws away an actor that is still
    starting as soon as another is free; jobs shorter than a start would then never get their
    second worker (measured).
    """

    def __init__(self, workers: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._workers = workers
        self._raised = False

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if not self._raised:
            self._raised = True
            cache = tune_controller._tune_controller._actor_cache
            cache.increase_max(trial.placement_group_factory, self._workers)

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        return None


def run_tune(
    parcel: dict[str, Any],
    propose: Callable[[], Job | None],
    finish: Callable[[Job, Outcome], None],
    complete: Callable[[], bool],
    workers: int,
    resources: Mapping[str, float],
    folder: Path,
) -> None:
    """Runs jobs on `workers` actors until `complete()`; raises what our own side raised."""
    searcher = JobSearcher(propose, finish, complete, workers)
    trainable = tune.with_parameters(TrainingActor, parcel=parcel)
    tune.run(
        tune.with_resources(trainable, dict(resources)),
        name="jobs",
        search_alg=searcher,
        scheduler=WarmActors(workers),
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
