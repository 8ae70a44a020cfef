"""Children of saved networks: edited, trained whole, scored and saved with their lineage."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from planter.arch import Architecture
from planter.costs.macs import cost
from planter.data import Split
from planter.driver.tasks.context import Context
from planter.driver.tasks.growing import growth_of, train_growing
from planter.driver.tasks.whole import class_loss, of_batch, train_whole
from planter.driver.trials.jobs import Job, Outcome, seed_of
from planter.evolution.edit import (
    MEASURED_IMAGES,
    Bench,
    Edit,
    Individual,
    Measured,
    gradient_sums,
)
from planter.evolution.table import apply_all, from_data
from planter.evolution.whole import Reform
from planter.front.points import measured
from planter.kernels.forms import form_names, form_of
from planter.machine.torch_state import evaluating
from planter.networks import checkpoint, moments
from planter.networks.assembly import build_network
from planter.networks.normalisation import as_taken
from planter.planting.round import Loss, train_round
from planter.training.recipe import Recipe
from planter.training.scores import evaluate

log = logging.getLogger(__name__)
_ROUND = Recipe(
    epochs=2, batch=64, optimizer="adam", lr=0.005, weight_decay=0.0, schedule="onecycle"
)
"""A short planting round: two passes over those images."""


def evolve(context: Context, job: Job) -> Outcome:
    """Makes a child of the point `parent` by `edits`, trains all its weights under `recipe`; up to
    the first of `rungs`, where there are any."""
    settings = context.study.evolve
    assert settings is not None
    recipe = Recipe.model_validate(job.params["recipe"])
    folder = context.run / "models" / job.params["parent"]
    spec = checkpoint.read_spec(folder)
    network = checkpoint.load(folder, own_code=True).to(context.device)
    architecture = Architecture.from_dict(spec["architecture"])
    known = _moments(folder, recipe) if context.wants_moments else {}
    parent = Individual(architecture, spec["pipeline"], network, known)
    kd = settings.kd if context.study.teacher is not None else None
    guided = kd is not None and kd.weight > 0
    entropy = context.entropy(recipe)
    loss = class_loss(**entropy)
    if kd is not None:
        loss = class_loss(
            ce_weight=kd.ce_weight, kd_weight=kd.weight, temperature=kd.temperature, **entropy
        )
    edits = from_data(job.params["edits"])
    # As its parent takes them, so that it begins with what that one knows.
    images = as_taken(context.images(recipe), spec)
    bench = _Bench(context, loss, seed_of(context.study.seed, job.id), guided, spec)
    before, growth = growth_of(edits)
    child, macs = _made(context, job, before, parent, bench)
    inherits = bool(child.moments)
    forms = [edit.form for edit in edits if isinstance(edit, Reform)]
    kernels = form_of(forms[-1]) if forms else None
    # One that grows meanwhile is on no rung: see `Evolve`.
    rungs = job.params.get("rungs", []) if growth is None else []
    until = next(iter(rungs), recipe.epochs)
    train = partial(
        train_whole,
        context,
        job.id,
        loss=of_batch(loss),
        guided=guided,
        kernels=kernels,
        pipelines=[child.pipeline],
        images=images,
    )
    if growth is None:
        trained = train(
            network=child.network.train(),
            architecture=child.architecture,
            recipe=recipe,
            learned=child.moments,
            until=until,
            before=macs,
        )
    else:
        child, trained = train_growing(
            context, job.id, child, growth, bench, recipe, train, before=macs
        )
    macs += trained.macs
    validation = as_taken(context.data.validation, spec)
    if until < recipe.epochs:
        score = context.score(child.pipeline, child.network.eval(), validation)
        way = cost(child.architecture).pipelines[child.pipeline]
        scored = measured(score, way, context.study.objectives.names)
        made = child.architecture.to_dict()
        point = {"pipeline": child.pipeline, **scored, "architecture": made}
        return {"partial": {"epochs": until, "points": [point], "train_macs": macs}}
    lineage = [*spec.get("lineage", [{"id": job.params["parent"], "trained": spec.get("trial")}])]
    step = {
        "id": f"{job.id}/{child.pipeline}",
        "edits": list(job.params["edits"]),
        "seed": bench.seed,
        "recipe": recipe.model_dump(),
        "kd": kd.model_dump() if guided and kd is not None else None,
    }
    if inherits:
        step["moments"] = True
    lineage.append(step)
    outcome = context.outcome(
        job.id,
        {child.pipeline: child.network.eval()},
        child.architecture,
        train_macs=macs,
        kernels=form_names(kernels),
        validation=validation,
        facts={"lineage": lineage, "recipe": recipe.model_dump()},
        fields={"parent": job.params["parent"], "edits": list(job.params["edits"])},
    )
    saved = context.run / "models" / job.id / child.pipeline
    context.keep_moments(saved, child.network, trained.optimizer, recipe)
    return outcome


def _moments(folder: Path, recipe: Recipe) -> Mapping[str, Mapping[str, Tensor]]:
    """What the recipe's optimiser has learned of a parent's weights, as far as it is kept."""
    kept = moments.load(folder)
    if kept is None:
        log.warning("%s: no moments are kept there; its child begins with fresh ones", folder)
        return {}
    if kept.optimizer != recipe.optimizer:
        told = "%s: its moments are of %s, not %s; its child begins with fresh ones"
        log.warning(told, folder, kept.optimizer, recipe.optimizer)
        return {}
    return kept.state


def _made(
    context: Context, job: Job, edits: Sequence[Edit], parent: Individual, bench: Bench
) -> tuple[Individual, int]:
    """The child before its training, and the multiply-adds that its edits took. One that is stopped
    on the way is kept in its folder: with every job that goes on, edits would measure once more."""
    if "rungs" not in job.params:
        return apply_all(edits, parent, bench)
    file = context.checkpoint_of(f"{job.id}/edited")
    if (kept := checkpoint.read_training(file)) is not None:
        architecture, pipeline = Architecture.from_dict(kept["architecture"]), kept["pipeline"]
        network = build_network(architecture, pipeline)
        network.load_state_dict(kept["model"])
        network.to(context.device)
        child = Individual(architecture, pipeline, network.eval(), kept["moments"])
        return child, int(kept["macs"])
    child, macs = apply_all(edits, parent, bench)
    state = {
        "architecture": child.architecture.to_dict(),
        "pipeline": child.pipeline,
        "model": child.network.state_dict(),
        "moments": {name: dict(learned) for name, learned in child.moments.items()},
        "macs": macs,
    }
    checkpoint.keep_training(file, state)
    return child, macs


def adopt(context: Context, job: Job) -> Outcome:
    """Scores and saves a network from elsewhere, on images normalised as it takes them."""
    folder = job.params["folder"]
    spec = checkpoint.read_spec(folder)
    network = checkpoint.load(folder, own_code=True).to(context.device)
    validation = as_taken(context.data.validation, spec)
    architecture = Architecture.from_dict(spec["architecture"])
    first = f"{spec.get('trial', folder)}/{spec['pipeline']}"
    before = spec.get("lineage", [{"id": first, "trained": spec.get("trial")}])
    return context.outcome(
        job.id,
        {spec["pipeline"]: network},
        architecture,
        train_macs=0,
        validation=validation,
        facts={"lineage": [*before, {"id": f"{job.id}/{spec['pipeline']}", "taken": folder}]},
    )


@dataclass(frozen=True)
class _Bench:
    """What edits ask to be measured, on some training images as they are, with the loss that the
    child will learn by. See `planter.evolution.edit.Bench`."""

    context: Context
    loss: Loss
    seed: int
    guided: bool
    spec: Mapping[str, Any]

    def gradients(self, parent: Individual) -> Measured:
        network, split = parent.network, self._images
        sums: dict[str, Tensor] = {}
        index = torch.arange(len(split), device=split.labels.device)
        with evaluating(network):
            for part in index.split(256):  # type: ignore[no-untyped-call]
                teacher = self._teacher[part] if self._teacher is not None else None
                network.zero_grad(set_to_none=True)
                images = split.normalise(split.batch(part))
                self.loss(network(images), split.labels[part], teacher).backward()  # type: ignore[no-untyped-call]
                sums = gradient_sums(sums, network)
        network.zero_grad(set_to_none=True)
        return Measured(sums, 3 * parent.macs * len(split))

    def within_bounds(self, architecture: Architecture, pipeline: str) -> bool:
        way = cost(architecture).pipelines[pipeline]
        costs = {"macs": way.macs, "params": way.params}
        limits = self.context.study.objectives.bounds.limits()
        return all(value <= limits.get(name, value) for name, value in costs.items())

    def falls(self, parent: Individual, children: Mapping[str, Individual]) -> Measured:
        found, macs = {}, parent.macs * len(self._images)
        before = evaluate(parent.network, self._images).loss
        for name, child in children.items():
            try:
                result = train_round(
                    parent.network,
                    {name: child.network},
                    self._images,
                    _ROUND,
                    self.loss,
                    teacher=self._teacher,
                    seed=self.seed,
                )[name]
            except ValueError:
                continue  # e.g. channels that a sum joins: they cannot train beside their parent
            macs += result.macs + child.macs * len(self._images)
            if result.error is None:
                found[name] = before - evaluate(child.network, self._images).loss
        return Measured(found, macs)

    @cached_property
    def _chosen(self) -> Tensor:
        train = self.context.data.train
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(self.seed))
        return order[:MEASURED_IMAGES].to(train.labels.device)

    @cached_property
    def _images(self) -> Split:
        return as_taken(self.context.data.train.sample(self._chosen), self.spec)

    @cached_property
    def _teacher(self) -> Tensor | None:
        return self.context.teacher_logits[self._chosen] if self.guided else None
