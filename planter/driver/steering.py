"""What people ask of a search that runs elsewhere, or of a run that is stopped: its requests are
written to its storage, where the driver reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from optuna.storages import BaseStorage
from optuna.trial import TrialState

from planter.driver.proposers.redraws import is_redrawn
from planter.driver.run_folder.read import is_gone
from planter.driver.storage.earlier import is_earlier
from planter.driver.storage.lease import Stop, ask_to_stop, driver_of
from planter.driver.storage.points import database_url, open_storage
from planter.driver.storage.reading import opened, rows_in, run_study
from planter.driver.storage.requests import ask_for_points, points_waiting, read_ranges
from planter.driver.trials.given import Params, in_ranges
from planter.study.schema import Study


class Asked(NamedTuple):
    """Points that wait for a search: those of this request in the words of its space, how many
    waited before them, how many trials are left for all, and who searches now, if anybody."""

    points: list[Params]
    before: int
    left: int
    trials: int
    driver: Mapping[str, Any] | None


def enqueue(run: Path, points: Sequence[Mapping[str, Any]]) -> Asked:
    """Asks a run's search, which may run or not, to try points before what its sampler draws; all
    of them are written, or none.

    Raises ValueError for a study that samples nothing, or whose search has not begun, and for a
    parameter or a value that no draw of its space has shown.
    """
    study = run_study(run)
    if study.sample is None:
        raise ValueError(f"{run} samples nothing: points are of a study with a section sample")
    with _writable(run, study) as storage:
        number = _number(storage, f"{study.name}/sampling", run)
        attributes = storage.get_study_user_attrs(number)
        rows = rows_in(storage, f"{study.name}/sampling")
        ranges = read_ranges(attributes, rows)
        if not ranges:
            raise ValueError(f"{run}: the search is only beginning; try again")
        given = [in_ranges(point, ranges) for point in points]
        before = points_waiting(attributes, rows)
        ask_for_points(storage, number, given)
        held = driver_of(storage.get_study_user_attrs(_number(storage, study.name, run)))
    drawn = [row for row in rows if row.state != TrialState.WAITING and not is_earlier(row)]
    left = study.sample.trials - sum(not is_redrawn(row) for row in drawn)
    driver = None if held is None or is_gone(held) else held
    return Asked(given, before, max(left, 0), study.sample.trials, driver)


def stop(run: Path, how: Stop) -> Mapping[str, Any] | None:
    """Asks the driver that is at work on a run to stop: who that is. None where nothing runs."""
    study = run_study(run)
    with _writable(run, study) as storage:
        number = _number(storage, study.name, run)
        held = driver_of(storage.get_study_user_attrs(number))
        if held is None or is_gone(held):
            return None
        return ask_to_stop(storage, number, how)


@contextmanager
def _writable(run: Path, study: Study) -> Iterator[BaseStorage]:
    """A run's storage, for writing. Raises ValueError where it is not there yet."""
    with opened(run, study):  # says what is not there, and makes nothing
        pass
    storage = open_storage(database_url(run, study.storage))
    try:
        yield storage
    finally:
        storage.close()


def _number(storage: BaseStorage, name: str, run: Path) -> int:
    try:
        return storage.get_study_id_from_name(name)
    except KeyError:
        raise ValueError(f"{run}: the search is only beginning; try again") from None
