"""Planting: a worker's share of a round's candidates, and the network that they grow."""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from planter.arch import Architecture
from planter.driver.run_folder.logs import epochs_to, line_of
from planter.driver.tasks.context import Context
from planter.driver.tasks.planting_step import PlantingStep
from planter.driver.tasks.whole import class_loss, of_batch, train_whole
from planter.driver.trials.jobs import Job, Outcome, seed_of
from planter.edits.inherit import optimizer_state
from planter.kernels.forms import form_names, form_of
from planter.machine.disk import NoSpaceError, when_there_is_space
from planter.networks import checkpoint
from planter.planting.plants import merge
from planter.planting.round import Loss
from planter.study.schema import Plant
from planter.training.class_weights import EntropySettings
from planter.training.recipe import Recipe
from planter.training.scores import evaluate

log = logging.getLogger(__name__)
_EQUAL = 1e-7
_OPTIMIZER = "optimizer.pt"


def plant_round(context: Context, job: Job) -> Outcome:
    """Plants, trains and scores candidates of one parent, in one pass over the images. One that
    fails does not fail the others; one that is dead is planted once more."""
    began = time.monotonic()
    parent, before, spec = _load(context, job.params["parent"])
    plants = {one["id"]: one for one in job.params["plants"]}
    sown = _Round(context, job.params["round"], parent, before)
    sown.train({name: seed_of(context.study.seed, name) for name in plants}, plants)
    dead = [name for name in plants if sown.is_dead(name, plants[name], spec["loss"])]
    if dead:
        log.warning("%s: dead, planted once more", ", ".join(dead))
        again = {name: seed_of(context.study.seed, f"{name}/again") for name in dead}
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
        self, context: Context, number: int, parent: nn.Module, before: Architecture
    ) -> None:
        settings = context.study.plant
        assert settings is not None
        self._context = context
        self._number = number
        self._step = PlantingStep(
            context,
            before,
            parent,
            settings.recipe,
            loss_of(settings, context.entropy(settings.recipe)),
            guided=settings.kd_weight > 0,
            filters=settings.filters,
            outgoing=settings.outgoing,
        )
        self._networks: dict[str, tuple[Architecture, nn.Module]] = {}
        self._errors: dict[str, str] = {}
        self._live: dict[str, int | None] = {}
        self._own_macs: dict[str, int] = {}
        self.seconds: dict[str, float] = {}

    def train(self, seeds: Mapping[str, int], plants: Mapping[str, Mapping[str, Any]]) -> None:
        """Plants each with its seed, and trains them on batches that all of a round share."""
        context = self._context
        for name, seed in seeds.items():
            one = plants[name]
            try:
                self._networks[name] = self._step.plant(one["layer"], one["channels"], seed)
            except ValueError as error:
                self._errors[name] = f"{type(error).__name__}: {error}"
        alive = [name for name in seeds if name not in self._errors]
        if not alive:
            return
        # By their seeds as well: a dead plant's checkpoint is none of the one that replaces it.
        keys = {name: f"{name} {seeds[name]}" for name in alive}
        logs = {keys[name]: epochs_to(context.metrics_of(name)) for name in alive}
        results = self._step.train(
            {keys[name]: self._networks[name] for name in alive},
            seed=seed_of(context.study.seed, f"p{self._number:02d}"),
            checkpoint=context.checkpoint_of(alive[0]),
            on_epoch=lambda key, epoch: logs[key](epoch),
        )
        # What is planted once more must not take up what it replaces.
        context.checkpoint_of(alive[0]).unlink(missing_ok=True)
        for name in alive:
            result = results[keys[name]]
            self.seconds[name] = self.seconds.get(name, 0.0) + result.seconds
            self._own_macs[name] = self._own_macs.get(name, 0) + result.macs
            if result.error is not None:
                self._errors[name] = result.error
            lines = "".join(json.dumps(line_of(epoch)) + "\n" for epoch in result.epochs)
            file = context.run / "trials" / name / "metrics.jsonl"
            write = partial(file.write_text, lines, encoding="utf-8")
            when_there_is_space(write, file.parent)

    def is_dead(self, name: str, one: Mapping[str, Any], parent_loss: float) -> bool:
        """Whether no planted channel answers to any image, or nothing came of them."""
        if name in self._errors:
            return False
        self._live[name] = self._step.live(self._networks[name][1], one["layer"])
        if self._live[name] == 0:
            return True
        loss = evaluate(self._networks[name][1], self._context.data.validation).loss
        return abs(loss - parent_loss) <= _EQUAL * max(1.0, parent_loss)

    def outcome(self, name: str, one: Mapping[str, Any], *, reseeded: bool) -> Outcome:
        if name in self._errors:
            log.error("%s failed: %s", name, self._errors[name])
            return {"error": self._errors[name]}
        architecture, child = self._networks[name]
        live = self._step.live(child, one["layer"]) if reseeded else self._live[name]
        if live is not None and live < one["channels"]:
            log.warning(
                "%s: %d of %d planted channels answer to no image",
                name,
                one["channels"] - live,
                one["channels"],
            )
        try:
            macs = self._own_macs[name] + self._step.shared_macs()
            found = self._context.outcome(name, {"base": child}, architecture, train_macs=macs)
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


