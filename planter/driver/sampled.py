"""A worker's part in sampling: the network a search space describes, trained and scored."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import TYPE_CHECKING

import torch
from optuna.trial import FixedTrial
from torch import Tensor, nn

from planter.arch import Architecture
from planter.assembly import build
from planter.backbones import StagedNet, with_data_options
from planter.blocks import Block
from planter.driver.jobs import Job, Outcome, seed_of
from planter.fast_round import train_round
from planter.forms import form_names
from planter.kernels import collapse_kernels_, expand_kernels_
from planter.macs import cost, joint_macs
from planter.pipelines import Pipelines
from planter.planting import live_channels, plant, train_plant
from planter.recipe import Recipe
from planter.space import Candidate, load_space
from planter.study import Plant
from planter.train import Batch, recalibrate_batchnorm_

if TYPE_CHECKING:
    from planter.driver.worker import Worker

log = logging.getLogger(__name__)


def sample(worker: Worker, job: Job) -> Outcome:
    """Trains a trial's network: as it is drawn, then each of its plants, then all of it again."""
    settings, data = worker.study.sample, worker.data
    assert settings is not None
    space = load_space(settings.space, image=data.image, classes=data.classes)
    candidate = space(FixedTrial(dict(job.params["trial"]), number=int(job.id[1:])))
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
    recipe = Recipe.model_validate({**worker.study.recipe.model_dump(), **candidate.recipe})
    seed = seed_of(worker.study.seed, job.id)
    network = build(start, seed, candidate.norms)
    _check_plants(worker, job, candidate, start, network)
    network, macs = _trained(worker, job.id, candidate, start, network, recipe)
    architecture = start
    for number, (layer, channels) in enumerate(candidate.plants, 1):
        name = f"{job.id}/plant{number}"
        architecture, network, more = _planted(
            worker, name, candidate, architecture, network, layer, channels
        )
        macs += more
    if candidate.finetune is not None:
        again = Recipe.model_validate({**recipe.model_dump(), **candidate.finetune})
        name = f"{job.id}/finetune"
        network, more = _trained(worker, name, candidate, architecture, network, again)
        macs += more
    if not isinstance(network, Pipelines):
        network = Pipelines(network, {})
    norms_move = not candidate.plants or candidate.finetune is not None
    ways = {name: network.detach(name) for name in candidate.trained}
    for way in ways.values():
        if norms_move:  # a plant leaves the statistics of older channels as they are
            recalibrate_batchnorm_(way, data.train)
    return worker.outcome(
        job.id, ways, architecture, train_macs=macs, kernels=kernels, norms=candidate.norms
    )


def _trained(
    worker: Worker,
    name: str,
    candidate: Candidate,
    architecture: Architecture,
    network: nn.Module,
    recipe: Recipe,
) -> tuple[nn.Module, int]:
    """The network with all of its weights trained, in the candidate's kernels; multiply-adds."""
    ways = network if isinstance(network, Pipelines) else Pipelines(_staged(network), {})
    if candidate.kernels is not None:
        expand_kernels_(ways, candidate.kernels, seed=seed_of(worker.study.seed, name))
    ways.to(worker.device)  # after all draws, which so are the same on every device

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, Pipelines)
        return candidate.loss(model, batch)

    worker.fit(name, ways, loss, recipe, guided=candidate.guided)
    if any(isinstance(module, Block) for module in ways.modules()):
        # A block is fused with its own norms' statistics: first let them fit the weights.
        recalibrate_batchnorm_(ways, worker.data.train)
    collapse_kernels_(ways)
    total = joint_macs(cost(architecture), candidate.trained)
    macs = worker.train_macs(total, recipe, guided=candidate.guided)
    macs += worker.kernel_macs(architecture, candidate.kernels, recipe)
    return _plain(ways), macs


def _planted(
    worker: Worker,
    name: str,
    candidate: Candidate,
    before: Architecture,
    parent: nn.Module,
    layer: str,
    channels: int,
) -> tuple[Architecture, nn.Module, int]:
    """The network with one more plant, which alone is trained; multiply-adds. One of which no
    channel answers to any image is planted once more."""
    macs = 0
    for attempt in (name, f"{name}/again"):
        seed = seed_of(worker.study.seed, attempt)
        architecture, child = plant(before, parent, layer, channels, seed=seed)
        macs += _train_plant(worker, attempt, candidate, before, parent, architecture, child)
        base = child.detach("base") if isinstance(child, Pipelines) else child
        live = live_channels(base, layer, before.widths[layer], worker.data.train)
        if live != 0:
            break
        log.warning("%s: no channel planted in %s answers to any image", attempt, layer)
    return architecture, child, macs


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
    recipe = Recipe.model_validate({**settings.recipe.model_dump(), **candidate.plant_recipe})
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
    )["plant"]
    if course.error is not None:
        raise FloatingPointError(course.error)
    return course.macs + cost(before).macs * len(images)


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
