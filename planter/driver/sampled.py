"""A worker's part in sampling: the network a search space describes, trained and scored."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from optuna.trial import FixedTrial
from torch import Tensor, nn

from planter.arch import Architecture
from planter.assembly import build
from planter.backbones import StagedNet, with_data_options
from planter.checkpoint import read_training, write_training
from planter.driver.jobs import Job, Outcome, seed_of
from planter.driver.networks import recipes_of
from planter.driver.plants import measured
from planter.fast_round import train_round
from planter.forms import form_names
from planter.kernels import collapse_kernels_, expand_kernels_
from planter.macs import cost, joint_macs
from planter.pipelines import Pipelines
from planter.planting import live_channels, plant, train_plant
from planter.recipe import Recipe
from planter.space import Candidate, load_space
from planter.study import Plant
from planter.train import Batch, PausedError, evaluate, recalibrate_batchnorm_

if TYPE_CHECKING:
    from planter.driver.worker import Worker

log = logging.getLogger(__name__)


def sample(worker: Worker, job: Job) -> Outcome:
    """Trains a trial's network: as it is drawn, then each of its plants, then all of it again."""
    settings, data = worker.study.sample, worker.data
    assert settings is not None
    space = load_space(
        settings.space, image=data.image, classes=data.classes, multiple=settings.multiple
    )
    candidate = space(FixedTrial(dict(job.params["trial"]), number=int(job.id[1:])))
    if "trained" in job.params:  # the others are beyond the bounds
        candidate = candidate.only(job.params["trained"])
    start = with_data_options(candidate.architecture, data.classes, data.image)
    grown = with_data_options(candidate.grown, data.classes, data.image)
    kernels = form_names(candidate.kernels)
    if (grown.key(), kernels) != (job.params["network"], job.params["kernels"]):
        raise ValueError(
            f"{settings.space} gave the driver another network or form for the same trial: a "
            "space must depend on its trial alone, and must not be edited while a study runs"
        )
    for warning in candidate.warnings:
        log.warning(warning)
    recipes = recipes_of(candidate, worker.study)
    seed = seed_of(worker.study.seed, job.id)
    network = build(start, seed, candidate.norms)
    until = next(iter(job.params.get("rungs", [])), recipes.network.epochs)
    if until < recipes.network.epochs:
        return _partial(worker, job, candidate, start, network, recipes.network, until)
    _check_plants(worker, job, candidate, start, network)
    phases = 1 + len(candidate.plants) + (recipes.again is not None)
    trained = _trained(worker, job.id, candidate, start, network, recipes.network, last=phases == 1)
    network, macs = trained.network, trained.macs
    architecture, reseeded = start, 0
    for number, (layer, channels) in enumerate(candidate.plants, 1):
        name = f"{job.id}/plant{number}"
        architecture, network, more, again = _planted(
            worker,
            name,
            candidate,
            architecture,
            network,
            layer,
            channels,
            last=number + 1 == phases,
        )
        macs += more
        reseeded += again
    if recipes.again is not None:
        name = f"{job.id}/finetune"
        trained = _trained(worker, name, candidate, architecture, network, recipes.again)
        macs += trained.macs
    elif candidate.plants:
        # A plant learned beside the statistics that older channels had: they stay.
        trained = trained._replace(network=network, mixed=False)
    ways = _ways(worker, candidate, trained)
    outcome = worker.outcome(
        job.id, ways, architecture, train_macs=macs, kernels=kernels, norms=candidate.norms
    )
    return {**outcome, "reseeded": reseeded}


