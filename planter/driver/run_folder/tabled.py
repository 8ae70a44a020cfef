"""The table of a paper that runs of a study fill: their networks in its cells."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planter.driver.run_folder.final_file import FINAL, REPEATED
from planter.driver.run_folder.predictions import answers_of
from planter.driver.storage.reading import opened, rows_in, run_study
from planter.driver.trials.jobs import trial_id
from planter.front.points import read_front
from planter.front.tabled import Cell, Tabled, Value
from planter.study.schema import Study
from planter.study.table import Measure, PaperTable, Where

_NOT_READ = "its test images are not read yet: the search goes on, or its network was not kept"


@dataclass(frozen=True)
class _Run:
    """A run as far as a table needs it: its rows of pareto.json, what was drawn for each sampled
    trial, and what `planter train --like` made of its points once more."""

    folder: Path
    study: Study
    front: Mapping[str, Any]
    drawn: Mapping[str, Mapping[str, Any]]
    repeated: Sequence[Mapping[str, Any]]
    environment: Mapping[str, Any]

    @property
    def test_images(self) -> int | None:
        found: int | None = self.front.get("data", {}).get("test")
        return found


def tabled(runs: Sequence[Path]) -> Tabled:
    """The table of the runs' study, filled by all of them together.

    Runs of one table are those of one study under other seeds, or under keys that its columns tell
    apart. Raises ValueError where a run has no table, where tables differ, or where a run was
    shortened otherwise than the first.
    """
    read = [_read(run) for run in runs]
    first = read[0].study
    assert first.table is not None
    table = first.table
    for other in read[1:]:
        if other.study.table != table:
            raise ValueError(
                f"{other.folder} and {read[0].folder} have different tables: expected runs of one "
                "study"
            )
        if other.study.budget.scale != first.budget.scale:
            raise ValueError(
                f"{other.folder} has budget.scale {other.study.budget.scale:g}, {read[0].folder} "
                f"{first.budget.scale:g}: expected runs that are shortened alike"
            )
    cells = {(row, column): _cell(table, row, column, read) for row, column in table.cells()}
    return Tabled(table, cells, _facts(read), first.budget.shortened)


def _read(folder: Path) -> _Run:
    study = run_study(folder)
    if study.table is None:
        raise ValueError(
            f"{folder} is no run of a table: its study has no key table; expected a run of a study "
            "of studies/tables, or of one with a table of its own"
        )
    with opened(folder, study) as storage:
        rows = rows_in(storage, f"{study.name}/sampling")
        drawn = {trial_id(row.number): dict(row.params) for row in rows}
    file = folder / FINAL / "final.json"
    final = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"rows": []}
    repeated = [row for row in final["rows"] if row["kind"] == REPEATED]
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    return _Run(folder, study, read_front(folder), drawn, repeated, environment)


def _cell(table: PaperTable, row: str, column: str, runs: Sequence[_Run]) -> Cell:
    where = table.cell(row, column)
    measure: Measure = where.measure or "accuracy"
    published = table.rows[row].published.get(column)
    figure, spread = published if isinstance(published, list) else (published, None)
    values: list[Value] = []
    lacks: str | None = None
    for run in runs:
        if not _is_meant(run, where):
            continue
        found = _points(run, where)
        lacks = lacks or (None if found else "no such network is trained")
        for point in found:
            made = _values(run, point, measure)
            lacks = lacks or (None if made else _NOT_READ)
            values += made
    told = None if values else lacks or "no run of that kind is given"
    return Cell(row, column, measure, values, figure, spread, told)


def _is_meant(run: _Run, where: Where) -> bool:
    """Whether a run's study says what the cell's runs are to say."""
    settings = run.study.model_dump()
    for key, wanted in where.runs.items():
        value: Any = settings
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value != wanted:
            return False
    return True


def _points(run: _Run, where: Where) -> list[Mapping[str, Any]]:
    """The rows of pareto.json that a cell means."""
    rows: list[Mapping[str, Any]] = run.front["points"]
    if where.method is not None:
        fitting = [
            row
            for row in rows
            if row["method"] == where.method
            and all(row[name] <= most for name, most in where.within.items())
        ]
        # Of equally accurate ones the cheapest, as it stands on the front.
        best = sorted(fitting, key=lambda row: (-row["accuracy"], row["params"], row["macs"]))
        return best[:1]
    pipeline = where.pipeline or "base"
    if where.trial is not None:
        return [row for row in rows if (row["trial"], row["pipeline"]) == (where.trial, pipeline)]
    if not where.sample:
        return []
    return [
        row
        for row in rows
        if row["pipeline"] == pipeline
        and row["method"] == "sample"
        and _has(run.drawn.get(row["trial"], {}), where.sample)
    ]


def _has(drawn: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a trial was drawn with these values, which YAML may write otherwise (1 for 1.0)."""
    return all(
        name in drawn and (drawn[name] == value or str(drawn[name]) == str(value))
        for name, value in wanted.items()
    )


def _values(run: _Run, row: Mapping[str, Any], measure: Measure) -> list[Value]:
    """What a point of a run reached, and what its repetitions did."""
    name, images = run.folder.name, run.test_images
    if measure in ("params", "macs"):
        return [Value(float(row[measure]), name, row["id"])]
    if measure == "loss":
        answers = answers_of(run.folder, row["id"]) if row["model"] else {}
        return [Value(answers["test"].loss, name, row["id"])] if "test" in answers else []
    shares = {row["id"]: row["test_accuracy"]}
    for again in run.repeated:
        if again["id"] == row["id"]:
            shares[f"{again['id']} repeated {again['seed']}"] = again["test_accuracy"]
    return [
        Value(100 * share if measure == "accuracy" else 100 * (1 - share), name, point, images)
        for point, share in shares.items()
        if share is not None
    ]


def _facts(runs: Sequence[_Run]) -> dict[str, str]:
    """What a figure is to be read with."""
    first = runs[0]
    seeds = sorted({run.study.seed for run in runs})
    versions = first.environment["versions"]
    hours = sum(run.front["cost"]["seconds"] for run in runs) / 3600
    macs = sum(run.front["cost"]["train_macs"] for run in runs)
    commits = sorted({run.environment["commit"] or "unknown" for run in runs})
    return {
        "runs": ", ".join(run.folder.name for run in runs),
        "data": "; ".join(dict.fromkeys(map(_images, runs))),
        "seeds": ", ".join(map(str, seeds)),
        "machine": f"{first.environment['device']}, {first.environment['cpus']} cores, "
        f"{first.environment['threads_per_worker']} threads a training",
        "versions": f"Python {first.environment['python']}, "
        + ", ".join(f"{name} {versions[name]}" for name in ("torch", "planter")),
        "commit": ", ".join(commits),
        "training": f"{hours:.2f} hours of trainings, {macs:.3g} multiply-adds",
    }


def _images(run: _Run) -> str:
    """Name, size and numbers of a run's images."""
    counts = run.front.get("data", {})
    told = [f"{counts[part]:,} {part}" for part in ("train", "validation", "test") if counts]
    size = "x".join(map(str, counts.get("image", [])))
    return f"{run.study.data.name} {size}: {', '.join(told)} images".replace(" :", ":")
