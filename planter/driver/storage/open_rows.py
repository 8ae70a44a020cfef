"""Rows of an Optuna study while they are open: attributes written, read again, taken up again.

Optuna has no public way to write to a row but the Trial that asked for it, and that is gone after a
restart. All of its private names that rows need stand here; tests/test_private_apis.py tells which
one a new version has taken away.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial


def storage_of(study: Study) -> BaseStorage:
    """What a study is kept in."""
    return study._storage


def key_of(study: Study) -> int:
    """A study's number in its storage."""
    return study._study_id


def write_attributes(study: Study, row: FrozenTrial | Trial, attributes: Mapping[str, Any]) -> None:
    """Writes user attributes of an open row, one after another."""
    for name, value in attributes.items():
        study._storage.set_trial_user_attr(row._trial_id, name, value)


def row_of(study: Study, trial: Trial) -> FrozenTrial:
    """A trial's row as it is written."""
    return study._storage.get_trial(trial._trial_id)


def take_up(study: Study, row: FrozenTrial) -> Trial:
    """The trial of an open row, as if it had just been asked for: what was drawn stays drawn."""
    return Trial(study, row._trial_id)
