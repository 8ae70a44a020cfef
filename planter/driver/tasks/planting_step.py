"""Channels planted into a network and trained while the rest of it stands still."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from planter.arch import Architecture
from planter.costs.macs import cost, joint_macs
from planter.driver.tasks.context import Context
from planter.networks.pipelines import Pipelines
from planter.planting.plants import live_channels, plant, train_plant
from planter.planting.round import CandidateResult, Loss, train_round
from planter.planting.starts import Filters, Outgoing
from planter.study.schema import Plant
from planter.training.batches import Batch
from planter.training.loop import Epoch
from planter.training.recipe import Recipe

_MEASURED = 256
"""Training images that a start is measured on."""


@dataclass(frozen=True)
class PlantingStep:
    """What the plants of one parent share: where they stand, what they learn, and from what.

    `loss` is of logits, for a network; `joint_loss` of a whole, for `Pipelines` as parent, whose
    pipelines of the names `trained` learn.
    """

    context: Context
    architecture: Architecture
    parent: nn.Module
    recipe: Recipe
    loss: Loss
    guided: bool
    filters: Filters = "random"
    outgoing: Outgoing = "zero"
    joint_loss: Callable[[Pipelines, Batch], Tensor] | None = None
    trained: tuple[str, ...] = ("base",)

    def plant(self, layer: str, channels: int, seed: int) -> tuple[Architecture, nn.Module]:
        """The parent with new channels, before any training. Raises ValueError where it cannot
        start as its parent's function. See `plants.plant`."""
        return plant(
            self.architecture,
            self.parent,
            layer,
            channels,
            seed=seed,
            filters=self.filters,
            outgoing=self.outgoing,
            images=self._measured.images if "scaled" in (self.filters, self.outgoing) else None,
            loss=self._start_loss,
        )

    def train(
        self,
        children: Mapping[str, tuple[Architecture, nn.Module]],
        *,
        seed: int,
        checkpoint: Path,
        on_epoch: Callable[[str, Epoch], None] = lambda name, epoch: None,
    ) -> dict[str, CandidateResult]:
        """Trains what is new in the children, on the same batches; what that was for each, with the
        multiply-adds of its own steps. `on_epoch` is told of epochs where there is one pipeline,
        see `train_round`."""
        context, recipe = self.context, self.recipe
        images = context.images(recipe)
        teacher = context.guide(recipe) if self.guided else None
        if not isinstance(self.parent, Pipelines):
            settings = context.study.plant or Plant()
            return train_round(
                self.parent,
                {name: child for name, (_, child) in children.items()},
                images,
                recipe,
                self.loss,
                teacher=teacher,
                seed=seed,
                memory=int(settings.memory_gb * 1e9),
                checkpoint=checkpoint,
                pause=context.pause,
                on_epoch=on_epoch,
            )
        found = {}
        for name, (architecture, child) in children.items():
            train_plant(
                child,
                self.parent,
                images,
                recipe,
                self._pipelines_loss,
                teacher=teacher,
                seed=seed,
                checkpoint=checkpoint,
                pause=context.pause,
            )
            total = joint_macs(cost(architecture), self.trained)
            found[name] = CandidateResult(
                macs=context.train_macs(total, recipe, guided=self.guided)
            )
        return found

    def live(self, child: nn.Module, layer: str) -> int | None:
        """How many planted channels answer to some image; None where that cannot be told."""
        network = child.detach("base") if isinstance(child, Pipelines) else child
        return live_channels(
            network, layer, self.architecture.width(layer), self.context.data.train
        )

    def shared_macs(self) -> int:
        """Multiply-adds of what the plants of a step share beside their own: a pass of the parent,
        and of the teacher, in every epoch if images change, else once and never. Pipelines share
        nothing."""
        if isinstance(self.parent, Pipelines):
            return 0
        recipe, context = self.recipe, self.context
        images = len(context.images(recipe))
        shared = cost(self.architecture).macs * images
        if recipe.augment.changes():
            shared += context.teacher_macs * images if self.guided else 0
            shared *= recipe.epochs
        return shared

    @cached_property
    def _measured(self) -> Batch:
        """Some training images, as they are."""
        split = self.context.data.train
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
        index = order[:_MEASURED].to(split.labels.device)
        teacher = self.context.teacher_logits[index] if self.guided else None
        return Batch(split.normalise(split.batch(index)), split.labels[index], teacher)

    def _start_loss(self, network: nn.Module) -> Tensor:
        batch = self._measured
        if isinstance(network, Pipelines):
            return self._pipelines_loss(network, batch)
        return self.loss(network(batch.images), batch.labels, batch.teacher)

    def _pipelines_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, Pipelines)
        assert self.joint_loss is not None
        return self.joint_loss(model, batch)
