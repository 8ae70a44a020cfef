"""Gathers what the report page of a run shows, from its database and its folder."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from planter.driver.run_folder.compare import compared, samplers_of
from planter.driver.run_folder.predictions import answers_of
from planter.driver.run_folder.read import (
    elapsed_in,
    points_in,
    read_epochs,
    read_growth,
    standing,
    stopped_in,
)
from planter.driver.run_folder.settings import names_of
from planter.driver.storage.reading import opened, rows_in, run_study
from planter.front.choose import best_of, knee, on_front, recommended
from planter.front.describe import with_networks
from planter.front.history import history
from planter.front.objectives import OBJECTIVES
from planter.front.points import Point, nothing_trained, read_front, with_bounds, write_text
from planter.machine.paths import shown_path
from planter.plots import Curve
from planter.report import Chosen, Facts, Importances, Report, page
from planter.study.schema import Study

log = logging.getLogger(__name__)
_ENOUGH = 10
"""Finished sampled trials below which no importances are told."""
_MOST = 300
"""Trials that importances are told of at most."""


def write_report(run: Path, control: Path | None = None, *, ended: bool = False) -> Path:
    """Writes `report.html` into a run folder and returns its path; arguments and errors are those
    of `report_text`."""
    file = run / "report.html"
    files = [one.name for one in run.iterdir()] if run.is_dir() else []
    write_text(file, report_text(run, control, ended=ended, files=files))
    return file


def report_text(
    run: Path,
    control: Path | None = None,
    *,
    ended: bool = False,
    files: Sequence[str] = ("pareto.html",),
) -> str:
    """The report page of a run, as HTML.

    `control` is another run to lay beside it; by default the run NAME-random in the same folder, if
    there is one. `ended`: called by the search that is about to let go of the run; `files` are the
    names of those that the page may link to. Raises ValueError where a run cannot be read, or
    has no point.
    """
    study = run_study(run)
    front = with_bounds(read_front(run), study.objectives.bounds.limits())
    if nothing := nothing_trained(front):
        raise ValueError("; ".join([*nothing, "expected a run with a point to report"]))
    reference = front["reference_point"]
    with opened(run, study) as storage:
        points = points_in(storage, study.name)
        facts = _facts(front, points, reference, study, storage)
        importances = _importances(storage, study)
        why = None if ended else standing(storage, study.name)
    control, beside = _control(run, control, reference)
    report = Report(
        run=facts,
        control=beside,
        comparison=None if control is None else compared(run, control),
        growth=read_growth(run),
        importances=importances,
        enough=_ENOUGH,
        samplers=list(samplers_of(study)),
        chosen=_chosen(run, front),
        class_names=names_of(run) or (),
        curves=_curves(run, front),
        place=shown_path(run.resolve()),
        beside=files,
        standing=why,
        shortened=study.budget.shortened,
        study=(run / "study.yaml").read_text(encoding="utf-8"),
        environment=json.loads((run / "environment.json").read_text(encoding="utf-8")),
    )
    return page(report)


def _control(
    run: Path, given: Path | None, reference: Sequence[float]
) -> tuple[Path | None, Facts | None]:
    """The second run's folder and facts; of a run found by its name, None where it cannot be
    read."""
    run = run.resolve()
    folder = given or run.with_name(f"{run.name}-random")
    if given is None and not (folder / "pareto.json").is_file():
        return None, None
    try:
        study = run_study(folder)
        with opened(folder, study) as storage:
            points = points_in(storage, study.name)
            return folder, _facts(read_front(folder), points, reference, study, storage)
    except ValueError as error:
        if given is not None:
            raise
        log.warning("the report leaves out the control: %s", error)
        return None, None


def _facts(
    front: Mapping[str, Any],
    points: Sequence[Point],
    reference: Sequence[float],
    study: Study,
    storage: BaseStorage,
) -> Facts:
    seconds: dict[str, float] = {}
    for point in {point.trial: point for point in points}.values():
        seconds[point.method] = seconds.get(point.method, 0.0) + point.seconds
    stopped = stopped_in(storage, study.name)
    limits = study.objectives.bounds.limits()
    steps = history(points, reference, limits, stopped, front["objectives"])
    failed = _failed(storage, study)
    took = elapsed_in(storage, study.name)
    return Facts(with_networks(front, points), steps, seconds, stopped, failed, took)


def _curves(run: Path, front: Mapping[str, Any]) -> list[Curve]:
    """The courses of the trainings behind the recommended points, and of the teacher; the last
    epoch has the accuracy of what came of it, as the others have theirs: the mean of the pipelines
    that trained together."""
    trials = [row["trial"] for row, _ in recommended(front)]
    trials += [row["trial"] for row in front["points"] if row["method"] == "teacher"]
    ends: dict[str, list[float]] = {}
    for row in front["points"]:
        ends.setdefault(row["trial"], []).append(row["accuracy"])
    found = []
    for trial in dict.fromkeys(trials):
        epochs = read_epochs(run, trial)
        if epochs and trial in ends and epochs[-1].get("val_accuracy") is None:
            epochs[-1]["val_accuracy"] = fmean(ends[trial])
        found.append(Curve(trial, epochs))
    return found


def _chosen(run: Path, front: Mapping[str, Any]) -> list[Chosen]:
    """The points of the front whose classes are told: the best, and that at the knee."""
    if not any(row["on_front"] for row in front["points"]):
        return []
    objectives = front["objectives"]
    short = OBJECTIVES[objectives[0]].short
    why = {best_of(on_front(front), objectives)["id"]: f"best {short} on the front"}
    at_knee = knee(front)["id"]
    why[at_knee] = f"{why[at_knee]} and its knee" if at_knee in why else "the knee of the front"
    found = []
    for point, told in why.items():
        try:
            found.append(Chosen(point, told, answers_of(run, point)))
        except ValueError as error:
            found.append(Chosen(point, told, {}, str(error)))
    return found


def _failed(storage: BaseStorage, study: Study) -> int:
    """Trials of the proposers' books that failed."""
    count = 0
    for name in (f"{study.name}/{book}" for book in ("sampling", "planting", "evolve")):
        rows = rows_in(storage, name)
        count += sum(row.state == TrialState.FAIL for row in rows)
    return count


def _importances(storage: BaseStorage, study: Study) -> Importances | None:
    """What decided the first value a sampler is told: the metric, or a family's hypervolume."""
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    name = f"{study.name}/sampling"
    finished = [row for row in rows_in(storage, name) if row.state == TrialState.COMPLETE]
    if len(finished) < _ENOUGH:
        return None
    # Its trees take minutes for thousands of trials: some of them, evenly over the search, do.
    finished = finished[:: math.ceil(len(finished) / _MOST)]
    some = optuna.create_study(directions=["maximize"] * len(finished[0].values))
    some.add_trials(finished)
    try:
        shares = get_param_importances(
            some,
            evaluator=FanovaImportanceEvaluator(seed=0),
            target=lambda row: row.values[0],
        )
    except (ValueError, RuntimeError) as error:  # e.g. every trial told the same value
        log.warning("no parameter importances: %s", error)
        return None
    metric = OBJECTIVES[study.objectives.metric].short
    target = "hypervolume" if study.objectives.family else metric
    return Importances(shares, target, len(finished)) if shares else None
