"""A worker's part in planting: its share of a round's candidates, and the network they grow."""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from planter import checkpoint
from planter.arch import Architecture
from planter.disk import NoSpaceError, when_there_is_space
from planter.driver.jobs import Job, Outcome, seed_of
from planter.fast_round import Loss, train_round
from planter.forms import form_names, form_of
from planter.kernels import collapse_kernels_, expand_kernels_
from planter.losses import classification_loss
from planter.macs import cost
from planter.morph import inherit_optimizer_state_, optimizer_state
from planter.planting import live_channels, merge, plant
from planter.recipe import Recipe, make_optimizer
from planter.study import Plant
from planter.train import Batch, evaluate, fit

if TYPE_CHECKING:
    from planter.driver.worker import Worker

log = logging.getLogger(__name__)
_MEASURED = 256
_EQUAL = 1e-7
_OPTIMIZER = "optimizer.pt"


def plant_round(worker: Worker, job: Job) -> Outcome:
    """Plants, trains and scores candidates of one parent, in one pass over the images. One that
    fails does not fail the others; one that is dead is planted once more."""
    began = time.monotonic()
    parent, before, spec = _load(worker, job.params["parent"])
    plants = {one["id"]: one for one in job.params["plants"]}
    sown = _Round(worker, job.params["round"], parent, before)
    sown.train({name: seed_of(worker.study.seed, name) for name in plants}, plants)
    dead = [name for name in plants if sown.is_dead(name, plants[name], spec["loss"])]
    if dead:
        log.warning("%s: dead, planted once more", ", ".join(dead))
        again = {name: seed_of(worker.study.seed, f"{name}/again") for name in dead}
        sown.train(again, {name: plants[name] for name in dead})
    outcomes = {name: sown.outcome(name, plants[name], reseeded=name in dead) for name in plants}
    own = {name: sown.seconds.get(name, 0.0) for name in plants}
    shared = (time.monotonic() - began - sum(own.values())) / len(plants)
    for name, outcome in outcomes.items():
        outcome["seconds"] = round(own[name] + shared, 3)
    return {"trials": outcomes}


