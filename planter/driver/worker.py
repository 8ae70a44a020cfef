"""One training from a job to saved networks. Runs in a Ray worker or in the driver's process."""

from __future__ import annotations

import logging
import math
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from planter import checkpoint
from planter.arch import Architecture
from planter.assembly import build_network
from planter.backbones import source_key
from planter.data import Data, Split
from planter.disk import NoSpaceError, when_there_is_space
from planter.driver.alone import train_alone
from planter.driver.folder import drop_checkpoints, drop_half_written
from planter.driver.jobs import Job, Outcome, SearchStoppedError, seed_of
from planter.driver.kept import kept_info
from planter.driver.logs import epochs_to, logged_to
from planter.driver.networks import network_of
from planter.driver.plants import grow, plant_round, write_learned
from planter.driver.sampled import sample
from planter.driver.scalars import write_scalars
from planter.forms import Kernels, form_names, form_of
from planter.kernels import collapse_kernels_, expand_kernels_
from planter.losses import classification_loss
from planter.macs import cost, training_cost
from planter.normalisation import as_taken, taking
from planter.norms import NormMode
from planter.recipe import Augment, Recipe, make_optimizer
from planter.study import Study
from planter.train import Batch, Epoch, PausedError, evaluate, fit, predict, view_pool

log = logging.getLogger(__name__)
_LOGITS = "logits.safetensors"
_CHECKPOINT = "checkpoint.pt"
_WAITED_S = 1.0
"""For a lock, before it is asked whether to wait on."""


def _nothing() -> None:
    """No driver's books to keep."""


