"""Optuna's storage of a run and the book of points in it (the others: proposers)."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.storages.journal._file import get_lock_file
from sqlalchemy import create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from planter.driver.storage.messages import tell_warnings_once
from planter.driver.storage.open_rows import key_of, storage_of, write_attributes
from planter.driver.storage.retrying import RetryingStorage, tell_when_away
from planter.driver.trials.jobs import Outcome
from planter.front.objectives import OBJECTIVES, SEARCHED, values_of
from planter.front.points import Point, front_of

tell_warnings_once()

_BUSY_S = 60
_SELDOM = ("more", "parent", "edits")
Direction = Literal["maximize", "minimize"]


def metrics_of(objectives: Sequence[str]) -> dict[str, Direction]:
    """Objectives as Optuna has them."""
    return {n: "maximize" if OBJECTIVES[n].maximise else "minimize" for n in objectives}


METRICS = metrics_of(SEARCHED)


@contextmanager
def experimental() -> Iterator[None]:
    """Silences Optuna's warnings of what it calls experimental: metric names, grouped TPE. Our
    tests hold it to what we need of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def database_url(run: Path, storage: str | None) -> str:
    """The study's own storage URL, or `study.db` in the run folder."""
    return storage or f"sqlite:///{run / 'study.db'}"


def open_storage(url: str, *, alone: bool = False) -> RetryingStorage:
    """The storage at an Optuna URL, or the journal file at `journal:///relative.log` or
    `journal:////absolute.log` (slashes as in SQLite URLs). Raises ValueError if it cannot be
    opened. Later calls are retried while it is unavailable. `alone` is for the process that writes:
    see RetryingStorage.

    SQLite uses a write-ahead log (WAL), so readers (the dashboard) and the driver do not block each
    other; if one finds the database locked, it waits instead of failing.
    """
    with _readable_errors(url):
        if url.startswith("journal:"):
            journal = JournalStorage(_Journal(_journal_file(url)))
            return RetryingStorage(journal, lambda: None, alone=alone)
        return _open_database(url, alone=alone)


def check_url(url: str) -> None:
    """Raises ValueError if no storage can be opened at a URL of this form; opens nothing itself."""
    with _readable_errors(url):
        if url.startswith("journal:"):
            file: str | None = _journal_file(url)
        else:
            address = create_engine(url).url
            file = address.database if address.get_backend_name() == "sqlite" else None
        if file and not file.startswith("file:") and not Path(file).absolute().parent.is_dir():
            raise FileNotFoundError(f"{Path(file).absolute().parent} is not a folder")


