"""Points of a run and the documents that hold them: pareto.json, pareto.csv, planting.csv."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planter.front.certainty import interval_of, wilson, with_interval
from planter.front.methods import is_searched
from planter.front.objectives import (
    OBJECTIVES,
    SEARCHED,
    cheapest_first,
    directions,
    values_of,
)
from planter.front.pareto import hypervolume, pareto_front

if TYPE_CHECKING:
    from planter.costs.macs import Cost
    from planter.networks.norms import NormMode
    from planter.training.answers import Answers

log = logging.getLogger(__name__)
LATENCY_FILE = "latency.json"
COLUMNS = [
    "id", "trial", "pipeline", "method", "accuracy", "test_accuracy", "macs", "params",
    "on_front", "model", "train_macs", "latency_ms", "within_bounds",
]  # fmt: skip
INTERVALS = ["accuracy_low", "accuracy_high", "test_accuracy_low", "test_accuracy_high"]
"""Further columns: the ends of 95 % intervals."""
_YOUNGER = ("latency_ms", "within_bounds")
"""Columns that documents of older runs may lack."""
_KEYS = ("study", "objectives", "points", "hypervolume", "reference_point", "cost")
PLANTING_COLUMNS = [
    "round", "layer", "channels", "accepted", "widths", "params", "macs", "val_loss",
    "val_accuracy", "seconds",
]  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One network that can be shipped: a pipeline of a trial, found by a method of `METHODS`.

    `accuracy` is on validation images, 0..1; `train_macs` and `seconds` are those of the whole
    trial, which its points share; `kernels` names the form it trained in, by part where several,
    `norms` whose the batch norms of shared stages were; `latency_ms` is that of a forward pass of
    one image, timed before the training, where it is bounded; `more` the values of objectives that
    have no field here; `parent` the point whose weights it began with, and `edits` what made it of
    that one's network.
    """

    trial: str
    pipeline: str
    method: str
    accuracy: float
    loss: float
    macs: int
    params: int
    train_macs: int
    seconds: float
    architecture: Mapping[str, Any]
    kernels: str | Mapping[str, str] = "plain"
    norms: NormMode = "switch_stats"
    latency_ms: float | None = None
    more: Mapping[str, float] = field(default_factory=dict)
    parent: str | None = None
    edits: Sequence[Mapping[str, Any]] = ()

    @property
    def values(self) -> dict[str, Any]:
        """By the names of objectives; None where one is not known."""
        return {
            name: self.more[name] if name in self.more else getattr(self, name, None)
            for name in OBJECTIVES
        }

    @property
    def id(self) -> str:
        return f"{self.trial}/{self.pipeline}"

    @property
    def searched(self) -> bool:
        """Whether the search proposed it; the teacher and the baselines are there to compare."""
        return is_searched(self.method)


def measured(
    answers: Answers, cost: Cost, objectives: Sequence[str] = SEARCHED, *, intervals: bool = False
) -> dict[str, Any]:
    """The fields of a point that say how well a trained network does and what it costs: the values
    of all objectives that are known then. With `intervals`, that of a metric other than accuracy,
    whose interval follows from itself."""
    values = {
        name: o.of(answers, cost)
        for name, o in OBJECTIVES.items()
        if o.of is not None and (name in objectives or not o.asked)
    }
    own = {field.name for field in fields(Point)}
    more = {name: value for name, value in values.items() if name not in own}
    found = {name: value for name, value in values.items() if name in own}
    metric = objectives[0]
    if intervals and metric != "accuracy":
        told = with_interval(metric, values[metric], interval_of(answers, metric))
        more |= {name: value for name, value in told.items() if name not in own}
    return {**found, "loss": answers.loss, **({"more": more} if more else {})}


def columns(objectives: Sequence[str] = SEARCHED) -> list[str]:
    """Of pareto.csv: those that every planter knows, intervals, further objectives."""
    found = [*COLUMNS, *INTERVALS]
    found += [n for n, o in OBJECTIVES.items() if n in objectives or not o.asked]
    for name in (objectives[0], f"test_{objectives[0]}"):
        found += with_interval(name, 0.0, None)
    return list(dict.fromkeys(found))


