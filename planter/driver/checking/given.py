"""Points that a study gives its sampler: those to try first, and those of earlier runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from planter.costs.macs import cost
from planter.data import Data
from planter.driver.checking.space import Drawn
from planter.driver.storage.points import read_result
from planter.driver.storage.reading import opened, rows_in, run_study
from planter.driver.trials.bounds import LATENCY, excess
from planter.driver.trials.given import Earlier, Given, given_point
from planter.driver.trials.jobs import points_of, trial_id
from planter.driver.trials.networks import candidate_architecture
from planter.front.points import Point
from planter.study.findings import Findings
from planter.study.schema import Problem, Study, StudyError

_SHOWN = 3


def check_enqueued(study: Study, drawn: Drawn, data: Data, found: Findings) -> list[dict[str, Any]]:
    """The points of `sample.enqueue`, then those of the table, in the words of the space."""
    assert study.sample is not None
    points, ranges = [], drawn.ranges
    places = {f"sample.enqueue.{n}": point for n, point in enumerate(study.sample.enqueue)}
    in_table = study.table.points() if study.table is not None else []
    if study.budget.scale < 1:  # no others are reached
        in_table = in_table[: study.sample.trials]
    places |= {f"table ({point_text(point)})": point for point in in_table}
    if in_table and study.sample.trials < len(places):
        found.warnings.append(
            f"sample.trials {study.sample.trials}: the study names {len(places)} points to train "
            f"(table, sample.enqueue); sample.trials={len(places)} trains them all"
        )
    for place, point in places.items():
        got = point_text(point)
        given = found.attempt(place, got, partial(given_point, point, drawn.space, ranges))
        if given is None:
            continue
        points.append(given.params)
        if (why := _refused(given, study, data)) is not None:
            told = place if got in place else f"{place} ({got})"
            found.warnings.append(f"{told} will not be trained: {why}")
    return points


def point_text(point: Mapping[str, Any]) -> str:
    """A point in words."""
    return ", ".join(f"{name}={value}" for name, value in point.items())


def _refused(given: Given, study: Study, data: Data) -> str | None:
    """Why nothing would be trained for a point, in words: as far as one draw tells where the point
    leaves something open."""
    if given.candidate is None:
        return f"the space prunes it ({given.pruned})"
    limits = {k: v for k, v in study.objectives.bounds.limits().items() if k != LATENCY}
    architecture = candidate_architecture(given.candidate, study, data)
    if not limits:  # networks of a table may be large: what they cost is not asked for
        return None
    costs = cost(architecture).pipelines
    ways: list[dict[str, Any]] = [
        {"macs": costs[name].macs, "params": costs[name].params} for name in given.candidate.trained
    ]
    misses = {n: v for n, v in excess(limits, ways).items() if v > 0}
    told = ", ".join(f"{name} by {value:.0%}" for name, value in misses.items())
    return f"it is beyond objectives.bounds.{told}" if misses else None


def check_not_itself(study: Study, run: Path) -> None:
    """Raises StudyError where a run would begin with what it has found itself."""
    if study.sample is not None and str(run) in study.sample.earlier():
        expected = "an earlier run: with its own trials this one goes on by itself"
        raise StudyError(study.name, [Problem("sample.warm_start", str(run), expected)])


def check_warm_start(
    study: Study, drawn: Drawn, data: Data, fingerprint: str, found: Findings
) -> list[Earlier]:
    """The completed sampled trials of the runs that `sample.warm_start` names, of those that this
    space draws. What is left out, and other images, are warned of."""
    assert study.sample is not None
    place, fitting = "sample.warm_start", []
    for given in study.sample.earlier():
        run = Path(given)
        trials = found.attempt(place, given, partial(_trials, run, study))
        if trials is None:
            continue
        kept, left_out = [], []
        for trial, params, points in trials:
            try:
                kept.append(_earlier(trial, params, points, study, drawn))
            except ValueError as error:
                left_out.append(f"{trial.rpartition('/')[2]}: {error}")
        fitting += kept
        told = f"{place}: {len(kept)} of {len(trials)} sampled trials of {run} are told"
        if left_out:
            more = f"; and {len(left_out) - _SHOWN} more" if len(left_out) > _SHOWN else ""
            found.warnings.append(f"{told}; left out: {'; '.join(left_out[:_SHOWN])}{more}")
        if not kept and not left_out:
            found.warnings.append(f"{told}: it has completed none")
        found.warnings += [f"{place}: {text}" for text in _other_data(run, data, fingerprint)]
    return fitting


def _trials(run: Path, study: Study) -> list[tuple[str, dict[str, Any], list[Point]]]:
    """The completed sampled trials of a run: where from, parameters, points. Raises ValueError for
    a run that was after something else."""
    other = run_study(run)
    if other.objectives.family != study.objectives.family:
        each = ("networks", "families of pipelines")
        raise ValueError(
            f"it searched for {each[other.objectives.family]}, this study for "
            f"{each[study.objectives.family]}: a sampler compares values of one kind; expected a "
            f"run with objectives.family: {str(study.objectives.family).lower()}"
        )
    if other.objectives.names != study.objectives.names:
        raise ValueError(
            f"it searched by {', '.join(other.objectives.names)}, this study by "
            f"{', '.join(study.objectives.names)}: a sampler compares values of one kind; expected "
            "a run with the same objectives.metric and objectives.costs"
        )
    name = run.name
    if (file := run / ".id").is_file():
        name = file.read_text(encoding="utf-8").strip()
    found = []
    with opened(run, other) as storage:
        for row in rows_in(storage, f"{other.name}/sampling"):
            outcome = read_result(row)
            if row.state == TrialState.COMPLETE and outcome is not None:
                trial = trial_id(row.number)
                points = points_of(trial, "sample", outcome)
                found.append((f"{name}/{trial}", dict(row.params), points))
    return found


def _earlier(
    source: str, params: Mapping[str, Any], points: Sequence[Point], study: Study, drawn: Drawn
) -> Earlier:
    """Raises ValueError where this space does not draw exactly these parameters, or a bound was not
    measured."""
    given = given_point(params, drawn.space, drawn.ranges)
    if more := [name for name in given.draw.params if name not in params]:
        raise ValueError(f"this space draws {', '.join(more)} as well")
    if given.candidate is None:
        raise ValueError(f"this space prunes it ({given.pruned})")
    for limit in study.objectives.bounds.limits():
        if any(point.values[limit] is None for point in points):
            raise ValueError(f"its {limit}, which this study bounds, was not measured")
    return Earlier(source, given.draw, list(points))


def _other_data(run: Path, data: Data, fingerprint: str) -> list[str]:
    """That an earlier run saw other classes or images, in words."""
    try:
        begun = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return [f"{run} does not say what its images were; expected those of this study"]
    names = begun.get("class_names")
    if names is not None and list(names) != list(data.class_names):
        return [
            f"{run} told {len(names)} other classes apart (here {data.classes}): its accuracies "
            "order networks at best"
        ]
    if begun.get("data") != fingerprint:
        return [f"{run} was searched with other images or another split: its accuracies differ"]
    return []
