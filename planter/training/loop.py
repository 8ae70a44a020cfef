"""One visible training loop, scoring, and batch-norm statistics."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from planter.data import InMemorySplit, Split
from planter.edits.freeze import PlantedNorm
from planter.machine.torch_state import evaluating
from planter.networks.checkpoint import keep_training, read_training
from planter.training.augmentation import augmentation
from planter.training.recipe import Augment, Recipe, make_optimizer
from planter.training.step import take_step

log = logging.getLogger(__name__)
_SCORE_BATCH = 512
_CHECKPOINT_EVERY_S = 10.0


class Batch(NamedTuple):
    """Normalised images `[batch, channels, height, width]`, labels `[batch]` and, with a teacher,
    its logits `[batch, classes]`."""

    images: Tensor
    labels: Tensor
    teacher: Tensor | None


class Score(NamedTuple):
    """Share of images classified correctly (0..1) and mean cross-entropy."""

    accuracy: float
    loss: float


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
    for i, index in enumerate(parts):
        batch = make_batch(split, index, recipe.augment, generator, teacher, layout_of(model))
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


def evaluate(model: nn.Module, split: Split) -> Score:
    """Accuracy and cross-entropy of a network on a split, in eval mode; its mode is kept.

    Raises ValueError for an empty split or for None, which stands for a data set without test
    part.
    """
    if split is None or not len(split):
        raise ValueError("nothing to evaluate on: the split is empty or missing")
    device = next(model.parameters()).device
    split = split.to(device)
    correct, loss = 0, 0.0
    for images, labels in _plain_batches(split):
        logits = _eval_logits(model, images)
        correct += int((logits.argmax(dim=1) == labels).sum())
        loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
    return Score(correct / len(split), loss / len(split))


def predict(model: nn.Module, split: Split) -> Tensor:
    """Logits `[n, classes]` of a network for every image of a split, in eval mode."""
    return torch.cat([_eval_logits(model, images) for images, _ in _plain_batches(split)])


def recalibrate_batchnorm_(
    model: nn.Module, split: Split, recipe: Recipe, *, seed: int, images: int = 10_000
) -> nn.Module:
    """Batch-norm statistics as the plain mean over what a training under this recipe sees: the
    images of `split` (or its pool of views) in batches of the recipe, augmented as it says, in the
    order of the epoch after the last; `images` of them at most. Changes the model in place.

    For weights that the statistics did not follow: averages of weights, pipelines that shared
    their norms. A network that trained keeps its own: on plain images, without the zeros that
    crops pad with, a ResNet-8 lost 3.4 points on CIFAR-10, narrower ones up to 12
    (benchmarks/scoring.py). Dropout is left out, as it is where the network is used; statistics of
    channels that a plant keeps frozen stay.
    """
    kept = {id(m.norm) for m in model.modules() if isinstance(m, PlantedNorm)}
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and id(m) not in kept]
    if not norms:
        return model
    split = training_images(split, recipe)
    parts, generator = batch_order(split, recipe, seed, recipe.epochs)
    order = torch.cat(parts)[:images]
    momenta = [norm.momentum for norm in norms]
    with evaluating(model), torch.no_grad():
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # torch's word for a cumulative average
                norm.train()  # the norms alone: dropout would change what they see
            # In equal parts again: each batch weighs the same in the mean.
            for index in order.tensor_split(math.ceil(len(order) / recipe.batch)):
                model(make_batch(split, index, recipe.augment, generator, None).images)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    return model


def augmented(images: Tensor, augment: Augment, generator: torch.Generator) -> Tensor:
    """Raw images `[batch, channels, height, width]`, each changed at random as `augment` says.

    Raises ValueError for a setting that no augmentation of this process has, and for an
    augmentation that gives images of another shape or type.
    """
    for name, setting in augment.chosen().items():
        changed = augmentation(name).apply(images, setting, generator)
        if (changed.shape, changed.dtype) != (images.shape, images.dtype):
            raise ValueError(
                f"augmentation {name!r} keeps shape and type of images: given {images.dtype} "
                f"{list(images.shape)}, it returned {changed.dtype} {list(changed.shape)}"
            )
        images = changed
    return images


def layout_of(model: nn.Module, fewest: float = 8) -> torch.memory_format:
    """How a model's images and weights lie in memory while it trains: channels last, with which
    convolutions are 1.1 to 1.5 times as fast on two cores (docs/performance.md).

    Not where torch 2.15's backward pass on the CPU would write beyond its memory: a strided 1x1
    convolution of fewer than `fewest` channels.
    """
    for m in model.modules():
        if not isinstance(m, nn.Conv2d) or m.kernel_size != (1, 1):
            continue
        if m.in_channels < fewest and m.stride != (1, 1):
            return torch.contiguous_format
    return torch.channels_last


def lay_out_moments_(optimizer: torch.optim.Optimizer) -> None:
    """Lays an optimiser's moments out in memory as their parameters are: torch's fused steps go
    through both as they lie."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter).copy_(value)


