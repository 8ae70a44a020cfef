"""What recipes ask of the data and the networks: changes that images can take, weights of classes
that are there, a precision that modules compute in, processes that can share a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from planter.data import Data
from planter.data.cache.parallel import cores
from planter.driver.checking.importable import only_here
from planter.driver.trials.networks import Planned, recipes_of
from planter.machine.torch_state import evaluating
from planter.networks.assembly import build, build_without_data
from planter.networks.cut_points import image_of
from planter.study.findings import Findings
from planter.study.networks import Teacher
from planter.study.schema import Study
from planter.study.space import Candidate
from planter.training.class_weights import weights_of_classes
from planter.training.distributed import refused_of_processes, travelling
from planter.training.recipe import Recipe
from planter.training.running.forward import Running, check_precision, tried


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


def check_precisions(study: Study, networks: Mapping[str, Planned], found: Findings) -> None:
    """Float16 without a GPU, and modules that refuse a precision, tried on this machine where the
    search trains on processors."""
    device = "cuda" if study.resources.gpu else "cpu"
    for name, planned in networks.items():
        precision = planned.recipe.precision
        if not planned.trained or precision in ("float32", "auto"):
            continue
        place = f"{name}: recipe.precision"
        check = partial(check_precision, precision, device)
        problems = len(found.problems)
        found.attempt(place, precision, check)
        if len(found.problems) == problems and device == "cpu":
            found.attempt(place, precision, partial(_check_network, planned, planned.recipe))


def check_processes(
    settings: Teacher, teacher: Planned, study: Study, data: Data, found: Findings
) -> None:
    """A teacher whose training several processes cannot share, as it is or on this machine. More
    of them than its cores are told only: they are slow, not wrong."""
    place, many, resources = "teacher.processes", settings.processes, study.resources
    if many == 1:
        return
    if settings.model is not None or not teacher.trained:
        found.add(place, many, "1 or nothing: this teacher is given, there is no training to share")
        return
    device = "cuda" if resources.gpu else "cpu"
    if device == "cuda" and many > (gpus := torch.cuda.device_count()):
        expected = f"{max(gpus, 1)} or fewer: each process trains on a GPU of its own, and this "
        expected += f"machine, whose search trains the teacher, has {gpus} GPU{'s' * (gpus != 1)}"
        found.add(place, many, expected)
    elif (refused := refused_of_processes(data.train, teacher.recipe, many, device)) is not None:
        found.tell(place, many, refused)
    if (what := only_here(teacher.architecture)) is not None:
        found.add(place, many, f"1: {what}, and so is unknown to another process")
    else:
        network = build_without_data(teacher.architecture)
        found.attempt(place, many, partial(travelling, network))
    if not resources.gpu and many * resources.cpu > (count := cores()):
        found.warnings.append(
            f"{place}: {many} processes of {resources.cpu} threads (resources.cpu) share {count} "
            "cores and take turns; fewer are as fast"
        )


def _check_network(planned: Planned, recipe: Recipe) -> None:
    """Raises ValueError for a module that does not compute in the recipe's precision."""
    network = build(planned.architecture)
    assert recipe.precision != "auto"
    images = torch.rand(1, *image_of(planned.architecture))
    tried(network, Running(recipe.precision), partial(_run, network, images))


def _run(network: nn.Module, images: torch.Tensor) -> None:
    """In eval mode, where one image will do for norms as well."""
    with evaluating(network), torch.no_grad():
        network(images)
