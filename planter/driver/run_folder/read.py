"""Reading a run that another process may be writing: its points, its standing, its images."""

from __future__ import annotations

import csv
import json
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.storages import BaseStorage
from optuna.trial import TrialState

from planter.driver.proposers.unfinished import cost_without_point
from planter.driver.run_folder.settings import names_of
from planter.driver.storage.points import point_of_row
from planter.driver.storage.reading import opened, rows_in, run_study
from planter.driver.trials.child import child_id
from planter.driver.trials.jobs import trial_id
from planter.front.history import Stopped, elapsed
from planter.front.points import Point

if TYPE_CHECKING:
    from planter.data import Data


def points_in(storage: BaseStorage, name: str) -> list[Point]:
    """Every point of a study in its storage, in the order of writing; reads only. Raises ValueError
    where another version of planter wrote them."""
    try:
        number = storage.get_study_id_from_name(name)
    except KeyError:
        return []
    try:
        return [point_of_row(row) for row in storage.get_all_trials(number, deepcopy=False)]
    except TypeError as error:
        raise ValueError(
            f"the points of {name} were written by another version of planter ({error}); expected "
            "the version that environment.json names, or a new run of study.yaml"
        ) from None


def stopped_in(storage: BaseStorage, name: str) -> list[Stopped]:
    """Trainings of sampled networks and of children that have a cost but no point (stopped early,
    failed, or still running), in the order of time. The end of such a training is not stored. It is
    taken as its start plus its training seconds, without the time it waited on rungs."""
    ends: dict[str, datetime] = {}
    for row in rows_in(storage, name):
        if row.datetime_complete is not None:
            ends.setdefault(row.user_attrs["trial"], row.datetime_complete)
    found = []
    for book, id_of in (("sampling", trial_id), ("evolve", child_id)):
        for row in rows_in(storage, f"{name}/{book}"):
            cost, trial = cost_without_point(row), id_of(row.number)
            if cost is not None and trial not in ends and row.datetime_start is not None:
                when = row.datetime_start + timedelta(seconds=cost[1])
                after = sum(end <= when for end in ends.values())
                found.append((when, Stopped(trial, *cost, after=after)))
    return [one for _, one in sorted(found)]


def elapsed_in(storage: BaseStorage, name: str) -> float:
    """Wall-clock seconds of a search so far (`planter.front.history.elapsed`), by its trainings
    that have ended."""
    ended: dict[str, tuple[float, float]] = {}
    for row in rows_in(storage, name):
        if row.datetime_complete is not None:
            end = row.datetime_complete.timestamp()
            ended.setdefault(row.user_attrs["trial"], (end - row.user_attrs["seconds"], end))
    return elapsed(ended.values())


def images_of(run: Path) -> Data:
    """The images of a run, its classes by the names it was begun with. Raises ValueError where they
    are not those it was searched with, or it does not say which."""
    from planter.data import load_data

    file = run / "environment.json"
    if not file.is_file():
        raise ValueError(f"{run} has no environment.json, which says what its images were")
    try:
        begun = json.loads(file.read_text(encoding="utf-8"))["data"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} does not say what the images of the run were: {error!r}"
        ) from None
    try:
        data = load_data(run)
    except (TypeError, KeyError) as error:
        raise ValueError(f"{run}/resolved.yaml is of another planter: {error}") from error
    if (now := data.fingerprint()) != begun:
        raise ValueError(
            f"the images or labels are not those of {run}: fingerprint {now}, expected {begun}"
        )
    # The labels are the run's; folders may have been renamed since.
    names = names_of(run)
    return data if names is None else replace(data, class_names=tuple(names))


def read_points(run: Path) -> list[Point]:
    """Every point in a run's database."""
    study = run_study(run)
    with opened(run, study) as storage:
        return points_in(storage, study.name)


def standing(storage: BaseStorage, name: str) -> str | None:
    """Why a run is not finished, in words; None where nothing of it is open."""
    open_rows, held = 0, None
    for book in (name, f"{name}/sampling", f"{name}/planting"):
        try:
            number = storage.get_study_id_from_name(book)
        except KeyError:
            continue
        rows = storage.get_all_trials(number, deepcopy=False)
        open_rows += sum(row.state == TrialState.RUNNING for row in rows)
        held = held or storage.get_study_user_attrs(number).get("driver")
    if held is not None:
        who = f"(process {held['pid']} on {held['host']}; {open_rows} trials open)"
        how = f"a search is at work on it, or was killed {who}"
        if is_gone(held):
            how = f"its search was killed {who}; the same search command goes on"
        return f"Not finished: {how}. What follows is what there is so far."
    if open_rows:
        return (
            f"Not finished: interrupted with {open_rows} trials open; the same search command goes "
            "on. What follows is what there is so far."
        )
    return None


def is_gone(held: Mapping[str, Any]) -> bool:
    """Whether a driver of this machine no longer lives; of another one nobody can tell."""
    if held["host"] != socket.gethostname():
        return False
    try:
        os.kill(int(held["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # somebody else's, and alive
    return False


def run_standing(run: Path) -> str | None:
    """`standing` of a run folder."""
    study = run_study(run)
    with opened(run, study) as storage:
        return standing(storage, study.name)


def read_growth(run: Path) -> list[dict[str, Any]]:
    """The rows of planting.csv with numbers for numbers; none before the first round is decided."""
    file = run / "planting.csv"
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    whole, real = ("round", "channels", "params", "macs"), ("val_loss", "val_accuracy", "seconds")
    return [
        {
            **row,
            **{key: int(row[key]) for key in whole},
            **{key: float(row[key]) for key in real},
            "accepted": row["accepted"] == "True",
        }
        for row in rows
    ]


def read_epochs(run: Path, trial: str) -> list[dict[str, Any]]:
    """The lines of a training's metrics.jsonl; none where there is no such file."""
    file = run / "trials" / trial / "metrics.jsonl"
    if not file.is_file():
        return []
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):  # the last one, under the hands of who writes it
            epoch = json.loads(line)
            if isinstance(epoch, dict) and isinstance(epoch.get("epoch"), int):
                found.append(epoch)
    return found
