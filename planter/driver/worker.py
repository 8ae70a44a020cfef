"""One training from a job to saved networks. Runs in a Ray worker or in the driver's process."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from filelock import FileLock
from optuna.trial import FixedTrial
from safetensors.torch import load_file
from torch import Tensor, nn

from planter import checkpoint
from planter.arch import Architecture
from planter.assembly import build, build_network
from planter.backbones import source_key, with_data_options
from planter.blocks import Block
from planter.data import Data
from planter.driver.jobs import Job, Outcome, seed_of
from planter.driver.networks import network_of
from planter.forms import Kernels, form_names
from planter.kernels import collapse_kernels_, expand_kernels_
from planter.losses import classification_loss
from planter.macs import cost, joint_macs, training_cost
from planter.norms import NormMode
from planter.pipelines import Pipelines
from planter.planting import live_channels, plant, train_plant
from planter.recipe import Recipe
from planter.space import load_space
from planter.study import Study
from planter.train import Batch, Epoch, evaluate, fit, predict, recalibrate_batchnorm_

log = logging.getLogger(__name__)
_PACKAGES = ("planter", "torch", "optuna", "ray", "numpy")
_LOGITS = "logits.safetensors"


@dataclass
class Worker:
    """Everything a training needs beside its job: the study, its run folder and its images."""

    study: Study
    run: Path
    data: Data
    fingerprint: str
    teachers: Path
    device: str = "cpu"

    def do(self, job: Job) -> Outcome:
        """Trains, scores and saves what the job asks for; an exception becomes an `error`."""
        folder = self.run / "trials" / job.id
        folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        # A worker whose driver was killed may still be at this trial: it goes on alone.
        with FileLock(folder / ".lock"), _logged(folder / "log.txt"):
            log.info("%s %s starts", job.kind, job.id)
            try:
                outcome: Outcome = getattr(self, f"_{job.kind}")(job)
            except Exception as error:  # whatever the user's code or torch raises fails this trial
                log.error("%s failed\n%s", job.id, traceback.format_exc())
                return {"error": f"{type(error).__name__}: {error}"}
            self._checkpoint(job).unlink(missing_ok=True)
            outcome["seconds"] = round(time.monotonic() - began, 3)
            log.info("%s ends after %.1f s", job.id, outcome["seconds"])
        return outcome

    def _teacher(self, job: Job) -> Outcome:
        settings = self.study.teacher
        assert settings is not None
        if settings.model is not None:
            # `check` has seen to it that a builder of the user's own is one the study names.
            network = checkpoint.load(settings.model, own_code=True)
            architecture = Architecture.from_dict(
                checkpoint.read_spec(settings.model)["architecture"]
            )
            outcome = self._outcome(job, {"base": network}, architecture, train_macs=0)
        else:
            architecture = network_of(self.study, settings, self.data, settings.widths)
            recipe = settings.recipe or self.study.recipe
            network = self._cached_teacher(job, architecture, recipe)
            macs = 3 * cost(architecture).macs * len(self.data.train) * recipe.epochs
            outcome = self._outcome(job, {"base": network}, architecture, train_macs=macs)
        if not (file := self.run / "trials" / "teacher" / _LOGITS).is_file():
            logits = predict(network.to(self.device), self.data.train).cpu()
            checkpoint.write_tensors(file, {"logits": logits})
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
        ]
        key = checkpoint.content_key(settings)
        folder = self.teachers / key
        self.teachers.mkdir(parents=True, exist_ok=True)
        with FileLock(self.teachers / f"{key}.lock"):
            if (folder / checkpoint.WEIGHTS).is_file():
                log.info("teacher %s was trained before: %s", key, folder)
                return checkpoint.load(folder, own_code=True).to(self.device)
            network = build_network(architecture, seed=seed).to(self.device)
            part = self.teachers / f"{key}.part"
            fit(
                network,
                lambda model, batch: classification_loss(model(batch.images), batch.labels),
                self.data.train,
                recipe,
                seed=seed,
                checkpoint=part,
                on_epoch=self._metrics(job),
            )
            recalibrate_batchnorm_(network, self.data.train)
            checkpoint.save(folder, network, architecture, "base", {"settings": settings})
            part.unlink(missing_ok=True)
        return network

    def _baseline(self, job: Job) -> Outcome:
        settings = self.study.baselines[job.params["index"]]
        kd = settings.kd
        architecture = network_of(self.study, settings, self.data, settings.widths)
        return self._alone(
            job,
            architecture,
            ce_weight=1.0,
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
            kd_weight=1.0,
            temperature=settings.temperature,
        )

    def _alone(
        self,
        job: Job,
        architecture: Architecture,
        *,
        ce_weight: float,
        kd_weight: float,
        temperature: float,
    ) -> Outcome:
        """Trains a plain network under the study's recipe."""
        seed = seed_of(self.study.seed, job.id)
        recipe = self.study.recipe
        network = build_network(architecture, seed=seed).to(self.device)

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            return classification_loss(
                model(batch.images),
                batch.labels,
                batch.teacher,
                ce_weight=ce_weight,
                kd_weight=kd_weight,
                temperature=temperature,
            )

        self._fit(job, network, loss, recipe, guided=kd_weight > 0)
        recalibrate_batchnorm_(network, self.data.train)
        macs = self._train_macs(cost(architecture).macs, recipe, guided=kd_weight > 0)
        return self._outcome(job, {"base": network}, architecture, train_macs=macs)

    def _plant(self, job: Job) -> Outcome:
        settings = self.study.plant
        assert settings is not None
        place = self.run / "models" / job.params["parent"] / "base"
        parent = checkpoint.load(place, own_code=True).to(self.device)
        before = Architecture.from_dict(checkpoint.read_spec(place)["architecture"])
        layer, channels = job.params["layer"], job.params["channels"]
        seed = seed_of(self.study.seed, job.id)
        architecture, child = plant(
            before, parent, layer, channels, seed=seed, outgoing=settings.outgoing
        )
        child = train_plant(
            child.to(self.device),
            parent,
            self.data.train,
            settings.recipe,
            teacher=self._guide(settings.recipe),
            seed=seed,
            temperature=settings.temperature,
            ce_weight=settings.ce_weight,
            checkpoint=self._checkpoint(job),
            on_epoch=self._metrics(job),
        )
        live = live_channels(child, layer, before.widths[layer], self.data.train)
        if live is not None and live < channels:
            log.warning("%d of %d planted channels answer to no image", channels - live, channels)
        macs = self._train_macs(cost(architecture).macs, settings.recipe, guided=True)
        outcome = self._outcome(job, {"base": child}, architecture, train_macs=macs)
        return {**outcome, "live": live, "widths": dict(architecture.widths)}

    def _sample(self, job: Job) -> Outcome:
        settings = self.study.sample
        assert settings is not None
        space = load_space(settings.space, image=self.data.image, classes=self.data.classes)
        candidate = space(FixedTrial(dict(job.params["trial"]), number=int(job.id[1:])))
        architecture = with_data_options(candidate.architecture, self.data.classes, self.data.image)
        kernels = form_names(candidate.kernels)
        if (architecture.key(), kernels) != (job.params["network"], job.params["kernels"]):
            raise ValueError(
                f"{settings.space} gave the driver another network or form for the same trial: a "
                "space must depend on its trial alone, and must not be edited while a study runs"
            )
        recipe = Recipe.model_validate({**self.study.recipe.model_dump(), **candidate.recipe})
        seed = seed_of(self.study.seed, job.id)
        for warning in candidate.warnings:
            log.warning(warning)
        network = build(architecture, seed, candidate.norms)
        if not isinstance(network, Pipelines):
            network = Pipelines(network, {})
        if candidate.kernels is not None:
            expand_kernels_(network, candidate.kernels, seed=seed)
        network.to(self.device)  # after all draws, which so are the same on every device

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            assert isinstance(model, Pipelines)
            return candidate.loss(model, batch)

        self._fit(job, network, loss, recipe, guided=candidate.guided)
        if any(isinstance(module, Block) for module in network.modules()):
            # A block is fused with its own norms' statistics: first let them fit the weights.
            recalibrate_batchnorm_(network, self.data.train)
        collapse_kernels_(network)
        ways = {
            name: recalibrate_batchnorm_(network.detach(name), self.data.train)
            for name in candidate.trained
        }
        total = joint_macs(cost(architecture), candidate.trained)
        macs = self._train_macs(total, recipe, guided=candidate.guided)
        macs += self._kernel_macs(architecture, candidate.kernels, recipe)
        return self._outcome(
            job, ways, architecture, train_macs=macs, kernels=kernels, norms=candidate.norms
        )

    def _fit(
        self,
        job: Job,
        network: nn.Module,
        loss: Callable[[nn.Module, Batch], Tensor],
        recipe: Recipe,
        *,
        guided: bool,
    ) -> None:
        fit(
            network,
            loss,
            self.data.train,
            recipe,
            seed=seed_of(self.study.seed, job.id),
            teacher=self._guide(recipe) if guided else None,
            checkpoint=self._checkpoint(job),
            on_epoch=self._metrics(job),
        )

    def _outcome(
        self,
        job: Job,
        ways: dict[str, nn.Module],
        architecture: Architecture,
        *,
        train_macs: int,
        kernels: str | dict[str, str] = "plain",
        norms: NormMode = "switch_stats",
    ) -> Outcome:
        """Scores and saves each pipeline; the file holds exactly what was scored."""
        costs = cost(architecture).pipelines
        points = []
        for name, network in ways.items():
            score = evaluate(network, self.data.validation)
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
            info = {
                "study": self.study.name,
                "trial": job.id,
                "seed": seed_of(self.study.seed, job.id),
                "accuracy": score.accuracy,
                "loss": score.loss,
                "macs": costs[name].macs,
                "macs_all": costs[name].macs_all,
                "params": costs[name].params,
                "kernels": kernels,
                "norms": norms,
                "class_names": list(self.data.class_names),
                "mean": self.data.train.mean.flatten().tolist(),
                "std": self.data.train.std.flatten().tolist(),
                "data": self.fingerprint,
                "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
            }
            folder = self.run / "models" / job.id / name
            checkpoint.save(folder, network, architecture, name, info)
            points.append(fields)
        return {"points": points, "train_macs": train_macs}

    def _train_macs(self, macs: int, recipe: Recipe, *, guided: bool) -> int:
        """Multiply-adds of a training: a forward and a backward pass of twice its cost for each
        image seen, and a forward pass of the teacher where its logits could not be kept."""
        per_image = 3 * macs
        if guided and recipe.augment.changes():
            per_image += self._teacher_macs
        return per_image * len(self.data.train) * recipe.epochs

    def _kernel_macs(
        self, architecture: Architecture, kernels: Kernels | None, recipe: Recipe
    ) -> int:
        """Multiply-adds that the training form of the kernels adds to a training."""
        if kernels is None:
            return 0
        steps = math.ceil(len(self.data.train) / recipe.batch)
        step = training_cost(architecture, kernels, math.ceil(len(self.data.train) / steps))
        return (step.macs_step - step.macs_step_plain) * steps * recipe.epochs

    def _guide(self, recipe: Recipe) -> Tensor | nn.Module:
        """The teacher's logits where the inputs never change, else the teacher."""
        return self._teacher_network if recipe.augment.changes() else self._teacher_logits

    @cached_property
    def _teacher_network(self) -> nn.Module:
        place = self.run / "models" / "teacher" / "base"
        return checkpoint.load(place, own_code=True).to(self.device).requires_grad_(False)

    @cached_property
    def _teacher_macs(self) -> int:
        spec = checkpoint.read_spec(self.run / "models" / "teacher" / "base")
        return int(spec["macs"])

    @cached_property
    def _teacher_logits(self) -> Tensor:
        file = self.run / "trials" / "teacher" / _LOGITS
        return load_file(file)["logits"].to(self.device)

    def _checkpoint(self, job: Job) -> Path:
        return self.run / "trials" / job.id / "checkpoint.pt"

    def _metrics(self, job: Job) -> Callable[[Epoch], None]:
        """Writes a line an epoch; lines of epochs that are trained again are replaced."""
        file = self.run / "trials" / job.id / "metrics.jsonl"
        first = True

        def note(epoch: Epoch) -> None:
            nonlocal first
            if first and file.is_file():
                lines = file.read_text().splitlines(keepends=True)
                file.write_text("".join(lines[: epoch.epoch - 1]))
            first = False
            with file.open("a") as out:
                out.write(json.dumps(epoch._asdict()) + "\n")

        return note


@contextmanager
def _logged(file: Path) -> Iterator[None]:
    """Sends the package's log and Python's warnings to a trial's own file."""
    handler = logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger("planter"), logging.getLogger("py.warnings")]
    levels = [logger.level for logger in loggers]
    logging.captureWarnings(True)
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
        handler.close()
