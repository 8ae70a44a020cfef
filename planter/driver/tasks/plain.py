"""Networks as a study writes them, trained under its recipe: baselines, and planting's start."""

from __future__ import annotations

import logging

from planter.arch import Architecture
from planter.driver.tasks.context import Context
from planter.driver.tasks.planting import loss_of, write_learned
from planter.driver.tasks.whole import Trained, class_loss, of_batch, train_whole
from planter.driver.trials.jobs import Job, Outcome, seed_of
from planter.driver.trials.networks import network_of
from planter.driver.trials.starts import started
from planter.kernels.forms import Kernels, form_names, form_of
from planter.planting.round import Loss
from planter.study.networks import Baseline
from planter.study.schema import Plant

log = logging.getLogger(__name__)


def train_baseline(context: Context, job: Job) -> Outcome:
    """One of the study's baselines, guided where it asks for that."""
    settings = context.study.baselines[job.params["index"]]
    architecture = network_of(context.study, settings, context.data, settings.widths)
    if settings.frozen:
        network = started(settings, architecture, 0).network.to(context.device)
        return context.outcome(job.id, {"base": network}, architecture, train_macs=0)
    entropy, kd = context.entropy(settings.recipe or context.study.recipe), settings.kd
    loss = class_loss(**entropy)
    if kd is not None:
        loss = class_loss(
            ce_weight=kd.ce_weight, kd_weight=kd.weight, temperature=kd.temperature, **entropy
        )
    guided = kd is not None and kd.weight > 0
    return _train(context, job, settings, architecture, loss, guided=guided)[0]


def train_start(context: Context, job: Job) -> Outcome:
    """The initial network of planting, guided as its plants will be."""
    settings = context.study.plant
    assert settings is not None
    outcome, trained = _train(
        context,
        job,
        settings,
        network_of(context.study, settings, context.data, settings.start),
        loss_of(settings, context.entropy(context.study.recipe)),
        guided=settings.kd_weight > 0,
        kernels=form_of(settings.kernels or "plain"),
    )
    if settings.finetune is not None:
        write_learned(context, job.id, context.study.recipe, trained.optimizer)
    return outcome


def _train(
    context: Context,
    job: Job,
    settings: Baseline | Plant,
    architecture: Architecture,
    loss: Loss,
    *,
    guided: bool,
    kernels: Kernels | None = None,
) -> tuple[Outcome, Trained]:
    begun = started(settings, architecture, seed_of(context.study.seed, job.id))
    for told in begun.told:
        log.info("weights %s: %s", settings.weights, told)
    network, recipe = begun.network, context.study.recipe
    if isinstance(settings, Baseline) and settings.recipe is not None:
        recipe = settings.recipe
    trained = train_whole(
        context,
        job.id,
        network,
        architecture,
        recipe,
        of_batch(loss),
        guided=guided,
        kernels=kernels,
    )
    outcome = context.outcome(
        job.id,
        {"base": network},
        architecture,
        train_macs=trained.macs,
        kernels=form_names(kernels),
    )
    saved = context.run / "models" / job.id / "base"
    context.keep_moments(saved, network, trained.optimizer, context.study.recipe)
    return outcome, trained
