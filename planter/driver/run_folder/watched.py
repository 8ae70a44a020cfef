"""Where a search stands, seen from another process: its books and its logs are read, no more."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from planter.driver.run_folder.read import is_gone, points_in
from planter.driver.storage.lease import driver_of, standing_of
from planter.driver.storage.reading import opened, run_study
from planter.front.points import Point, covered, front_of

_RECENT = 5
"""Epochs by which the time that is left is told: the first one also waits for memory and caches."""


class Training(NamedTuple):
    """A running training: how many of its epochs are done (0 of `epochs`: nobody knows of how
    many), the loss of the last one, and seconds since then; what its latest validation gave for
    the metric that it was asked about; seconds to its end if epochs go on taking what they took."""

    trial: str
    epoch: int
    epochs: int
    loss: float | None
    age: float | None
    validation: float | None = None
    seconds_left: float | None = None


@dataclass(frozen=True)
class Watched:
    """`driver` is who searches (None: nobody does), `gone` that it was killed; `done`, `failed`
    and `left` count trainings of the run, as it last told `age` seconds ago."""

    name: str
    driver: Mapping[str, Any] | None
    gone: bool
    done: int
    failed: int
    left: int
    trainings: list[Training]
    points: int
    objectives: Sequence[str]
    front: list[Point]
    hypervolume: float | None
    seconds_left: float | None
    age: float | None

    @property
    def searching(self) -> bool:
        """Whether somebody is at work, as far as one can tell from here."""
        return self.driver is not None and not self.gone


def watched(run: Path) -> Watched:
    """Where the search of a run folder stands. Raises ValueError where it has not begun."""
    study = run_study(run)
    with opened(run, study) as storage:
        try:
            book = storage.get_study_user_attrs(storage.get_study_id_from_name(study.name))
        except KeyError:
            raise ValueError(f"{run}: the search is only beginning; try again") from None
        points = points_in(storage, study.name)
    limits, objectives = study.objectives.bounds.limits(), study.objectives.names
    driver, told = driver_of(book), standing_of(book) or {}
    front = front_of(points, limits, objectives)
    reference = book.get("reference_point")
    gone = driver is not None and is_gone(driver)
    epochs = told.get("epochs", {}) if driver is not None else {}
    return Watched(
        study.name,
        driver,
        gone,
        told.get("done", 0),
        told.get("failed", 0),
        told.get("left", 0),
        [training_of(run, trial, most, objectives[0]) for trial, most in epochs.items()],
        len(points),
        objectives,
        front,
        None if reference is None else covered(front, reference, limits, objectives),
        told.get("seconds_left"),
        time.time() - told["at"] if "at" in told else None,
    )


def training_of(run: Path, trial: str, epochs: int, metric: str = "accuracy") -> Training:
    """What a training's logs say: of several, the one that was written last."""
    files = []
    for file in (run / "trials" / trial).rglob("metrics.jsonl"):
        try:
            files.append((file.stat().st_mtime, file))
        except OSError:
            continue  # gone since
    lines: list[dict[str, Any]] = []
    if files:
        when, file = max(files)
        lines = whole_lines(file)
    if not lines:
        return Training(trial, 0, epochs, None, None)
    age, epoch = max(time.time() - when, 0.0), int(lines[-1].get("epoch", 0))
    measured = [
        value for line in lines if (value := _number(line.get(f"val_{metric}"))) is not None
    ]
    took = [line["seconds"] for line in lines[-_RECENT:] if "seconds" in line]
    left = max((epochs - epoch) * fmean(took) - age, 0.0) if took and epochs >= epoch else None
    loss = _number(lines[-1].get("loss"))
    return Training(trial, epoch, epochs, loss, age, measured[-1] if measured else None, left)


def _number(value: Any) -> float | None:
    return value if isinstance(value, float) and math.isfinite(value) else None


def whole_lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a log that is being written."""
    found = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # half written
    return found
