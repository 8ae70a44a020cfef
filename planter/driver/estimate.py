"""How long a study would take, from a few steps of its networks."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch
from torch.nn import functional

from planter.assembly import build, build_network
from planter.data import Data
from planter.driver.check import Planned, Prepared, worker_count
from planter.fast_round import train_round
from planter.kernels import expand_kernels_
from planter.modes import threads_of_torch
from planter.planting import channels_to_plant, plant
from planter.recipe import Augment, make_optimizer
from planter.study import Plant, Study


def estimate_seconds(study: Study, prepared: Prepared) -> float:
    """How long the study would take here: a few training steps of each of its networks are timed,
    on as many threads as a worker has, and multiplied."""
    with threads_of_torch(study.resources.cpu):
        seconds = {
            name: _training_seconds(planned, prepared.data)
            for name, planned in prepared.networks.items()
        }
        round_seconds = 0.0 if study.plant is None else _round_seconds(study.plant, prepared)
    total = sum(s for name, s in seconds.items() if not name.startswith("sample"))
    if study.plant is not None:
        plan, epoch = study.plant, seconds["start"] / study.recipe.epochs
        total += plan.rounds * round_seconds
        total += plan.rounds * epoch * (plan.finetune.epochs if plan.finetune else 0)
        total += epoch * (plan.final.epochs if plan.final else 0)
    drawn = [s for name, s in seconds.items() if name.startswith("sample")]
    if study.sample is not None and drawn:
        share = 1.0 if study.sample.early_stopping is None else study.sample.early_stopping.share()
        total += share * study.sample.trials * sum(drawn) / len(drawn)
    return total / max(worker_count(study), 1)


def _round_seconds(settings: Plant, prepared: Prepared) -> float:
    """Time of a round's candidates of the initial network, from epochs over a few batches after one
    to warm up; what the teacher takes where images change is not in it, nor is the scoring."""
    start = build_network(prepared.networks["start"].architecture)
    architecture, split = prepared.networks["start"].architecture, prepared.data.train
    few = slice(0, min(len(split), 2 * settings.recipe.batch))
    split = replace(split, images=split.images[few], labels=split.labels[few])
    times = []
    for epochs in (1, 1, 4):
        children = {
            layer: plant(
                architecture,
                start,
                layer,
                channels_to_plant(architecture.widths[layer], settings.channels, settings.multiple),
                seed=0,
            )[1]
            for layer in prepared.layers
        }
        recipe = settings.recipe.model_copy(update={"epochs": epochs, "augment": Augment()})
        began = time.perf_counter()
        train_round(
            start,
            children,
            split,
            recipe,
            lambda logits, labels, _: functional.cross_entropy(logits, labels),
            teacher=None,
            seed=0,
        )
        times.append(time.perf_counter() - began)
    epoch = max(times[2] - times[1], 0.0) / 3 / len(split) * len(prepared.data.train)
    return epoch * settings.recipe.epochs


def _training_seconds(planned: Planned, data: Data) -> float:
    """Time of a whole training, from two steps after one to warm up."""
    architecture, recipe, kernels = planned
    network = build(architecture)
    if kernels is not None:
        expand_kernels_(network, kernels)
    optimizer = make_optimizer(network, recipe)
    split = data.train
    images = split.normalise(split.images[: recipe.batch])
    labels = split.labels[: recipe.batch]
    times = []
    for _ in range(3):
        began = time.perf_counter()
        output = network(images)
        ways = output.values() if isinstance(output, dict) else [output]
        losses = [functional.cross_entropy(logits, labels) for logits in ways]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        times.append(time.perf_counter() - began)
    steps = math.ceil(len(split) / recipe.batch) * recipe.epochs
    return steps * sum(times[1:]) / 2
