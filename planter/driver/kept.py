"""What is kept of a trained network beside its architecture and weights."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any

from planter.driver.jobs import seed_of
from planter.macs import Cost
from planter.norms import NormMode
from planter.train import Score

if TYPE_CHECKING:
    from planter.driver.worker import Worker

_PACKAGES = ("planter", "torch", "optuna", "ray", "numpy")


def kept_info(
    worker: Worker,
    trial: str,
    score: Score,
    way: Cost,
    kernels: str | dict[str, str] = "plain",
    norms: NormMode = "switch_stats",
) -> dict[str, Any]:
    """The facts in `arch.json` of one pipeline of a trial: how well it does, what it costs, what
    its inputs and outputs mean, and where it comes from."""
    return {
        "study": worker.study.name,
        "trial": trial,
        "seed": seed_of(worker.study.seed, trial),
        "accuracy": score.accuracy,
        "loss": score.loss,
        "macs": way.macs,
        "macs_all": way.macs_all,
        "params": way.params,
        "kernels": kernels,
        "norms": norms,
        "class_names": list(worker.data.class_names),
        "pixels": str(worker.data.train.images.dtype).removeprefix("torch."),
        "mean": worker.data.train.mean.flatten().tolist(),
        "std": worker.data.train.std.flatten().tolist(),
        "data": worker.fingerprint,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
