"""Planting in the driver: kills, and going on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from interrupted import interrupt_around_jobs
from test_driver_planting import (
    FINETUNE,
    books,
    log_of,
    make_study,
    new_run,
    points_of,
    same_books,
)

import planter
from planter.driver.progress import Progress
from planter.driver.tasks.context import Context
from planter.planting import round as fast_round
from planter.training import loop as train

study_file = pytest.fixture(scope="module")(make_study)
run = pytest.fixture(new_run)


EVERYTHING = [
    "plant.layers=[conv1, conv2, conv3]",
    "plant.per_round=2",
    "plant.kernels=kflo:2x2",
    f"plant.finetune={FINETUNE[:-1]}, augment: {{crop: 1, views: 2}}}}",
    "plant.final={epochs: 3, batch: 20, optimizer: sgd, lr: 0.003}",
]


STAGES = ["teacher", "p00-start", "p01-conv1", "p01-grown", "p02-conv1", "p02-grown", "p03-final"]


@pytest.fixture(scope="module")
def whole(study_file: Path) -> Path:
    """What the study with every stage finds when nothing interrupts it."""
    run = study_file.parent / "whole"
    planter.search(study_file, out=run, overrides=EVERYTHING)
    rows = {row["id"] for row in log_of(run)}
    assert {name for name in rows if "grown" in name} == {"p01-grown", "p02-grown"}
    assert "p03-final" in rows
    return run


def test_a_kill_before_and_after_every_job_changes_nothing(
    study_file: Path, whole: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = interrupt_around_jobs(monkeypatch, STAGES)
    for _ in range(len(left)):
        with pytest.raises(KeyboardInterrupt):
            planter.search(study_file, out=run, overrides=EVERYTHING)
    assert left == []
    planter.search(study_file, out=run, overrides=EVERYTHING)
    same_books(whole, run)
    assert points_of(run) == points_of(whole)


def test_a_training_of_any_stage_cut_off_in_the_middle_goes_on_from_its_last_epoch(
    study_file: Path, whole: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_CHECKPOINT_EVERY_S", -1.0)
    monkeypatch.setattr(fast_round, "_CHECKPOINT_EVERY_S", -1.0)
    metrics, end_epoch = Context.metrics, fast_round._Student.end_epoch
    left = {name: 2 for name in STAGES if "conv" not in name and name != "teacher"}
    rounds = [1, 2]

    def cut_off(self: Context, trial: str, *args: Any) -> Callable[[Any], None]:
        note = metrics(self, trial, *args)

        def noted(epoch: Any) -> None:
            note(epoch)
            if left.get(trial) == epoch.epoch:
                del left[trial]
                raise KeyboardInterrupt

        return noted

    def cut_off_plants(self: Any, epoch: int, *args: Any) -> None:
        if epoch == 1 and rounds and (run / "trials" / f"p{rounds[0]:02d}-conv1").is_dir():
            rounds.pop(0)
            raise KeyboardInterrupt
        end_epoch(self, epoch, *args)

    monkeypatch.setattr(Context, "metrics", cut_off)
    monkeypatch.setattr(fast_round._Student, "end_epoch", cut_off_plants)
    stages = len(left) + len(rounds)
    for _ in range(stages):
        with pytest.raises(KeyboardInterrupt):
            planter.search(study_file, out=run, overrides=EVERYTHING)
    assert (left, rounds) == ({}, [])
    planter.search(study_file, out=run, overrides=EVERYTHING)
    same_books(whole, run)
    for name in STAGES[1:]:
        assert "taken up after epoch 1" in (run / "trials" / name / "log.txt").read_text(), name
    assert not list(run.rglob("checkpoint*.pt"))


def test_more_rounds_go_on_from_the_last_network_of_the_rounds(
    study_file: Path, whole: Path, run: Path
) -> None:
    planter.search(study_file, out=run, overrides=[*EVERYTHING, "plant.rounds=1"])
    one = log_of(run)
    assert one[-1]["id"] == "p02-final"
    assert one[-1]["accepted"], "no subject: an end that is accepted"
    planter.search(study_file, out=run, overrides=EVERYTHING)
    last = [row for row in one if row["accepted"]][-2]
    assert books(run)["p02-conv1"].user_attrs["parent"] == last["id"]
    # But for the first end, all is as if two rounds had been asked for at once.
    assert [row for row in log_of(run) if row["id"] != "p02-final"] == log_of(whole)
    assert one[-1] in log_of(run)


def test_changed_acceptance_settings_hold_for_new_rounds_alone(study_file: Path, run: Path) -> None:
    first = ["plant.rounds=1", "plant.layers=[conv1, conv5]"]
    planter.search(study_file, out=run, overrides=first)
    before = log_of(run)
    second = ["plant.rounds=2", first[1], "plant.accept=loss_per_mac", "plant.per_round=2"]
    more = [*second, f"plant.finetune={FINETUNE}"]
    planter.search(study_file, out=run, overrides=more, accept_changes=True)
    after = log_of(run)
    assert after[: len(before)] == before
    assert {row["round"] for row in after[len(before) :]} == {2}
    assert "p02-grown" in {row["id"] for row in after}
    assert "p01-grown" not in books(run)


def test_models_are_kept_as_long_as_planting_reads_them(
    study_file: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each step: the front, the teacher, the last accepted, the open round and its parent."""
    # On a busy machine the folder would be brought up to the books later than after each step.
    monkeypatch.setattr("planter.driver.run_folder.documents._SHARE_OF_WRITING", 1e9)
    seen = []

    def look(progress: Progress) -> None:
        if progress.kind != "done":
            return
        there = {f"{f.parent.name}/{f.name}" for f in (run / "models").glob("*/*") if f.is_dir()}
        rows = books(run)
        opened = {n for n, row in rows.items() if "result" in row.user_attrs}
        opened = {n for n in opened if not rows[n].state.is_finished()}
        # Of a share that is booked trial by trial some may be there that are not booked yet.
        waiting = {n for n, row in rows.items() if not row.state.is_finished()}
        accepted = [n for n, row in rows.items() if row.user_attrs.get("accepted")]
        parents = {rows[n].user_attrs["parent"] for n in waiting} - {None}
        front = {point.id for point in progress.front}
        must = front | {f"{n}/base" for n in opened | parents | set(accepted[-1:])}
        assert must <= there
        may = must | {"teacher/base"} | {f"{n}/base" for n in waiting}
        if accepted:
            rounds = [n for n in accepted if not n.endswith("final")]
            may |= {f"{rounds[-1]}/base"}
        assert there <= may, progress.event
        seen.append(len(there))

    front = planter.search(study_file, out=run, overrides=EVERYTHING, observe=look)
    assert len(seen) == 1 + 1 + 3 + 1 + 3 + 1 + 1
    rows = log_of(run)
    accepted = [row["id"] for row in rows if row["accepted"]]
    kept = {point["trial"] for point in front["points"] if point["model"]}
    wanted = {point["trial"] for point in front["points"] if point["on_front"]}
    wanted |= {"teacher", accepted[-1], [n for n in accepted if "final" not in n][-1]}
    assert kept == wanted
    assert len(kept) < len(front["points"])
