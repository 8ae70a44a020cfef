"""Images with their labels as networks take them: one part of a data set, and all of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional

from planter.data.account import Account

_CHUNK = 2**24
"""Pixels, in all channels, whose statistics are computed at a time."""


class Split(Protocol):
    """Images with their labels, held raw; batches of them are asked for by index, and normalised.

    Raw images `[n, channels, height, width]` are uint8 (0..255) or float32; `mean` and `std`
    `[channels, 1, 1]` are those that networks take them by, in 0..1 for uint8.
    """

    @property
    def labels(self) -> Tensor:
        """`[n]`, int64, of all images; on the device that batches come on."""

    @property
    def mean(self) -> Tensor: ...

    @property
    def std(self) -> Tensor: ...

    @property
    def image(self) -> tuple[int, int, int]:
        """Shape (channels, height, width) of one image."""

    @property
    def dtype(self) -> torch.dtype:
        """Of raw images."""

    def __len__(self) -> int: ...

    def batch(self, index: Tensor | slice) -> Tensor:
        """Raw images, those of an index `[batch]` or a range."""

    def normalise(self, images: Tensor) -> Tensor:
        """Network inputs from raw images."""

    def sample(self, index: Tensor | slice) -> Split:
        """Some of the images, with their labels."""

    def taken_by(self, mean: Tensor, std: Tensor, size: tuple[int, int] | None = None) -> Split:
        """The same images, normalised otherwise and, with a `size`, brought to that height and
        width when they are."""

    def to(self, device: str | torch.device) -> Split: ...

    def update(self, digest: Digest) -> None:
        """Feeds images and labels to a fingerprint."""


class Digest(Protocol):
    """A hash of the standard library at work."""

    def update(self, data: Any, /) -> None: ...


@dataclass(frozen=True)
class InMemorySplit:
    """A `Split` whose raw images are one tensor; networks take them in `size`, if one is given."""

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    size: tuple[int, int] | None = None

    @property
    def image(self) -> tuple[int, int, int]:
        channels, height, width = self.images.shape[1:]
        return channels, *(self.size or (height, width))

    @property
    def dtype(self) -> torch.dtype:
        return self.images.dtype

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor | slice) -> Tensor:
        return self.images[index]

    def normalise(self, images: Tensor) -> Tensor:
        scaled = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        taken = (scaled - self.mean) / self.std
        return taken if self.size is None else in_size(taken, self.size)

    def sample(self, index: Tensor | slice) -> Self:
        return replace(self, images=self.images[index], labels=self.labels[index])

    def taken_by(self, mean: Tensor, std: Tensor, size: tuple[int, int] | None = None) -> Self:
        return replace(self, mean=mean, std=std, size=size or self.size)

    def to(self, device: str | torch.device) -> Self:
        return replace(
            self,
            images=self.images.to(device),
            labels=self.labels.to(device),
            mean=self.mean.to(device),
            std=self.std.to(device),
        )

    def update(self, digest: Digest) -> None:
        for tensor in (self.images, self.labels):
            digest.update(tensor.cpu().contiguous().numpy().data)


@dataclass(frozen=True)
class Data:
    """A data set ready for a study: train and validation come from its training data, test (None
    where there is none) is apart. Validation selects; test is for the report at the end.
    `account` says what was read to make it; None where that is not known."""

    train: Split
    validation: Split
    test: Split | None
    class_names: tuple[str, ...]
    account: Account | None = None

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def image(self) -> tuple[int, int, int]:
        """Shape (channels, height, width) of one image."""
        return self.train.image

    def fingerprint(self) -> str:
        """16 hexadecimal digits of the training and validation images and labels."""
        digest = hashlib.sha256()
        for split in (self.train, self.validation):
            split.update(digest)
        return digest.hexdigest()[:16]

    def to(self, device: str | torch.device) -> Data:
        test = self.test.to(device) if self.test is not None else None
        return replace(
            self, train=self.train.to(device), validation=self.validation.to(device), test=test
        )


def resized(images: Tensor, size: int) -> Tensor:
    """Images `[n, channels, height, width]` brought to `size` x `size` pixels (bilinear,
    antialiased), in their own type."""
    made = in_size(images.float(), (size, size))
    if images.dtype == torch.uint8:
        return made.round().clamp(0, 255).to(torch.uint8)
    return made


def in_size(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images `[n, channels, height, width]` of floats in another height and width (bilinear,
    antialiased)."""
    return functional.interpolate(
        images, size, mode="bilinear", antialias=True, align_corners=False
    )


def statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation `[channels, 1, 1]`; a constant channel gets deviation 1."""
    scale = 255 if images.dtype == torch.uint8 else 1
    # Chunks keep the float64 copy of a large data set, or of large images, from filling the memory.
    chunks = torch.split(images, min(4096, max(1, _CHUNK // images[0].numel())))
    pixels = images.numel() / images.shape[1]
    total = sum(chunk.double().sum((0, 2, 3)) for chunk in chunks)
    mean = torch.as_tensor(total) / pixels / scale
    centred = (
        (chunk.double() / scale - mean[:, None, None]).square().sum((0, 2, 3)) for chunk in chunks
    )
    std = torch.as_tensor(sum(centred)).div(pixels).sqrt()
    std = torch.where(std > 1e-8, std, 1.0)
    return mean.float()[:, None, None], std.float()[:, None, None]


def constant_channels(images: Tensor) -> list[tuple[int, float]]:
    """The channels that have one value in every pixel of every image, and that value."""
    low, high = images.amin((0, 2, 3)), images.amax((0, 2, 3))
    return [(i, float(low[i])) for i in range(len(low)) if low[i] == high[i]]
