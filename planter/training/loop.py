"""One visible training loop."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from planter.data import Split
from planter.kernels.filters import generated
from planter.networks.checkpoint import keep_training, read_training
from planter.training.batches import (
    Batch,
    batch_order,
    class_count,
    layout_of,
    make_batch,
    mix_seed,
    split_batch,
    training_images,
)
from planter.training.class_weights import relative_weights
from planter.training.recipe import Recipe, make_optimizer
from planter.training.running.ways import ways_of
from planter.training.scores import Score, Validated, evaluate, recalibrate_batchnorm_
from planter.training.stacked.passes import Company, Pass
from planter.training.step import Part, shares, take_step

log = logging.getLogger(__name__)
_CHECKPOINT_EVERY_S = 10.0


class Epoch(NamedTuple):
    """What one pass over the training images gave, and the validation after it, if there was one;
    seconds are of both. `val_measure` is the name and the value of another measure that decides."""

    epoch: int
    loss: float
    lr: float
    seconds: float
    val_accuracy: float | None = None
    val_loss: float | None = None
    val_measure: tuple[str, float] | None = None


Validate = Callable[[nn.Module, Split], Score | Validated]
"""How well a network does on a split; the network stays as it is."""


class _Best(NamedTuple):
    """The best epoch so far, how it scored, and what it would leave."""

    epoch: int
    accuracy: float
    loss: float
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    measure: str = "accuracy"
    value: float | None = None

    def beaten_by(self, score: Validated) -> bool:
        mine = Validated(self.accuracy, self.loss, self.measure, self.value)
        return score.merit > mine.merit


class PausedError(Exception):
    """A training was ended on demand at a checkpoint, from which another call goes on."""

    def __init__(self, epoch: int, epochs: int) -> None:
        super().__init__(epoch, epochs)  # as they are, to be sent to another process

    def __str__(self) -> str:
        return "paused after epoch {} of {}".format(*self.args)


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
    validation: Split | None = None,
    validate: Validate = evaluate,
    on_end: Callable[[int], None] = lambda epochs: None,
    together: Company | None = None,
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
    another network has trained, which this one is made of, goes on with the next.

    The loss is the caller's: `label_smoothing` and `class_weights` of the recipe are for it (see
    `classification_loss`). With `validation` images, epochs are followed by `validate` as the
    recipe says, of the moving average where there is one; it changes nothing, and is in float32
    whatever the recipe's `precision`, which is that of training passes, the teacher's among them.
    A training that is taken up keeps what `auto` came to when it began. With
    `recipe.patience` the training may end early, and leaves weights, statistics and optimiser as
    they were after the best epoch by what `validate` gives, also `until` an epoch. `on_end` is told
    how many epochs were trained. A training that goes on `together` with others has its passes made
    there, at once with theirs where that is possible (`training/stacked`). Raises
    FloatingPointError when the loss is no longer a number, ValueError for patience without
    validation images, for float16 without a GPU, and for a module that does not compute in the
    recipe's precision.
    """
    if recipe.patience is not None and not validation:
        raise ValueError(f"patience {recipe.patience} needs validation images to go by")
    split = training_images(split, recipe, teacher)
    state = None if checkpoint is None else read_training(checkpoint)
    ways = ways_of(model, loss, split, recipe, seed=seed, teacher=teacher, state=state)
    layout = layout_of(model, ways.running.fewest)
    model.to(memory_format=layout)
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
    best: _Best | None = None
    if state is not None:
        if _shapes(state["model"]) == _shapes(model.state_dict()):
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            if average is not None and "average" in state:  # the setting may be newer
                average.load_state_dict(state["average"])
            if ways.scaler is not None and "scaler" in state:
                ways.scaler.load_state_dict(state["scaler"])
            if recipe.patience is not None and "best" in state:
                best = _Best(*state["best"])
            start = state["epoch"]
            log.info("taken up after epoch %d of %d", start, recipe.epochs)
        else:
            # An older planter may have called the parts otherwise.
            log.warning("%s is of another network; the training starts afresh", checkpoint)
    saved_at = time.monotonic()
    end = recipe.epochs if until is None else min(until, recipe.epochs)
    images = len(split) // (recipe.augment.views or 1)
    weights = relative_weights(recipe, split.labels)
    generates = bool(generated(model))
    clock = time.monotonic if together is None else together.clock
    epoch = start
    while epoch < end and not _over(recipe, epoch, best):
        began = clock()
        score: Validated | None = None
        with torch.random.fork_rng(devices=_cuda_devices(split)):
            with ways.taken(model, teacher):
                parts = model, loss, split, recipe, optimizer, epoch, seed, teacher, average
                alone = partial(_epoch, *parts, weights, layout, ways.scaler, generates=generates)
                mean = alone() if together is None else together.run(Pass(*parts, alone))
            if validation and recipe.validates(epoch + 1, images, len(validation)):
                with parametrize.cached():
                    judged = model if average is None else average.module
                    score = Validated(*validate(judged, validation))
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"training loss became {mean} in epoch {epoch + 1} of {recipe.epochs}; "
                f"a lower lr than {recipe.lr} may help"
            )
        epoch += 1
        if recipe.patience is not None and score and (best is None or best.beaten_by(score)):
            states = _left(model, average), optimizer.state_dict()
            best = _Best(epoch, *score[:2], *copy.deepcopy(states), *score[2:])
        seconds = clock() - began
        on_epoch(Epoch(epoch, mean, recipe.lr_at(epoch - 1), seconds, *_told(score)))
        over = epoch == end or _over(recipe, epoch, best)
        pausing = checkpoint is not None and not over and pause()
        due = over or pausing or time.monotonic() - saved_at > _CHECKPOINT_EVERY_S
        if checkpoint is not None and due and epoch < recipe.epochs:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            # Also where `auto` came to the plain way: it is not to be measured anew.
            state["running"] = tuple(ways.running)
            if ways.scaler is not None:
                state["scaler"] = ways.scaler.state_dict()
            if average is not None:
                state["average"] = average.state_dict()
            if best is not None:
                state["best"] = tuple(best)
            keep_training(checkpoint, {"epoch": epoch, **state})
            saved_at = time.monotonic()
        if pausing:
            raise PausedError(epoch, recipe.epochs)
    if best is not None:
        log.info("of %d epochs the best is %d", epoch, best.epoch)
        model.load_state_dict(best.model)
        optimizer.load_state_dict(dict(best.optimizer))
    elif average is not None:
        model.load_state_dict(_left(model, average))
    if average is not None:
        recalibrate_batchnorm_(model, split, recipe, seed=seed)
    on_end(epoch)
    return model.to(memory_format=torch.contiguous_format)


