"""Optuna's storage of a run and the book of points in it (the others: sampling.py, rounds.py)."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage

from planter.front import Point

optuna.logging.set_verbosity(optuna.logging.WARNING)

_BUSY_S = 60
Direction = Literal["maximize", "minimize"]
METRICS: dict[str, Direction] = {"accuracy": "maximize", "macs": "minimize"}


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


def open_storage(url: str) -> RDBStorage:
    """The storage at an Optuna URL. SQLite writes ahead, so that readers (the dashboard) and the
    driver never lock each other out; both wait rather than fail. Raises ValueError where it cannot
    be opened."""
    arguments = {"connect_args": {"timeout": _BUSY_S}} if url.startswith("sqlite") else {}
    try:
        storage = RDBStorage(url, engine_kwargs=arguments)
    except Exception as error:  # drivers of databases raise kinds of their own
        raise ValueError(
            f"storage {url!r} cannot be opened ({type(error).__name__}: {error}); "
            "expected a database URL such as sqlite:///study.db or postgresql://..."
        ) from error
    if not url.startswith("sqlite"):
        return storage
    with storage.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")
    return storage


def open_study(storage: RDBStorage, name: str, metrics: Mapping[str, Direction]) -> optuna.Study:
    """An Optuna study of that name, made if need be; `metrics` maps names to directions."""
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
        self, storage: RDBStorage, name: str, limits: Mapping[str, int] | None = None
    ) -> None:
        self._limits = dict(limits or {})
        self._study = open_study(storage, name, METRICS)
        self._points = {point.id: point for point in map(_point, self._study.get_trials())}

    @property
    def points(self) -> list[Point]:
        return list(self._points.values())

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
        for point in points:
            if point.id in self._points:
                continue
            attributes = {"id": point.id, **dataclasses.asdict(point)}
            row = optuna.trial.create_trial(
                values=[point.accuracy, point.macs],
                params=dict(params),
                distributions=dict(distributions),
                user_attrs=attributes,
                constraints={
                    limit: getattr(point, limit) / most - 1 for limit, most in self._limits.items()
                },
            )
            self._study.add_trial(row)
            self._points[point.id] = point


def read_result(row: optuna.trial.FrozenTrial) -> dict[str, Any] | None:
    """What a worker returned for a row, or None where none is written yet."""
    written = row.user_attrs.get("result")
    return json.loads(written) if written is not None else None


def write_result(study: optuna.Study, row: optuna.trial.FrozenTrial, outcome: Any) -> None:
    """One attribute holds all of a result, so that a kill leaves it whole or absent."""
    study._storage.set_trial_user_attr(row._trial_id, "result", json.dumps(outcome))


def _point(row: optuna.trial.FrozenTrial) -> Point:
    names = {field.name for field in dataclasses.fields(Point)}
    return Point(**{name: value for name, value in row.user_attrs.items() if name in names})
