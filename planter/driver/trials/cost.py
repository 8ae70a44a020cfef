"""What a training costs, told before it begins."""

from __future__ import annotations

from planter.backbones import with_data_options
from planter.costs.macs import cost, joint_macs
from planter.data import Data
from planter.driver.trials.networks import recipes_of
from planter.study.schema import Study
from planter.study.space import Candidate
from planter.training.recipe import Recipe


def training_macs(macs: int, recipe: Recipe, images: int, teacher_macs: int = 0) -> int:
    """Multiply-adds of a training on so many images: a forward pass of `macs` and a backward pass
    of twice its cost for each image seen and, of one that a teacher guides, a forward pass of it
    where its logits cannot be kept."""
    per_image = 3 * macs + (teacher_macs if recipe.augment.changes() else 0)
    return per_image * images * recipe.epochs


def candidate_macs(
    candidate: Candidate,
    study: Study,
    data: Data,
    teacher_macs: int,
    until: int | None = None,
) -> int:
    """The same of a candidate's network, without its plants; up to its epoch `until`, where that is
    given."""
    recipe = recipes_of(candidate, study).network
    done = recipe.model_copy(update={"epochs": until or recipe.epochs})
    grown = with_data_options(candidate.grown, data.classes, data.image)
    macs = joint_macs(cost(grown), candidate.trained)
    return training_macs(macs, done, len(data.train), teacher_macs if candidate.guided else 0)
