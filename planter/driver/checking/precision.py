"""Whether networks compute in the precision that their recipe asks for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import nn

from planter.driver.trials.networks import Planned
from planter.machine.torch_state import evaluating
from planter.networks.assembly import build
from planter.networks.cut_points import image_of
from planter.study.findings import Findings
from planter.study.schema import Study
from planter.training.recipe import Recipe
from planter.training.running.forward import Running, check_precision, tried


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
