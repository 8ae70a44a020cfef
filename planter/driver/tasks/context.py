"""What trainings are made of: the study, its images, its teacher, and where all of it goes."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from planter.arch import Architecture
from planter.costs.macs import cost, training_cost
from planter.data import Data, Split
from planter.driver.run_folder.logs import MacsAfter, epochs_to, lost_epoch_to
from planter.driver.tasks.facts import facts_of
from planter.driver.trials.cost import training_macs
from planter.driver.trials.jobs import Outcome, SearchStoppedError, seed_of
from planter.edits.inherit import optimizer_state
from planter.front.points import measured
from planter.kernels.forms import Kernels
from planter.machine.disk import when_there_is_space
from planter.networks import checkpoint, moments
from planter.networks.moments import Moments
from planter.networks.normalisation import seeing, taken_like, taking
from planter.networks.norms import NormMode
from planter.study.schema import Study
from planter.training.answers import VALIDATION_FILE, Answers
from planter.training.augment import Augment
from planter.training.batches import Batch, view_pool
from planter.training.class_weights import EntropySettings, entropy_settings
from planter.training.loop import Epoch, PausedError, Validate, fit
from planter.training.recipe import Recipe
from planter.training.running.forward import Precision
from planter.training.scores import answers, predict, validated
from planter.training.stacked.passes import Company

log = logging.getLogger(__name__)
_LOGITS = "logits.safetensors"
_CHECKPOINT = "checkpoint.pt"
_STOP = ".stop"
_WAITED_S = 1.0
"""For a lock, before it is asked whether to wait on."""


def nothing() -> None:
    """No driver's books to keep."""


