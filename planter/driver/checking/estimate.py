"""How long a study would take, from a few steps of its networks."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from planter.arch import Architecture
from planter.costs.macs import activation_numbers, cost, joint_macs
from planter.data import Split
from planter.driver.checking.check import Prepared, worker_count
from planter.driver.trials.networks import Planned
from planter.edits.expand import expand_kernels_
from planter.machine.torch_state import threads_of_torch
from planter.networks.assembly import build, build_network
from planter.networks.normalisation import as_taken
from planter.planting.plants import channels_to_plant, plant
from planter.planting.round import train_round
from planter.study.schema import Plant, Study
from planter.training.augment import Augment
from planter.training.batches import layout_of, make_batch
from planter.training.recipe import make_optimizer

_MOST_S = 4.0
"""Seconds of timing; networks left by then are estimated by their multiply-adds."""
_MOST_BYTES = 256e6
"""Of what a timed step keeps for its backward pass; of larger batches a part is timed. The same of
a network's weights, which a step holds four times (gradients, an optimiser's two moments)."""
_CHILD = 0.25
"""Multiply-adds of a child, on average, beside its largest ancestor's."""
_MOST_MACS = 2e10
"""Multiply-adds of a timed step."""


def estimate_seconds(study: Study, prepared: Prepared) -> float:
    """How long the study would take here: a few training steps of each of its networks are timed,
    on as many threads as a worker has, and multiplied.

    The timing itself stays within seconds and some 500 MB whatever the images: of a large batch a
    part is timed, and networks that are too large, or come when the time is up, are estimated by
    their multiply-adds and the pace of the others.
    """
    with threads_of_torch(study.resources.cpu):
        pace = _Pace(prepared.data.train)
        seconds = {name: pace.of_training(planned) for name, planned in prepared.networks.items()}
        round_seconds = 0.0 if study.plant is None else _round_seconds(study.plant, prepared)
    total = sum(
        seconds[name]
        for name, planned in prepared.networks.items()
        if planned.trained and not name.startswith("sample")
    )
    if study.plant is not None:
        plan, epoch = study.plant, seconds["start"] / study.recipe.epochs
        total += plan.rounds * round_seconds
        total += plan.rounds * epoch * (plan.finetune.epochs if plan.finetune else 0)
        total += epoch * (plan.final.epochs if plan.final else 0)
    drawn = [s for name, s in seconds.items() if name.startswith("sample")]
    if study.sample is not None and drawn:
        share = 1.0 if study.sample.early_stopping is None else study.sample.early_stopping.share()
        total += share * study.sample.trials * sum(drawn) / len(drawn)
    total += _children_seconds(study, prepared, seconds)
    return total / max(worker_count(study), 1)


def _children_seconds(study: Study, prepared: Prepared, seconds: Mapping[str, float]) -> float:
    """Seconds of `evolve`, at the pace of the network with most multiply-adds that may have
    children: half of that one's training for the first, less and less for those that follow."""
    parents = {n: p for n, p in prepared.networks.items() if not n.startswith("sample")}
    if study.evolve is None or not parents:
        return 0.0
    name = max(parents, key=lambda n: cost(parents[n].architecture).macs)
    epoch = seconds[name] / parents[name].recipe.epochs
    children = study.evolve.trials * study.evolve.recipe_of(study.recipe).epochs * _CHILD * epoch
    if study.evolve.early_stopping is not None:
        children *= study.evolve.early_stopping.share()
    most = study.budget.train_macs
    if most is None or not seconds[name]:
        return children
    macs = cost(parents[name].architecture).macs * 3 * len(prepared.data.train)
    return min(children, most / macs * epoch)