class _Round:
    """Candidates of one parent on their way from a seed to an outcome."""

    def __init__(
        self, worker: Worker, number: int, parent: nn.Module, before: Architecture
    ) -> None:
        assert worker.study.plant is not None
        self._settings = worker.study.plant
        self._worker = worker
        self._number = number
        self._parent = parent
        self._before = before
        self._networks: dict[str, tuple[Architecture, nn.Module]] = {}
        self._errors: dict[str, str] = {}
        self._live: dict[str, int | None] = {}
        self._own_macs: dict[str, int] = {}
        self.seconds: dict[str, float] = {}

    def train(self, seeds: Mapping[str, int], plants: Mapping[str, Mapping[str, Any]]) -> None:
        """Plants each with its seed, and trains them on batches that all of a round share."""
        settings, worker = self._settings, self._worker
        for name, seed in seeds.items():
            try:
                self._networks[name] = self._planted(plants[name], seed)
            except ValueError as error:
                self._errors[name] = f"{type(error).__name__}: {error}"
        alive = [name for name in seeds if name not in self._errors]
        if not alive:
            return
        # By their seeds as well: a dead plant's checkpoint is none of the one that replaces it.
        keys = {name: f"{name} {seeds[name]}" for name in alive}
        courses = train_round(
            self._parent,
            {keys[name]: self._networks[name][1] for name in alive},
            worker.images(settings.recipe),
            settings.recipe,
            loss_of(settings),
            teacher=worker.guide(settings.recipe) if settings.kd_weight else None,
            seed=seed_of(worker.study.seed, f"p{self._number:02d}"),
            memory=int(settings.memory_gb * 1e9),
            checkpoint=worker.checkpoint_of(alive[0]),
            pause=worker.pause,
        )
        # What is planted once more must not take up what it replaces.
        worker.checkpoint_of(alive[0]).unlink(missing_ok=True)
        for name in alive:
            course = courses[keys[name]]
            self.seconds[name] = self.seconds.get(name, 0.0) + course.seconds
            self._own_macs[name] = self._own_macs.get(name, 0) + course.macs
            if course.error is not None:
                self._errors[name] = course.error
            lines = "".join(json.dumps(epoch._asdict()) + "\n" for epoch in course.epochs)
            file = worker.run / "trials" / name / "metrics.jsonl"
            write = partial(file.write_text, lines, encoding="utf-8")
            when_there_is_space(write, file.parent)

    def is_dead(self, name: str, one: Mapping[str, Any], parent_loss: float) -> bool:
        """Whether no planted channel answers to any image, or nothing came of them."""
        if name in self._errors:
            return False
        self._live[name] = self._count_live(name, one)
        if self._live[name] == 0:
            return True
        loss = evaluate(self._networks[name][1], self._worker.data.validation).loss
        return abs(loss - parent_loss) <= _EQUAL * max(1.0, parent_loss)

    def outcome(self, name: str, one: Mapping[str, Any], *, reseeded: bool) -> Outcome:
        if name in self._errors:
            log.error("%s failed: %s", name, self._errors[name])
            return {"error": self._errors[name]}
        architecture, child = self._networks[name]
        live = self._count_live(name, one) if reseeded else self._live[name]
        if live is not None and live < one["channels"]:
            log.warning(
                "%s: %d of %d planted channels answer to no image",
                name,
                one["channels"] - live,
                one["channels"],
            )
        try:
            found = self._worker.outcome(
                name, {"base": child}, architecture, train_macs=self._train_macs(name)
            )
        except NoSpaceError:
            raise
        except Exception as error:  # the others of the share go on
            log.error("%s failed\n%s", name, traceback.format_exc())
            return {"error": f"{type(error).__name__}: {error}"}
        return {
            **found,
            "live": live,
            "reseeded": reseeded,
            "widths": dict(architecture.widths),
        }

    def _planted(self, one: Mapping[str, Any], seed: int) -> tuple[Architecture, nn.Module]:
        settings = self._settings
        batch = None
        if {"scaled", "gradient"} & {settings.filters, settings.outgoing}:
            batch = measured(self._worker, guided=settings.kd_weight > 0)

        def loss(network: nn.Module) -> Tensor:
            assert batch is not None
            return loss_of(settings)(network(batch.images), batch.labels, batch.teacher)

        return plant(
            self._before,
            self._parent,
            one["layer"],
            one["channels"],
            seed=seed,
            filters=settings.filters,
            outgoing=settings.outgoing,
            images=None if batch is None else batch.images,
            loss=loss,
        )

    def _count_live(self, name: str, one: Mapping[str, Any]) -> int | None:
        network = self._networks[name][1]
        first = self._before.widths[one["layer"]]
        return live_channels(network, one["layer"], first, self._worker.data.train)

    def _train_macs(self, name: str) -> int:
        """Multiply-adds of a candidate's own steps and of what the round's candidates share: a pass
        of the parent, and of the teacher, in every epoch if images change, else once and never."""
        recipe, worker = self._settings.recipe, self._worker
        images = len(worker.images(recipe))
        shared = cost(self._before).macs * images
        if recipe.augment.changes():
            shared += worker.teacher_macs * images if self._settings.kd_weight else 0
            shared *= recipe.epochs
        return self._own_macs[name] + shared


