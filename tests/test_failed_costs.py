"""What a training took that failed: it counts as far as the log of its epochs knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_evolving import STUDY

import planter
from planter.driver.backends import local
from planter.driver.outcome import SearchFailedError
from planter.driver.run_folder.logs import taken_by
from planter.driver.run_folder.read import points_in, stopped_in
from planter.driver.storage.reading import opened, run_study
from planter.driver.tasks.context import Context
from planter.front.history import history

IMAGES, EPOCHS = 150, 3
RECIPE = f"{{epochs: {EPOCHS}, batch: 50, optimizer: sgd, lr: 0.01}}"
WILD = RECIPE.replace("0.01", "1.0e+30")
CHILD = ["evolve.edits=[go_on]", "evolve.trials=1"]
SPACE = """
from planter import Architecture, Candidate
def space(trial):
    names = ['conv1', 'conv2', 'conv3', 'conv4', 'conv5', 'fc1']
    width = trial.suggest_int('width', 5, 6)
    return Candidate(Architecture('convnet', dict.fromkeys(names, width)))
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("failed") / "kin.yaml"
    file.write_text(STUDY.replace("{epochs: 15, ", "{epochs: 1, "))
    (file.parent / "space.py").write_text(SPACE)
    return file


@pytest.fixture
def run(study: Path, request: pytest.FixtureRequest) -> Path:
    """A run folder beside the others: they share the teacher."""
    return study.parent / request.node.name


def fails_after(monkeypatch: pytest.MonkeyPatch, epochs: int, letter: str) -> None:
    """Trainings of trials of that letter raise an error when so many epochs are over."""
    metrics = Context.metrics

    def told(self: Any, trial: str, macs_after: Any) -> Any:
        note = metrics(self, trial, macs_after)

        def on_epoch(epoch: Any) -> None:
            note(epoch)
            if trial.startswith(letter) and epoch.epoch == epochs:
                raise RuntimeError("broken on purpose")

        return on_epoch

    monkeypatch.setattr(Context, "metrics", told)


def failed(study: Path, run: Path, *changes: str) -> dict[str, Any]:
    with pytest.raises(SearchFailedError) as error:
        planter.search(study, out=run, overrides=changes)
    return error.value.front


def beside_the_teacher(found: dict[str, Any]) -> int:
    (teacher,) = [p for p in found["points"] if p["method"] == "teacher"]
    return int(found["cost"]["train_macs"] - teacher["train_macs"])


def macs(found: dict[str, Any]) -> int:
    return int(next(p["macs"] for p in found["points"] if p["method"] == "teacher"))


@pytest.mark.parametrize("done", [1, 2])
def test_a_child_that_failed_took_the_epochs_that_it_trained(study, run, monkeypatch, done):
    fails_after(monkeypatch, done, "e")
    found = failed(study, run, *CHILD, f"evolve.recipe={RECIPE}")
    assert beside_the_teacher(found) == 3 * macs(found) * IMAGES * done
    assert (found["cost"]["unfinished"], found["cost"]["trials"]) == (1, 2)
    again = failed(study, run, *CHILD, f"evolve.recipe={RECIPE}")  # as the books have it
    assert again["cost"] == found["cost"]


def test_the_epoch_that_diverged_was_trained_too(study, run):
    found = failed(study, run, *CHILD, f"evolve.recipe={WILD}")
    assert "FloatingPointError" in found["failed"][0]["reason"]
    assert beside_the_teacher(found) == 3 * macs(found) * IMAGES
    line = json.loads((run / "trials/e0000/metrics.jsonl").read_text())
    assert (line["epoch"], line["loss"]) == (1, None)


def test_what_an_edit_and_the_teachers_answers_took_counts_with_it(study, run, monkeypatch):
    """Three passes of the parent over the images for the Taylor terms, two views for the pool."""
    fails_after(monkeypatch, 1, "e")
    found = failed(
        study, run, "evolve.trials=1", "evolve.edits=[shrink]",
        "evolve.shrink_rules=[taylor]",
        "evolve.recipe={epochs: 2, batch: 50, augment: {crop: 1, views: 2}}",
    )  # fmt: skip
    own = beside_the_teacher(found) - (3 + 2) * macs(found) * IMAGES
    assert 0.4 * 3 * macs(found) * IMAGES < own <= 0.5 * 3 * macs(found) * IMAGES


def test_a_sampled_trial_that_failed_counts_alike(study, run, monkeypatch):
    fails_after(monkeypatch, 2, "s")
    sample = f"sample={{space: '{study.parent / 'space.py'}:space', trials: 1}}"
    changes = ["evolve=null", sample, f"recipe={RECIPE}"]
    found = failed(study, run, *changes)
    each = {planter.cost(architecture(width)).macs for width in (5, 6)}
    assert beside_the_teacher(found) in {3 * one * IMAGES * 2 for one in each}
    read = run_study(run)
    with opened(run, read) as storage:
        left = stopped_in(storage, read.name)
        steps = history(points_in(storage, read.name), [0.1, 1e9], {}, left)
    assert [one.trial for one in left] == ["s0000"]
    assert steps[-1].train_macs == found["cost"]["train_macs"]
    assert failed(study, run, *changes)["cost"] == found["cost"]  # as the books have it


def architecture(width: int) -> planter.Architecture:
    names = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc1"]
    return planter.Architecture(
        "convnet", dict.fromkeys(names, width), {"classes": 10, "image": [1, 8, 8]}
    )


def test_a_training_whose_worker_died_took_what_its_log_knows(study, run, monkeypatch):
    do = local.run_job

    def dies(context: Context, job: Any) -> Any:
        outcome = do(context, job)
        return {"error": "its worker process died"} if job.id == "e0000" else outcome

    monkeypatch.setattr(local, "run_job", dies)
    found = failed(study, run, *CHILD, f"evolve.recipe={RECIPE}")
    assert beside_the_teacher(found) == 3 * macs(found) * IMAGES * EPOCHS


def test_the_budget_counts_what_failed(study, run, monkeypatch):
    """After two children in vain, the third would take more than is left."""
    fails_after(monkeypatch, 3, "e")
    first = planter.search(study, out=run.with_name("first"), overrides=["evolve.trials=0"])
    most = first["cost"]["train_macs"] + int(2.5 * 3 * macs(first) * IMAGES * EPOCHS)
    found = failed(
        study, run, "evolve.trials=9", f"budget.train_macs={most}", "evolve.edits=[shrink, grow]",
        f"evolve.recipe={RECIPE}", "resources.max_failures=9", "evolve.shrink=[0.95, 0.99]",
        "evolve.parents=[teacher]",
    )  # fmt: skip
    assert len(found["failed"]) == 2
    assert found["cost"]["train_macs"] <= most


def test_half_a_line_of_a_killed_worker_is_left_out(tmp_path):
    (tmp_path / "finetune").mkdir()
    lines = [{"epoch": 1, "seconds": 2.0, "train_macs": 10},
             {"epoch": 2, "seconds": 2.0, "train_macs": 20}]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + text[:20])
    old = {"epoch": 1, "seconds": 1.0}  # an older planter's
    (tmp_path / "finetune" / "metrics.jsonl").write_text(json.dumps(old) + "\n")
    assert taken_by(tmp_path) == (20, 5.0)
    assert taken_by(tmp_path / "nothing") == (0, 0.0)
