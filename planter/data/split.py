"""Images with their labels as networks take them: one part of a data set, and all of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from planter.data.account import Account

_CHUNK = 2**24
"""Pixels, in all channels, whose statistics are computed at a time."""


@dataclass(frozen=True)
class Split:
    """Images with their labels, held raw and normalised batch by batch.

    `images` `[n, channels, height, width]` are uint8 (0..255) or float32; `labels` `[n]` are
    int64; `mean` and `std` `[channels, 1, 1]` are those of the training images, in 0..1 for uint8.
    """

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def normalise(self, images: Tensor) -> Tensor:
        """Network inputs from raw images `[batch, channels, height, width]`."""
        scaled = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        return (scaled - self.mean) / self.std

    def to(self, device: str | torch.device) -> Split:
        return Split(*(t.to(device) for t in (self.images, self.labels, self.mean, self.std)))


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
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def fingerprint(self) -> str:
        """16 hexadecimal digits of the training and validation images and labels."""
        digest = hashlib.sha256()
        for split in (self.train, self.validation):
            for tensor in (split.images, split.labels):
                digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def to(self, device: str | torch.device) -> Data:
        test = self.test.to(device) if self.test is not None else None
        return replace(
            self, train=self.train.to(device), validation=self.validation.to(device), test=test
        )


def resized(images: Tensor, size: int) -> Tensor:
    """Images `[n, channels, height, width]` brought to `size` x `size` pixels (bilinear,
    antialiased), in their own type."""
    made = functional.interpolate(
        images.float(), (size, size), mode="bilinear", antialias=True, align_corners=False
    )
    if images.dtype == torch.uint8:
        return made.round().clamp(0, 255).to(torch.uint8)
    return made


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
