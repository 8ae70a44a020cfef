"""What the pixels of a data set are like: their mean and deviation, channels of one value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_CHUNK = 2**24
"""Pixels, in all channels, whose statistics are computed at a time."""


def chunk_of(image: Sequence[int]) -> int:
    """How many images of a shape are gone through at a time."""
    return min(4096, max(1, _CHUNK // math.prod(image)))


def statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation `[channels, 1, 1]`; a constant channel gets deviation 1."""
    scale = 255 if images.dtype == torch.uint8 else 1
    # Chunks keep the float64 copy of a large data set, or of large images, from filling the memory.
    chunks = torch.split(images, chunk_of(images.shape[1:]))
    pixels = images.numel() / images.shape[1]
    total = sum(chunk.double().sum((0, 2, 3)) for chunk in chunks)
    mean = torch.as_tensor(total) / pixels / scale
    centred = (
        (chunk.double() / scale - mean[:, None, None]).square().sum((0, 2, 3)) for chunk in chunks
    )
    std = torch.as_tensor(sum(centred)).div(pixels).sqrt()
    std = torch.where(std > 1e-8, std, 1.0)
    return mean.float()[:, None, None], std.float()[:, None, None]


def statistics_of(moments: NDArray[np.int64], pixels: int) -> tuple[Tensor, Tensor]:
    """`statistics` of uint8 images of so many `pixels` each, from their moments `[n, channels, 4]`
    (sum, sum of squares, least, largest), in whole numbers."""
    mean, std = [], []
    count = len(moments) * pixels
    for total, squares in moments[..., :2].sum(0).tolist():
        variance = Fraction(count * squares - total**2, (255 * count) ** 2)
        mean.append(total / count / 255)
        std.append(math.sqrt(variance) or 1.0)
    made = torch.tensor([mean, std], dtype=torch.float64).float()
    return made[0][:, None, None], made[1][:, None, None]


def constant_channels(images: Tensor) -> list[tuple[int, float]]:
    """The channels that have one value in every pixel of every image, and that value."""
    return _constant(images.amin((0, 2, 3)).tolist(), images.amax((0, 2, 3)).tolist())


def constant_of(moments: NDArray[np.int64]) -> list[tuple[int, float]]:
    """`constant_channels` of images with these moments."""
    return _constant(moments[..., 2].min(0).tolist(), moments[..., 3].max(0).tolist())


def _constant(low: Sequence[float], high: Sequence[float]) -> list[tuple[int, float]]:
    return [(i, float(low[i])) for i in range(len(low)) if low[i] == high[i]]
