"""Sampling: the network that a search space describes, trained and scored."""

from __future__ import annotations

import logging
from collections import OrderedDict
from functools import partial
from typing import NamedTuple

import torch
from optuna.trial import FixedTrial
from torch import Tensor, nn

from planter.arch import Architecture
from planter.backbones import StagedNet, with_data_options
from planter.costs.macs import cost
from planter.driver.tasks.context import Context
from planter.driver.tasks.planting_step import PlantingStep
from planter.driver.tasks.whole import train_whole
from planter.driver.trials.jobs import Job, Outcome, number_of, seed_of
from planter.driver.trials.networks import recipes_of
from planter.front.points import measured
from planter.kernels.forms import form_names
from planter.networks.assembly import build
from planter.networks.pipelines import Pipelines
from planter.planting.plants import plant
from planter.study.space import Candidate, load_space
from planter.training.batches import Batch
from planter.training.recipe import Recipe
from planter.training.scores import recalibrate_batchnorm_

log = logging.getLogger(__name__)


def sample(context: Context, job: Job) -> Outcome:
    """Trains a trial's network: as it is drawn, then each of its plants, then all of it again."""
    settings, data = context.study.sample, context.data
    assert settings is not None
    space = load_space(
        settings.space, image=data.image, classes=data.classes, multiple=settings.multiple
    )
    candidate = space(FixedTrial(dict(job.params["trial"]), number=_number(job)))
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
    recipes = recipes_of(candidate, context.study)
    seed = seed_of(context.study.seed, job.id)
    network = build(start, seed, candidate.norms)
    until = next(iter(job.params.get("rungs", [])), recipes.network.epochs)
    if until < recipes.network.epochs:
        return _partial(context, job, candidate, start, network, recipes.network, until)
    _check_plants(context, job, candidate, start, network)
    phases = 1 + len(candidate.plants) + (recipes.again is not None)
    trained = _trained(
        context, job.id, candidate, start, network, recipes.network, last=phases == 1
    )
    network, macs = trained.network, trained.macs
    architecture, reseeded = start, 0
    for number, (layer, channels) in enumerate(candidate.plants, 1):
        name = f"{job.id}/plant{number}"
        architecture, network, more, again = _planted(
            context,
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
        trained = _trained(context, name, candidate, architecture, network, recipes.again)
        macs += trained.macs
    elif candidate.plants:
        # A plant learned beside the statistics that older channels had: they stay.
        trained = trained._replace(network=network, mixed=False)
    ways = _ways(context, candidate, trained)
    outcome = context.outcome(
        job.id, ways, architecture, train_macs=macs, kernels=kernels, norms=candidate.norms
    )
    return {**outcome, "reseeded": reseeded}


def _number(job: Job) -> int:
    """The number of the trial's row; that of the one it repeats, where it is no row itself."""
    return int(job.params["number"]) if "number" in job.params else number_of(job.id)


def _partial(
    context: Context,
    job: Job,
    candidate: Candidate,
    architecture: Architecture,
    network: nn.Module,
    recipe: Recipe,
    until: int,
) -> Outcome:
    """What the trial's pipelines score after `until` epochs. The checkpoint of that moment is what
    the training goes on from; the network is given up."""
    _check_plants(context, job, candidate, architecture, network)
    trained = _trained(context, job.id, candidate, architecture, network, recipe, until)
    costs = cost(architecture).pipelines
    points = []
    for name, way in _ways(context, candidate, trained).items():
        score = context.score(name, way)
        points.append(
            {
                "pipeline": name,
                **measured(score, costs[name], context.study.objectives.names),
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


def _ways(context: Context, candidate: Candidate, trained: _Trained) -> dict[str, nn.Module]:
    """Each trained pipeline as it is shipped: with the statistics it trained with, or with its own
    where it shared them."""
    network, recipe = trained.network, trained.recipe
    if not isinstance(network, Pipelines):
        network = Pipelines(network, {})
    ways = {name: network.detach(name) for name in candidate.trained}
    if trained.mixed:
        images, seed = context.images(recipe), seed_of(context.study.seed, trained.name)
        for way in ways.values():
            recalibrate_batchnorm_(way, images, recipe, seed=seed)
    return ways


def _trained(
    context: Context,
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
    the `last` phase of its trial, see `Context.phase`."""
    ways = network if isinstance(network, Pipelines) else Pipelines(_staged(network), {})
    entropy = context.entropy(recipe)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, Pipelines)
        return candidate.loss(model, batch, **entropy)

    trained = train_whole(
        context,
        name,
        ways,
        architecture,
        recipe,
        loss,
        guided=candidate.guided,
        kernels=candidate.kernels,
        pipelines=candidate.trained,
        until=until,
        last=last,
    )
    entered = set(ways.entries) & set(candidate.trained)
    mixed = ways.shares_statistics and bool(entered) and len(candidate.trained) > 1
    return _Trained(name, _plain(ways), trained.macs, recipe, mixed)


def _planted(
    context: Context,
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
    its trial, see `Context.phase`."""
    recipe = recipes_of(candidate, context.study).plants
    entropy = context.entropy(recipe)
    step = PlantingStep(
        context,
        before,
        parent,
        recipe,
        lambda logits, labels, guide: candidate.loss_of({"base": logits}, labels, guide, **entropy),
        guided=candidate.guided,
        filters=candidate.plant_filters,
        outgoing=candidate.plant_outgoing,
        joint_loss=partial(candidate.loss, **entropy),
        trained=tuple(candidate.trained),
    )

    def train(attempt: str) -> int:
        result = step.train(
            {"plant": (architecture, child)},
            seed=seed_of(context.study.seed, attempt),
            checkpoint=context.checkpoint_of(attempt),
        )["plant"]
        if result.error is not None:
            raise FloatingPointError(result.error)
        return result.macs + step.shared_macs()

    macs = 0
    for attempt in (name, f"{name}/again"):
        architecture, child = step.plant(layer, channels, seed_of(context.study.seed, attempt))
        macs += context.phase(attempt, child, step.recipe, partial(train, attempt), last=last)
        if step.live(child, layer) != 0:
            break
        log.warning("%s: no channel planted in %s answers to any image", attempt, layer)
    return architecture, child, macs, attempt != name


def _check_plants(
    context: Context, job: Job, candidate: Candidate, start: Architecture, network: nn.Module
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
