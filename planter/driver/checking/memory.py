"""Whether the trainings of a study find the memory that they take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from planter.costs.macs import activations, cost
from planter.driver.checking.check import worker_count
from planter.driver.trials.networks import Planned
from planter.machine.memory import available_bytes
from planter.study.schema import Study

_PROCESS = 0.5e9
"""Bytes of a worker before it trains: Python, torch and Ray."""
_AT_ONCE = 8
"""Times the largest layer's numbers that a step holds beside those that it keeps: gradients, what
kernels work on, and room that fits nothing else. With it the estimate was 0.75 to 1.6 times what
ten trainings took (docs/performance.md, "Memory of a training")."""


class Need(NamedTuple):
    """Bytes of a worker while it trains a network, so many images at a time; an estimate."""

    bytes: float
    network: str
    images: int


def most_needed(networks: Mapping[str, Planned]) -> Need | None:
    """What the training that needs most takes; None where none is trained."""
    needs = []
    for name, planned in networks.items():
        if planned.trained:
            images = -(-planned.recipe.batch // planned.recipe.accumulate)
            handed = activations(planned.architecture)
            values = 4 * images * (handed.all + _AT_ONCE * handed.most)
            weights = 16 * cost(planned.architecture).params  # gradients and two moments beside
            needs.append(Need(_PROCESS + values + weights, name, images))
    return max(needs, default=None)


def too_little(study: Study, need: Need) -> str | None:
    """The warning that workers on this machine's processors need more than it has, or than
    `resources.memory_gb` lets a worker have; None where they do not, and for GPUs."""
    if study.resources.gpu:
        return None
    workers, most = max(worker_count(study), 1), study.resources.memory_gb
    told = f"a training of {need.network} takes about {need.bytes / 1e9:.1f} GB"
    less = (
        "a smaller recipe.batch, recipe.accumulate (parts of a batch one after another) or a "
        "smaller data.resize takes less"
    )
    if most is not None and need.bytes > most * 1e9:
        return f"{told}, resources.memory_gb is {most:g}: {less}"
    there = available_bytes()
    if workers * need.bytes > there:
        few = int(there // need.bytes)
        several = f"{workers} at a time " if workers > 1 else ""
        fewer = f"resources.workers: {few} fits; " if workers > 1 and few else ""
        return f"{told}, {several}more than the {there / 1e9:.1f} GB that are free: {fewer}{less}"
    return None
