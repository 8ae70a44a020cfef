"""Whether the trainings of a study find the memory that they take."""

from __future__ import annotations

import math
from typing import NamedTuple

from planter.costs.macs import activations, cost
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
    """What each training takes of the host's memory, most first; a draw of a space stands for as
    many as may train at a time. Children of `evolve` are no larger than their parents."""
    workers = max(worker_count(study), 1)
    needs = []
    for name, planned in prepared.networks.items():
        if planned.trained:
            drawn = name.startswith("sample")
            processes = 1
            if name == "teacher" and study.teacher is not None:
                processes = study.teacher.processes
            need = _need(
                "a draw of sample.space" if drawn else name,
                planned,
                len(prepared.data.train),
                processes,
                study.resources.stack,
            )
            needs += [need] * (workers if drawn else 1)
    return sorted(needs, reverse=True)


def _need(name: str, planned: Planned, images: int, processes: int, stack: int) -> Need:
    recipe = planned.recipe
    # Batches differ by an image at most: of 130 images, 128 at a time, they have 65.
    together = math.ceil(images / math.ceil(images / recipe.batch))
    together = math.ceil(together / recipe.accumulate)
    handed = activations(planned.architecture)
    values = 4 * together * (handed.all + _AT_ONCE * handed.most)
    weights = 16 * cost(planned.architecture).params  # gradients and two moments beside
    return Need(processes * (_PROCESS + weights) + stack * values, name, together)


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
