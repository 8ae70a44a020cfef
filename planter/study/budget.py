"""The section `budget` of a study: where a search ends, and how much shorter all of it is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from planter.study.section import Amount, Section
from planter.training.recipe import Recipe

if TYPE_CHECKING:
    from planter.study.schema import DataSettings, Study

_EPOCHS = ("epochs", "patience", "validate_every")
_LENGTHS = ("warmup", "step")


class Budget(Section):
    """Where a search ends though trials are left, in sum over all commands on its run. The front is
    reported; the same command with more goes on."""

    hours: Annotated[
        float | None,
        Field(
            gt=0, description="of the run; a training that runs then ends at its next checkpoint"
        ),
    ] = None
    train_macs: Annotated[
        Amount | None,
        Field(
            gt=0,
            description="of all trainings of the run; one that would take more than is left does "
            "not begin",
        ),
    ] = None
    # As with recipes: a study that is not shortened has the keys of content that it had before.
    scale: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            exclude_if=lambda share: share == 1,
            description="tries a study out: epochs, images (also of the test), trials and rounds "
            "are shortened to this share, one of each at least; a table's first row or column is "
            "trained whole",
        ),
    ] = 1.0
    scaled: Annotated[
        bool,
        Field(
            exclude_if=lambda done: not done,
            description="written into run folders: what stands there is shortened already",
        ),
    ] = False

    @property
    def shortened(self) -> str | None:
        """That a study is shortened, in words; None where it is not."""
        if self.scale == 1:
            return None
        return (
            f"budget.scale {self.scale:g}: epochs, images, trials and rounds are shortened, which "
            "tries the study out; its figures are no results"
        )


def shortened(study: Study) -> Study:
    """The study as its `budget.scale` shortens it; itself where it does not, or has done so."""
    scale = study.budget.scale
    if scale == 1 or study.budget.scaled:
        return study
    changed: dict[str, Any] = {
        "recipe": shorter(study.recipe, scale),
        "data": _fewer_images(study.data, scale),
        "budget": study.budget.model_copy(update={"scaled": True}),
        "baselines": [_with_shorter(one, scale, "recipe") for one in study.baselines],
    }
    if study.teacher is not None:
        changed["teacher"] = _with_shorter(study.teacher, scale, "recipe")
    if (plant := study.plant) is not None:
        plant = _with_shorter(plant, scale, "recipe", "finetune", "final")
        changed["plant"] = plant.model_copy(update={"rounds": _fewer(plant.rounds, scale)})
    if (sample := study.sample) is not None:
        least = len(study.table.parts()[0]) if study.table and study.table.parts() else 1
        trials = max(_fewer(sample.trials, scale), min(least, sample.trials))
        changed["sample"] = sample.model_copy(update={"trials": trials})
    if (evolve := study.evolve) is not None:
        evolve = _with_shorter(evolve, scale, "recipe")
        epochs = evolve.recipe_of(changed["recipe"]).epochs
        fewer = {
            "trials": _fewer(evolve.trials, scale),
            "grow_steps": min(evolve.grow_steps, max(epochs // 2, 1)),
        }
        changed["evolve"] = evolve.model_copy(update=fewer)
    return study.model_copy(update=changed)


def shorter(recipe: Recipe, scale: float) -> Recipe:
    """A recipe of that share of the epochs, one at least; lengths of its schedule follow."""
    epochs = _fewer(recipe.epochs, scale)
    ratio = epochs / recipe.epochs
    given = {key: getattr(recipe, key) for key in (*_EPOCHS, *_LENGTHS, "milestones")}
    return recipe.model_copy(update={**shorter_keys(given, ratio), "epochs": epochs})


def shorter_keys(keys: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Keys of a recipe, those that are lengths shortened."""
    found = dict(keys)
    for key in _EPOCHS:
        if isinstance(value := keys.get(key), int | float):
            found[key] = _fewer(round(value), scale)
    for key in _LENGTHS:
        if isinstance(value := keys.get(key), int | float):
            found[key] = scale * value
    if isinstance(milestones := keys.get("milestones"), list | tuple):
        found["milestones"] = [scale * milestone for milestone in milestones]
    return found


def _fewer(count: int, scale: float) -> int:
    """A share of a number, one at least; none of none."""
    return min(count, max(round(scale * count), 1))


def _with_shorter(section: Any, scale: float, *keys: str) -> Any:
    recipes = {key: getattr(section, key) for key in keys}
    made = {key: shorter(one, scale) for key, one in recipes.items() if one is not None}
    return section.model_copy(update=made)


def _fewer_images(data: DataSettings, scale: float) -> DataSettings:
    whole: Any = 1.0 if data.subset is None else data.subset
    subset = scale * whole if whole <= 1 and isinstance(whole, float) else _fewer(whole, scale)
    validation = data.validation
    if validation >= 1:
        validation = _fewer(int(validation), scale)
    return data.model_copy(update={"subset": subset, "validation": validation})