class _Pace:
    """Times trainings on these images, as long as there is time for it."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self._ends = time.monotonic() + _MOST_S
        self._macs = 0.0
        self._seconds = 0.0

    def of_training(self, planned: Planned) -> float:
        """Seconds of a whole training."""
        architecture, recipe, kernels, _ = planned
        costs = cost(architecture)
        macs = 3 * joint_macs(costs, list(costs.pipelines))
        batch = timed_batch(architecture, recipe.batch, macs)
        epochs = len(self._split) * recipe.epochs
        if batch is None or (self._seconds and time.monotonic() > self._ends):
            return epochs * macs * self._of_a_mac()
        seconds = _step_seconds(planned, self._split, batch)
        if kernels is None:  # others compute more than is counted here
            self._macs += batch * macs
            self._seconds += seconds
        return epochs / batch * seconds

    def _of_a_mac(self) -> float:
        if not self._seconds:
            self._macs, self._seconds = _measured_pace()
        return self._seconds / self._macs


def timed_batch(architecture: Architecture, batch: int, macs: int) -> int | None:
    """How many images of a batch one timed step takes, at `macs` an image forward and backward; two
    at least, for batch norms. None for a network of which no step may be timed."""
    if 4 * cost(architecture).params > _MOST_BYTES or 2 * macs > _MOST_MACS:
        return None
    # A value, its gradient, and what a backward pass holds in between.
    each = 12 * activation_numbers(architecture)
    most = min(_MOST_BYTES / max(each, 1), _MOST_MACS / max(macs, 1))
    return min(batch, max(int(most), 2))


def _measured_pace() -> tuple[float, float]:
    """Multiply-adds and seconds of the forward and backward pass of a middling convolution."""
    layer = torch.nn.Conv2d(64, 64, 3, padding=1)
    images = torch.zeros(2, 64, 28, 28)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        layer(images).sum().backward()
        times.append(time.perf_counter() - began)
    return 3.0 * 2 * 28 * 28 * 64 * 64 * 9, min(times)


def _round_seconds(settings: Plant, prepared: Prepared) -> float:
    """Time of a round's candidates of the initial network, from epochs over a few batches after one
    to warm up; what the teacher takes where images change is not in it, nor is the scoring."""
    architecture, split = prepared.networks["start"].architecture, prepared.data.train
    macs = 3 * cost(architecture).macs * max(len(prepared.layers), 1)
    batch = timed_batch(architecture, settings.recipe.batch, macs)
    if batch is None:
        whole, seconds = _measured_pace()
        return len(split) * settings.recipe.epochs * macs * seconds / whole
    start = build_network(architecture)
    few = slice(0, min(len(split), 2 * batch))
    split = split.sample(few)
    times = []
    for epochs in (1, 1, 4):
        children = {
            layer: plant(
                architecture,
                start,
                layer,
                channels_to_plant(architecture.width(layer), settings.channels, settings.multiple),
                seed=0,
            )[1]
            for layer in prepared.layers
        }
        recipe = settings.recipe.model_copy(
            update={"epochs": epochs, "batch": batch, "augment": Augment()}
        )
        began = time.perf_counter()
        train_round(start, children, split, recipe, _cross_entropy, teacher=None, seed=0)
        times.append(time.perf_counter() - began)
    epoch = max(times[2] - times[1], 0.0) / 3 / len(split) * len(prepared.data.train)
    return epoch * settings.recipe.epochs


def _cross_entropy(logits: Tensor, labels: Tensor, teacher: Tensor | None) -> Tensor:
    return functional.cross_entropy(logits, labels)


def _step_seconds(planned: Planned, split: Split, batch: int) -> float:
    """Time of a training step on so many images, changed as the recipe says: of two after one to
    warm up, or of one that took longer than half a second. A teacher's part is not in it."""
    architecture, recipe, kernels, _ = planned
    split = as_taken(split, {"architecture": architecture.to_dict()})
    network = build(architecture)
    if kernels is not None:
        expand_kernels_(network, kernels)
    layout = layout_of(network)
    network.to(memory_format=layout)
    optimizer = make_optimizer(network, recipe)
    index, generator = torch.arange(min(batch, len(split))), torch.Generator().manual_seed(0)
    classes = architecture.options.get("classes")
    times: list[float] = []
    while len(times) < 3 and not (times and times[0] > 0.5):
        began = time.perf_counter()
        images, labels, _ = make_batch(
            split, index, recipe.augment, generator, None, layout, classes=classes
        )
        output = network(images)
        ways = output.values() if isinstance(output, dict) else [output]
        losses = [functional.cross_entropy(logits, labels) for logits in ways]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        times.append(time.perf_counter() - began)
    return times[0] if len(times) == 1 else sum(times[1:]) / 2