@contextmanager
def _readable_errors(url: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ValueError(
            f"storage {_shown(url)!r} needs a driver module that is not installed ({error}); "
            "for PostgreSQL: pip install 'planter[postgres]' and postgresql+psycopg://...; "
            "for MySQL: pip install pymysql and mysql+pymysql://..."
        ) from error
    except Exception as error:  # drivers of databases raise kinds of their own
        raise ValueError(
            f"storage {_shown(url)!r} cannot be opened ({type(error).__name__}: {error}); "
            "expected a database URL such as sqlite:///study.db or postgresql+psycopg://..., "
            "or a file as journal:///study.log"
        ) from error


def _open_database(url: str, *, alone: bool) -> RetryingStorage:
    sqlite = url.startswith("sqlite")
    storage = RDBStorage(
        url,
        engine_kwargs={"connect_args": {"timeout": _BUSY_S}} if sqlite else {"pool_pre_ping": True},
    )
    if sqlite:
        event.listen(storage.engine, "connect", _sync_when_folded)
        storage.engine.dispose()  # those that are open know nothing of it
        with storage.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
    tell_when_away(storage.engine)
    return RetryingStorage(get_storage(storage), storage.engine.dispose, alone=alone)


def _sync_when_folded(connection: Any, record: Any) -> None:
    """Lets SQLite sync to disk at WAL checkpoints, not at each of a trial's thirty commits. A
    killed process loses nothing. After a power failure the newest commits may be lost; their
    trainings are then repeated."""
    connection.execute("PRAGMA synchronous=NORMAL")


def _journal_file(url: str) -> str:
    file = url.removeprefix("journal:///")
    if file in ("", url):
        raise ValueError("expected three slashes and a file, or four and an absolute one")
    return file


class _Journal(JournalFileBackend):
    """A journal file that a driver killed, or a disk filled, in the middle of a line goes on."""

    def __init__(self, file: str) -> None:
        # Made by O_EXCL, which NFS knows since version 3; that of a killed driver goes in 30 s.
        self._whole = JournalFileOpenLock(file)
        super().__init__(file, lock_obj=self._whole)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self._drop_torn_line()
        super().append_logs(logs)

    def _drop_torn_line(self) -> None:
        """Cuts off half a line at the end: with another behind it, nobody could read the file."""
        with open(self._file_path, "rb+") as file:
            end = file.seek(0, os.SEEK_END)
            if end == 0 or _last_byte(file, end) == b"\n":
                return
            with get_lock_file(self._whole):
                end = file.seek(0, os.SEEK_END)
                while end and _last_byte(file, end) != b"\n":
                    end -= 1
                file.truncate(end)


def _last_byte(file: BinaryIO, end: int) -> bytes:
    file.seek(end - 1)
    return file.read(1)


def _shown(url: str) -> str:
    """A URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url


def open_study(storage: BaseStorage, name: str, metrics: Mapping[str, Direction]) -> optuna.Study:
    """The Optuna study of that name, created where it does not exist, with `metrics` (name ->
    direction) as its objectives."""
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        directions=list(metrics.values()),
        load_if_exists=True,
    )
    if study.metric_names is None:
        with experimental():
            study.set_metric_names(list(metrics))
    return study


class PointBook:
    """The Optuna study people look at: one row a point, written once, read by no sampler."""

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        limits: Mapping[str, float] | None = None,
        objectives: Sequence[str] = SEARCHED,
    ) -> None:
        self._limits, self._objectives = dict(limits or {}), objectives
        self._study = open_study(storage, name, metrics_of(objectives))
        self._points = {point.id: point for point in map(point_of_row, self._study.get_trials())}
        self._front = front_of(self.points, self._limits, objectives)

    @property
    def study(self) -> optuna.Study:
        """The book itself, for attributes of the run."""
        return self._study

    @property
    def points(self) -> list[Point]:
        return list(self._points.values())

    @property
    def front(self) -> list[Point]:
        """The front of all points. See `front_of`."""
        return list(self._front)

    def has(self, trial: str) -> bool:
        return any(point.trial == trial for point in self._points.values())

    def reference(self, default: Sequence[float]) -> list[float]:
        """The hypervolume's reference point: `default` at a study's start, the same ever after."""
        written = self._study.user_attrs.get("reference_point")
        if written is None:
            written = list(default)
            self._study.set_user_attr("reference_point", written)
        return list(written)

    def add(
        self,
        points: Iterable[Point],
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
    ) -> None:
        """Writes the points that are not in the book yet."""
        fresh = {point.id: point for point in points if point.id not in self._points}
        rows = [
            optuna.trial.create_trial(
                values=values_of(point.values, self._objectives),
                params=dict(params),
                distributions=dict(distributions),
                user_attrs={"id": point.id, **_attributes(point)},
                constraints={
                    limit: point.values[limit] / most - 1
                    for limit, most in self._limits.items()
                    if point.values[limit] is not None
                },
            )
            for point in fresh.values()
        ]
        storage = storage_of(self._study)
        if isinstance(storage, RetryingStorage):
            storage.add_finished(key_of(self._study), rows)
        else:
            self._study.add_trials(rows)
        self._points |= fresh
        # What is behind the front once stays there.
        self._front = front_of([*self._front, *fresh.values()], self._limits, self._objectives)


def read_result(row: optuna.trial.FrozenTrial) -> Outcome | None:
    """What a worker returned for a row, or None where none is written yet."""
    written = row.user_attrs.get("result")
    found: Outcome | None = json.loads(written) if written is not None else None
    return found


def write_result(study: optuna.Study, row: optuna.trial.FrozenTrial, outcome: Outcome) -> None:
    """One attribute holds all of a result, so that a kill leaves it whole or absent."""
    write_attributes(study, row, {"result": json.dumps(outcome)})


def _attributes(point: Point) -> dict[str, Any]:
    """A point as attributes of its row, without those that most points have nothing in."""
    found = dataclasses.asdict(point)
    return {key: value for key, value in found.items() if value or key not in _SELDOM}


def point_of_row(row: optuna.trial.FrozenTrial) -> Point:
    """The point that a row of the book holds. Raises TypeError where a field is missing."""
    names = {field.name for field in dataclasses.fields(Point)}
    return Point(**{name: value for name, value in row.user_attrs.items() if name in names})
