"""Rows written and read in few statements, beside Optuna's own way."""

from contextlib import closing
from datetime import datetime
from math import inf

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from planter.driver.storage import retrying
from planter.driver.storage.points import METRICS, open_storage, open_study

FIELDS = (
    "number", "state", "values", "params", "distributions", "user_attrs", "system_attrs",
    "intermediate_values",
)  # fmt: skip


def some_rows():
    distributions = {
        "width": IntDistribution(1, 64, log=True),
        "cut": CategoricalDistribution(["none", None, True, 2]),
        "rate": FloatDistribution(0.0, 1.0),
    }
    for number, cut in enumerate(["none", None, True, 2]):
        yield optuna.trial.create_trial(
            values=[0.25 * number, inf if number == 1 else 1000.0],
            params={"width": 8 + number, "cut": cut, "rate": 0.125},
            distributions=distributions,
            user_attrs={"id": f"s{number:04d}/base", "widths": {"conv1": 4}},
            constraints={"macs": -0.5},
        )
    yield optuna.trial.create_trial(state=TrialState.PRUNED, user_attrs={"refused": True})


def facts(row):
    return {field: getattr(row, field) for field in FIELDS}


@pytest.fixture(params=["sqlite:///{}/study.db", "journal:///{}/study.log"])
def url(request, tmp_path):
    return request.param.format(tmp_path)


def test_rows_added_together_are_what_optuna_adds_one_by_one(url):
    with closing(open_storage(url, alone=True)) as storage:
        ours, theirs = (open_study(storage, name, METRICS) for name in ("ours", "theirs"))
        for study in (ours, theirs):
            study.ask()
        for batch in (list(some_rows()), [], list(some_rows())):
            storage.add_finished(ours._study_id, batch)
            theirs.add_trials(batch)
        found, expected = ours.get_trials(), theirs.get_trials()
    assert len(found) == 11
    for row, other in zip(found[1:], expected[1:], strict=True):
        assert facts(row) == facts(other)
        assert isinstance(row.datetime_complete, datetime)


@pytest.mark.parametrize("written", [True, False])
def test_rows_whose_answer_was_lost_are_there_once(tmp_path, monkeypatch, written):
    monkeypatch.setattr(retrying, "_FIRST_PAUSE_S", 0.0)
    add, calls = retrying.add_rows, []

    def lossy(*given):
        calls.append(given)
        if len(calls) == 1 and not written:
            raise retrying.StorageAwayError("connection lost")
        add(*given)
        if len(calls) == 1:
            raise retrying.StorageAwayError("connection lost")

    monkeypatch.setattr(retrying, "add_rows", lossy)
    with closing(open_storage(f"sqlite:///{tmp_path / 'study.db'}", alone=True)) as storage:
        study = open_study(storage, "small", METRICS)
        storage.add_finished(study._study_id, list(some_rows()))
        assert len(study.get_trials()) == 5
    assert len(calls) == (1 if written else 2)


def test_who_writes_alone_reads_what_any_other_reads(url):
    with closing(open_storage(url, alone=True)) as storage, closing(open_storage(url)) as other:
        study, second = (open_study(storage, name, METRICS) for name in ("one", "two"))

        def agree():
            for name in ("one", "two"):
                seen = open_study(other, name, METRICS).get_trials()
                mine = open_study(storage, name, METRICS).get_trials(deepcopy=False)
                assert [facts(row) for row in mine] == [facts(row) for row in seen]

        agree()
        trial = study.ask()
        agree()
        trial.suggest_int("width", 1, 9)
        agree()
        trial.set_user_attr("id", "one")
        agree()
        trial.set_constraint("macs", -1.0)
        agree()
        second.add_trial(next(some_rows()))
        agree()
        study.tell(trial, [0.5, 100])
        agree()
        assert [row.state for row in study.get_trials(states=[TrialState.FAIL])] == []
        assert len(study.get_trials(states=[TrialState.COMPLETE])) == 1


def test_who_writes_alone_reads_once_after_a_write(tmp_path, monkeypatch):
    with closing(open_storage(f"sqlite:///{tmp_path / 'study.db'}", alone=True)) as storage:
        study = open_study(storage, "small", METRICS)
        read, calls = storage._storage.get_all_trials, []
        monkeypatch.setattr(
            storage._storage, "get_all_trials", lambda *a, **k: calls.append(a) or read(*a, **k)
        )
        trial = study.ask()
        before = len(calls)
        for _ in range(3):
            study.get_trials()
        trial.set_user_attr("id", "one")
        for _ in range(3):
            study.get_trials()
        assert len(calls) == before + 2


def test_what_a_caller_does_to_rows_it_read_stays_with_it(tmp_path):
    with closing(open_storage(f"sqlite:///{tmp_path / 'study.db'}", alone=True)) as storage:
        study = open_study(storage, "small", METRICS)
        study.ask()
        study.get_trials()[0].params["width"] = 3
        study.get_trials(deepcopy=False).clear()
        (row,) = study.get_trials()
        assert row.params == {}
