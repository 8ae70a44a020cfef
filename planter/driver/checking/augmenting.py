"""Changes of training images that the data or a loss cannot take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from planter.data import Data
from planter.driver.trials.networks import recipes_of
from planter.study.schema import Study
from planter.study.space import Candidate
from planter.training.recipe import Recipe


def check_drawn_augmentation(candidate: Candidate, study: Study, data: Data) -> None:
    """Raises ValueError where a candidate's recipes change images as these cannot be changed, or
    mix them for a loss that takes no mixed labels."""
    for recipe in recipes_of(candidate, study):
        if recipe is None:
            continue
        for name, got, expected in misfits(recipe, data):
            raise ValueError(f"its recipe has augment.{name} {got}, expected {expected}")
        if mixing := list(recipe.augment.mixes()):
            _check_loss(candidate, data.classes, " and ".join(mixing))


def misfits(recipe: Recipe, data: Data) -> Iterator[tuple[str, Any, str]]:
    """What a recipe cannot do with these images: an augmentation, its setting, and what would be
    right."""
    yield from recipe.augment.misfits(data.image, data.train.dtype)
    if recipe.batch < 2:
        for name, setting in recipe.augment.mixes().items():
            yield name, setting, f"a batch of 2 or more images to mix, not {recipe.batch}"


def _check_loss(candidate: Candidate, classes: int, mixing: str) -> None:
    """Asks a candidate's loss, which may be a user's own, for that of two mixed images."""
    logits = {name: torch.zeros(2, classes) for name in candidate.trained}
    labels = torch.full((2, classes), 1 / classes)
    teacher = torch.zeros(2, classes) if candidate.guided else None
    exits = [name for name in candidate.branches if name in logits]
    try:
        candidate.loss_of(logits, labels, teacher, exits)
    except Exception as error:  # the user's code
        raise ValueError(
            f"its loss takes no labels of mixed images, shares [batch, classes] "
            f"({type(error).__name__}: {error}); take them as torch's cross_entropy does, or leave "
            f"{mixing} out of the recipe"
        ) from error