@dataclass
class Context:
    """Everything a training needs beside its job: the study, its run folder and its images, the
    teacher, and how networks are trained, scored and saved.

    The network of `teacher_trial` is the one that others learn from. `tick` is called after epochs,
    of a training in the driver's process, and while it waits. Past `ends`, seconds since 1970, a
    training is to end at its next checkpoint. Trainings that go on `together` share a context.
    """

    study: Study
    run: Path
    data: Data
    fingerprint: str
    teachers: Path
    device: str = "cpu"
    teacher_trial: str = "teacher"
    tick: Callable[[], None] = nothing
    ends: float | None = None
    together: Company | None = None

    def clock(self) -> float:
        """Seconds that the training at hand has taken, from any moment on."""
        return time.monotonic() if self.together is None else self.together.clock()

    def pause(self) -> bool:
        """Whether the training at hand is to end at its next checkpoint."""
        self.tick()
        return self.stop_file.exists() or (self.ends is not None and time.time() >= self.ends)

    @property
    def stop_file(self) -> Path:
        """While it is there, every training ends at its next checkpoint: workers know nothing of
        the driver but the run folder."""
        return self.run / _STOP

    def fit(
        self,
        trial: str,
        network: nn.Module,
        loss: Callable[[nn.Module, Batch], Tensor],
        recipe: Recipe,
        *,
        guided: bool,
        optimizer: torch.optim.Optimizer,
        start: int = 0,
        until: int | None = None,
        images: Split | None = None,
        checkpoint: Path | None = None,
        macs_after: MacsAfter,
        validate: Validate | None = None,
        by: Callable[..., nn.Module] | None = None,
    ) -> int:
        """Trains all of a network, `by` another way than `fit` where one is given, under the
        trial's own seed; on `images`, by default those of the recipe, with a `checkpoint`, by
        default in the trial's folder. The log of its epochs says what each of them took,
        `macs_after` them. Returns after how many epochs it ended. See `planter.fit`."""
        guide = self.guide(recipe, trial) if guided else None
        validation, ended = self.data.validation, recipe.epochs
        if images is not None:
            if isinstance(guide, nn.Module):
                guide = seeing(guide, images, self.data.train)
            validation = taken_like(validation, images)

        def note(epochs: int) -> None:
            nonlocal ended
            ended = epochs

        try:
            (by or fit)(
                network,
                loss,
                self.images(recipe) if images is None else images,
                recipe,
                seed=seed_of(self.study.seed, trial),
                teacher=guide,
                optimizer=optimizer,
                checkpoint=checkpoint or self.checkpoint_of(trial),
                on_epoch=self.metrics(trial, macs_after),
                start=start,
                until=until,
                pause=self.pause,
                validation=validation,
                validate=validate or partial(validated, measure=self.study.objectives.metric),
                on_end=note,
                together=self.together,
            )
        except FloatingPointError:
            lost_epoch_to(self.metrics_of(trial), macs_after, recipe.lr_at)
            raise
        return ended

    def phase(
        self,
        name: str,
        network: nn.Module,
        recipe: Recipe,
        train: Callable[[], int],
        *,
        last: bool,
    ) -> int:
        """What `train` counts, which trains the network in place: multiply-adds, or epochs.

        Where the time is over then and it is not the `last` phase of its trial, no further one
        begins: PausedError is raised, and the network is on disk, to be taken up by the same call
        without training.
        """
        file = self.checkpoint_of(f"{name}/trained")
        if (state := checkpoint.read_training(file)) is not None:
            network.load_state_dict(state["model"])
            return int(state["macs"])
        macs = train()
        if not last and self.pause():
            checkpoint.write_training(file, {"model": network.state_dict(), "macs": macs})
            raise PausedError(recipe.epochs, recipe.epochs)
        return macs

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
        facts: Mapping[str, Any] | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> Outcome:
        """Scores and saves each pipeline, its answers beside it; the file holds exactly what was
        scored. `validation` are the images as the networks take them, by default those of the data;
        further `facts` stand in the file, further `fields` in the points."""
        costs, objectives = cost(architecture).pipelines, self.study.objectives.names
        validation = validation or self.data.validation
        points = []
        for name, network in ways.items():
            score = self.score(name, network, validation)
            info = facts_of(self, trial, score, costs[name], validation, kernels, norms)
            info |= facts or {}
            folder = self.run / "models" / trial / name
            self.save(folder, network, architecture, name, info)
            keep = partial(score.save, folder / VALIDATION_FILE)
            when_there_is_space(keep, folder)
            points.append(
                {
                    "pipeline": name,
                    **measured(score, costs[name], objectives, intervals=True),
                    "architecture": architecture.to_dict(),
                    "kernels": kernels,
                    "norms": norms,
                    **(fields or {}),
                }
            )
        return {"points": points, "train_macs": train_macs}

    def score(self, name: str, network: nn.Module, validation: Split | None = None) -> Answers:
        """Of a network on the validation images, by default as the data are. Raises
        FloatingPointError where its loss is no number."""
        score = answers(network, validation or self.data.validation)
        if not math.isfinite(score.loss):
            raise FloatingPointError(f"validation loss of {name} is {score.loss}")
        return score

    def train_macs(self, macs: int, recipe: Recipe, *, guided: bool) -> int:
        """Multiply-adds of a training on the study's images. See `training_macs`."""
        teacher = self.teacher_macs if guided and recipe.augment.changes() else 0
        return training_macs(macs, recipe, len(self.data.train), teacher)

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
        steps = math.ceil(len(self.data.train) / recipe.batch) * recipe.accumulate
        step = training_cost(architecture, kernels, math.ceil(len(self.data.train) / steps), names)
        return (step.macs_step - step.macs_step_plain) * steps * recipe.epochs

    def guide(self, recipe: Recipe, trial: str = "") -> Tensor | nn.Module:
        """The teacher's logits where no step has images of its own, else the teacher. `trial` is
        the training that asks: the first to do so answers for what a pool's logits cost."""
        if recipe.augment.changes():
            return self._teacher_network
        if recipe.augment.views is None:
            return self.teacher_logits
        network, images = self._teacher_network, self.images(recipe)
        file = _pool_logits(recipe)
        return self._kept_logits(file, network, images, trial, precision=recipe.precision)

    def pool_macs(self, trial: str, recipe: Recipe) -> int:
        """Multiply-adds of the teacher's logits of a pool of views, where that training was the
        first to need them; else 0."""
        views = recipe.augment.views
        if views is None:
            return 0
        with safe_open(self._logits_file(_pool_logits(recipe)), framework="pt") as file:
            if (file.metadata() or {}).get("first") != trial:
                return 0
        return views * len(self.data.train) * self.teacher_macs

    def entropy(self, recipe: Recipe) -> EntropySettings:
        """What the recipe says of cross-entropies with the labels of the training images."""
        return entropy_settings(recipe, self.data.train.labels, self.data.classes)

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
        """The teacher's logits `[n, classes]` of the training images as they are."""
        return self._kept_logits(_LOGITS, self._teacher_network, self.data.train)

    def keep_teacher_logits(self, teacher: nn.Module) -> None:
        """Writes the logits of a teacher that is at hand, for all that learn from it."""
        self._kept_logits(_LOGITS, teacher.to(self.device), self.data.train)

    def _logits_file(self, name: str) -> Path:
        return self.run / "trials" / "teacher" / name

    def _kept_logits(
        self,
        name: str,
        teacher: nn.Module,
        images: Split,
        trial: str = "teacher",
        *,
        precision: Precision = "float32",
    ) -> Tensor:
        """The teacher's logits of images, from a file that is written where it is missing, for a
        `trial` whose name it keeps."""
        file = self._logits_file(name)
        with locked(file.with_suffix(".lock")):
            try:
                return load_file(file)["logits"].to(self.device)
            except FileNotFoundError:
                log.info("%s is written", file)
            except SafetensorError as error:
                log.warning("%s is cut short or damaged, and written again: %s", file, error)
            logits = predict(teacher, images, precision)
            kept = {"logits": logits.cpu()}
            when_there_is_space(
                lambda: checkpoint.write_tensors(file, kept, {"first": trial}), file.parent
            )
        return logits

    def save(self, folder: Path, *network: Any) -> None:
        when_there_is_space(lambda: checkpoint.save(folder, *network), folder)

    @property
    def wants_moments(self) -> bool:
        """Whether children begin with the moments of their parents."""
        return self.study.evolve is not None and self.study.evolve.moments

    def keep_moments(
        self, folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe
    ) -> None:
        """Writes what the optimiser has learned of a saved network's weights beside them, where the
        study's children begin with it. Factors of kernels in another form are gone by then."""
        if not self.wants_moments:
            return
        names = {name for name, _ in network.named_parameters()}
        learned = optimizer_state(optimizer)
        kept = Moments(recipe.optimizer, {n: learned[n] for n in learned if n in names})
        when_there_is_space(lambda: moments.save(folder, kept), folder)

    def checkpoint_of(self, trial: str) -> Path:
        return self.run / "trials" / trial / _CHECKPOINT

    def metrics_of(self, trial: str) -> Path:
        return self.run / "trials" / trial / "metrics.jsonl"

    def metrics(self, trial: str, macs_after: MacsAfter) -> Callable[[Epoch], None]:
        return epochs_to(self.metrics_of(trial), macs_after)


def _pool_logits(recipe: Recipe) -> str:
    """The name of the file of a teacher's logits of the pool that a recipe asks for."""
    asked = [recipe.augment.model_dump()]
    other = [] if recipe.precision == "float32" else [recipe.precision]
    key = checkpoint.content_key([*asked, *other])
    return f"logits-{key}.safetensors"


def locked(file: Path, waiting: Callable[[], None] | None = None) -> AbstractContextManager[Any]:
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
