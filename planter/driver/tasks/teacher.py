"""The teacher: given, trained by an earlier study with the same settings, or trained now."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from planter.arch import Architecture
from planter.backbones import code_key, source_key
from planter.costs.macs import cost
from planter.driver.run_folder.settings import drop_half_written
from planter.driver.tasks.context import Context, locked
from planter.driver.tasks.whole import class_loss, of_batch, train_whole
from planter.driver.trials.jobs import Job, Outcome, seed_of
from planter.driver.trials.starts import key_of_weights, started, teacher_of
from planter.networks import checkpoint, moments
from planter.networks.normalisation import as_taken, taking
from planter.study.networks import Teacher
from planter.training.augmentation import augmentation
from planter.training.loop import PausedError
from planter.training.recipe import Recipe

log = logging.getLogger(__name__)


def train_teacher(context: Context, job: Job) -> Outcome:
    """Scores and saves the study's teacher, and keeps its logits of the training images."""
    settings = context.study.teacher
    assert settings is not None
    if settings.model is not None:
        # `check` has seen to it that a builder of the user's own is one the study names.
        network = checkpoint.load(settings.model, own_code=True)
        spec = checkpoint.read_spec(settings.model)
        architecture = Architecture.from_dict(spec["architecture"])
        # It learned from images normalised as its own data were.
        outcome = context.outcome(
            job.id,
            {"base": network},
            architecture,
            train_macs=0,
            validation=as_taken(context.data.validation, spec),
        )
        network = taking(network, context.data.train, spec)
    else:
        architecture, spec = teacher_of(context.study, context.data)
        kept: Path | None = None
        if settings.frozen:
            network, macs = started(settings, architecture, 0).network.to(context.device), 0
        else:
            recipe = settings.recipe or context.study.recipe
            network, kept = _cached(context, job, settings, architecture, spec, recipe)
            ended = {"epochs": checkpoint.read_spec(kept).get("epochs", recipe.epochs)}
            trained = recipe.model_copy(update=ended)
            macs = context.train_macs(cost(architecture).macs, trained, guided=False)
        outcome = context.outcome(
            job.id,
            {"base": network},
            architecture,
            train_macs=macs,
            validation=as_taken(context.data.validation, spec),
        )
        if kept is not None and context.wants_moments:
            moments.copy(kept, context.run / "models" / job.id / "base")
        network = taking(network, context.data.train, spec)
    if job.id == context.teacher_trial:  # else nobody here learns from it
        context.keep_teacher_logits(network)
    return outcome


def _key(settings: list[Any], processes: int) -> str:
    """Of a trained teacher; how many processes share a training is part of what it gives."""
    return checkpoint.content_key([*settings, *([{"processes": processes}] * (processes > 1))])


def _tell_of_others(teachers: Path, settings: list[Any], processes: int) -> None:
    """Says where this teacher's training was begun by another number of processes."""
    for many in {*range(1, 65)} - {processes}:
        part = teachers / f"{_key(settings, many)}.part"
        if part.exists():
            log.warning(
                "%s is of a training of this teacher by %d: teacher.processes: %d goes on with "
                "it, this one begins anew", part, many, many,
            )  # fmt: skip


def _cached(
    context: Context,
    job: Job,
    section: Teacher,
    architecture: Architecture,
    spec: Mapping[str, Any],
    recipe: Recipe,
) -> tuple[nn.Module, Path]:
    """The teacher trained with these settings on these images, by whichever study came first, and
    the folder it is kept in; others that need it meanwhile wait for its lock."""
    seed = seed_of(context.study.seed, job.id)
    settings = [
        architecture.to_dict(),
        source_key(architecture.builder),
        recipe.model_dump(),
        context.fingerprint,
        seed,
        # Those kept before had their statistics recomputed over images that were not augmented.
        "norm statistics as trained",
        *_own_augmentations(recipe),
    ]
    images = as_taken(context.data.train, spec)
    if (weights := key_of_weights(section, architecture.builder)) is not None:
        settings.append({"weights": weights})
    if "mean" in spec:
        settings.append({key: spec[key] for key in ("mean", "std")})
    key = _key(settings, section.processes)
    _tell_of_others(context.teachers, settings, section.processes)
    folder = context.teachers / key
    with locked(context.teachers / f"{key}.lock", _pause_before(context, recipe)):
        drop_half_written(context.teachers, key)
        if folder.is_dir():
            try:
                network = checkpoint.load(folder, own_code=True).to(context.device)
            except ValueError as error:
                log.warning("%s; the teacher is trained again", error)
            else:
                log.info("teacher %s was trained before: %s", key, folder)
                return network, folder
        _pause_before(context, recipe)()  # the hours may have ended while another had the lock
        begun = started(section, architecture, seed)
        for told in begun.told:
            log.info("weights %s: %s", section.weights, told)
        network = begun.network
        part = context.teachers / f"{key}.part"
        trained = train_whole(
            context,
            job.id,
            network,
            architecture,
            recipe,
            of_batch(class_loss(**context.entropy(recipe))),
            guided=False,
            images=images,
            checkpoint=part,
            processes=section.processes,
        )
        info: dict[str, Any] = {"settings": settings}
        if trained.epochs < recipe.epochs:
            info["epochs"] = trained.epochs
        context.save(folder, network, architecture, "base", info)
        context.keep_moments(folder, network, trained.optimizer, recipe)
        part.unlink(missing_ok=True)
    return network, folder


def _own_augmentations(recipe: Recipe) -> list[str]:
    """Keys of the sources of augmentations that are not planter's: edited, they are others."""
    functions = (augmentation(name).apply for name in recipe.augment.chosen())
    modules = ((f, getattr(f, "__module__", None) or "") for f in functions)
    return [code_key(f) for f, module in modules if not module.startswith("planter.")]


def _pause_before(context: Context, recipe: Recipe) -> Callable[[], None]:
    """Raises PausedError once the time is over."""

    def check() -> None:
        if context.pause():
            raise PausedError(0, recipe.epochs)

    return check
