"""A run's storage as another process reads it, which a search may be writing at the same time."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path

import yaml
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial
from pydantic import ValidationError

from planter.data import OLD_FIT
from planter.driver.storage.points import database_url, open_storage
from planter.study.schema import Study


def run_study(run: Path) -> Study:
    """The study of a run folder. Raises ValueError where the folder holds none, or one that this
    planter does not know."""
    file = run / "resolved.yaml"
    if not file.is_file():
        raise ValueError(f"{run} is no run folder: it has no resolved.yaml; expected runs/NAME")
    try:
        return begun_study(file)
    except ValidationError as error:
        keys = ", ".join(".".join(map(str, one["loc"])) for one in error.errors())
        raise ValueError(
            f"{file} is of another version of planter (unknown or missing: {keys}); expected the "
            "version that environment.json names, or a new run of study.yaml"
        ) from None


def begun_study(file: Path) -> Study:
    """The study in a run's resolved.yaml; one of an older planter squashed its images."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    if isinstance(content, dict) and isinstance(data := content.get("data"), dict):
        data.setdefault("fit", OLD_FIT)
    return Study.model_validate(content)


@contextmanager
def opened(run: Path, study: Study) -> Iterator[BaseStorage]:
    """A run's storage, for reading. Raises ValueError where it is not there, or not yet."""
    with _database(run) if study.storage is None else nullcontext(run) as place:
        storage = open_storage(database_url(place, study.storage))
        try:
            yield storage
        finally:
            storage.close()


@contextmanager
def _database(run: Path) -> Iterator[Path]:
    """A folder with the run's study.db: its own, or where that may not be written to one of a copy,
    as SQLite keeps its log beside a database even to read it."""
    file = run / "study.db"
    if not file.is_file():
        raise ValueError(f"{run} has no study.db; expected the database beside resolved.yaml")
    with ExitStack() as stack:
        if not all(os.access(path, os.W_OK) for path in (run, file)):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="planter-")))
            for part in (file, file.with_name(f"{file.name}-wal")):
                if part.is_file():
                    shutil.copyfile(part, folder / part.name)
            file = folder / file.name
        if not _is_made(file):
            raise ValueError(
                f"{run}/study.db is only being made, or locked: expected a search that has begun; "
                "try again"
            )
        yield file.parent


def _is_made(file: Path) -> bool:
    """Whether a database has its tables: who opens one without makes them, under the hands of the
    search that is at it. Optuna makes this one last."""
    last = "SELECT count(*) FROM sqlite_master WHERE name = 'alembic_version'"
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as database:
            return bool(database.execute(last).fetchone()[0])
    except sqlite3.OperationalError:  # locked, or half there
        return False
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{file} is damaged: {error}") from None


def rows_in(storage: BaseStorage, name: str) -> list[FrozenTrial]:
    """The rows of an Optuna study in a storage; none where there is no such study."""
    try:
        return storage.get_all_trials(storage.get_study_id_from_name(name), deepcopy=False)
    except KeyError:
        return []