def grow(context: Context, job: Job) -> Outcome:
    """One network with the plants a round has accepted, or the last one; all of its weights trained
    as the study says: collapsed, grown, expanded, trained, collapsed."""
    settings = context.study.plant
    assert settings is not None
    parent, before, _ = _load(context, job.params["parent"])
    architecture, network = before, parent
    if job.params["plants"]:
        plants = [_load(context, name) for name in job.params["plants"]]
        architecture, network = merge(before, parent, [(wider, net) for net, wider, _ in plants])
    recipe = settings.finetune if job.params["plants"] else settings.final
    if recipe is None:
        return context.outcome(job.id, {"base": network}, architecture, train_macs=0)
    kernels = form_of(settings.kernels or "plain")
    trained = train_whole(
        context,
        job.id,
        network,
        architecture,
        recipe,
        of_batch(loss_of(settings, context.entropy(recipe))),
        guided=settings.kd_weight > 0,
        kernels=kernels,
        learned=_learned(context, job, recipe),
    )
    if job.params["plants"]:
        write_learned(context, job.id, recipe, trained.optimizer)
    outcome = context.outcome(
        job.id,
        {"base": network},
        architecture,
        train_macs=trained.macs,
        kernels=form_names(kernels),
    )
    saved = context.run / "models" / job.id / "base"
    context.keep_moments(saved, network, trained.optimizer, recipe)
    return outcome


def write_learned(
    context: Context, trial: str, recipe: Recipe, optimizer: torch.optim.Optimizer
) -> None:
    """Keeps what the optimiser has learned of a trial's weights, for the network it grows into.
    Factors of expanded kernels, which are drawn anew, are not kept."""
    state = {
        name: learned
        for name, learned in optimizer_state(optimizer).items()
        if "parametrizations" not in name
    }
    file, kept = _optimizer_file(context, trial), {"optimizer": recipe.optimizer, "state": state}
    when_there_is_space(partial(checkpoint.write_training, file, kept), file.parent)


def _learned(context: Context, job: Job, recipe: Recipe) -> dict[str, Any]:
    """What the same optimiser has learned of the nearest ancestor all of whose weights trained.

    Drops what no later network can ask for: of rejected networks, and of ancestors behind a nearer
    one with the same optimiser.
    """
    lineage: Sequence[str] = job.params["lineage"]
    for file in (context.run / "trials").glob(f"*/{_OPTIMIZER}"):
        if file.parent.name not in (job.id, *lineage):
            file.unlink()
    nearest: dict[str, dict[str, Any]] = {}
    for trial in reversed(lineage):
        file = _optimizer_file(context, trial)
        kept = checkpoint.read_training(file)
        if kept is None:
            continue
        if kept["optimizer"] in nearest:
            file.unlink()
        else:
            nearest[kept["optimizer"]] = dict(kept["state"])
    return nearest.get(recipe.optimizer, {})


def loss_of(settings: Plant, entropy: EntropySettings) -> Loss:
    """What a plant, and what is grown, learns from."""
    return class_loss(
        ce_weight=settings.ce_weight,
        kd_weight=settings.kd_weight,
        temperature=settings.temperature,
        **entropy,
    )


def _load(context: Context, trial: str) -> tuple[nn.Module, Architecture, dict[str, Any]]:
    network = context.saved(trial)
    spec = checkpoint.read_spec(context.run / "models" / trial / "base")
    return network, Architecture.from_dict(spec["architecture"]), spec


def _optimizer_file(context: Context, trial: str) -> Path:
    return context.run / "trials" / trial / _OPTIMIZER
