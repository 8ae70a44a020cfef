"""Which images a step sees, and how: their order, views and changes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from planter.data import InMemorySplit, Split
from planter.data.split import announce
from planter.machine.torch_state import evaluating
from planter.training.augment import Augment
from planter.training.augmentation import Mixing, augmentation
from planter.training.recipe import Recipe

SCORE_BATCH = 512
"""Images that are looked at together where nothing is learned."""
_SCORE_VALUES = 2**23
"""Most values of so many images: of larger ones than 3 x 73 x 73 fewer are looked at together, as a
layer's outputs for 512 photos take gigabytes."""


class Batch(NamedTuple):
    """Normalised images `[batch, channels, height, width]`, labels `[batch]` and, with a teacher,
    its logits `[batch, classes]`. Where images are mixed, labels are shares `[batch, classes]`."""

    images: Tensor
    labels: Tensor
    teacher: Tensor | None


class Pool(InMemorySplit):
    """Several fixed views of each image: those of image i stand at i, i + n, i + 2 n, ... The first
    are the images themselves."""


def view_pool(split: Split, augment: Augment, seed: int = 0) -> Pool:
    """`augment.views` views of each image, drawn once."""
    generator = torch.Generator().manual_seed(seed)
    views = augment.views or 1
    parts = [slice(at, at + SCORE_BATCH) for at in range(0, len(split), SCORE_BATCH)]
    originals = [split.batch(part) for part in parts]
    # Written in place: of a large data set a pool is most of what is in memory.
    images = originals[0].new_empty((views * len(split), *originals[0].shape[1:]))
    whole = images.view(views, len(split), *images.shape[1:])
    for view in range(views):
        for part, original in zip(parts, originals, strict=True):
            if view:
                original = augmented(original, augment, generator, split.mean, split.std)
            whole[view][part] = original
    made = Pool(images, split.labels.repeat(views), split.mean, split.std)
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


def augmented(
    images: Tensor,
    augment: Augment,
    generator: torch.Generator,
    mean: Tensor | float = 0.0,
    std: Tensor | float = 1.0,
) -> Tensor:
    """Raw images `[batch, channels, height, width]`, each changed at random as `augment` says, but
    for what mixes them. `mean` and `std` `[channels, 1, 1]` are those of the data, as a split's.

    Raises ValueError for a setting that no augmentation of this process has, for images whose
    colours cannot be changed where they are to be, and for an augmentation that gives images of
    another shape or type.
    """
    scale = 255 if images.dtype == torch.uint8 else 1
    for name, setting in augment.chosen().items():
        entry = augmentation(name)
        if isinstance(entry, Mixing):
            continue
        more = (
            [torch.as_tensor(x, device=images.device) * scale for x in (mean, std)]
            if entry.statistics
            else []
        )
        changed = entry.apply(images, setting, generator, *more)
        if (changed.shape, changed.dtype) != (images.shape, images.dtype):
            raise ValueError(
                f"augmentation {name!r} keeps shape and type of images: given {images.dtype} "
                f"{list(images.shape)}, it returned {changed.dtype} {list(changed.shape)}"
            )
        images = changed
    return images


def mixed(
    images: Tensor, labels: Tensor, augment: Augment, generator: torch.Generator, classes: int
) -> tuple[Tensor, Tensor]:
    """Normalised images `[batch, channels, height, width]` mixed with one another as `augment`
    says, by one way drawn of those it names, and their labels, indices `[batch]`, as shares
    `[batch, classes]`."""
    ways = list(augment.mixes().items())
    drawn = int(torch.randint(len(ways), (), generator=generator)) if len(ways) > 1 else 0
    name, setting = ways[drawn]
    entry = augmentation(name)
    assert isinstance(entry, Mixing)
    shares = functional.one_hot(labels, classes).to(images.dtype)
    return entry.apply(images, shares, setting, generator)


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
    parts = list(order.to(split.labels.device).tensor_split(steps))
    announce(split, parts)
    return parts, generator


def make_batch(
    split: Split,
    index: Tensor,
    augment: Augment,
    generator: torch.Generator,
    teacher: Tensor | nn.Module | None,
    layout: torch.memory_format = torch.channels_last,
    *,
    classes: int | None = None,
    parts: int = 1,
) -> Batch:
    """The images of a split that `index` names, augmented, normalised and, where `augment` says so,
    mixed: a teacher is asked about what the student sees, in so many `parts`. `classes` of mixed
    labels are by default those of the split (`class_count`)."""
    raw = split.batch(index)
    labels = split.labels[index]
    if augment.changes():
        raw = augmented(raw, augment, generator, split.mean, split.std)
    images = split.normalise(raw)
    if augment.mixes():
        classes = classes or class_count(split)
        images, labels = mixed(images, labels, augment, generator, classes)
    images = images.contiguous(memory_format=layout)
    logits = None
    if isinstance(teacher, Tensor):
        logits = teacher[index]
    elif teacher is not None:
        seen = images.tensor_split(min(parts, len(images)))
        logits = torch.cat([eval_logits(teacher, part) for part in seen])
    return Batch(images, labels, logits)


def class_count(split: Split) -> int:
    """As many classes as the labels of a split name; a network may know more."""
    return int(split.labels.max()) + 1


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """A batch in so many parts, which differ by one image at most; fewer where it has fewer."""
    count = min(parts, len(batch.labels))
    fields = [[None] * count if of is None else of.tensor_split(count) for of in batch]
    return [Batch(*part) for part in zip(*fields, strict=True)]


def plain_batches(split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    """The split in batches that differ by one image at most, as above."""
    order = torch.arange(len(split), device=split.labels.device)
    # Fewer of images that are enlarged: what they take is told by the data set they stand in.
    raw = split.batch(slice(1)).shape[-2:]
    larger = math.prod(split.image[1:]) / math.prod(raw)
    batch = max(1, min(int(SCORE_BATCH / max(larger, 1)), _SCORE_VALUES // math.prod(split.image)))
    parts = order.tensor_split(max(1, math.ceil(len(order) / batch)))
    announce(split, parts)
    for index in parts:
        yield split.normalise(split.batch(index)), split.labels[index]


def eval_logits(model: nn.Module, images: Tensor) -> Tensor:
    with evaluating(model), torch.no_grad():
        logits: Tensor = model(images)
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"{type(model).__name__} gives {type(logits).__name__}, expected logits "
            "[batch, classes]; of several pipelines take one: network.detach(name)"
        )
    return logits


def layout_of(model: nn.Module, fewest: float = 16) -> torch.memory_format:
    """How a model's images and weights lie in memory while it trains: channels last, with which
    convolutions are 1.1 to 1.5 times as fast on two cores (docs/performance.md).

    Not where torch's backward pass on the CPU (2.14, 2.15) would write beyond its memory: a strided
    1x1 convolution of fewer than `fewest` channels, which is what a processor's vectors hold: 8
    numbers of AVX2, 16 of AVX-512 (see `Running.fewest`).
    """
    for m in model.modules():
        if not isinstance(m, nn.Conv2d) or m.kernel_size != (1, 1):
            continue
        if m.in_channels < fewest and m.stride != (1, 1):
            return torch.contiguous_format
    return torch.channels_last


def mix_seed(seed: int, epoch: int) -> int:
    """Another seed for each epoch of each seed."""
    # Any injective mixing does: consecutive seeds must not share batches of later epochs.
    return (seed * 1_000_003 + epoch) % 2**63
