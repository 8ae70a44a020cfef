"""What recipes ask of the data: changes that images can take, weights of classes that are there."""

from __future__ import annotations

from functools import partial

from planter.data import Data
from planter.driver.checking.augmenting import misfits
from planter.study.findings import Findings
from planter.study.schema import Study
from planter.training.class_weights import weights_of_classes
from planter.training.recipe import Recipe


def check_recipes(study: Study, data: Data, found: Findings) -> None:
    """Changes that these images cannot take, and class weights that are none of these classes."""
    for place, recipe in _recipes(study).items():
        # Networks with weights have the study's recipe as their own: that is told once.
        if recipe is None or (place != "recipe" and recipe == study.recipe):
            continue
        for name, got, expected in misfits(recipe, data):
            found.add(f"{place}.augment.{name}", got, expected)
        weights = partial(weights_of_classes, recipe, data.train.labels, data.classes)
        found.attempt(f"{place}.class_weights", recipe.class_weights, weights)


def _recipes(study: Study) -> dict[str, Recipe | None]:
    """Every recipe of a study, by its place."""
    recipes: dict[str, Recipe | None] = {"recipe": study.recipe}
    if study.teacher is not None:
        recipes["teacher.recipe"] = study.teacher.recipe
    recipes |= {f"baselines.{i}.recipe": one.recipe for i, one in enumerate(study.baselines)}
    if (plan := study.plant) is not None:
        recipes |= {"plant.recipe": plan.recipe, "plant.finetune": plan.finetune}
        recipes["plant.final"] = plan.final
    if study.evolve is not None:
        recipes["evolve.recipe"] = study.evolve.recipe
    return recipes