def _over(recipe: Recipe, epoch: int, best: _Best | None) -> bool:
    """Whether a training has lost its patience after so many epochs: at a validation, so that a
    seldom one does not end it before it has had its say."""
    if recipe.patience is None or best is None or epoch - best.epoch < recipe.patience:
        return False
    return epoch % (recipe.validate_every or 1) == 0


def _told(score: Validated | None) -> tuple[Any, ...]:
    """What the log says of a validation."""
    if score is None:
        return ()
    more = () if score.value is None else ((score.measure, score.value),)
    return *score[:2], *more


def _left(model: nn.Module, average: AveragedModel | None) -> dict[str, Tensor]:
    """What a training leaves in its model after the step at hand. Whole numbers (indices, counts)
    are no averages: those of the model stay."""
    own = model.state_dict()
    if average is None:
        return own
    averaged = average.module.state_dict()
    return {name: t if t.is_floating_point() else own[name] for name, t in averaged.items()}


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
    weights: Tensor | None,
    layout: torch.memory_format,
    scaler: torch.amp.GradScaler | None,
    *,
    generates: bool,
) -> float:
    """One pass; the mean loss over the images."""
    torch.manual_seed(mix_seed(seed, epoch))  # for dropout and whatever else draws in the model
    model.train()
    total = torch.zeros((), device=split.labels.device)
    steps, generator = batch_order(split, recipe, seed, epoch)
    classes, many = class_count(split), recipe.accumulate
    for i, index in enumerate(steps):
        batch = make_batch(
            split,
            index,
            recipe.augment,
            generator,
            teacher,
            layout,
            classes=classes,
            parts=many,
        )
        batches = split_batch(batch, many)
        counted = [1.0] if many == 1 else shares([part.labels for part in batches], weights)
        sharing = zip(batches, counted, strict=True)
        value = take_step(
            model,
            optimizer,
            [Part(partial(loss, model, part), share) for part, share in sharing],
            lr=recipe.lr_at(epoch + i / len(steps)),
            kernel_weight_decay=recipe.weight_decay if generates else 0.0,
            clip_grad=recipe.clip_grad,
            scaler=scaler,
        )
        if average is not None:
            average.update_parameters(model)
        total += value * len(batch.labels)
    return float(total) / sum(map(len, steps))


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
