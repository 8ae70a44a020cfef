"""Children of saved networks: edited, trained whole, scored and saved with their lineage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from planter.arch import Architecture
from planter.data import Split
from planter.driver.tasks.context import Context
from planter.driver.tasks.growing import growth_of, train_growing
from planter.driver.tasks.whole import class_loss, of_batch, train_whole
from planter.driver.trials.jobs import Job, Outcome, seed_of
from planter.evolution.edit import MEASURED_IMAGES, Individual, Measured, gradient_sums
from planter.evolution.table import apply_all, from_data
from planter.evolution.whole import Reform
from planter.kernels.forms import form_names, form_of
from planter.machine.torch_state import evaluating
from planter.networks import checkpoint
from planter.networks.normalisation import as_taken
from planter.planting.round import Loss, train_round
from planter.training.loop import evaluate
from planter.training.recipe import Recipe

_ROUND = Recipe(
    epochs=2, batch=64, optimizer="adam", lr=0.005, weight_decay=0.0, schedule="onecycle"
)
"""A short planting round: two passes over those images."""


def evolve(context: Context, job: Job) -> Outcome:
    """Makes a child of the point `parent` by `edits`, trains all its weights under `recipe`."""
    settings = context.study.evolve
    assert settings is not None
    recipe = Recipe.model_validate(job.params["recipe"])
    folder = context.run / "models" / job.params["parent"]
    spec = checkpoint.read_spec(folder)
    network = checkpoint.load(folder, own_code=True).to(context.device)
    architecture = Architecture.from_dict(spec["architecture"])
    parent = Individual(architecture, spec["pipeline"], network)
    kd = settings.kd if context.study.teacher is not None else None
    guided = kd is not None and kd.weight > 0
    loss = class_loss()
    if kd is not None:
        loss = class_loss(ce_weight=kd.ce_weight, kd_weight=kd.weight, temperature=kd.temperature)
    edits = from_data(job.params["edits"])
    # As its parent takes them, so that it begins with what that one knows.
    images = as_taken(context.images(recipe), spec)
    bench = _Bench(context, loss, seed_of(context.study.seed, job.id), guided, spec)
    before, growth = growth_of(edits)
    child, macs = apply_all(before, parent, bench)
    forms = [edit.form for edit in edits if isinstance(edit, Reform)]
    kernels = form_of(forms[-1]) if forms else None
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
        macs += train(child.network.train(), child.architecture, recipe).macs
    else:
        child, more = train_growing(context, job.id, child, growth, bench, recipe, train)
        macs += more
    lineage = [*spec.get("lineage", [{"id": job.params["parent"], "trained": spec.get("trial")}])]
    step = {
        "id": f"{job.id}/{child.pipeline}",
        "edits": list(job.params["edits"]),
        "seed": bench.seed,
        "recipe": recipe.model_dump(),
        "kd": kd.model_dump() if guided and kd is not None else None,
    }
    lineage.append(step)
    return context.outcome(
        job.id,
        {child.pipeline: child.network.eval()},
        child.architecture,
        train_macs=macs,
        kernels=form_names(kernels),
        validation=as_taken(context.data.validation, spec),
        facts={"lineage": lineage, "recipe": recipe.model_dump()},
        fields={"parent": job.params["parent"], "edits": list(job.params["edits"])},
    )


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