def within(point: Point, limits: Mapping[str, float]) -> bool:
    """Whether a point keeps to limits, by the names of objectives; it does not where it has no such
    value, as a latency that was not timed."""
    values = point.values
    return all(values[name] is not None and values[name] <= limits[name] for name in limits)


def front_of(
    points: Sequence[Point], limits: Mapping[str, float], objectives: Sequence[str] = SEARCHED
) -> list[Point]:
    """The searched points within the limits that no other of them dominates, by rising cost."""
    searched = [p for p in points if p.searched and (not limits or within(p, limits))]
    values = [values_of(p.values, objectives) for p in searched]
    mask = pareto_front(values, directions(objectives))
    front = [point for point, kept in zip(searched, mask, strict=True) if kept]
    return sorted(front, key=lambda p: (*cheapest_first(p.values, objectives), p.id))


def covered(
    points: Sequence[Point],
    reference: Sequence[float],
    limits: Mapping[str, float],
    objectives: Sequence[str] = SEARCHED,
) -> float:
    """Hypervolume of the searched points within the limits."""
    searched = [p for p in points if p.searched and (not limits or within(p, limits))]
    return hypervolume([values_of(p.values, objectives) for p in searched], reference, objectives)


def adding_most(
    points: Sequence[Point],
    before: Sequence[Point],
    reference: Sequence[float],
    limits: Mapping[str, float],
    objectives: Sequence[str] = SEARCHED,
) -> Point:
    """The point that adds most hypervolume to those `before`, of those within the limits, where any
    is; of equal ones that of the better metric, then the cheaper."""
    allowed = [point for point in points if within(point, limits)] or points
    return max(
        allowed,
        key=lambda p: (
            covered([*before, p], reference, limits, objectives),
            *(-OBJECTIVES[name].cost_of(p.values[name]) for name in objectives),
        ),
    )


def best_family(
    points: Sequence[Point],
    reference: Sequence[float],
    limits: Mapping[str, float],
    objectives: Sequence[str] = SEARCHED,
) -> list[Point]:
    """The points of the sampled trial whose networks within the limits together cover the largest
    hypervolume: one set of weights. Empty where none covers any; the earliest of equal ones."""
    families: dict[str, list[Point]] = {}
    for point in points:
        if point.method == "sample" and within(point, limits):
            families.setdefault(point.trial, []).append(point)

    def reach(family: Sequence[Point]) -> float:
        return covered(family, reference, limits, objectives)

    best = max((families[trial] for trial in sorted(families)), key=reach, default=[])
    return best if reach(best) > 0 else []


def trained_macs(points: Sequence[Point]) -> int:
    """Multiply-adds of the trainings behind points, each counted once."""
    return sum({point.trial: point.train_macs for point in points}.values())