@dataclass
class Worker:
    """Everything a training needs beside its job: the study, its run folder and its images. The
    network of `teacher_trial` is the one that others learn from. `tick` is called after epochs, of
    a worker in the driver's process, and when it waits."""

    study: Study
    run: Path
    data: Data
    fingerprint: str
    teachers: Path
    device: str = "cpu"
    teacher_trial: str = "teacher"
    tick: Callable[[], None] = _nothing
    _ends: float | None = None

    _plant = plant_round
    _grow = grow
    _sample = sample
    _final = train_alone

    def do(self, job: Job) -> Outcome:
        """Trains, scores and saves what the job asks for; an exception becomes an `error`."""
        folders = [self.run / "trials" / trial for trial in job.trials]
        self._ends = job.ends
        began = time.monotonic()
        with ExitStack() as stack:
            try:
                for folder in sorted(folders):
                    # A worker whose driver was killed may still be at this trial: it goes on alone.
                    stack.enter_context(_locked(folder / ".lock"))
                    stack.enter_context(logged_to(folder / "log.txt"))
                log.info("%s %s starts", job.kind, ", ".join(job.trials))
                outcome: Outcome = getattr(self, f"_{job.kind}")(job)
            except (NoSpaceError, SearchStoppedError) as error:
                reason = error.strerror if isinstance(error, NoSpaceError) else str(error)
                log.error("%s cannot go on: %s", ", ".join(job.trials), reason)
                return {"error": reason, "stop": True}
            except PausedError as paused:
                log.info("%s %s", ", ".join(job.trials), paused)
                return {"paused": str(paused)}
            except Exception as error:  # whatever the user's code or torch raises fails this trial
                log.error("%s failed\n%s", ", ".join(job.trials), traceback.format_exc())
                return {"error": f"{type(error).__name__}: {error}"}
            for folder in folders if "partial" not in outcome else []:
                drop_checkpoints(folder)
            outcome["seconds"] = round(time.monotonic() - began, 3)
            if self.study.tensorboard:
                for trial, one in job.outcomes(outcome).items():
                    write_scalars(self.run / "trials" / trial, one)
            log.info("%s ends after %.1f s", ", ".join(job.trials), outcome["seconds"])
        return outcome

    def _teacher(self, job: Job) -> Outcome:
        settings = self.study.teacher
        assert settings is not None
        if settings.model is not None:
            # `check` has seen to it that a builder of the user's own is one the study names.
            network = checkpoint.load(settings.model, own_code=True)
            spec = checkpoint.read_spec(settings.model)
            architecture = Architecture.from_dict(spec["architecture"])
            # It learned from images normalised as its own data were.
            outcome = self.outcome(
                job.id,
                {"base": network},
                architecture,
                train_macs=0,
                validation=as_taken(self.data.validation, spec),
            )
            network = taking(network, self.data.train, spec)
        else:
            architecture = network_of(self.study, settings, self.data, settings.widths)
            recipe = settings.recipe or self.study.recipe
            network = self._cached_teacher(job, architecture, recipe)
            macs = 3 * cost(architecture).macs * len(self.data.train) * recipe.epochs
            outcome = self.outcome(job.id, {"base": network}, architecture, train_macs=macs)
        self._kept_logits(_LOGITS, network.to(self.device), self.data.train)
        return outcome

    def _cached_teacher(self, job: Job, architecture: Architecture, recipe: Recipe) -> nn.Module:
        """The teacher trained with these settings on these images, by whichever study came first;
        others that need it meanwhile wait for its lock."""
        seed = seed_of(self.study.seed, "teacher")
        settings = [
            architecture.to_dict(),
            source_key(architecture.builder),
            recipe.model_dump(),
            self.fingerprint,
            seed,
            # Those kept before had their statistics recomputed over images that were not augmented.
            "norm statistics as trained",
        ]
        key = checkpoint.content_key(settings)
        folder = self.teachers / key
        with _locked(self.teachers / f"{key}.lock", self._pause_before(recipe)):
            drop_half_written(self.teachers, key)
            if folder.is_dir():
                try:
                    network = checkpoint.load(folder, own_code=True).to(self.device)
                except ValueError as error:
                    log.warning("%s; the teacher is trained again", error)
                else:
                    log.info("teacher %s was trained before: %s", key, folder)
                    return network
            self._pause_before(recipe)()  # the hours may have ended while another had the lock
            network = build_network(architecture, seed=seed).to(self.device)
            part = self.teachers / f"{key}.part"
            fit(
                network,
                lambda model, batch: classification_loss(model(batch.images), batch.labels),
                self.data.train,
                recipe,
                seed=seed,
                checkpoint=part,
                on_epoch=self.metrics(job.id),
                pause=self.pause,
            )
            self.save(folder, network, architecture, "base", {"settings": settings})
            part.unlink(missing_ok=True)
        return network

    def _baseline(self, job: Job) -> Outcome:
        settings = self.study.baselines[job.params["index"]]
        kd = settings.kd
        architecture = network_of(self.study, settings, self.data, settings.widths)
        return self._alone(
            job,
            architecture,
            ce_weight=kd.ce_weight if kd else 1.0,
            kd_weight=kd.weight if kd else 0.0,
            temperature=kd.temperature if kd else 1.0,
        )

    def _start(self, job: Job) -> Outcome:
        """The initial net of planting, guided as its plants will be."""
        settings = self.study.plant
        assert settings is not None
        architecture = network_of(self.study, settings, self.data, settings.start)
        return self._alone(
            job,
            architecture,
            ce_weight=settings.ce_weight,
            kd_weight=settings.kd_weight,
            temperature=settings.temperature,
            kernels=form_of(settings.kernels or "plain"),
            keep_optimizer=settings.finetune is not None,
        )

    def _alone(
        self,
        job: Job,
        architecture: Architecture,
        *,
        ce_weight: float,
        kd_weight: float,
        temperature: float,
        kernels: Kernels | None = None,
        keep_optimizer: bool = False,
    ) -> Outcome:
        """Trains a plain network under the study's recipe."""
        seed = seed_of(self.study.seed, job.id)
        recipe = self.study.recipe
        network = build_network(architecture, seed=seed)
        if kernels is not None:
            expand_kernels_(network, kernels, seed=seed)
        network.to(self.device)

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            return classification_loss(
                model(batch.images),
                batch.labels,
                batch.teacher,
                ce_weight=ce_weight,
                kd_weight=kd_weight,
                temperature=temperature,
            )

        optimizer = make_optimizer(network, recipe)
        self.fit(job.id, network, loss, recipe, guided=kd_weight > 0, optimizer=optimizer)
        if keep_optimizer:
            write_learned(self, job.id, recipe, optimizer)
        collapse_kernels_(network)
        macs = self.train_macs(cost(architecture).macs, recipe, guided=kd_weight > 0)
        macs += self.kernel_macs(architecture, kernels, recipe)
        return self.outcome(
            job.id, {"base": network}, architecture, train_macs=macs, kernels=form_names(kernels)
        )

    def pause(self) -> bool:
        """Whether the training at hand is to end at its next checkpoint."""
        self.tick()
        return self._ends is not None and time.time() >= self._ends

    def _pause_before(self, recipe: Recipe) -> Callable[[], None]:
        """Raises PausedError once the time is over."""

        def check() -> None:
            if self.pause():
                raise PausedError(0, recipe.epochs)

        return check

    def fit(
        self,
        trial: str,
        network: nn.Module,
        loss: Callable[[nn.Module, Batch], Tensor],
        recipe: Recipe,
        *,
        guided: bool,
        optimizer: torch.optim.Optimizer | None = None,
        until: int | None = None,
    ) -> None:
        """Trains all of a network, under the trial's own seed."""
        fit(
            network,
            loss,
            self.images(recipe),
            recipe,
            seed=seed_of(self.study.seed, trial),
            teacher=self.guide(recipe) if guided else None,
            optimizer=optimizer,
            checkpoint=self.checkpoint_of(trial),
            on_epoch=self.metrics(trial),
            until=until,
            pause=self.pause,
        )

    def outcome(
        self,
        trial: str,
        ways: dict[str, nn.Module],
        architecture: Architecture,
        *,
        train_macs: int,
        kernels: str | dict[str, str] = "plain",
        norms: NormMode = "switch_stats",
        validation: Split | None = None,
    ) -> Outcome:
        """Scores and saves each pipeline; the file holds exactly what was scored. `validation` are
        the images as the networks take them, by default those of the data."""
        costs = cost(architecture).pipelines
        validation = validation or self.data.validation
        points = []
        for name, network in ways.items():
            score = evaluate(network, validation)
            if not math.isfinite(score.loss):
                raise FloatingPointError(f"validation loss of {name} is {score.loss}")
            fields = {
                "pipeline": name,
                "accuracy": score.accuracy,
                "loss": score.loss,
                "macs": costs[name].macs,
                "params": costs[name].params,
                "architecture": architecture.to_dict(),
                "kernels": kernels,
                "norms": norms,
            }
            info = kept_info(self, trial, score, costs[name], kernels, norms)
            info |= {key: getattr(validation, key).flatten().tolist() for key in ("mean", "std")}
            folder = self.run / "models" / trial / name
            self.save(folder, network, architecture, name, info)
            points.append(fields)
        return {"points": points, "train_macs": train_macs}

    def train_macs(self, macs: int, recipe: Recipe, *, guided: bool) -> int:
        """Multiply-adds of a training: a forward and a backward pass of twice its cost for each
        image seen, and a forward pass of the teacher where its logits could not be kept."""
        per_image = 3 * macs
        if guided and recipe.augment.changes():
            per_image += self.teacher_macs
        return per_image * len(self.data.train) * recipe.epochs

    def kernel_macs(
        self,
        architecture: Architecture,
        kernels: Kernels | None,
        recipe: Recipe,
        names: Sequence[str] | None = None,
    ) -> int:
        """Multiply-adds that the training form of the kernels adds to a training."""
        if kernels is None:
            return 0
        steps = math.ceil(len(self.data.train) / recipe.batch)
        step = training_cost(architecture, kernels, math.ceil(len(self.data.train) / steps), names)
        return (step.macs_step - step.macs_step_plain) * steps * recipe.epochs

    def guide(self, recipe: Recipe) -> Tensor | nn.Module:
        """The teacher's logits where no step has images of its own, else the teacher."""
        if recipe.augment.changes():
            return self._teacher_network
        if recipe.augment.views is None:
            return self.teacher_logits
        key = checkpoint.content_key([recipe.augment.model_dump()])
        name = f"logits-{key}.safetensors"
        return self._kept_logits(name, self._teacher_network, self.images(recipe))

    def images(self, recipe: Recipe) -> Split:
        """The training images, or the pool of their views that a recipe asks for."""
        if recipe.augment.views is None:
            return self.data.train
        if recipe.augment not in self._pools:
            self._pools.clear()  # one at a time: a pool is several times the data set
            seed = seed_of(self.study.seed, "views")
            self._pools[recipe.augment] = view_pool(self.data.train, recipe.augment, seed)
        return self._pools[recipe.augment]

    @cached_property
    def _pools(self) -> dict[Augment, Split]:
        return {}

    @cached_property
    def _teacher_network(self) -> nn.Module:
        network = self.saved(self.teacher_trial).requires_grad_(False)
        return taking(network, self.data.train, self._teacher_spec).to(self.device)

    @cached_property
    def _teacher_spec(self) -> dict[str, Any]:
        return checkpoint.read_spec(self.run / "models" / self.teacher_trial / "base")

    def saved(self, trial: str) -> nn.Module:
        """A network of this run that others learn from. Raises SearchStoppedError where its folder
        is damaged: without it they would fail one after the other."""
        try:
            place = self.run / "models" / trial / "base"
            return checkpoint.load(place, own_code=True).to(self.device)
        except ValueError as error:
            raise SearchStoppedError(
                f"{error}; others are trained with it: put a copy of it there, then go on"
            ) from error

    @cached_property
    def teacher_macs(self) -> int:
        return int(self._teacher_spec["macs"])

    @cached_property
    def teacher_logits(self) -> Tensor:
        return self._kept_logits(_LOGITS, self._teacher_network, self.data.train)

    def _kept_logits(self, name: str, teacher: nn.Module, images: Split) -> Tensor:
        """The teacher's logits of images, from a file that is written where it is missing."""
        file = self.run / "trials" / "teacher" / name
        with _locked(file.with_suffix(".lock")):
            try:
                return load_file(file)["logits"].to(self.device)
            except FileNotFoundError:
                log.info("%s is written", file)
            except SafetensorError as error:
                log.warning("%s is cut short or damaged, and written again: %s", file, error)
            logits = predict(teacher, images)
            kept = {"logits": logits.cpu()}
            when_there_is_space(lambda: checkpoint.write_tensors(file, kept), file.parent)
        return logits

    def save(self, folder: Path, *network: Any) -> None:
        when_there_is_space(lambda: checkpoint.save(folder, *network), folder)

    def checkpoint_of(self, trial: str) -> Path:
        return self.run / "trials" / trial / _CHECKPOINT

    def metrics(self, trial: str) -> Callable[[Epoch], None]:
        return epochs_to(self.run / "trials" / trial / "metrics.jsonl")


def _locked(file: Path, waiting: Callable[[], None] | None = None) -> AbstractContextManager[Any]:
    """A lock on a file, taken now and held until the context is left. While another has it,
    `waiting` is called every second, and may raise."""

    def acquired() -> AbstractContextManager[Any]:
        file.parent.mkdir(parents=True, exist_ok=True)
        while waiting is not None:
            try:
                return FileLock(file).acquire(timeout=_WAITED_S)
            except Timeout:
                waiting()
        return FileLock(file).acquire()

    return when_there_is_space(acquired, file.parent)
