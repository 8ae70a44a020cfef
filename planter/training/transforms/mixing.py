"""Images of a batch mixed with one another, and their labels with them."""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor


def mixup(
    images: Tensor, labels: Tensor, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """`s x + (1 - s) x'` of each image and its label, x' the one before it in the batch and s of
    the whole batch from Beta(alpha, alpha) (Zhang et al., arXiv 1710.09412; torchvision's MixUp).

    Images are `[batch, channels, height, width]`, labels shares `[batch, classes]`.
    """
    own = _share(alpha, generator)
    return torch.lerp(images.roll(1, 0), images, own), torch.lerp(labels.roll(1, 0), labels, own)


def cutmix(
    images: Tensor, labels: Tensor, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A rectangle at one place of every image taken from the one before it in the batch, and as
    much of its label as the rectangle covers (Yun et al., arXiv 1905.04899; torchvision's CutMix).

    The rectangle is of the share 1 - s of the area, s from Beta(alpha, alpha), less what stands out
    of the image. Images are `[batch, channels, height, width]`, labels shares `[batch, classes]`.
    """
    height, width = images.shape[2:]
    side = 0.5 * math.sqrt(1 - _share(alpha, generator))
    x = int(torch.randint(width, (), generator=generator))
    y = int(torch.randint(height, (), generator=generator))
    left, right = max(x - int(side * width), 0), min(x + int(side * width), width)
    top, bottom = max(y - int(side * height), 0), min(y + int(side * height), height)
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images.roll(1, 0)[..., top:bottom, left:right]
    own = 1 - (right - left) * (bottom - top) / (width * height)
    return mixed, torch.lerp(labels.roll(1, 0), labels, own)


def _share(alpha: float, generator: torch.Generator) -> float:
    """A number from Beta(alpha, alpha). torch draws it from the generator of the process alone,
    where it would stand between the draws of dropout."""
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    return random.Random(seed).betavariate(alpha, alpha)
