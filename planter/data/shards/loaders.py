"""What torch's users have: loaders that give batches, and data sets of files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

from planter.data.arrays import Pixels, image_array, joined
from planter.data.encoded import ImageFile, Listed
from planter.data.labels import as_array


@dataclass(frozen=True)
class Files:
    """Images of data sets of files, by part, with their labels and the names of the classes."""

    images: dict[str, Listed]
    labels: dict[str, NDArray[Any]]
    names: tuple[str, ...] | None


def files_of(parts: Mapping[str, Any]) -> Files | None:
    """The files of torchvision's `ImageFolder`s that do nothing but open them; None of anything
    else."""
    sets = {part: value for part, value in parts.items() if _opens_files(value)}
    if not sets or len(sets) < len(parts):
        return None
    images: list[ImageFile] = []
    rows, labels = {}, {}
    for part, value in sets.items():
        first = len(images)
        images += [ImageFile(Path(file).absolute()) for file, _ in value.samples]
        rows[part] = torch.arange(first, len(images))
        labels[part] = np.array([label for _, label in value.samples])
    listed = {part: Listed(images, some) for part, some in rows.items()}
    return Files(listed, labels, tuple(map(str, sets["train"].classes)))


def _opens_files(value: Any) -> bool:
    if not hasattr(value, "samples"):
        return False
    from torchvision.datasets import DatasetFolder
    from torchvision.datasets.folder import default_loader

    return (
        isinstance(value, DatasetFolder)
        and type(value).__getitem__ is DatasetFolder.__getitem__
        and value.loader is default_loader
        and value.transform is value.target_transform is None
    )


def batches_of(part: Any) -> tuple[Tensor, Pixels, NDArray[Any]] | None:
    """The images, the type of their pixels and the labels of batches (images, labels) that come one
    after the other, from a loader or a generator; None where what comes are no batches.

    Raises ValueError for a loader that shuffles.
    """
    if not hasattr(part, "__iter__"):
        return None
    if isinstance(part, DataLoader) and isinstance(part.sampler, RandomSampler):
        raise ValueError(
            "a loader gives the same batches each time; this one shuffles: shuffle=False, planter "
            "shuffles while it trains"
        )
    source = iter(part)
    first = next(source, None)
    if not _is_batch(first):
        return None
    labels: list[NDArray[Any]] = []

    def each() -> Iterator[NDArray[Any]]:
        batch, at = first, 0
        while batch is not None:
            if not _is_batch(batch) or len(batch[0]) != len(batch[1]):
                raise ValueError(f"batch {at} is no pair of images and as many labels")
            labels.append(as_array(batch[1]))
            yield image_array(batch[0])
            batch, at = next(source, None), at + 1

    images, pixels = joined(each())
    return images, pixels, np.concatenate(labels)


def _is_batch(value: Any) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) == 2
        and getattr(value[0], "ndim", 0) == 4
        and np.ndim(value[1]) >= 1
    )
