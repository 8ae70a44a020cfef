"""What a training costs, told before it begins."""

from __future__ import annotations

from planter.arch import Architecture
from planter.costs.macs import cost, joint_macs
from planter.study.space import Candidate
from planter.training.recipe import Recipe


def training_macs(macs: int, recipe: Recipe, images: int, teacher_macs: int = 0) -> int:
    """Multiply-adds of a training on so many images: a forward pass of `macs` and a backward pass
    of twice its cost for each image seen and, of one that a teacher guides, a forward pass of it
    where its logits cannot be kept."""
    per_image = 3 * macs + (teacher_macs if recipe.augment.changes() else 0)
    return per_image * images * recipe.epochs


def candidate_macs(
    candidate: Candidate, architecture: Architecture, recipe: Recipe, images: int, teacher_macs: int
) -> int:
    """The same of a candidate's network, without its plants."""
    macs = joint_macs(cost(architecture), candidate.trained)
    return training_macs(macs, recipe, images, teacher_macs if candidate.guided else 0)
