"""Early stopping of children: who is stopped, what the books say, what an interruption costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from interrupted import interrupt_around_jobs, interrupted_later_and_later
from test_evolving import STUDY, children, without_seconds

import planter
from planter.driver.proposers import early_stopping, evolving
from planter.driver.run_folder.read import points_in, stopped_in
from planter.driver.storage.points import PointBook
from planter.driver.storage.reading import opened, run_study
from planter.driver.tasks import evolved
from planter.front.halving import by_aim, by_rank
from planter.front.history import history
from planter.front.points import read_front
from planter.study.file import StudyFile

TRIALS, EPOCHS = 8, 4
STOPPING = "evolve.early_stopping={rungs: [0.25, 0.5], keep: 0.5, wait: 2}"
RECIPE = f"evolve.recipe={{epochs: {EPOCHS}, batch: 50, optimizer: adam, lr: 0.01}}"
MORE = [f"evolve.trials={TRIALS}", RECIPE, "evolve.shrink_rules=[even, taylor]",
        "evolve.edits=[shrink, cut, go_on]"]  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("stopped") / "kin.yaml"
    file.write_text(STUDY)
    return file


@pytest.fixture(scope="module")
def stopped(study: Path) -> tuple[Path, dict[str, Any]]:
    run = study.parent / "stopped"
    return run, planter.search(study, out=run, overrides=[*MORE, STOPPING])


def rows(run: Path) -> dict[str, optuna.trial.FrozenTrial]:
    """Those of children; draws that were passed over have none."""
    storage = f"sqlite:///{run}/study.db"
    found = optuna.load_study(study_name="kin/evolve", storage=storage).trials
    return {f"e{row.number:04d}": row for row in found if "offspring" in row.user_attrs}


def rungs_of(row: optuna.trial.FrozenTrial) -> list[dict[str, Any]]:
    return list(json.loads(row.user_attrs.get("partial", "[]")))


def epochs_of(run: Path) -> dict[str, int]:
    curves = (run / "trials").glob("e*/metrics.jsonl")
    return {file.parent.name: len(file.read_text().splitlines()) for file in curves}


def test_children_are_stopped_on_rungs_and_the_others_go_on(stopped):
    run, found = stopped
    born, lengths = rows(run), epochs_of(run)
    assert len(born) == TRIALS
    states = {name: row.state.name for name, row in born.items()}
    assert set(states.values()) == {"COMPLETE", "PRUNED"}
    assert {p["trial"] for p in children(found)} == {n for n, s in states.items() if s[0] == "C"}
    for name, row in born.items():
        partial = rungs_of(row)
        assert [one["epochs"] for one in partial] == [1, 2][: len(partial)]
        if states[name] == "COMPLETE":
            assert (lengths[name], row.user_attrs["climbed"]) == (EPOCHS, 2)
        else:
            assert lengths[name] == partial[-1]["epochs"] < EPOCHS
            assert row.user_attrs.get("climbed", 0) == len(partial) - 1
            assert "passed_over" not in row.user_attrs
    assert sum(lengths.values()) < TRIALS * EPOCHS


def test_a_stopped_child_is_nobodys_parent_and_leaves_no_weights(stopped):
    run, found = stopped
    gone = {name for name, row in rows(run).items() if row.state.name == "PRUNED"}
    assert gone
    assert not gone & {p["parent"].partition("/")[0] for p in children(found)}
    assert not any((run / "models" / name).exists() for name in gone)
    assert not list((run / "trials").rglob("checkpoint.pt"))


def test_what_stopped_children_took_counts(stopped):
    run, found = stopped
    own = {p["trial"]: p["train_macs"] for p in found["points"]}
    left = 0
    for row in rows(run).values():
        if row.state.name == "PRUNED":
            (point,) = rungs_of(row)[-1]["points"]
            edits = json.loads(row.user_attrs["offspring"])["edits"]
            parent = json.loads(row.user_attrs["offspring"])["parent"]
            passes = 3 if edits[0].get("rule") == "taylor" else 0
            macs = {p["id"]: p["macs"] for p in found["points"]}
            took = 3 * point["macs"] * 150 * rungs_of(row)[-1]["epochs"]
            left += took + passes * macs[parent] * 150
    assert left > 0
    assert found["cost"]["train_macs"] == sum(own.values()) + left
    assert found["cost"]["unfinished"] == TRIALS - len(children(found))
    settings = run_study(run)
    with opened(run, settings) as storage:
        steps = history(
            points_in(storage, "kin"), [0.1, 1e9], {}, stopped_in(storage, settings.name)
        )
    assert steps[-1].train_macs == found["cost"]["train_macs"]


def test_who_goes_on_is_least_behind_its_aim(stopped):
    """On the last rung that anybody was stopped on, everybody behind the best half was."""
    run, _ = stopped
    born = rows(run)
    reached = {n: rungs_of(r)[0]["points"][0]["accuracy"] for n, r in born.items() if rungs_of(r)}
    ahead = {
        name: accuracy - json.loads(born[name].user_attrs["offspring"])["accuracy"]
        for name, accuracy in reached.items()
    }
    best = max(ahead, key=lambda name: ahead[name])
    assert born[best].user_attrs["climbed"] >= 1
    worst = min(ahead, key=lambda name: ahead[name])
    assert born[worst].user_attrs.get("climbed", 0) == 0


def test_a_child_that_went_on_is_bit_for_bit_what_it_is_without_rungs(study, tmp_path):
    """One that nobody is compared with, on two rungs: its weights are those of one training."""
    alone = ["evolve.trials=1", RECIPE, "evolve.edits=[shrink]", "evolve.shrink_rules=[taylor]"]
    once = planter.search(study, out=study.parent / "once", overrides=alone)
    again = planter.search(study, out=study.parent / "again", overrides=[*alone, STOPPING])
    (first,), (second,) = children(once), children(again)
    assert first == second
    weights = [
        (study.parent / at / first["model"] / "weights.safetensors").read_bytes()
        for at in ("once", "again")
    ]
    assert weights[0] == weights[1]


def test_an_edit_is_not_measured_again_on_each_rung(study, monkeypatch):
    counted, apply_all = [], evolved.apply_all

    def counting(*arguments: Any) -> Any:
        counted.append(arguments)
        return apply_all(*arguments)

    monkeypatch.setattr(evolved, "apply_all", counting)
    alone = ["evolve.trials=1", RECIPE, STOPPING]
    planter.search(study, out=study.parent / "counted", overrides=alone)
    assert len(counted) == 1


def test_a_kill_before_and_after_every_job_changes_nothing(study, stopped, monkeypatch):
    run, (_, found) = study.parent / "killed", stopped
    left = interrupt_around_jobs(monkeypatch, list(rows(stopped[0])))
    for _ in range(len(left)):
        with pytest.raises(KeyboardInterrupt):
            planter.search(study, out=run, overrides=[*MORE, STOPPING])
    assert left == []
    again = planter.search(study, out=run, overrides=[*MORE, STOPPING])
    assert without_seconds(again) == without_seconds(found)


def test_a_kill_at_any_write_of_the_books_loses_and_doubles_nothing(study, stopped):
    """The writes of decisions, rungs, results, told values and points, one after another."""
    run, (_, found) = study.parent / "written", stopped
    books = (
        (evolving, "write_attributes"),
        (early_stopping, "write_attributes"),
        (evolving, "write_result"),
        (optuna.Study, "tell"),
        (optuna.Study, "ask"),
        (PointBook, "add"),
    )
    again = interrupted_later_and_later(
        lambda: planter.search(study, out=run, overrides=[*MORE, STOPPING]), *books, least=8
    )
    assert without_seconds(again) == without_seconds(found)


def test_a_spent_budget_leaves_children_waiting_and_more_of_it_ends_them(study, stopped):
    run, (_, found) = study.parent / "budget", stopped
    most = found["cost"]["train_macs"] - 1
    part = planter.search(study, out=run, overrides=[*MORE, STOPPING, f"budget.train_macs={most}"])
    assert 0.5 * most < part["cost"]["train_macs"] <= most
    assert part["cost"]["unfinished"] > 0
    assert any(row.state.name == "RUNNING" for row in rows(run).values())
    whole = planter.search(study, out=run, overrides=[*MORE, STOPPING])
    assert {row.state.name for row in rows(run).values()} == {"COMPLETE", "PRUNED"}
    assert len(rows(run)) == TRIALS
    assert whole["cost"]["unfinished"] == TRIALS - len(children(whole))


def test_a_chain_of_halves_is_no_front_of_equals():
    """By rank the last, smallest one would be stopped; by its aim the one that fell short is."""
    chain = {"a": [(0.9, 8.0)], "b": [(0.7, 4.0)], "c": [(0.8, 2.0)], "d": [(0.75, 1.0)]}
    aims = {"a": 0.92, "b": 0.88, "c": 0.84, "d": 0.78}
    assert by_aim(chain, aims, 4) == ["a", "d", "c", "b"]
    assert by_aim({**chain, "beyond": []}, {**aims, "beyond": 0.0}, 2) == ["a", "d"]
    falling = {name: [(0.9 - 0.02 * i, 8.0 / 2**i)] for i, name in enumerate("abcd")}
    assert by_rank(falling, 3) == ["a", "b", "c"]
    assert by_aim(falling, {"a": 0.9, "b": 0.89, "c": 0.87, "d": 0.83}, 2) == ["d", "a"]


def test_the_teachers_answers_are_paid_for_once_though_the_first_child_only_waits(study):
    """Two views of every image: none of the children after the first is told to need them."""
    run = study.parent / "pool"
    pool = RECIPE.replace("0.01}", "0.01, augment: {crop: 1, views: 2}}")
    planter.search(study, out=run, overrides=["evolve.trials=4", pool, STOPPING])
    told = [json.loads(row.user_attrs["offspring"]) for row in rows(run).values()]
    teacher = next(p for p in read_front(run)["points"] if p["method"] == "teacher")
    answers = 2 * 150 * teacher["macs"]
    own = [one["train_macs"] - 3 * one["macs"] * 150 * EPOCHS for one in told]
    assert own[0] == pytest.approx(answers, rel=0.01)
    assert all(more < answers / 2 for one, more in zip(told[1:], own[1:], strict=True)
               if one["edits"][0].get("rule") == "even")  # fmt: skip


@pytest.mark.parametrize("wrong", ["{rungs: []}", "{keep: 1.0}", "{k: 1}"])
def test_ladders_that_cannot_be_climbed_are_refused(study, wrong):
    with pytest.raises(ValueError, match=r"evolve\.early_stopping"):
        StudyFile.of(study).study([f"evolve.early_stopping={wrong}"])
