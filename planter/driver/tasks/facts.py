"""What stands in the file of a saved network beside its architecture."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any

from planter.data import Split
from planter.driver.trials.jobs import seed_of
from planter.networks.norms import NormMode
from planter.training.answers import Answers

if TYPE_CHECKING:
    from planter.costs.macs import Cost
    from planter.driver.tasks.context import Context

_PACKAGES = ("planter", "torch", "optuna", "ray", "numpy")


def facts_of(
    context: Context,
    trial: str,
    score: Answers,
    way: Cost,
    taken: Split | None = None,
    kernels: str | dict[str, str] = "plain",
    norms: NormMode = "switch_stats",
) -> dict[str, Any]:
    """The facts in `arch.json` of one pipeline of a trial beside its architecture: how well it
    does, what it costs, what its inputs (as `taken`, by default as the data are) and outputs
    mean, and where it comes from."""
    taken = taken or context.data.train
    return {
        "study": context.study.name,
        "trial": trial,
        "seed": seed_of(context.study.seed, trial),
        "accuracy": score.accuracy,
        "loss": score.loss,
        "macs": way.macs,
        "macs_all": way.macs_all,
        "params": way.params,
        "kernels": kernels,
        "norms": norms,
        "class_names": list(context.data.class_names),
        "pixels": str(taken.dtype).removeprefix("torch."),
        "mean": taken.mean.flatten().tolist(),
        "std": taken.std.flatten().tolist(),
        "data": context.fingerprint,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
