"""planter grows CNNs and selects sub-networks; see `planter.search` and the README."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planter.arch import Architecture
    from planter.assembly import build, takes_stride
    from planter.backbones import BUILDERS, StagedNet
    from planter.checkpoint import load, save
    from planter.data import load_data
    from planter.driver.run import search
    from planter.filters import is_conv_or_linear
    from planter.forms import AsymmetricBlock, DOConv, FeatureFilter, KernelFilter, form_of
    from planter.kernels import collapse_kernels_, expand_kernels_
    from planter.losses import distillation_loss, multi_pipeline_loss, synergy_loss
    from planter.macs import cost
    from planter.morph import inherit_weights
    from planter.pareto import hypervolume, pareto_front
    from planter.pipelines import Entry, Exit, Pipelines
    from planter.places import cuts
    from planter.recipe import Recipe
    from planter.space import Candidate
    from planter.train import evaluate, fit
    from planter.transfer import expand_from_

_PLACES = {
    "Architecture": "arch",
    "AsymmetricBlock": "forms",
    "BUILDERS": "backbones",
    "Candidate": "space",
    "DOConv": "forms",
    "Entry": "pipelines",
    "Exit": "pipelines",
    "FeatureFilter": "forms",
    "KernelFilter": "forms",
    "Pipelines": "pipelines",
    "Recipe": "recipe",
    "StagedNet": "backbones",
    "build": "assembly",
    "collapse_kernels_": "kernels",
    "cost": "macs",
    "cuts": "places",
    "distillation_loss": "losses",
    "evaluate": "train",
    "expand_from_": "transfer",
    "expand_kernels_": "kernels",
    "fit": "train",
    "form_of": "forms",
    "hypervolume": "pareto",
    "inherit_weights": "morph",
    "is_conv_or_linear": "filters",
    "load": "checkpoint",
    "load_data": "data",
    "multi_pipeline_loss": "losses",
    "pareto_front": "pareto",
    "save": "checkpoint",
    "search": "driver.run",
    "synergy_loss": "losses",
    "takes_stride": "assembly",
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
