"""From a section of a study, or what a space returned, to the architecture it describes."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from planter.arch import Architecture, whole_number
from planter.backbones import (
    convolutions,
    find_builder,
    free_widths,
    full_widths,
    inner_widths,
    is_traced,
    with_data_options,
)
from planter.data import Data
from planter.driver.trials.jobs import Job
from planter.edits.expand import check_kernels
from planter.kernels.forms import Kernels
from planter.networks import checkpoint
from planter.networks.assembly import build_without_data, check_architecture
from planter.study.budget import shorter, shorter_keys
from planter.study.findings import NEEDS_TEACHER
from planter.study.networks import Baseline
from planter.study.schema import Plant, Study
from planter.study.section import Network, Widths
from planter.study.space import Candidate
from planter.training.class_weights import weights_of_classes
from planter.training.recipe import Recipe

_WHOLE = ("epochs", "batch", "accumulate", "validate_every", "patience")


class Planned(NamedTuple):
    """A network of the study, how it would be trained, if it is, and whether a teacher guides."""

    architecture: Architecture
    recipe: Recipe
    kernels: Kernels | None = None
    trained: bool = True
    guided: bool = False


def builder_of(study: Study, section: Network) -> str:
    """The builder a section names, or the teacher's. Raises ValueError where neither is there."""
    if section.builder is not None:
        return section.builder
    if study.teacher is not None and study.teacher.builder is not None:
        return study.teacher.builder
    if study.teacher is not None and study.teacher.model is not None:
        spec = checkpoint.read_spec(study.teacher.model)
        return str(spec["architecture"]["builder"])
    raise ValueError("no builder: name one here or in the teacher")


def network_of(study: Study, section: Network, data: Data, widths: Widths | None) -> Architecture:
    """The architecture of a section, for the data's classes and images."""
    builder = builder_of(study, section)
    options = {**section.options, "classes": data.classes, "image": list(data.image)}
    network = Architecture(builder, full_widths(builder, widths, options), options)
    if widths == {} and is_traced(network):  # named, so that it can grow
        network = replace(network, widths=free_widths(network))
    return network


def baseline_id(study: Study, baseline: Baseline) -> str:
    """`b-NAME`, or `b-widthN` where every convolution has width N, else the widths in a row, those
    of inner ones behind their names, or the builder where it has none."""
    if baseline.name is not None:
        return f"b-{baseline.name}"
    builder = builder_of(study, baseline)
    if find_builder(builder).traced is not None:
        given = baseline.widths if isinstance(baseline.widths, dict) else {}
        parts = [builder.replace(":", "-"), *(f"{name}-{width}" for name, width in given.items())]
        return "b-" + "-".join(parts)
    widths = full_widths(builder, baseline.widths, baseline.options)
    if not widths:
        return f"b-{builder.replace(':', '-')}"
    different = {widths[name] for name in convolutions(widths)}
    if len(different) == 1:
        return f"b-width{different.pop()}"
    inner = inner_widths(Architecture(builder, widths, baseline.options))
    named = (f"{name}-{width}" if name in inner else f"{width}" for name, width in widths.items())
    return "b-width" + "-".join(named)


def candidate_architecture(drawn: object, study: Study, data: Data) -> Architecture:
    """The architecture of what a space returned, plants and all, for the data's classes and images.
    Raises ValueError unless it can be built and trained as the candidate asks."""
    if not isinstance(drawn, Candidate):
        raise ValueError(f"a space returns a planter.Candidate, got {type(drawn).__name__}")
    for recipe in recipes_of(drawn, study):
        if recipe is not None:
            weights_of_classes(recipe, data.train.labels, data.classes)
    start = with_data_options(drawn.architecture, data.classes, data.image)
    check_architecture(start)
    check_kernels(start, drawn.kernels)
    architecture = with_data_options(drawn.grown, data.classes, data.image)
    if drawn.plants:
        check_architecture(architecture)
        check_kernels(architecture, drawn.kernels)
    if drawn.guided and study.teacher is None:
        raise ValueError(f"kd_weight {drawn.kd_weight} {NEEDS_TEACHER}")
    return architecture


def _changed(what: str, recipe: Recipe, changes: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """The keys of a recipe with those a candidate changes, their lengths as short as the study's by
    its `budget.scale`; 6.0 epochs are 6. Where these name a recipe to start from, they stand beside
    that one's. Raises ValueError for keys that no recipe has."""
    known = Recipe.model_fields
    if unknown := [key for key in changes if key not in known]:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        meant = f", {near[0]!r}?" if near else ""
        raise ValueError(
            f"{what} has the key {unknown[0]!r}, expected one of a recipe{meant} "
            f"({', '.join(known)})"
        )
    whole = {key: whole_number(value) if key in _WHOLE else value for key, value in changes.items()}
    if whole.get("base") is None:
        whole = {**recipe.model_dump(), **(whole if scale == 1 else shorter_keys(whole, scale))}
    elif scale < 1:
        whole = shorter(Recipe.model_validate(whole), scale).model_dump()
    return whole


class Recipes(NamedTuple):
    """How a candidate's network is trained, its plants, and all of it again, if it is."""

    network: Recipe
    plants: Recipe
    again: Recipe | None


def recipes_of(candidate: Candidate, study: Study) -> Recipes:
    """The study's recipes with the candidate's keys. Raises ValueError for a key or value that no
    recipe has."""
    scale = study.budget.scale
    network = Recipe.model_validate(_changed("recipe", study.recipe, candidate.recipe, scale))
    plant = study.plant or Plant()
    plants = Plant.model_validate(
        {"recipe": _changed("plant_recipe", plant.recipe, candidate.plant_recipe, scale)}
    ).recipe
    again = None
    if candidate.finetune is not None:
        again = Recipe.model_validate(_changed("finetune", network, candidate.finetune, scale))
    return Recipes(network, plants, again)


def epochs_of(job: Job, study: Study) -> int:
    """The epochs of a job's training, of its first where it has several; 0 where nobody knows."""
    if job.epochs:
        return job.epochs
    recipes: dict[str, Recipe | None] = {"start": study.recipe}
    if study.teacher is not None:
        recipes["teacher"] = study.teacher.recipe or study.recipe
    if job.kind == "baseline":
        recipes["baseline"] = study.baselines[job.params["index"]].recipe or study.recipe
    if study.plant is not None:
        recipes["plant"] = study.plant.recipe
    if job.kind == "evolve":
        return int(job.params["recipe"]["epochs"])
    recipe = recipes.get(job.kind)
    return 0 if recipe is None else recipe.epochs


def check_network(architecture: Architecture, images: Tensor | None = None) -> None:
    """Raises ValueError for a network that cannot be built, gives no logits of the `images` it will
    see, or whose weights no memory holds."""
    check_architecture(architecture, images)
    weights = sum(weight.numel() for weight in build_without_data(architecture).parameters())
    size, memory = 4 * weights, _memory()
    if size > memory:
        raise ValueError(
            f"its weights are {size / 2**30:,.0f} GB, this machine has {memory / 2**30:,.0f}; "
            "smaller widths"
        )


def _memory() -> float:
    """Bytes of memory of this machine; infinite where the system does not tell."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return math.inf