def _partial(
    worker: Worker,
    job: Job,
    candidate: Candidate,
    architecture: Architecture,
    network: nn.Module,
    recipe: Recipe,
    until: int,
) -> Outcome:
    """What the trial's pipelines score after `until` epochs. The checkpoint of that moment is what
    the training goes on from; the network is given up."""
    _check_plants(worker, job, candidate, architecture, network)
    trained = _trained(worker, job.id, candidate, architecture, network, recipe, until)
    costs = cost(architecture).pipelines
    points = []
    for name, way in _ways(worker, candidate, trained).items():
        score = evaluate(way, worker.data.validation)
        if not math.isfinite(score.loss):
            raise FloatingPointError(f"validation loss of {name} is {score.loss}")
        points.append(
            {
                "pipeline": name,
                "accuracy": score.accuracy,
                "loss": score.loss,
                "macs": costs[name].macs,
                "params": costs[name].params,
                "architecture": architecture.to_dict(),
            }
        )
    return {"partial": {"epochs": until, "points": points, "train_macs": trained.macs}}


class _Trained(NamedTuple):
    """A network all of whose weights have trained under `recipe` and the seed of `name`, for so
    many multiply-adds; `mixed` where running statistics followed several of its pipelines."""

    name: str
    network: nn.Module
    macs: int
    recipe: Recipe
    mixed: bool


def _ways(worker: Worker, candidate: Candidate, trained: _Trained) -> dict[str, nn.Module]:
    """Each trained pipeline as it is shipped: with the statistics it trained with, or with its own
    where it shared them."""
    network, recipe = trained.network, trained.recipe
    if not isinstance(network, Pipelines):
        network = Pipelines(network, {})
    ways = {name: network.detach(name) for name in candidate.trained}
    if trained.mixed:
        images, seed = worker.images(recipe), seed_of(worker.study.seed, trained.name)
        for way in ways.values():
            recalibrate_batchnorm_(way, images, recipe, seed=seed)
    return ways


def _trained(
    worker: Worker,
    name: str,
    candidate: Candidate,
    architecture: Architecture,
    network: nn.Module,
    recipe: Recipe,
    until: int | None = None,
    *,
    last: bool = True,
) -> _Trained:
    """The network trained, in the candidate's kernels, to the end or `until` an epoch; unless it is
    the `last` phase of its trial, see `_kept`."""
    ways = network if isinstance(network, Pipelines) else Pipelines(_staged(network), {})
    if candidate.kernels is not None:
        expand_kernels_(ways, candidate.kernels, seed=seed_of(worker.study.seed, name))
    ways.to(worker.device)  # after all draws, which so are the same on every device

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, Pipelines)
        return candidate.loss(model, batch)

    def train() -> int:
        worker.fit(name, ways, loss, recipe, guided=candidate.guided, until=until)
        return 0

    _kept(worker, name, ways, recipe, train, last=last)
    collapse_kernels_(ways)
    total = joint_macs(cost(architecture), candidate.trained)
    done = recipe.model_copy(update={"epochs": until or recipe.epochs})
    macs = worker.train_macs(total, done, guided=candidate.guided)
    macs += worker.kernel_macs(architecture, candidate.kernels, done, candidate.trained)
    entered = set(ways.entries) & set(candidate.trained)
    mixed = ways.shares_statistics and bool(entered) and len(candidate.trained) > 1
    return _Trained(name, _plain(ways), macs, recipe, mixed)


def _planted(
    worker: Worker,
    name: str,
    candidate: Candidate,
    before: Architecture,
    parent: nn.Module,
    layer: str,
    channels: int,
    *,
    last: bool,
) -> tuple[Architecture, nn.Module, int, bool]:
    """The network with one more plant, which alone is trained; multiply-adds; whether it had to be
    planted once more, because no channel answered to any image. Unless it is the `last` phase of
    its trial, see `_kept`."""
    macs = 0
    batch = measured(worker, guided=candidate.guided)

    def loss(network: nn.Module) -> Tensor:
        if isinstance(network, Pipelines):
            return candidate.loss(network, batch)
        return candidate.loss_of({"base": network(batch.images)}, batch.labels, batch.teacher)

    for attempt in (name, f"{name}/again"):
        seed = seed_of(worker.study.seed, attempt)
        architecture, child = plant(
            before,
            parent,
            layer,
            channels,
            seed=seed,
            filters=candidate.plant_filters,
            outgoing=candidate.plant_outgoing,
            images=batch.images,
            loss=loss,
        )
        macs += _kept(
            worker,
            attempt,
            child,
            recipes_of(candidate, worker.study).plants,
            partial(_train_plant, worker, attempt, candidate, before, parent, architecture, child),
            last=last,
        )
        base = child.detach("base") if isinstance(child, Pipelines) else child
        live = live_channels(base, layer, before.widths[layer], worker.data.train)
        if live != 0:
            break
        log.warning("%s: no channel planted in %s answers to any image", attempt, layer)
    return architecture, child, macs, attempt != name


