"""What a recipe's `precision` and `compile` make of one training."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from planter.data import Split
from planter.training.batches import (
    Batch,
    batch_order,
    eval_logits,
    layout_of,
    make_batch,
    split_batch,
)
from planter.training.recipe import Recipe
from planter.training.running.fastest import Loss, chosen
from planter.training.running.forward import (
    PLAIN,
    Forward,
    Running,
    check_precision,
    in_place_of,
    tried,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ways:
    """How the network of a training and its teacher run within a step, and what scales the losses
    of float16."""

    running: Running = PLAIN
    forward: Forward | None = None
    teacher: Forward | None = None
    scaler: torch.amp.GradScaler | None = None

    @contextmanager
    def taken(self, model: nn.Module, teacher: Tensor | nn.Module | None) -> Iterator[None]:
        """Within the block both run so."""
        guide = teacher if isinstance(teacher, nn.Module) else model
        forward = self.teacher if isinstance(teacher, nn.Module) else None
        with in_place_of(model, self.forward), in_place_of(guide, forward):
            yield


def ways_of(
    model: nn.Module,
    loss: Loss,
    split: Split,
    recipe: Recipe,
    *,
    seed: int,
    teacher: Tensor | nn.Module | None,
    state: Mapping[str, Any] | None,
) -> Ways:
    """Those of a training on these images, tried on its first batch; one that is taken up from a
    checkpoint's `state` keeps what `auto` came to.

    Raises ValueError for float16 without a GPU, and for a module that does not compute in the
    precision.
    """
    if recipe.precision == "float32" and recipe.compile is False:
        return Ways()
    device = split.labels.device
    check_precision(recipe.precision, device)
    model.train()
    order, generator = batch_order(split, recipe, seed, 0)
    many = recipe.accumulate
    batch = make_batch(split, order[0], recipe.augment, generator, teacher, parts=many)
    part = split_batch(batch, many)[0]
    if state is not None and "running" in state:
        running = Running(*state["running"])
    else:
        running = chosen(model, loss, part, recipe, steps=recipe.epochs * len(order))
        log.info("trains in %s%s", running.precision, ", compiled" if running.compiled else "")

    layout = layout_of(model, running.fewest)
    model.to(memory_format=layout)
    part = part._replace(images=part.images.contiguous(memory_format=layout))

    def step() -> None:
        loss(model, part).backward()  # type: ignore[no-untyped-call]

    forward = tried(model, running, step)
    scaled = running.precision == "float16"
    scaler = torch.amp.GradScaler(device.type) if scaled else None
    return Ways(running, forward, _teacher_forward(teacher, running, recipe, part), scaler)


def _teacher_forward(
    teacher: Tensor | nn.Module | None, running: Running, recipe: Recipe, part: Batch
) -> Forward | None:
    """Of a teacher that answers beside the training: in its precision."""
    if not isinstance(teacher, nn.Module):
        return None
    try:
        return tried(
            teacher, running._replace(compiled=False), partial(eval_logits, teacher, part.images)
        )
    except ValueError as error:
        if recipe.precision != "auto":
            raise
        log.info("the teacher answers in float32: %s", error)
        return None
