"""Trainings as runs of MLflow, below one of their search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.utils.time import get_current_time_millis

from planter.driver.trackers.tracker import Status, Tracker

_MOST = 100
"""Parameters that MLflow takes at a time."""
_LONGEST = 500
_FOLDER, _TRIAL = "planter.run", "planter.trial"
_STATUS = {"done": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


class _MLflow:
    """One experiment for each name of a study, at MLflow's own place: what MLFLOW_TRACKING_URI or
    `mlflow.set_tracking_uri` say, else in the working folder."""

    def __init__(self, run: Path, study: Mapping[str, Any]) -> None:
        self._client = MlflowClient()
        self._folder = str(run)
        name = study["name"]
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        self._experiment = experiment
        self._runs: dict[str, str] = {}
        self._known: dict[str, set[tuple[str, int]]] = {}
        self._last: dict[str, int] = {}
        self._search = self._run("", name, {})

    def _run(self, trial: str, name: str, tags: Mapping[str, str]) -> str:
        """The run of a training of this run folder, made where there is none; told what it knows,
        so that a training that is taken up is not told twice."""
        ours = {_FOLDER: self._folder, _TRIAL: trial}
        wanted = " and ".join(f"tags.`{key}` = {value!r}" for key, value in ours.items())
        found = self._client.search_runs([self._experiment], wanted, max_results=1)
        if not found:
            made = self._client.create_run(self._experiment, tags={**ours, **tags}, run_name=name)
            number, self._known[trial] = made.info.run_id, set()
            return str(number)
        (there,) = found
        number = there.info.run_id
        self._client.update_run(number, status="RUNNING")
        self._known[trial] = {
            (key, one.step)
            for key in there.data.metrics
            for one in self._client.get_metric_history(number, key)
        }
        return str(number)

    def begin(self, trial: str, facts: Mapping[str, Any]) -> None:
        number = self._run(trial, trial, {"mlflow.parentRunId": self._search})
        self._runs[trial], self._last[trial] = number, 0
        known = self._client.get_run(number).data.params
        new = {key: str(value)[:_LONGEST] for key, value in facts.items() if key not in known}
        params = [Param(key, value) for key, value in new.items()]
        for first in range(0, len(params), _MOST):
            self._client.log_batch(number, params=params[first : first + _MOST])

    def log(self, trial: str, epoch: int, values: Mapping[str, float]) -> None:
        now, known = get_current_time_millis(), self._known[trial]
        new = [Metric(k, v, now, epoch) for k, v in values.items() if (k, epoch) not in known]
        if new:
            self._client.log_batch(self._runs[trial], metrics=new)
        known.update((metric.key, epoch) for metric in new)
        self._last[trial] = epoch

    def end(self, trial: str, status: Status, values: Mapping[str, float]) -> None:
        self.log(trial, self._last[trial], values)
        self._client.set_terminated(self._runs[trial], _STATUS[status])

    def close(self) -> None:
        self._client.set_terminated(self._search)


def make(run: Path, study: Mapping[str, Any]) -> Tracker:
    return _MLflow(run, study)
