"""How images of different classes weigh in the cross-entropy."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from planter.training.recipe import Recipe


class EntropySettings(TypedDict):
    """What a recipe says of cross-entropies: keyword arguments of the losses."""

    label_smoothing: float
    class_weights: Tensor | None


def entropy_settings(recipe: Recipe, labels: Tensor, classes: int) -> EntropySettings:
    """Those of a training on images with these labels `[n]`; see `weights_of_classes`."""
    weights = weights_of_classes(recipe, labels, classes)
    return {"label_smoothing": recipe.label_smoothing, "class_weights": weights}


def weights_of_classes(recipe: Recipe, labels: Tensor, classes: int) -> Tensor | None:
    """The recipe's weight `[classes]` of each class, float64, for images with these labels `[n]`;
    None where all weigh alike. Balanced ones are `n / (classes * n of the class)`, as those of
    scikit-learn.

    Raises ValueError for another number of weights than there are classes, and for balanced ones of
    classes without an image.
    """
    given = recipe.class_weights
    if given is None:
        return None
    if isinstance(given, list):
        if len(given) != classes:
            raise ValueError(f"{len(given)} weights, expected one for each of {classes} classes")
        return torch.tensor(given, dtype=torch.float64, device=labels.device)
    counts = torch.bincount(labels, minlength=classes)
    if absent := (counts == 0).nonzero().flatten().tolist():
        raise ValueError(
            f"balanced, but no training image of class {', '.join(map(str, absent))} (counted from "
            "0): expected images of each, or a list of weights"
        )
    return len(labels) / (classes * counts.double())


def relative_weights(recipe: Recipe, labels: Tensor) -> Tensor | None:
    """How much an image of each class weighs beside the others in a training on images with these
    labels `[n]`, up to a factor; None where all weigh alike."""
    if recipe.class_weights is None:
        return None
    if isinstance(recipe.class_weights, list):
        return torch.tensor(recipe.class_weights, dtype=torch.float64, device=labels.device)
    return 1 / torch.bincount(labels).double()
