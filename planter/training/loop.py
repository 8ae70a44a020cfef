"""One visible training loop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from planter.data import Split
from planter.networks.checkpoint import keep_training, read_training
from planter.training.batches import (
    Batch,
    batch_order,
    class_count,
    layout_of,
    make_batch,
    mix_seed,
    training_images,
)
from planter.training.recipe import Recipe, make_optimizer
from planter.training.scores import recalibrate_batchnorm_
from planter.training.step import take_step

log = logging.getLogger(__name__)
_CHECKPOINT_EVERY_S = 10.0


class Epoch(NamedTuple):
    """What one pass over the training images gave."""

    epoch: int
    loss: float
    lr: float
    seconds: float


class PausedError(Exception):
    """A training was ended on demand at a checkpoint, from which another call goes on."""

    def __init__(self, epoch: int, epochs: int) -> None:
        super().__init__(f"paused after epoch {epoch} of {epochs}")


def fit(
    model: nn.Module,
    loss: Callable[[nn.Module, Batch], Tensor],
    split: Split,
    recipe: Recipe,
    *,
    seed: int,
    teacher: Tensor | nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    start: int = 0,
    until: int | None = None,
    pause: Callable[[], bool] = lambda: False,
) -> nn.Module:
    """Trains the model's trainable parameters in place and returns it.

    `teacher` is its logits for the whole split (or pool of views) `[n, classes]`, right while the
    recipe changes no images, or a network that is asked for every batch. Batches, augmentation and
    dropout depend on `seed` and the epoch alone, so a training taken up from `checkpoint` (written
    every few seconds) goes on as if it had not stopped. `optimizer`, by default the recipe's, may
    bring the state of an earlier training along. With `recipe.ema` the weights that are left in the
    model are their moving average over the steps, and its norm statistics are recomputed for them
    (`recalibrate_batchnorm_`); the training itself is the one without it. A training that is to end
    after `until` epochs leaves its checkpoint there, and another call goes on; so does one that
    `pause` tells to end after an epoch, which raises PausedError. One whose first `start` epochs
    another network has trained, which this one is made of, goes on with the next. Raises
    FloatingPointError when the loss is no longer a number.
    """
    split = training_images(split, recipe, teacher)
    model.to(memory_format=layout_of(model))
    if optimizer is None:
        optimizer = make_optimizer(model, recipe)
    lay_out_moments_(optimizer)
    average = None
    if recipe.ema is not None:
        average = AveragedModel(
            model,
            multi_avg_fn=get_ema_multi_avg_fn(recipe.ema),  # type: ignore[no-untyped-call]
            use_buffers=True,
        )
    if checkpoint is not None and (state := read_training(checkpoint)) is not None:
        if _shapes(state["model"]) == _shapes(model.state_dict()):
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            if average is not None and "average" in state:  # the setting may be newer
                average.load_state_dict(state["average"])
            start = state["epoch"]
            log.info("taken up after epoch %d of %d", start, recipe.epochs)
        else:
            # An older planter may have called the parts otherwise.
            log.warning("%s is of another network; the training starts afresh", checkpoint)
    saved_at = time.monotonic()
    end = recipe.epochs if until is None else min(until, recipe.epochs)
    for epoch in range(start, end):
        began = time.monotonic()
        with torch.random.fork_rng(devices=_cuda_devices(split)):
            mean = _epoch(model, loss, split, recipe, optimizer, epoch, seed, teacher, average)
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"training loss became {mean} in epoch {epoch + 1} of {recipe.epochs}; "
                f"a lower lr than {recipe.lr} may help"
            )
        on_epoch(Epoch(epoch + 1, mean, recipe.lr_at(epoch), time.monotonic() - began))
        pausing = checkpoint is not None and epoch + 1 < end and pause()
        due = epoch + 1 == end or pausing or time.monotonic() - saved_at > _CHECKPOINT_EVERY_S
        if checkpoint is not None and due and epoch + 1 < recipe.epochs:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            if average is not None:
                state["average"] = average.state_dict()
            keep_training(checkpoint, {"epoch": epoch + 1, **state})
            saved_at = time.monotonic()
        if pausing:
            raise PausedError(epoch + 1, recipe.epochs)
    if average is not None:
        # Whole numbers (indices, counts) are no averages: those of the model stay.
        averaged, own = average.module.state_dict(), model.state_dict()
        model.load_state_dict(
            {name: t if t.is_floating_point() else own[name] for name, t in averaged.items()}
        )
        recalibrate_batchnorm_(model, split, recipe, seed=seed)
    return model.to(memory_format=torch.contiguous_format)


def _epoch(
    model: nn.Module,
    loss: Callable[[nn.Module, Batch], Tensor],
    split: Split,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    seed: int,
    teacher: Tensor | nn.Module | None,
    average: AveragedModel | None,
) -> float:
    """One pass; the mean loss over the images."""
    torch.manual_seed(mix_seed(seed, epoch))  # for dropout and whatever else draws in the model
    model.train()
    total = torch.zeros((), device=split.labels.device)
    parts, generator = batch_order(split, recipe, seed, epoch)
    classes = class_count(split)
    for i, index in enumerate(parts):
        batch = make_batch(
            split, index, recipe.augment, generator, teacher, layout_of(model), classes
        )
        value = take_step(
            model,
            optimizer,
            partial(loss, model, batch),
            lr=recipe.lr_at(epoch + i / len(parts)),
            kernel_weight_decay=recipe.weight_decay,
        )
        if average is not None:
            average.update_parameters(model)
        total += value * len(batch.labels)
    return float(total) / sum(map(len, parts))


def lay_out_moments_(optimizer: torch.optim.Optimizer) -> None:
    """Lays an optimiser's moments out in memory as their parameters are: torch's fused steps go
    through both as they lie."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter).copy_(value)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def _cuda_devices(split: Split) -> list[torch.device]:
    device = split.labels.device
    return [device] if device.type == "cuda" else []
