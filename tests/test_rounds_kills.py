"""The books of planting's rounds: kills, and other settings when it goes on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage
from test_rounds import LOSSES, RECIPE, Books, Losses, Oracle, counted, plants, study, table

from planter.driver.storage.points import PointBook
from planter.study.schema import Plant, Study


@pytest.fixture(autouse=True, scope="module")
def _counted_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("planter.driver.trials.bounds.cost", counted)
        yield


class Interruption(Exception):
    """Stands for a kill."""


@contextmanager
def killed_at(write: int) -> Iterator[list[str]]:
    """Kills at the n-th write to the storage: before it, or after it with -n."""
    done: list[str] = []
    names = ("set_trial_user_attr", "set_trial_state_values", "create_new_trial")
    before = {name: getattr(InMemoryStorage, name) for name in names}

    def watched(name: str) -> Callable[..., Any]:
        def call(self: InMemoryStorage, *args: Any, **kwargs: Any) -> Any:
            done.append(name)
            if len(done) == write:
                raise Interruption
            result = before[name](self, *args, **kwargs)
            if len(done) == -write:
                raise Interruption
            return result

        return call

    try:
        for name in names:
            setattr(InMemoryStorage, name, watched(name))
        yield done
    finally:
        for name in names:
            setattr(InMemoryStorage, name, before[name])


EVERYTHING = Plant(channels=2, rounds=2, per_round=2, patience=1, finetune=RECIPE, final=RECIPE)


@pytest.mark.parametrize("after", [False, True], ids=["before a write", "after a write"])
@pytest.mark.parametrize("seed", [0, 3])
def test_a_kill_at_any_write_loses_and_doubles_nothing(seed: int, after: bool) -> None:
    asked, losses = Study(name="sim", plant=EVERYTHING), Losses(seed, failures=0.15)
    whole = Oracle(EVERYTHING, losses).table()
    books = Books()
    with killed_at(0) as writes:
        books.finish(books.open(asked, 2), losses)
    assert len(writes) > 40
    for write in range(1 + seed, len(writes) + 1, 2):
        books = Books()
        with pytest.raises(Interruption), killed_at(-write if after else write):
            books.finish(books.open(asked, 2), losses)
        rounds = books.open(asked, 2)
        books.finish(rounds, losses)
        assert table(rounds) == whole, f"killed at write {write}"
        ids = [row.user_attrs["id"] for row in books.rows()]
        assert len(ids) == len(set(ids))
        points = [p.id for p in PointBook(books.storage, "sim").points]
        assert sorted(points) == sorted(set(points))
        assert len(points) == len(whole)


@settings(max_examples=20)
@given(plants(), plants(), LOSSES, st.integers(1, 8))
def test_changed_acceptance_settings_decide_no_old_round_again(
    first: Plant, second: Plant, losses: Losses, jobs: int
) -> None:
    books = Books()
    rounds = books.open(Study(name="sim", plant=first), 2)
    books.finish(rounds, losses, jobs=jobs)
    before = table(rounds)
    second = second.model_copy(update={"rounds": 4})
    rounds = books.open(Study(name="sim", plant=second), 2)
    books.finish(rounds, losses)
    after = table(rounds)
    assert [row for row in after if row in before] == before
    decided = {row.round for row in before if row.layer != "final"}
    assert [r for r in after if r.round in decided and r.layer != "final"] == [
        r for r in before if r.layer != "final"
    ]
    # What the new settings no longer ask for stays open for the day they do; nothing waits for it.
    assert rounds.left() == 0
    assert rounds.next() is None


def test_a_kill_between_two_tells_of_a_round_and_other_settings_decide_it_no_second_time() -> None:
    losses = {"p00-start": 9.0, "p01-conv1": 5.0, "p01-conv2": 4.0, "p01-conv3": 6.0}.get
    books = Books()
    rounds = books.open(study(rounds=1))
    books.finish(rounds, losses, jobs=1)
    tells = itertools.count(1)
    tell = optuna.Study.tell

    def killed(self: optuna.Study, *args: Any, **kwargs: Any) -> Any:
        if next(tells) == 2:
            raise Interruption
        return tell(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optuna.Study, "tell", killed)
        with pytest.raises(Interruption):
            books.finish(rounds, losses)
    books.finish(books.open(study(rounds=1, per_round=3, finetune=RECIPE)), losses)
    assert {row.user_attrs["id"] for row in books.rows()} == {
        "p00-start", "p01-conv1", "p01-conv2", "p01-conv3"
    }  # fmt: skip
    assert [row.user_attrs["accepted"] for row in books.rows()] == [True, False, True, False]


@settings(max_examples=20)
@given(plants(), LOSSES, st.integers(0, 3))
def test_more_rounds_after_the_end_go_on_from_the_last_network_of_the_rounds(
    plant: Plant, losses: Losses, fewer: int
) -> None:
    few = plant.model_copy(update={"rounds": fewer, "final": RECIPE})
    more = few.model_copy(update={"rounds": fewer + 1})
    books = Books()
    books.finish(books.open(Study(name="sim", plant=few)), losses)
    rounds = books.open(Study(name="sim", plant=more))
    books.finish(rounds, losses)
    expected = Oracle(more, losses).table()
    earlier = [row for row in Oracle(few, losses).table() if row.layer == "final"]
    assert [row for row in table(rounds) if row.layer != "final"] == [
        row for row in expected if row.layer != "final"
    ]
    finals = [row for row in table(rounds) if row.layer == "final"]
    assert set(finals) == {*earlier, *(row for row in expected if row.layer == "final")}


def interrupt(*_: Any) -> None:
    raise Interruption


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_more_rounds_while_the_final_training_is_open_still_train_every_candidate(
    workers: int,
) -> None:
    losses = Losses(1, fall=1.0)
    books = Books()
    rounds = books.open(study(rounds=1, final=RECIPE))
    books.finish(rounds, losses, jobs=2)
    job = rounds.next()
    assert job is not None
    assert job.id == "p02-final"  # and the driver is killed
    more = study(rounds=2, final=RECIPE)
    assert more.plant is not None
    rounds = books.open(more, workers)
    books.finish(rounds, losses)
    assert table(rounds) == Oracle(more.plant, losses).table()
    states = {row.user_attrs["id"]: row.state.name for row in books.rows()}
    assert states.pop("p02-final") == "PRUNED"
    assert set(states.values()) == {"COMPLETE"}
    assert rounds.failed() == 0


def test_more_rounds_after_a_kill_behind_the_final_training_keep_its_network() -> None:
    losses = Losses(1, fall=1.0)
    books = Books()
    books.finish(books.open(study(rounds=1, final=RECIPE)), losses, jobs=2)
    rounds = books.open(study(rounds=1, final=RECIPE))
    job = rounds.next()
    assert job is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("planter.driver.proposers.planting.write_attributes", interrupt)
        with pytest.raises(Interruption):
            rounds.finish(job, books.networks.outcome(job, losses))
    rounds = books.open(study(rounds=2, final=RECIPE))
    books.finish(rounds, losses)
    assert {"p02-final/base", "p03-final/base"} <= {
        point.id for point in PointBook(books.storage, "sim").points
    }
    assert all(row.state.is_finished() for row in books.rows())


def test_fewer_rounds_than_are_open_end_with_those_asked_for() -> None:
    losses = Losses(1, fall=1.0)
    books = Books()
    books.finish(books.open(study(rounds=2, final=RECIPE)), losses, jobs=2)
    fewer = study(rounds=1, final=RECIPE)
    assert fewer.plant is not None
    rounds = books.open(fewer)
    books.finish(rounds, losses)
    assert table(rounds) == Oracle(fewer.plant, losses).table()
    more = study(rounds=2, final=RECIPE)
    assert more.plant is not None
    rounds = books.open(more)
    books.finish(rounds, losses)
    rows = [row for row in table(rounds) if row.layer != "final"]
    assert rows == [row for row in Oracle(more.plant, losses).table() if row.layer != "final"]