def _kept(
    worker: Worker,
    name: str,
    network: nn.Module,
    recipe: Recipe,
    train: Callable[[], int],
    *,
    last: bool,
) -> int:
    """The multiply-adds that `train` counts, which trains the network in place. Where the time is
    over then and it is not the `last` phase of its trial, no further one begins: PausedError is
    raised, and the network is on disk, to be taken up by the same call without training."""
    file = worker.checkpoint_of(f"{name}/trained")
    if (state := read_training(file)) is not None:
        network.load_state_dict(state["model"])
        return int(state["macs"])
    macs = train()
    if not last and worker.pause():
        write_training(file, {"model": network.state_dict(), "macs": macs})
        raise PausedError(recipe.epochs, recipe.epochs)
    return macs


def _train_plant(
    worker: Worker,
    name: str,
    candidate: Candidate,
    before: Architecture,
    parent: nn.Module,
    architecture: Architecture,
    child: nn.Module,
) -> int:
    """Trains what is new in the child; multiply-adds."""
    settings = worker.study.plant or Plant()
    recipe = recipes_of(candidate, worker.study).plants
    seed = seed_of(worker.study.seed, name)
    images = worker.images(recipe)
    teacher = worker.guide(recipe) if candidate.guided else None
    if isinstance(parent, Pipelines):

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            assert isinstance(model, Pipelines)
            return candidate.loss(model, batch)

        train_plant(
            child,
            parent,
            images,
            recipe,
            loss,
            teacher=teacher,
            seed=seed,
            checkpoint=worker.checkpoint_of(name),
            pause=worker.pause,
        )
        total = joint_macs(cost(architecture), candidate.trained)
        return worker.train_macs(total, recipe, guided=candidate.guided)
    course = train_round(
        parent,
        {"plant": child},
        images,
        recipe,
        lambda logits, labels, guide: candidate.loss_of({"base": logits}, labels, guide),
        teacher=teacher,
        seed=seed,
        memory=int(settings.memory_gb * 1e9),
        checkpoint=worker.checkpoint_of(name),
        pause=worker.pause,
    )["plant"]
    if course.error is not None:
        raise FloatingPointError(course.error)
    shared = cost(before).macs * len(images)
    if recipe.augment.changes():
        shared += worker.teacher_macs * len(images) if candidate.guided else 0
        shared *= recipe.epochs
    return course.macs + shared


def _check_plants(
    worker: Worker, job: Job, candidate: Candidate, start: Architecture, network: nn.Module
) -> None:
    """Raises ValueError for a plant that would change the function, before anything is trained."""
    architecture, grown = start, _plain(network)
    for layer, channels in candidate.plants:
        with torch.random.fork_rng(devices=[]):
            architecture, grown = plant(architecture, grown, layer, channels, seed=0)


def _plain(network: nn.Module) -> nn.Module:
    """The form in which a network is planted: pipelines as they are, any other as it is shipped."""
    if isinstance(network, Pipelines) and len(network.names) > 1:
        return network
    ways = network if isinstance(network, Pipelines) else Pipelines(network, {})
    return ways.detach("base")


def _staged(network: nn.Module) -> nn.Module:
    """A network as it is shipped, with its stages and its head under their names again."""
    parts = list(network.named_children())
    if type(network) is not nn.Sequential or parts[-1][0] != "head":
        return network
    return StagedNet(nn.Sequential(OrderedDict(parts[:-1])), parts[-1][1])
