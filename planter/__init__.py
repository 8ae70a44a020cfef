"""planter grows CNNs and selects sub-networks; see `planter.search` and the README."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planter.arch import Architecture
    from planter.backbones import BUILDERS, StagedNet
    from planter.costs.macs import cost
    from planter.data import load_data
    from planter.driver.run import search
    from planter.edits.expand import collapse_kernels_, expand_kernels_
    from planter.edits.inherit import inherit_weights
    from planter.edits.transfer import expand_from_
    from planter.front.pareto import hypervolume, pareto_front
    from planter.kernels.filters import is_conv_or_linear
    from planter.kernels.forms import AsymmetricBlock, DOConv, FeatureFilter, KernelFilter, form_of
    from planter.networks.assembly import build, takes_stride
    from planter.networks.checkpoint import load, save
    from planter.networks.cut_points import cuts
    from planter.networks.pipelines import Entry, Exit, Pipelines
    from planter.study.space import Candidate
    from planter.training.loop import fit
    from planter.training.losses import distillation_loss, multi_pipeline_loss, synergy_loss
    from planter.training.recipe import Recipe
    from planter.training.scores import evaluate

_PLACES = {
    "Architecture": "arch",
    "AsymmetricBlock": "kernels.forms",
    "BUILDERS": "backbones",
    "Candidate": "study.space",
    "DOConv": "kernels.forms",
    "Entry": "networks.pipelines",
    "Exit": "networks.pipelines",
    "FeatureFilter": "kernels.forms",
    "KernelFilter": "kernels.forms",
    "Pipelines": "networks.pipelines",
    "Recipe": "training.recipe",
    "StagedNet": "backbones",
    "build": "networks.assembly",
    "collapse_kernels_": "edits.expand",
    "cost": "costs.macs",
    "cuts": "networks.cut_points",
    "distillation_loss": "training.losses",
    "evaluate": "training.scores",
    "expand_from_": "edits.transfer",
    "expand_kernels_": "edits.expand",
    "fit": "training.loop",
    "form_of": "kernels.forms",
    "hypervolume": "front.pareto",
    "inherit_weights": "edits.inherit",
    "is_conv_or_linear": "kernels.filters",
    "load": "networks.checkpoint",
    "load_data": "data",
    "multi_pipeline_loss": "training.losses",
    "pareto_front": "front.pareto",
    "save": "networks.checkpoint",
    "search": "driver.run",
    "synergy_loss": "training.losses",
    "takes_stride": "networks.assembly",
}

__all__ = [
    "BUILDERS",
    "Architecture",
    "AsymmetricBlock",
    "Candidate",
    "DOConv",
    "Entry",
    "Exit",
    "FeatureFilter",
    "KernelFilter",
    "Pipelines",
    "Recipe",
    "StagedNet",
    "build",
    "collapse_kernels_",
    "cost",
    "cuts",
    "distillation_loss",
    "evaluate",
    "expand_from_",
    "expand_kernels_",
    "fit",
    "form_of",
    "hypervolume",
    "inherit_weights",
    "is_conv_or_linear",
    "load",
    "load_data",
    "multi_pipeline_loss",
    "pareto_front",
    "save",
    "search",
    "synergy_loss",
    "takes_stride",
]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `planter --help` should not wait for it.
    if name not in _PLACES:
        raise AttributeError(f"module 'planter' has no attribute {name!r}")
    return getattr(importlib.import_module(f"planter.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
