"""Recipes that start from a named one, wherever a study may say one; what checks refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from test_driver import write_study

import planter
from planter.driver import final
from planter.driver.checking.check import prepare
from planter.driver.trials.networks import recipes_of
from planter.study.file import read_study
from planter.study.schema import Study, StudyError
from planter.study.space import Candidate
from planter.training.named import NAMED
from planter.training.recipe import Recipe

NAMES = list(NAMED)


def recipe_of(**keys: Any) -> Recipe:
    return Recipe.model_validate(keys)


@pytest.mark.parametrize("name", NAMES)
def test_a_named_recipe_is_the_one_of_its_table_written_out(name: str) -> None:
    named = recipe_of(base=name)
    assert named == recipe_of(**NAMED[name])
    assert named.base is None
    assert "base" not in named.model_dump()
    assert Recipe.model_validate(named.model_dump()) == named


@given(
    st.sampled_from(NAMES),
    st.fixed_dictionaries(
        {},
        optional={
            "batch": st.integers(1, 512),
            "lr": st.floats(1e-4, 1),
            "label_smoothing": st.floats(0, 0.9),
            "ema": st.none() | st.floats(0.1, 0.99),
            "augment": st.sampled_from([{}, {"flip": True}, {"crop": 2, "views": 3}]),
            "weight_decay": st.floats(0, 1),
        },
    ),
)
def test_keys_beside_a_base_replace_its_keys_and_no_others(name: str, keys: dict[str, Any]) -> None:
    found, base = (recipe_of(base=name, **given) for given in (keys, {}))
    plain = recipe_of(**keys)
    for key in Recipe.model_fields:
        assert getattr(found, key) == getattr(plain if key in keys else base, key), key


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("epochs", [1, 10, 90, 400])
def test_a_base_of_another_length_has_the_same_course_of_the_rate(name: str, epochs: int) -> None:
    base, found = recipe_of(base=name), recipe_of(base=name, epochs=epochs)
    assert found.epochs == epochs
    for share in (0.0, 0.01, 0.1, 0.3, 0.32, 0.35, 0.5, 0.66, 0.67, 0.9, 0.999):
        expected = base.lr_at(share * base.epochs)
        assert found.lr_at(share * epochs) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_a_length_that_is_said_is_not_stretched() -> None:
    assert recipe_of(base="paper", epochs=10, step=4.0).step == 4.0


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"base": "fats"}, "'fast', 'strong' or 'paper'"),
        ({"base": ["fast"]}, "'fast', 'strong' or 'paper'"),
        ({"base": "fast", "epoch": 3}, "epoch\n"),
        ({"base": "fast", "epochs": 0}, "epochs\n"),
        ({"base": "paper", "epochs": "3"}, "epochs\n"),
    ],
)
def test_mistakes_beside_a_base_are_told_as_ever(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        recipe_of(**keys)


def test_every_recipe_of_a_study_may_start_from_a_named_one() -> None:
    """And stands in resolved.yaml as what it is: a planter with other presets goes on with it."""
    study = Study.model_validate(
        {
            "name": "named",
            "recipe": {"base": "strong", "epochs": 5},
            "teacher": {"builder": "convnet", "recipe": {"base": "paper"}},
            "baselines": [{"recipe": {"base": "fast", "lr": 0.03}}],
            "plant": {
                "recipe": {"base": "fast"},
                "finetune": {"base": "fast"},
                "final": {"base": "paper"},
            },
            "evolve": {"recipe": {"base": "fast", "epochs": 2}},
        }
    )  # fmt: skip
    written = yaml.safe_load(yaml.safe_dump(study.model_dump(), sort_keys=False))
    assert "base" not in str(written).replace("baselines", "").replace("baseline", "")
    assert written["recipe"] == recipe_of(base="strong", epochs=5).model_dump()
    assert written["teacher"]["recipe"] == recipe_of(base="paper").model_dump()
    assert written["baselines"][0]["recipe"]["lr"] == 0.03
    for key, name in (("recipe", "fast"), ("finetune", "fast"), ("final", "paper")):
        assert written["plant"][key] == recipe_of(base=name).model_dump()
    assert written["evolve"]["recipe"] == recipe_of(base="fast", epochs=2).model_dump()
    assert Study.model_validate(written) == study


def test_a_space_may_start_from_a_named_recipe() -> None:
    study = Study.model_validate({"name": "s", "recipe": {"epochs": 7, "batch": 33, "ema": 0.5}})
    architecture = planter.Architecture("convnet", {})
    found = recipes_of(
        Candidate(
            architecture,
            recipe={"base": "fast", "epochs": 4.0},
            plant_recipe={"base": "paper", "lr": 0.5},
            finetune={"base": "fast"},
        ),
        study,
    )
    assert found.network == recipe_of(base="fast", epochs=4)
    assert found.plants == recipe_of(base="paper", lr=0.5)
    assert found.again == recipe_of(base="fast")
    without = recipes_of(Candidate(architecture, recipe={"epochs": 4}), study).network
    assert (without.epochs, without.batch, without.ema) == (4, 33, 0.5)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path)


@pytest.mark.parametrize("turn", [1, -1])
def test_a_base_on_the_command_line_takes_the_place_of_the_files_keys(
    study: Path, turn: int
) -> None:
    overrides = ["recipe.base=strong", "recipe.epochs=6", "plant.recipe.base=fast"][::turn]
    found = read_study(study, overrides)
    assert found.recipe == recipe_of(base="strong", epochs=6)
    assert found.plant is not None
    assert found.plant.recipe == recipe_of(base="fast")
    with pytest.raises(StudyError, match="base"):
        read_study(study, ["recipe.base=fats"])


def test_final_training_may_start_from_a_named_recipe(study: Path, tmp_path: Path) -> None:
    (tmp_path / "resolved.yaml").write_text(yaml.safe_dump(read_study(study).model_dump()))
    _, recipes = final._recipes(tmp_path, ["continued.base=strong", "continued.epochs=3"])
    assert recipes["stand-alone"] == read_study(study).recipe
    lr = recipe_of(base="strong").lr / 10
    assert recipes["continued"] == recipe_of(base="strong", epochs=3, lr=lr)


def problems(study: Path, *overrides: str) -> dict[str, str]:
    with pytest.raises(StudyError) as caught:
        prepare(read_study(study, overrides))
    return {problem.place: problem.expected for problem in caught.value.problems}


def test_class_weights_of_other_classes_are_refused_with_their_place(study: Path) -> None:
    ten = "expected one for each of 10 classes"
    found = problems(study, "recipe.class_weights=[1, 2]", "plant.finetune={class_weights: [3]}")
    assert found == {
        "recipe.class_weights": f"2 weights, {ten} (likewise sample.space)",
        "plant.finetune.class_weights": f"1 weights, {ten}",
    }
    with pytest.raises(StudyError, match=r"recipe\.class_weights"):
        read_study(study, ["recipe.class_weights=[0, 0, 0]"])
    with pytest.raises(StudyError, match=r"baselines\.0\.recipe\.class_weights\.1"):
        read_study(study, ["baselines=[{recipe: {class_weights: [1, -2]}}]"])
    fine = ",".join(["1.5"] * 10)
    prepare(read_study(study, [f"recipe.class_weights=[{fine}]"]))
    prepare(read_study(study, ["recipe.class_weights=balanced"]))


def test_class_weights_of_a_spaces_candidates_are_checked(study: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.py"
    text = space.read_text().replace(
        "kd_weight=trial", 'recipe={"class_weights": [1.0, 2.0]}, kd_weight=trial'
    )
    space.write_text(text)
    found = problems(study)
    assert list(found) == ["sample.space"]
    assert "2 weights, expected one for each of 10 classes" in found["sample.space"]


@pytest.mark.parametrize("key", ["ema=0.5", "patience=3", "validate_every=1"])
def test_a_recipe_of_plants_that_no_round_can_follow_is_refused(study: Path, key: str) -> None:
    with pytest.raises(StudyError, match="a round of planting"):
        read_study(study, [f"plant.recipe.{key}"])


EVERY = [
    f"{place}.{key}"
    for place in ("recipe", "plant.recipe")
    for key in ("label_smoothing=0.1", "class_weights=balanced", "clip_grad=1", "accumulate=2",
                "no_decay=true")
]  # fmt: skip


@pytest.mark.parametrize("more", [["evolve={trials: 2}"], ["plant.finetune={epochs: 1}"]])
def test_a_search_of_all_kinds_takes_every_key(
    study: Path, tmp_path: Path, more: list[str]
) -> None:
    few = ["sample.trials=2", "plant.rounds=1", "plant.ce_weight=0.5"]
    plain = planter.search(study, out=tmp_path / "plain", overrides=[*few, *more])
    found = planter.search(
        study, out=tmp_path / "keys", overrides=[*few, *more, "name=keys", *EVERY]
    )
    assert not found.get("failed")
    losses = [
        {point["id"]: (point["accuracy"], point["macs"]) for point in front["points"]}
        for front in (plain, found)
    ]
    assert losses[0].keys() == losses[1].keys() or more[0].startswith("evolve")
    methods = {point["method"] for point in found["points"]}
    assert methods >= {"teacher", "baseline", "plant", "sample"}
    resolved = yaml.safe_load((tmp_path / "keys" / "resolved.yaml").read_text())
    assert resolved["recipe"]["class_weights"] == "balanced"
    before = yaml.safe_load((tmp_path / "plain" / "resolved.yaml").read_text())
    assert "class_weights" not in before["recipe"]
