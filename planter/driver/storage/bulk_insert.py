"""Adding finished rows to a database of Optuna's in a few statements."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial
from sqlalchemy import func, insert, select


def add_rows(storage: RDBStorage, study_id: int, rows: Sequence[FrozenTrial]) -> None:
    """Adds finished rows to a study, all or none, as `Study.add_trial` does one after another; that
    takes some fifty statements a row, where this takes one a table."""
    with _create_scoped_session(storage.scoped_session) as session:
        models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
        of_study = models.TrialModel.study_id == study_id
        first = session.execute(select(func.count()).where(of_study)).scalar_one()
        made = [
            models.TrialModel(
                study_id=study_id,
                number=first + place,
                state=row.state,
                datetime_start=row.datetime_start,
                datetime_complete=row.datetime_complete,
            )
            for place, row in enumerate(rows)
        ]
        session.add_all(made)
        session.flush()
        ids = [int(trial.trial_id) for trial in made]
        for model, entries in _entries(rows).items():
            filled = [{"trial_id": ids[place], **entry} for place, entry in entries]
            if filled:
                session.execute(insert(model), filled)


def _entries(rows: Sequence[FrozenTrial]) -> dict[Any, list[tuple[int, dict[str, Any]]]]:
    """What stands in the other tables, by table: the row's place and the columns."""
    values: list[tuple[int, dict[str, Any]]] = []
    params: list[tuple[int, dict[str, Any]]] = []
    user: list[tuple[int, dict[str, Any]]] = []
    system: list[tuple[int, dict[str, Any]]] = []
    for place, row in enumerate(rows):
        for objective, value in enumerate(row.values or []):
            stored, kind = models.TrialValueModel.value_to_stored_repr(value)
            values.append((place, {"objective": objective, "value": stored, "value_type": kind}))
        for name, value in row.params.items():
            distribution = row.distributions[name]
            entry = {
                "param_name": name,
                "param_value": distribution.to_internal_repr(value),
                "distribution_json": distribution_to_json(distribution),
            }
            params.append((place, entry))
        for found, attributes in ((user, row.user_attrs), (system, row.system_attrs)):
            for key, value in attributes.items():
                found.append((place, {"key": key, "value_json": json.dumps(value)}))
    return {
        models.TrialValueModel: values,
        models.TrialParamModel: params,
        models.TrialUserAttributeModel: user,
        models.TrialSystemAttributeModel: system,
    }
