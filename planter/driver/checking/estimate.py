"""How long a study would take, from a few steps of its networks."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from planter.arch import Architecture
from planter.costs.macs import activations, cost, joint_macs
from planter.data import Split
from planter.driver.checking.check import Prepared, worker_count
from planter.driver.trials.cost import training_macs
from planter.driver.trials.networks import Planned, baseline_id
from planter.edits.expand import expand_kernels_
from planter.machine.torch_state import threads_of_torch
from planter.networks.assembly import build, build_network
from planter.networks.normalisation import as_taken
from planter.planting.plants import channels_to_plant, plant
from planter.planting.round import train_round
from planter.study.schema import Plant, Study
from planter.training.augment import Augment
from planter.training.batches import layout_of, make_batch
from planter.training.recipe import Recipe, make_optimizer

_MOST_S = 4.0
"""Seconds of timing; networks left by then are estimated by their multiply-adds."""
_MOST_BYTES = 256e6
"""Of what a timed step keeps for its backward pass; of larger batches a part is timed. The same of
a network's weights, which a step holds four times (gradients, an optimiser's two moments)."""
_CHILD = 0.25
"""Multiply-adds of a child, on average, beside its largest ancestor's."""
_MOST_MACS = 2e10
"""Multiply-adds of a timed step."""


class Part(NamedTuple):
    """What a section of the study takes: seconds by the clock, and multiply-adds of its trainings,
    `guide_macs` of which are the teacher's, for the logits of images that change."""

    seconds: float
    train_macs: float
    guide_macs: float


@dataclass(frozen=True)
class Estimate:
    """What a study would take here, by its sections; what half of a key would save, in seconds, the
    largest first, with the value that is halved."""

    parts: dict[str, Part]
    halved: dict[str, tuple[float, float]]

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts.values())


class _Work(NamedTuple):
    """Trainings of a section: seconds of workers, multiply-adds, and the keys of the study, with
    their values, each of which all of it is proportional to."""

    section: str
    keys: Mapping[str, float]
    seconds: float
    macs: float
    guide_macs: float = 0.0
    guided: bool = False


def estimated(study: Study, prepared: Prepared) -> Estimate:
    """How long the study would take here, and for what: a few training steps of each of its
    networks are timed, on as many threads as a worker has, and multiplied.

    The timing itself stays within seconds and some 500 MB whatever the images: of a large batch a
    part is timed, and networks that are too large, or come when the time is up, are estimated by
    their multiply-adds and the pace of the others. The teacher trains alone but for baselines that
    learn from labels: a part's seconds are what the study would be shorter by without it.
    """
    with threads_of_torch(study.resources.cpu):
        works = _works(study, prepared)
    workers = max(worker_count(study), 1)
    own: dict[str, float] = {}
    for work in works:
        own[work.section] = own.get(work.section, 0.0) + work.seconds
    seconds = {section: of_workers / workers for section, of_workers in own.items()}
    if "teacher" in own and study.teacher is not None and study.teacher.processes > 1:
        seconds["teacher"] = own["teacher"] / study.teacher.processes  # nobody trains beside it
    elif "teacher" in own:
        beside = sum(w.seconds for w in works if w.section == "baselines" and not w.guided)
        seconds["teacher"] = max(own["teacher"] - beside / workers, own["teacher"] / workers)
    parts = {
        section: Part(
            seconds[section],
            sum(work.macs for work in works if work.section == section),
            sum(work.guide_macs for work in works if work.section == section),
        )
        for section in own
    }
    saved: dict[str, tuple[float, float]] = {}
    for work in works:
        share = seconds[work.section] / own[work.section] if own[work.section] else 0.0
        for key, value in work.keys.items():
            if value > 1:
                saved[key] = (saved.get(key, (0.0, 0.0))[0] + work.seconds * share / 2, value)
    order = sorted(saved, key=lambda key: saved[key][0], reverse=True)
    return Estimate(parts, {key: saved[key] for key in order})