def grow(worker: Worker, job: Job) -> Outcome:
    """One network with the plants a round has accepted, or the last one; all of its weights trained
    as the study says: collapsed, grown, expanded, trained, collapsed."""
    settings = worker.study.plant
    assert settings is not None
    parent, before, _ = _load(worker, job.params["parent"])
    architecture, network = before, parent
    if job.params["plants"]:
        plants = [_load(worker, name) for name in job.params["plants"]]
        architecture, network = merge(before, parent, [(wider, net) for net, wider, _ in plants])
    network.to(worker.device)
    recipe = settings.finetune if job.params["plants"] else settings.final
    if recipe is None:
        return worker.outcome(job.id, {"base": network}, architecture, train_macs=0)
    kernels = form_of(settings.kernels or "plain")
    seed = seed_of(worker.study.seed, job.id)
    if kernels is not None:
        expand_kernels_(network, kernels, seed=seed)
    optimizer = make_optimizer(network, recipe)
    inherit_optimizer_state_(optimizer, _learned(worker, job, recipe))
    loss = loss_of(settings)
    fit(
        network,
        lambda model, batch: loss(model(batch.images), batch.labels, batch.teacher),
        worker.images(recipe),
        recipe,
        seed=seed,
        teacher=worker.guide(recipe) if settings.kd_weight else None,
        optimizer=optimizer,
        checkpoint=worker.checkpoint_of(job.id),
        on_epoch=worker.metrics(job.id),
        pause=worker.pause,
    )
    if job.params["plants"]:
        write_learned(worker, job.id, recipe, optimizer)
    collapse_kernels_(network)
    macs = worker.train_macs(cost(architecture).macs, recipe, guided=settings.kd_weight > 0)
    macs += worker.kernel_macs(architecture, kernels, recipe)
    return worker.outcome(
        job.id, {"base": network}, architecture, train_macs=macs, kernels=form_names(kernels)
    )


def measured(worker: Worker, *, guided: bool) -> Batch:
    """Some training images to measure a start on, as they are."""
    split = worker.data.train
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    index = order[:_MEASURED].to(split.labels.device)
    teacher = worker.teacher_logits[index] if guided else None
    return Batch(split.normalise(split.images[index]), split.labels[index], teacher)


def write_learned(
    worker: Worker, trial: str, recipe: Recipe, optimizer: torch.optim.Optimizer
) -> None:
    """Keeps what the optimiser has learned of a trial's weights, for the network it grows into.
    Factors of expanded kernels, which are drawn anew, are not kept."""
    state = {
        name: learned
        for name, learned in optimizer_state(optimizer).items()
        if "parametrizations" not in name
    }
    file, kept = _optimizer_file(worker, trial), {"optimizer": recipe.optimizer, "state": state}
    when_there_is_space(partial(checkpoint.write_training, file, kept), file.parent)


def _learned(worker: Worker, job: Job, recipe: Recipe) -> dict[str, Any]:
    """What the same optimiser has learned of the nearest ancestor all of whose weights trained.

    Drops what no later network can ask for: of rejected networks, and of ancestors behind a nearer
    one with the same optimiser.
    """
    lineage: Sequence[str] = job.params["lineage"]
    for file in (worker.run / "trials").glob(f"*/{_OPTIMIZER}"):
        if file.parent.name not in (job.id, *lineage):
            file.unlink()
    nearest: dict[str, dict[str, Any]] = {}
    for trial in reversed(lineage):
        file = _optimizer_file(worker, trial)
        kept = checkpoint.read_training(file)
        if kept is None:
            continue
        if kept["optimizer"] in nearest:
            file.unlink()
        else:
            nearest[kept["optimizer"]] = dict(kept["state"])
    return nearest.get(recipe.optimizer, {})


def loss_of(settings: Plant) -> Loss:
    """What a plant, and what is grown, learns from."""

    def loss(logits: Tensor, labels: Tensor, teacher: Tensor | None) -> Tensor:
        return classification_loss(
            logits,
            labels,
            teacher,
            ce_weight=settings.ce_weight,
            kd_weight=settings.kd_weight,
            temperature=settings.temperature,
        )

    return loss


def _load(worker: Worker, trial: str) -> tuple[nn.Module, Architecture, dict[str, Any]]:
    network = worker.saved(trial)
    spec = checkpoint.read_spec(worker.run / "models" / trial / "base")
    return network, Architecture.from_dict(spec["architecture"]), spec


def _optimizer_file(worker: Worker, trial: str) -> Path:
    return worker.run / "trials" / trial / _OPTIMIZER
