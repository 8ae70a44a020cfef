"""How a trial of a run was made: its drawn parameters, and the jobs that make it from nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from planter.arch import Architecture
from planter.driver.proposers.evolving import OFFSPRING, STARTS
from planter.driver.proposers.planting import FINAL, GROWN, START
from planter.driver.proposers.planting_rows import row_id
from planter.driver.storage.reading import opened, rows_in
from planter.driver.trials.child import child_id
from planter.driver.trials.jobs import Job, number_of
from planter.driver.trials.networks import baseline_id
from planter.front.points import Point
from planter.study.schema import Study


def drawn_parameters(run: Path, study: Study, row: Mapping[str, Any]) -> dict[str, Any]:
    """What the sampler drew for a sampled point; nothing of another, nor where the run's database
    is gone."""
    if row["method"] != "sample":
        return {}
    try:
        with opened(run, study) as storage:
            rows = rows_in(storage, study.name)
    except ValueError:
        return {}
    return next((dict(one.params) for one in rows if one.user_attrs.get("id") == row["id"]), {})


def jobs_behind(
    run: Path,
    study: Study,
    points: Sequence[Point],
    trial: str,
    name: Callable[[str], str],
) -> list[Job]:
    """The jobs that make a trial of a run from nothing, in their order: its own, and before it
    those of its ancestors, of which it was made. `points` are the run's; `name` gives each trial
    the id that its job is to have, which decides on its seed and where its networks are saved.

    Raises ValueError for a trial that cannot be made anew: a whole network that planting grew or
    trained to its end, which took several candidates at once.
    """
    with opened(run, study) as storage:
        books = _Books(storage, study, points)
        found: list[Job] = []
        at: str | None = trial
        while at is not None:
            job, at = books.job(at, name)
            found.append(job)
    return found[::-1]


class _Books:
    """What the proposers of a run have written down of its trials."""

    def __init__(self, storage: BaseStorage, study: Study, points: Sequence[Point]) -> None:
        self._study = study
        self._points: dict[str, list[Point]] = {}
        for point in points:
            self._points.setdefault(point.trial, []).append(point)
        books = ("sampling", "planting", "evolve")
        self._rows = {book: rows_in(storage, f"{study.name}/{book}") for book in books}
        self._starts: dict[str, str] = {}
        if self._rows["evolve"]:
            number = storage.get_study_id_from_name(f"{study.name}/evolve")
            self._starts = storage.get_study_user_attrs(number).get(STARTS, {})

    def job(self, trial: str, name: Callable[[str], str]) -> tuple[Job, str | None]:
        """The job that makes a trial, and the trial of which it makes it."""
        method, mine = self._points[trial][0].method, name(trial)
        if method == "teacher":
            return Job(mine, "teacher"), None
        if method == "baseline":
            ids = [baseline_id(self._study, one) for one in self._study.baselines]
            return Job(mine, "baseline", {"index": ids.index(trial)}), None
        if method == "sample":
            return Job(mine, "sample", self._sampled(trial)), None
        if method == "evolve":
            return self._evolved(trial, mine, name)
        return self._planted(trial, mine, name)

    def _sampled(self, trial: str) -> dict[str, Any]:
        points, number = self._points[trial], number_of(trial)
        row = next(row for row in self._rows["sampling"] if row.number == number)
        kernels = points[0].kernels
        return {
            "trial": row.params,
            "number": number,
            "network": Architecture.from_dict(points[0].architecture).key(),
            "kernels": kernels if isinstance(kernels, str) else dict(kernels),
            "trained": [point.pipeline for point in points],
        }

    def _evolved(self, trial: str, mine: str, name: Callable[[str], str]) -> tuple[Job, str | None]:
        if trial in self._starts:
            return Job(mine, "adopt", {"folder": self._starts[trial]}), None
        row = next(row for row in self._rows["evolve"] if child_id(row.number) == trial)
        child = json.loads(row.user_attrs[OFFSPRING])
        before, _, pipeline = child["parent"].partition("/")
        params = {
            "parent": f"{name(before)}/{pipeline}",
            "edits": child["edits"],
            "recipe": child["recipe"],
        }
        return Job(mine, "evolve", params), before

    def _planted(self, trial: str, mine: str, name: Callable[[str], str]) -> tuple[Job, str | None]:
        if trial == START:
            return Job(mine, "start"), None
        row: FrozenTrial = next(row for row in self._rows["planting"] if row_id(row) == trial)
        layer, before = row.params["layer"], row.user_attrs["parent"]
        if layer in (GROWN, FINAL):
            raise ValueError(
                f"{trial} was grown from all plants of its round and trained whole: planting "
                "rounds are not repeated; --from-scratch trains its architecture"
            )
        plant = {"id": mine, "layer": layer, "channels": row.params["channels"]}
        params = {"round": row.params["round"], "parent": name(before), "plants": [plant]}
        return Job(mine, "plant", params), before