def _works(study: Study, prepared: Prepared) -> list[_Work]:
    images, networks = len(prepared.data.train), prepared.networks
    pace = _Pace(prepared.data.train)
    seconds = {name: pace.of_training(planned) for name, planned in networks.items()}
    guide = 0.0
    if (teacher := networks.get("teacher")) is not None:  # an image of it, forward only
        guide = seconds["teacher"] / (3 * images * teacher.recipe.epochs)

    def work(
        section: str,
        name: str,
        keys: Mapping[str, float],
        recipe: Recipe | None = None,
        times: float = 1.0,
    ) -> _Work:
        planned = networks[name]
        recipe = recipe or planned.recipe
        costs = cost(planned.architecture)
        asked = images * recipe.epochs if planned.guided and recipe.augment.changes() else 0
        macs = training_macs(joint_macs(costs, list(costs.pipelines)), recipe, images)
        whole = seconds[name] * recipe.epochs / planned.recipe.epochs + asked * guide
        more = asked * prepared.teacher_macs
        return _Work(
            section, keys, times * whole, times * (macs + more), times * more, planned.guided
        )

    found = []
    epochs = {"recipe.epochs": float(study.recipe.epochs)}
    if study.teacher is not None and networks["teacher"].trained:
        own = {"teacher.recipe.epochs": float(networks["teacher"].recipe.epochs)}
        found.append(work("teacher", "teacher", own if study.teacher.recipe else epochs))
    for index, baseline in enumerate(study.baselines):
        name = baseline_id(study, baseline)
        if networks[name].trained:
            own = {f"baselines.{index}.recipe.epochs": float(networks[name].recipe.epochs)}
            found.append(work("baselines", name, own if baseline.recipe else epochs))
    if (plant := study.plant) is not None:
        rounds = {"plant.rounds": float(plant.rounds)}
        found.append(work("plant", "start", epochs))
        found.append(_rounds(study, prepared, rounds, guide))
        if plant.finetune is not None:
            own = {**rounds, "plant.finetune.epochs": float(plant.finetune.epochs)}
            found.append(work("plant", "start", own, plant.finetune, plant.rounds))
        if plant.final is not None:
            own = {"plant.final.epochs": float(plant.final.epochs)}
            found.append(work("plant", "start", own, plant.final))
    drawn = [name for name in networks if name.startswith("sample")]
    if study.sample is not None and drawn:
        share = 1.0 if study.sample.early_stopping is None else study.sample.early_stopping.share()
        keys = {"sample.trials": float(study.sample.trials), **epochs}
        each = share * study.sample.trials / len(drawn)
        found += [work("sample", name, keys, times=each) for name in drawn]
    before = sum(one.macs for one in found)
    return found + _children(study, prepared, seconds, guide, before)


def _rounds(study: Study, prepared: Prepared, rounds: Mapping[str, float], guide: float) -> _Work:
    """Candidates of all rounds, as if they were of the initial network; a worker asks the teacher
    once for its share of a round."""
    plant = study.plant
    assert plant is not None
    recipe, images, layers = plant.recipe, len(prepared.data.train), len(prepared.layers)
    shares = plant.rounds * min(max(worker_count(study), 1), layers)
    asked = shares * images * recipe.epochs
    if not plant.kd_weight or not recipe.augment.changes():
        asked = 0
    macs = training_macs(cost(prepared.networks["start"].architecture).macs, recipe, images)
    more = asked * prepared.teacher_macs
    return _Work(
        "plant",
        {**rounds, "plant.recipe.epochs": float(recipe.epochs)},
        plant.rounds * _round_seconds(plant, prepared) + asked * guide,
        plant.rounds * layers * macs + more,
        more,
    )


def _children(
    study: Study, prepared: Prepared, seconds: Mapping[str, float], guide: float, before: float
) -> list[_Work]:
    """`evolve`, at the pace of the network with most multiply-adds that may have children: its
    first children have half of them, those that follow less and less, and none more than the bound
    allows. `before` is what others take of the budget."""
    parents = {n: p for n, p in prepared.networks.items() if not n.startswith("sample")}
    if (evolve := study.evolve) is None or not parents:
        return []
    name = max(parents, key=lambda n: cost(parents[n].architecture).macs)
    images, recipe = len(prepared.data.train), evolve.recipe_of(study.recipe)
    largest = cost(parents[name].architecture).macs
    child = min(_CHILD * largest, study.objectives.bounds.limits().get("macs", math.inf))
    trials = float(evolve.trials)
    if evolve.early_stopping is not None:
        trials *= evolve.early_stopping.share()
    guided = evolve.kd is not None and evolve.kd.weight > 0 and recipe.augment.changes()
    seen = trials * images * recipe.epochs
    asked = seen * prepared.teacher_macs if guided else 0.0
    macs = 3 * child * seen + asked
    epoch = seconds[name] / parents[name].recipe.epochs
    took = seen / images * epoch * child / largest + (seen * guide if guided else 0.0)
    own = {"evolve.recipe.epochs": float(recipe.epochs)}
    shared = {"recipe.epochs": float(study.recipe.epochs)}
    keys = {"evolve.trials": float(evolve.trials), **(own if evolve.recipe else shared)}
    most = study.budget.train_macs
    if most is not None and macs > max(most - before, 0.0):
        part = max(most - before, 0.0) / macs
        keys, took, macs, asked = (
            {"budget.train_macs": most},
            took * part,
            macs * part,
            asked * part,
        )
    return [_Work("evolve", keys, took, macs, asked)]


class _Pace:
    """Times trainings on these images, as long as there is time for it."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self._ends = time.monotonic() + _MOST_S
        self._macs = 0.0
        self._seconds = 0.0

    def of_training(self, planned: Planned) -> float:
        """Seconds of a whole training."""
        architecture, recipe, kernels, *_ = planned
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
    each = 12 * activations(architecture).all
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
    architecture, recipe, kernels, *_ = planned
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
