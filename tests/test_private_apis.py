"""What planter uses of Optuna and Ray that is not public: each name, and where it is used.

A failure here says which one a new version has taken away or changed, before a search does.
"""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

import planter

BULK = "planter/driver/storage/bulk_insert.py"
PRIVATE = [
    ("optuna.storages.journal._file", "get_lock_file", "planter/driver/storage/points.py"),
    ("optuna.storages._rdb.models", "TrialModel", BULK),
    (
        "optuna.storages._rdb.storage",
        "_create_scoped_session",
        "planter/driver/storage/bulk_insert.py",
    ),
    ("optuna.study._frozen", "FrozenStudy", "planter/driver/dashboard/storage_view.py"),
]


@pytest.mark.parametrize(("module", "name", "used_in"), PRIVATE)
def test_a_private_name_is_there(module, name, used_in):
    version = optuna.__version__
    assert hasattr(importlib.import_module(module), name), f"Optuna {version}: mend {used_in}"


def test_open_rows_are_written_read_and_taken_up():
    """All of planter/driver/storage/open_rows.py, against what Optuna says in public."""
    from planter.driver.storage.open_rows import (
        key_of,
        row_of,
        storage_of,
        take_up,
        write_attributes,
    )

    study = optuna.create_study(study_name="s")
    trial = study.ask()
    drawn = trial.suggest_int("x", 0, 1000)
    write_attributes(study, trial, {"a": 1, "b": [2]})
    row = row_of(study, trial)
    assert row.user_attrs == {"a": 1, "b": [2]} == study.trials[0].user_attrs
    again = take_up(study, row)
    assert again.suggest_int("x", 0, 1000) == drawn
    study.tell(again, 0.5)
    assert [trial.value for trial in study.trials] == [0.5]
    assert storage_of(study).get_study_name_from_id(key_of(study)) == "s"


def test_ray_reads_its_settings_again():
    """What planter/driver/backends/ray_session.py does when Ray was imported before."""
    program = (
        "import os, ray\n"
        "from ray._raylet import Config, AuthenticationMode, AuthenticationTokenLoader\n"
        "from ray._raylet import get_authentication_mode\n"
        "before = get_authentication_mode()\n"
        "os.environ |= {'RAY_AUTH_MODE': 'token', 'RAY_AUTH_TOKEN': '5' * 64}\n"
        "Config.initialize('')\n"
        "AuthenticationTokenLoader.instance().reset_cache()\n"
        "print(before != get_authentication_mode())"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert answer.stdout.strip() == "True"


def test_no_other_file_reaches_for_them():
    """A private name of Optuna's or Ray's stands in the files above alone."""
    root = Path(inspect.getfile(planter)).parent
    allowed = {used_in for _, _, used_in in PRIVATE} | {
        "planter/driver/storage/open_rows.py",
        "planter/driver/storage/retrying.py",  # the storage's own rows, by `_trial_id`
        "planter/driver/backends/ray_session.py",
    }
    reaching = {
        f"planter/{file.relative_to(root)}"
        for file in root.rglob("*.py")
        for line in file.read_text(encoding="utf-8").splitlines()
        if "._trial_id" in line
        or "._study_id" in line
        or "study._storage" in line
        or "_raylet" in line
        or ("optuna" in line and "import" in line and "._" in line)
    }
    assert reaching <= allowed
