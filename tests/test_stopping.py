"""Early stopping in a search: what is trained, what the books say, what an interruption costs."""

import json
import shutil

import pytest
from interrupted import until_it_ends
from test_driver import Interruption, rows, write_study

import planter
from planter.driver.backends import local
from planter.driver.run_folder.read import points_in, stopped_in
from planter.driver.schedule import Schedule
from planter.driver.storage.reading import opened, run_study
from planter.front.history import history

EPOCHS, TRIALS = 8, 12
STOPPING = "sample.early_stopping={rungs: [0.25, 0.5], keep: 0.5, wait: 4}"


def overrides(*more):
    """Sampled trials alone, whose parameters depend on nothing but their numbers."""
    return [
        "plant=null", "baselines=[]", f"sample.trials={TRIALS}", f"recipe.epochs={EPOCHS}",
        "sample.sampler=random", "teacher.recipe={epochs: 1, batch: 60}", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopping")
    write_study(folder)
    return folder


@pytest.fixture(scope="module")
def full(place):
    """The same trials, all trained to their end."""
    return planter.search(place / "small.yaml", out=place / "full", overrides=overrides())


@pytest.fixture(scope="module")
def stopped(place):
    return planter.search(
        place / "small.yaml", out=place / "stopped", overrides=overrides(STOPPING)
    )


def test_the_report_counts_what_was_stopped(place, stopped):
    run = place / "stopped"
    page = (run / "report.html").read_text(encoding="utf-8")
    number = stopped["cost"]["unfinished"]
    assert f"<td>stopped early, failed or under way</td><td class=n>{number}</td>" in page
    study = run_study(run)
    with opened(run, study) as storage:
        left = stopped_in(storage, study.name)
        steps = history(points_in(storage, study.name), [0.1, 1e9], {}, left)
    assert len(left) == number > 0
    assert len(steps) == stopped["cost"]["trials"]
    assert steps[-1].train_macs == stopped["cost"]["train_macs"]


def test_what_was_stopped_still_counts_in_a_study_that_no_longer_stops(place, stopped, tmp_path):
    shutil.copytree(place / "stopped", tmp_path / "run")
    more = overrides(f"sample.trials={TRIALS + 1}")
    found = planter.search(
        place / "small.yaml", out=tmp_path / "run", overrides=more, accept_changes=True
    )
    assert found["cost"]["unfinished"] == stopped["cost"]["unfinished"]


def sampled(front):
    return {p["id"]: p for p in front["points"] if p["method"] == "sample"}


def states(run):
    return {f"s{row.number:04d}": row for row in rows(run, "small/sampling")}


def epochs_of(run):
    """Epochs trained, as each trial's learning curve has them."""
    curves = {f.parent.name: f for f in (run / "trials").glob("s*/metrics.jsonl")}
    return {trial: len(file.read_text().splitlines()) for trial, file in curves.items()}


def assert_books_are_closed(run, front):
    by_id = states(run)
    assert sorted(by_id) == [f"s{number:04d}" for number in range(TRIALS)]
    assert {row.state.name for row in by_id.values()} == {"COMPLETE", "PRUNED"}
    complete = {trial for trial, row in by_id.items() if row.state.name == "COMPLETE"}
    assert {point["trial"] for point in sampled(front).values()} == complete
    assert not list((run / "trials").glob("*/checkpoint.pt"))
    return complete


def test_what_went_on_is_bit_for_bit_what_it_is_without_stopping(place, full, stopped):
    complete = assert_books_are_closed(place / "stopped", stopped)
    whole, part = sampled(full), sampled(stopped)
    assert 0 < len(complete) < TRIALS
    assert {p["trial"] for p in whole.values()} == set(states(place / "stopped"))
    for name, point in part.items():
        for key in ("accuracy", "macs", "params", "train_macs"):
            assert point[key] == whole[name][key]


def test_trainings_end_at_the_rungs_that_the_books_name(place, stopped):
    lengths = epochs_of(place / "stopped")
    for trial, row in states(place / "stopped").items():
        partial = json.loads(row.user_attrs["partial"])
        assert [each["epochs"] for each in partial] == [2, 4][: len(partial)]
        if row.state.name == "COMPLETE":
            assert (lengths[trial], row.user_attrs["climbed"]) == (EPOCHS, 2)
        else:
            assert lengths[trial] == partial[-1]["epochs"]
            assert row.values is None
            assert row.user_attrs.get("climbed", 0) == len(partial) - 1
    # With keep 0.5, 12 trials of 2 epochs, 6 of 2 more, 3 of 4 more, and some let on too early.
    assert 12 * 2 + 6 * 2 + 3 * 4 <= sum(lengths.values()) <= 0.75 * TRIALS * EPOCHS


def test_partial_results_are_what_a_training_of_so_many_epochs_scores(place, stopped):
    """Under a constant rate the first two epochs of eight are those of two."""
    flat = ["recipe.schedule=constant", "recipe.lr=0.003"]
    long = overrides(STOPPING, *flat)
    planter.search(place / "small.yaml", out=place / "flat", overrides=long)
    short = overrides(*flat, "recipe.epochs=2")
    alone = planter.search(place / "small.yaml", out=place / "short", overrides=short)
    found = sampled(alone)
    for trial, row in states(place / "flat").items():
        first = json.loads(row.user_attrs["partial"])[0]
        for fields in first["points"]:
            assert fields["accuracy"] == found[f"{trial}/{fields['pipeline']}"]["accuracy"]
            assert first["train_macs"] == found[f"{trial}/{fields['pipeline']}"]["train_macs"]


def test_a_front_says_what_stopped_trainings_took(place, full, stopped):
    lengths = epochs_of(place / "stopped")
    per_epoch = {p["trial"]: p["train_macs"] / EPOCHS for p in sampled(full).values()}
    teacher = next(p["train_macs"] for p in stopped["points"] if p["method"] == "teacher")
    taken = teacher + sum(per_epoch[trial] * epochs for trial, epochs in lengths.items())
    complete = {p["trial"] for p in sampled(stopped).values()}
    assert stopped["cost"]["trials"] == 1 + TRIALS
    assert stopped["cost"]["unfinished"] == TRIALS - len(complete)
    assert stopped["cost"]["train_macs"] == pytest.approx(taken)
    assert full["cost"]["unfinished"] == 0


@pytest.mark.parametrize("where", ["run_job", "compare"])
def test_an_interrupted_search_stops_and_continues_the_same_trainings(
    place, tmp_path, stopped, monkeypatch, where
):
    """Before a training, or between its partial result and what follows from it; every third."""
    place_of = {"run_job": local, "compare": Schedule}[where]
    method, calls = getattr(place_of, where), []

    def killed(self, *arguments):
        calls.append(arguments)
        end = len(calls) % 3 == 0
        if where == "compare":
            found = method(self, *arguments)
            if end:
                raise Interruption
            return found
        if end:
            raise Interruption
        return method(self, *arguments)

    monkeypatch.setattr(place_of, where, killed)
    study, run = place / "small.yaml", tmp_path / "run"
    front = until_it_ends(
        lambda: planter.search(study, out=run, overrides=overrides(STOPPING)), 5, Interruption
    )
    assert_books_are_closed(run, front)
    assert front["points"] == stopped["points"]
    assert epochs_of(run) == epochs_of(place / "stopped")
    assert front["cost"]["train_macs"] == stopped["cost"]["train_macs"]


def test_a_spent_budget_leaves_trainings_waiting_and_more_of_it_ends_them(place, stopped, tmp_path):
    study, run = place / "small.yaml", tmp_path / "run"
    half = stopped["cost"]["train_macs"] // 2
    front = planter.search(
        study, out=run, overrides=overrides(STOPPING, f"budget.train_macs={half}")
    )
    # None begins that would take more than is left; those that had begun are compared and go on.
    assert 0 < front["cost"]["train_macs"] < stopped["cost"]["train_macs"]
    assert any(row.state.name == "RUNNING" for row in states(run).values())
    assert list((run / "trials").glob("*/checkpoint.pt"))
    whole = planter.search(study, out=run, overrides=overrides(STOPPING))
    assert_books_are_closed(run, whole)
    assert whole["points"] == stopped["points"]


def test_families_are_compared_by_what_they_cover(place, tmp_path):
    run = tmp_path / "run"
    more = overrides(STOPPING, "objectives.family=true")
    front = planter.search(place / "small.yaml", out=run, overrides=more)
    assert_books_are_closed(run, front)
    assert front["family"]["hypervolume"] == pytest.approx(front["hypervolume"], abs=1)


@pytest.mark.parametrize(
    "wrong",
    ["{rungs: []}", "{rungs: [0.5, 0.25]}", "{rungs: [1.0]}", "{keep: 1.0}", "{wait: 0}", "{k: 1}"],
)
def test_ladders_that_cannot_be_climbed_are_refused(place, wrong):
    from planter.study.file import read_study

    with pytest.raises(ValueError, match=r"sample\.early_stopping"):
        read_study(place / "small.yaml", [f"sample.early_stopping={wrong}"])


@pytest.mark.long
def test_workers_stop_and_go_on_as_the_driver_says(place, full, tmp_path):
    """Which trainings go on depends on which came first; what they give does not."""
    run = tmp_path / "run"
    more = overrides(STOPPING, "resources.workers=2")
    front = planter.search(place / "small.yaml", out=run, overrides=more)
    complete = assert_books_are_closed(run, front)
    whole = sampled(full)
    assert len(complete) < TRIALS
    for name, point in sampled(front).items():
        assert point["accuracy"] == whole[name]["accuracy"]
    assert sum(epochs_of(run).values()) < 0.8 * TRIALS * EPOCHS