def document(
    study: str,
    points: Sequence[Point],
    reference: Sequence[float],
    limits: Mapping[str, float],
    test_accuracy: Mapping[str, float],
    run: Path,
    *,
    family: bool = False,
    unfinished: Mapping[str, tuple[int, float]] | None = None,
    data: Mapping[str, Any] | None = None,
    objectives: Sequence[str] = SEARCHED,
    images: Mapping[str, int] | None = None,
    tested: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """What pareto.json says of a run; of a study that asks for a family, the best one as well.
    The `limits` stand there as `bounds`. `unfinished` is what trainings without a point took,
    multiply-adds and seconds by trial; `data` the account of the images; `images` of how many
    `accuracy` and `test_accuracy` are told; `tested` what else was read of the test images, by
    point."""
    on_front = {point.id for point in front_of(points, limits, objectives)}
    measured = measured_latency(run)
    rows = []
    for point in sorted(points, key=lambda p: (p.values[objectives[1]], p.id)):
        model = Path("models") / point.id
        shares = {"accuracy": point.accuracy, "test_accuracy": test_accuracy.get(point.id)}
        around: dict[str, Any] = {}
        for name, count in (images or {}).items():
            share = shares[name]
            around |= with_interval(name, share, None if share is None else wilson(share, count))
        rows.append(
            {
                "id": point.id,
                "trial": point.trial,
                "pipeline": point.pipeline,
                "method": point.method,
                **shares,
                "macs": point.macs,
                "params": point.params,
                "on_front": point.id in on_front,
                "model": str(model) if (run / model).is_dir() else None,
                "train_macs": point.train_macs,
                "latency_ms": measured.get(point.id) if measured else point.latency_ms,
                "within_bounds": within(point, limits),
                **({"parent": point.parent, "edits": list(point.edits)} if point.parent else {}),
                **point.more,
                **{name: point.values[name] for name in objectives if name not in COLUMNS},
                **(tested or {}).get(point.id, {}),
                **around,
            }
        )
    best = best_family(points, reference, limits, objectives) if family else []
    told = (
        {
            "trial": best[0].trial,
            "points": [point.id for point in best],
            "hypervolume": covered(best, reference, limits, objectives),
        }
        if best
        else None
    )
    others = unfinished or {}
    seconds = {
        **{point.trial: point.seconds for point in points},
        **{trial: took for trial, (_, took) in others.items()},
    }
    return {
        "study": study,
        "objectives": list(objectives),
        "points": rows,
        "hypervolume": covered(points, reference, limits, objectives),
        "reference_point": list(reference),
        "cost": {
            "trials": len(seconds),
            "unfinished": len(others),
            "train_macs": trained_macs(points) + sum(macs for macs, _ in others.values()),
            "seconds": round(sum(seconds.values()), 3),
        },
        **({"bounds": dict(limits)} if limits else {}),
        **({"family": told} if told else {}),
        **({"data": dict(data)} if data is not None else {}),
    }


def measured_latency(run: Path) -> dict[str, float]:
    """Median milliseconds of a forward pass of one image, by point, of the last measurement that
    `planter latency` made; empty where it made none."""
    path = run / LATENCY_FILE
    if not path.is_file():
        return {}
    try:
        every = json.loads(path.read_text(encoding="utf-8"))["measurements"]
        of_one_image = [one for one in every if one["batch"] == 1]
        return {
            row["id"]: row[one["column"]]["median_ms"]
            for one in of_one_image[-1:]
            for row in one["rows"]
        }
    except (ValueError, KeyError, TypeError) as error:  # a search does not end for it
        log.warning("%s is damaged and left aside: %r", path, error)
        return {}


def read_front(run: Path) -> dict[str, Any]:
    """pareto.json of a run. Raises ValueError where the folder is no run or has no point yet, and
    where the file is damaged or of an older planter."""
    path = run / "pareto.json"
    if not path.is_file():
        known = "the run has no finished trial yet" if run.is_dir() else "there is no such folder"
        raise ValueError(f"{run} has no pareto.json: {known}; expected a run folder, runs/NAME")
    again = "the search command that made the run writes it anew without training anything"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        rows = found.get("points", [])
        missing = [key for key in _KEYS if key not in found]
        needed = [name for name in COLUMNS if name not in _YOUNGER]
        missing += [key for key in needed if not all(key in row for row in rows)]
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); {again}") from None
    if missing:
        raise ValueError(f"{path} is of an older planter: it lacks {', '.join(missing)}; {again}")
    return found


def with_bounds(front: Mapping[str, Any], limits: Mapping[str, float]) -> dict[str, Any]:
    """A pareto.json document with its study's limits, which those of older planters lack."""
    return {**({"bounds": dict(limits)} if limits else {}), **front}


def nothing_trained(front: Mapping[str, Any]) -> list[str]:
    """What is to be said of a run none of whose trainings has finished: that, and why; nothing of
    one that has points."""
    if front["points"]:
        return []
    told = [f"no training of {front['study']} has finished"]
    told += [f"failed: {one['trial']}: {one['reason']}" for one in front.get("failed", [])]
    told += [note["text"] for note in front.get("notes", [])]
    return told


def to_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows as CSV text with a header; None is an empty field."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def write_text(path: Path, text: str) -> None:
    """Replaces a file so that a reader or a kill never meets half of it."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file")
    fresh = path.with_name(f".{path.name}.new")
    try:
        with fresh.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
