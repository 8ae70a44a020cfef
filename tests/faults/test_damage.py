"""Files cut short while a search was stopped, and what is left of killed workers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_study import assert_whole, rows, write_study

import planter
from planter.driver.backends import local
from planter.driver.trials.jobs import SearchStoppedError
from planter.networks import checkpoint
from planter.planting import round as fast_round
from planter.training import loop as train

KEPT = ["keep=all"]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a search that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    planter.search(write_study(folder), out=folder / "run", overrides=KEPT)
    return folder / "run"


@pytest.fixture(scope="module")
def whole(whole_run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((whole_run / "pareto.json").read_text())
    return found


def cut(file: Path, share: float) -> None:
    os.truncate(file, int(share * file.stat().st_size))


def stop_after(monkeypatch: pytest.MonkeyPatch, name: str, of: str) -> None:
    """Ctrl-C when a function of checkpoint.py has written something of a trial."""
    write = getattr(checkpoint, name)

    def stopping(path: Path, *content: Any) -> None:
        write(path, *content)
        if of in str(path):
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, name, stopping)


def stopped(study: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        planter.search(study, out=run, overrides=KEPT)
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("of", "share"),
    [(".part", 0.5), ("b-width4", 0.99), ("p01-conv1", 0.1), ("p01-grown", 0.0), ("s0001", 0.9)],
)
def test_a_checkpoint_cut_short_means_a_fresh_start_and_the_same_result(
    whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str, share: float
) -> None:
    study, run = write_study(tmp_path), tmp_path / "run"
    for module in (train, fast_round):
        monkeypatch.setattr(module, "_CHECKPOINT_EVERY_S", -1.0)
    stop_after(monkeypatch, "write_training", f"{of}/checkpoint" if of[0] != "." else of)
    stopped(study, run, monkeypatch)
    (file,) = [*run.rglob("checkpoint.pt"), *tmp_path.rglob("*.part")]
    cut(file, share)
    assert_whole(planter.search(study, out=run, overrides=KEPT), run, whole)
    trial = "teacher" if of == ".part" else of
    log = (run / "trials" / trial / "log.txt").read_text()
    assert f"{file} is cut short or damaged" in log
    assert "taken up after" not in log
    assert not file.exists()


@pytest.mark.parametrize("damage", ["weights", "empty"])
def test_a_model_half_there_of_a_trial_that_was_not_finished_is_written_anew(
    whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    study, run = write_study(tmp_path), tmp_path / "run"
    stop_after(monkeypatch, "save", "models/s0001")
    stopped(study, run, monkeypatch)
    DAMAGES[damage](run / "models" / "s0001" / "base")
    assert_whole(planter.search(study, out=run, overrides=KEPT), run, whole)
    planter.load(run / "models" / "s0001" / "base")


def _empty(folder: Path) -> None:
    for file in list(folder.iterdir()):
        file.unlink()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "weights": lambda folder: cut(folder / "weights.safetensors", 0.5),
    "no weights": lambda folder: (folder / "weights.safetensors").unlink(),
    "spec": lambda folder: cut(folder / "arch.json", 0.7),
    "empty": _empty,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_kept_teacher_that_is_damaged_is_trained_again(
    whole_run: Path, whole: dict[str, Any], tmp_path: Path, damage: str
) -> None:
    teachers = shutil.copytree(whole_run.parent / ".teachers", tmp_path / ".teachers")
    (kept,) = (folder for folder in teachers.iterdir() if folder.is_dir())
    before = (kept / "weights.safetensors").read_bytes()
    DAMAGES[damage](kept)
    lean = ["plant=null", "sample=null", "baselines=[{widths: 3}]", *KEPT]
    front = planter.search(write_study(tmp_path), out=tmp_path / "run", overrides=lean)
    assert (kept / "weights.safetensors").read_bytes() == before
    assert [p for p in front["points"] if p["trial"] == "teacher"] == [
        p for p in whole["points"] if p["trial"] == "teacher"
    ]
    assert "the teacher is trained again" in (tmp_path / "run/trials/teacher/log.txt").read_text()


@pytest.mark.parametrize("share", [None, 0.5])
def test_teacher_logits_cut_short_or_gone_are_written_again(
    whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float | None
) -> None:
    study, run = write_study(tmp_path), tmp_path / "run"
    stop_after(monkeypatch, "save", "models/p01-grown")
    stopped(study, run, monkeypatch)
    files = sorted((run / "trials" / "teacher").glob("logits*.safetensors"))
    assert len(files) == 2  # of the images, and of their views
    before = [file.read_bytes() for file in files]
    for file in files:
        if share is None:
            file.unlink()
        else:
            cut(file, share)
    assert_whole(planter.search(study, out=run, overrides=KEPT), run, whole)
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize(
    ("of", "trial"), [("p00-start", "p01-conv1"), ("p01-conv5", "p01-grown"), ("teacher", "s0000")]
)
def test_a_damaged_network_that_others_need_stops_the_search_until_it_is_whole(
    whole_run: Path,
    whole: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    of: str,
    trial: str,
) -> None:
    run, study = tmp_path / "run", write_study(tmp_path)
    do = local.run_job

    def stopping(self: Any, job: Any) -> Any:
        if job.id == trial:
            raise KeyboardInterrupt
        return do(self, job)

    monkeypatch.setattr(local, "run_job", stopping)
    stopped(study, run, monkeypatch)
    place = run / "models" / of / "base"
    for file in run.glob("trials/teacher/logits*"):
        file.unlink()  # else nobody asks the teacher
    saved = shutil.copytree(place, tmp_path / "saved")
    cut(place / "weights.safetensors", 0.5)
    with pytest.raises(SearchStoppedError, match=r"is damaged.*then go on"):
        planter.search(study, out=run, overrides=KEPT)
    states = [row.state.name for book in ("sampling", "planting") for row in rows(run, book)]
    assert "FAIL" not in states
    shutil.rmtree(place)
    saved.rename(place)
    assert_whole(planter.search(study, out=run, overrides=KEPT), run, whole)


def test_an_optimisers_state_cut_short_is_left_out_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, run = write_study(tmp_path), tmp_path / "run"
    stop_after(monkeypatch, "save", "models/p01-conv1")
    stopped(study, run, monkeypatch)
    file = run / "trials" / "p00-start" / "optimizer.pt"
    cut(file, 0.5)
    planter.search(study, out=run, overrides=KEPT)
    assert f"{file} is cut short" in (run / "trials" / "p01-grown" / "log.txt").read_text()
    assert {row.state.name for row in rows(run, "planting")} == {"COMPLETE"}


# What is left on the disk


def test_what_killed_workers_left_half_written_is_removed(
    whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, run = write_study(tmp_path), tmp_path / "run"
    stop_after(monkeypatch, "write_tensors", "logits")
    stopped(study, run, monkeypatch)
    (kept,) = (folder for folder in (tmp_path / ".teachers").iterdir() if folder.is_dir())
    left = [
        run / "trials" / "s0000" / "checkpoint.0123abcd.new",
        run / "trials" / "teacher" / "logits.0123abcd.new",
        run / "models" / "s0001" / ".base.0123abcd.new" / "arch.json",
        run / "models" / "s0001" / ".base.0123abcd.old" / "arch.json",
        kept.with_name(f"{kept.name}.0123abcd.new"),
        kept.with_name(f".{kept.name}.0123abcd.new") / "arch.json",
    ]
    others = [
        tmp_path / ".teachers" / "another.0123abcd.new",  # perhaps being written
        run / "notes.new",
    ]
    for file in [*left, *others]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("half")
    (run / "models" / "teacher" / "base" / "arch.json").unlink()  # so that it is asked for again
    assert_whole(planter.search(study, out=run, overrides=KEPT), run, whole)
    assert [file for file in left if file.exists()] == []
    assert all(file.exists() for file in others)


def test_a_finished_run_holds_no_checkpoint_no_lock_and_few_optimisers(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    overrides = ["plant.rounds=4", "plant.patience=4", "sample=null", "baselines=[]"]
    planter.search(write_study(tmp_path), out=run, overrides=overrides)
    grown = [row for row in rows(run, "planting") if row.params["layer"] == "grown"]
    assert len(grown) == 4
    accepted = [row.user_attrs["id"] for row in grown if row.user_attrs["accepted"]]
    rejected = [row.user_attrs["id"] for row in grown if not row.user_attrs["accepted"]]
    assert accepted
    left = {file.parent.name for file in run.rglob("optimizer.pt")}
    # Of the last round, whose network no later one has looked behind yet, and of what it grew from.
    assert left <= {"p00-start", grown[-1].user_attrs["id"], *accepted[-2:]}
    assert accepted[-1] in left
    assert not left & set(rejected) - {"p04-grown"}
    assert not list(run.rglob("checkpoint*"))
    assert [file for file in run.rglob("*.lock") if file.parent != run] == []


@pytest.mark.parametrize("trial", ["s0001", "p01-conv1"])
def test_a_trial_that_failed_for_good_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trial: str
) -> None:
    for module in (train, fast_round):
        monkeypatch.setattr(module, "_CHECKPOINT_EVERY_S", -1.0)
    run, write, hits = tmp_path / "run", checkpoint.write_training, []

    def failing(path: Path, state: Any) -> None:
        write(path, state)
        if f"{trial}/checkpoint" in str(path):
            hits.append(path)
            raise RuntimeError("broken")

    monkeypatch.setattr(checkpoint, "write_training", failing)
    planter.search(write_study(tmp_path), out=run)
    assert hits
    assert not list(run.rglob("checkpoint*"))
