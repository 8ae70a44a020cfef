"""`budget.scale`: what it shortens, by how much, and that it says so."""

from __future__ import annotations

import pytest
import yaml

import planter
from planter import Architecture, Candidate
from planter.driver.storage.reading import run_study
from planter.driver.trials.networks import recipes_of
from planter.study.file import read_study
from planter.study.schema import Study, StudyError

FULL = {
    "name": "x",
    "data": {"subset": 1000, "validation": 200},
    "teacher": {"builder": "convnet", "recipe": {"epochs": 40, "schedule": "step", "step": 10.0}},
    "baselines": [{"widths": 4, "recipe": {"epochs": 7, "patience": 5}}, {"widths": 8}],
    "recipe": {"epochs": 100, "warmup": 5.0, "schedule": "multistep", "milestones": [50.0, 80.0]},
    "plant": {"rounds": 30, "recipe": {"epochs": 20, "optimizer": "adam"}, "final": {"epochs": 9}},
    "sample": {"space": "kernels", "trials": 50},
    "evolve": {"trials": 12, "edits": ["grow"], "grow_steps": 4, "recipe": {"epochs": 30}},
}


def scaled(scale: float) -> Study:
    return Study.model_validate({**FULL, "budget": {"scale": scale}})


def test_a_tenth_of_everything_that_takes_time():
    study = scaled(0.1)
    assert study.recipe.epochs == 10
    assert (study.recipe.warmup, study.recipe.milestones) == (0.5, [5, 8])
    assert (study.data.subset, study.data.validation) == (100, 20)
    assert (study.teacher.recipe.epochs, study.teacher.recipe.step) == (4, 1.0)
    assert (study.plant.rounds, study.plant.recipe.epochs, study.plant.final.epochs) == (3, 2, 1)
    assert study.plant.finetune is None
    assert (study.sample.trials, study.evolve.trials, study.evolve.recipe.epochs) == (5, 1, 3)
    assert study.evolve.grow_steps == 1
    assert study.baselines[1].recipe is None


def test_the_schedule_keeps_its_shape_where_an_epoch_is_the_least():
    recipe = scaled(0.001).recipe
    assert recipe.epochs == 1
    assert recipe.milestones == [0.5, 0.8]
    assert recipe.warmup == 0.05
    first = scaled(0.001).baselines[0].recipe
    assert (first.epochs, first.patience) == (1, 1)


def test_nothing_is_made_longer_or_begun():
    study = Study.model_validate(
        {
            "name": "x",
            "plant": {"rounds": 0, "kd_weight": 0.0, "ce_weight": 1.0, "builder": "convnet"},
            "sample": {"space": "kernels", "trials": 0},
            "budget": {"scale": 0.5},
        }
    )
    assert (study.plant.rounds, study.sample.trials) == (0, 0)
    assert study.data.subset == 0.5


def test_a_scale_of_one_changes_nothing():
    assert scaled(1.0) == Study.model_validate(FULL)


@pytest.mark.parametrize("scale", [0, -0.5, 1.5, "some"])
def test_a_scale_is_a_share(tmp_path, scale):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**FULL, "budget": {"scale": scale}}))
    with pytest.raises(StudyError, match=r"budget\.scale"):
        read_study(tmp_path / "s.yaml")


def test_what_a_space_says_of_lengths_is_shortened_alike():
    network = Architecture("convnet", {}, {"image": [1, 8, 8], "classes": 10})
    drawn = Candidate(network, recipe={"epochs": 400, "lr": 0.5}, finetune={"epochs": 20})
    whole, short = recipes_of(drawn, Study.model_validate(FULL)), recipes_of(drawn, scaled(0.1))
    assert (whole.network.epochs, whole.again.epochs) == (400, 20)
    assert (short.network.epochs, short.network.lr, short.again.epochs) == (40, 0.5, 2)
    based = Candidate(network, recipe={"base": "strong"})
    assert recipes_of(based, scaled(0.1)).network.epochs == 4
    bad = Candidate(network, recipe={"epochs": 6.5})
    with pytest.raises(ValueError, match="epochs"):
        recipes_of(bad, Study.model_validate(FULL))


def test_a_shortened_run_says_so_and_is_not_shortened_twice(tmp_path):
    study = {
        "name": "x",
        "data": {"name": "digits"},
        "recipe": {"epochs": 40},
        "baselines": [{"builder": "convnet", "widths": 2}],
        "resources": {"workers": 0},
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(study))
    run = tmp_path / "run"
    found = planter.search(tmp_path / "s.yaml", out=run, overrides=["budget.scale=0.05"])
    assert found["data"]["train"] + found["data"]["validation"] == round(0.05 * 1438)
    assert found["data"]["test"] == round(0.05 * 359)
    (note,) = [note for note in found["notes"] if note["about"] == "scale"]
    assert note["text"] in (run / "report.html").read_text()
    again = run_study(run)
    assert again.recipe.epochs == 2
    assert again.budget.scaled
    assert read_study(run / "resolved.yaml") == again
    # The same command goes on: nothing is trained once more.
    more = planter.search(tmp_path / "s.yaml", out=run, overrides=["budget.scale=0.05"])
    assert more["points"] == found["points"]


def test_check_tells_of_it(tmp_path, command_in):
    code, _, told = command_in(tmp_path)(
        "check", "quickstart", "--set", "budget.scale=0.1", "--set", "sample=null"
    )
    assert code == 0
    assert "budget.scale 0.1" in told
