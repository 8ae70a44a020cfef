"""planter grows CNNs and selects sub-networks; see `planter.search` and the README."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from planter.machine.importing import uncollected

if TYPE_CHECKING:
    from planter.arch import Architecture
    from planter.backbones import BUILDERS, StagedNet
    from planter.costs.macs import cost
    from planter.data import load_data
    from planter.driver.found import Run, open_run
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
    from planter.study.budget import Budget
    from planter.study.evolve import Evolve
    from planter.study.networks import Baseline, Teacher
    from planter.study.schema import (
        Bounds,
        DataSettings,
        Objectives,
        Plant,
        Resources,
        Sample,
        Study,
        StudyError,
    )
    from planter.study.section import Distillation, EarlyStopping
    from planter.study.space import Candidate
    from planter.training.augment import Augment
    from planter.training.loop import fit
    from planter.training.losses import distillation_loss, multi_pipeline_loss, synergy_loss
    from planter.training.recipe import Recipe
    from planter.training.scores import evaluate

_PLACES = {
    "Architecture": "arch",
    "AsymmetricBlock": "kernels.forms",
    "Augment": "training.augment",
    "BUILDERS": "backbones",
    "Baseline": "study.networks",
    "Bounds": "study.schema",
    "Budget": "study.budget",
    "Candidate": "study.space",
    "DOConv": "kernels.forms",
    "DataSettings": "study.schema",
    "Distillation": "study.section",
    "EarlyStopping": "study.section",
    "Entry": "networks.pipelines",
    "Evolve": "study.evolve",
    "Exit": "networks.pipelines",
    "FeatureFilter": "kernels.forms",
    "KernelFilter": "kernels.forms",
    "Objectives": "study.schema",
    "Pipelines": "networks.pipelines",
    "Plant": "study.schema",
    "Recipe": "training.recipe",
    "Resources": "study.schema",
    "Run": "driver.found",
    "Sample": "study.schema",
    "StagedNet": "backbones",
    "Study": "study.schema",
    "StudyError": "study.schema",
    "Teacher": "study.networks",
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
    "open_run": "driver.found",
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
    "Augment",
    "Baseline",
    "Bounds",
    "Budget",
    "Candidate",
    "DOConv",
    "DataSettings",
    "Distillation",
    "EarlyStopping",
    "Entry",
    "Evolve",
    "Exit",
    "FeatureFilter",
    "KernelFilter",
    "Objectives",
    "Pipelines",
    "Plant",
    "Recipe",
    "Resources",
    "Run",
    "Sample",
    "StagedNet",
    "Study",
    "StudyError",
    "Teacher",
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
    "open_run",
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
    with uncollected():
        module = importlib.import_module(f"planter.{_PLACES[name]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return __all__