class Pool(InMemorySplit):
    """Several fixed views of each image: those of image i stand at i, i + n, i + 2 n, ... The first
    are the images themselves."""


def view_pool(split: Split, augment: Augment, seed: int = 0) -> Pool:
    """`augment.views` views of each image, drawn once."""
    generator = torch.Generator().manual_seed(seed)
    views = augment.views or 1
    parts = [slice(at, at + _SCORE_BATCH) for at in range(0, len(split), _SCORE_BATCH)]
    pool = [split.batch(part) for part in parts]
    for _ in range(views - 1):
        pool += [augmented(split.batch(part), augment, generator) for part in parts]
    made = Pool(torch.cat(pool), split.labels.repeat(views), split.mean, split.std)
    _, height, width = split.image
    return (
        made if made.image == split.image else made.taken_by(made.mean, made.std, (height, width))
    )


def training_images(
    split: Split, recipe: Recipe, teacher: Tensor | nn.Module | None = None
) -> Split:
    """The split itself, or the pool of views that the recipe asks for.

    Raises ValueError for cached teacher logits that are not those of these images.
    """
    if recipe.augment.changes() and isinstance(teacher, Tensor):
        raise ValueError("cached teacher logits do not fit augmented images; give the network")
    if recipe.augment.views is not None and not isinstance(split, Pool):
        split = view_pool(split, recipe.augment)
    if isinstance(teacher, Tensor) and len(teacher) != len(split):
        raise ValueError(f"teacher logits of {len(teacher)} images for {len(split)} images")
    return split


def batch_order(
    split: Split, recipe: Recipe, seed: int, epoch: int
) -> tuple[list[Tensor], torch.Generator]:
    """Which images stand in each batch of an epoch, and the generator for their augmentation.

    Batches differ by one image at most (a last batch of a single image has no batch statistics).
    Of a pool each image is there once, in a view drawn for this epoch.
    """
    generator = torch.Generator().manual_seed(mix_seed(seed, epoch))
    views = (recipe.augment.views or 1) if isinstance(split, Pool) else 1
    images = len(split) // views
    order = torch.randperm(images, generator=generator)
    if views > 1:
        order += images * torch.randint(views, (images,), generator=generator)
    steps = math.ceil(images / recipe.batch)
    return list(order.to(split.labels.device).tensor_split(steps)), generator


def make_batch(
    split: Split,
    index: Tensor,
    augment: Augment,
    generator: torch.Generator,
    teacher: Tensor | nn.Module | None,
    layout: torch.memory_format = torch.channels_last,
) -> Batch:
    """The images of a split that `index` names, augmented and normalised."""
    raw = split.batch(index)
    if augment.changes():
        raw = augmented(raw, augment, generator)
    images = split.normalise(raw).contiguous(memory_format=layout)
    logits = None
    if isinstance(teacher, Tensor):
        logits = teacher[index]
    elif teacher is not None:
        logits = _eval_logits(teacher, images)
    return Batch(images, split.labels[index], logits)


def _plain_batches(split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    """The split in batches that differ by one image at most, as above."""
    order = torch.arange(len(split), device=split.labels.device)
    # Fewer of images that are enlarged: what they take is told by the data set they stand in.
    raw = split.batch(slice(1)).shape[-2:]
    larger = math.prod(split.image[1:]) / math.prod(raw)
    batch = max(1, int(_SCORE_BATCH / max(larger, 1)))
    for index in order.tensor_split(max(1, math.ceil(len(order) / batch))):
        yield split.normalise(split.batch(index)), split.labels[index]


def _eval_logits(model: nn.Module, images: Tensor) -> Tensor:
    with evaluating(model), torch.no_grad():
        logits: Tensor = model(images)
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"{type(model).__name__} gives {type(logits).__name__}, expected logits "
            "[batch, classes]; of several pipelines take one: network.detach(name)"
        )
    return logits


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def _cuda_devices(split: Split) -> list[torch.device]:
    device = split.labels.device
    return [device] if device.type == "cuda" else []


def mix_seed(seed: int, epoch: int) -> int:
    """Another seed for each epoch of each seed."""
    # Any injective mixing does: consecutive seeds must not share batches of later epochs.
    return (seed * 1_000_003 + epoch) % 2**63
