"""Whether the trainings of a study find the memory that they take."""

from __future__ import annotations

import math
from typing import NamedTuple

from planter.costs.macs import activations, cost
from planter.data import Split
from planter.driver.checking.check import Prepared, worker_count
from planter.driver.trials.networks import Planned
from planter.machine.memory import available_bytes
from planter.study.schema import Study

_PROCESS = 0.5e9
"""Bytes of a process before it trains: Python, torch and Ray."""
_AT_ONCE = 8
"""Times the largest layer's numbers that a step holds beside those that it keeps: gradients, what
kernels work on, and room that fits nothing else. With it the estimate was 0.75 to 1.6 times what
ten trainings took (docs/performance.md, "Memory of a training")."""


class Need(NamedTuple):
    """Bytes of all processes of a training, an estimate; the network, so many images at a time."""

    bytes: float
    network: str
    images: int


def needs_of(study: Study, prepared: Prepared) -> list[Need]:
    """What each training takes of the host's memory, most first. A draw of a space, and a child of
    `evolve`, taken as large as its parent or as its bound of multiply-adds allows, stand for as
    many as may train at a time. Rounds of planting keep to `plant.memory_gb` and are not counted.
    """
    workers, images = max(worker_count(study), 1), prepared.data.train
    stack, needs = study.resources.stack, []
    for name, planned in prepared.networks.items():
        drawn = name.startswith("sample")
        if planned.trained and drawn:
            needs += [_need("a draw of sample.space", planned, images, stack=stack)] * workers
        elif planned.trained:
            processes = 1
            if name == "teacher" and study.teacher is not None:
                processes = study.teacher.processes
            needs.append(_need(name, planned, images, stack=stack, processes=processes))
        if study.evolve is not None and not drawn:
            macs = cost(planned.architecture).macs
            share = min(study.objectives.bounds.limits().get("macs", math.inf) / macs, 1.0)
            child = planned._replace(recipe=study.evolve.recipe_of(study.recipe))
            told = f"a child of {name}"
            needs += [_need(told, child, images, stack=stack, share=share)] * workers
    return sorted(needs, reverse=True)


def _need(
    name: str,
    planned: Planned,
    split: Split,
    *,
    stack: int,
    processes: int = 1,
    share: float = 1.0,
) -> Need:
    """Of a network with a `share` of another's layers, in so many processes or stacked."""
    recipe, images = planned.recipe, len(split)
    pool = (recipe.augment.views or 0) * images * split.batch(slice(1)).nbytes
    # Batches differ by an image at most: of 130 images, 128 at a time, they have 65.
    together = math.ceil(images / math.ceil(images / recipe.batch))
    together = math.ceil(together / recipe.accumulate)
    handed = activations(planned.architecture)
    values = share * 4 * together * (handed.all + _AT_ONCE * handed.most)
    weights = 16 * cost(planned.architecture).params  # gradients and two moments beside
    return Need(processes * (_PROCESS + weights + pool) + stack * values, name, together)


def too_little(study: Study, needs: list[Need]) -> str | None:
    """The warning that trainings beside each other need more than this machine has, or one more
    than `resources.memory_gb` lets its worker have; None where they do not."""
    if not needs:
        return None
    workers = worker_count(study)
    most, limit = needs[0], study.resources.memory_gb
    divided = study.teacher is not None and study.teacher.processes > 1
    less = "a smaller recipe.batch, or data.resize, takes less"
    if not (divided and most.network == "teacher"):
        less = (
            "a smaller recipe.batch or data.resize, or recipe.accumulate (parts of a batch one "
            "after another), takes less"
        )
    told = f"a training of {most.network} takes about {most.bytes / 1e9:.1f} GB"
    beside = [need for need in needs if not (divided and need.network == "teacher")]
    if limit is not None and workers and beside and beside[0].bytes > limit * 1e9:
        told = f"a training of {beside[0].network} takes about {beside[0].bytes / 1e9:.1f} GB"
        return f"{told}, resources.memory_gb is {limit:g}: {less}"
    there = available_bytes()
    if most.bytes > there:
        return f"{told}, more than the {there / 1e9:.1f} GB that are free: {less}"
    at_once = [need.bytes for need in beside[: max(workers, 1)]]
    if sum(at_once) > there:
        few = next(n for n in range(len(at_once), -1, -1) if sum(at_once[:n]) <= there)
        return (
            f"{len(at_once)} trainings at a time take about {sum(at_once) / 1e9:.1f} GB, more than "
            f"the {there / 1e9:.1f} GB that are free: resources.workers: {few} fits; {less}"
        )
    return None
