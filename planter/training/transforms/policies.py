"""Operations at random on images, each by its own draws: RandAugment and TrivialAugment.

RandAugment: Cubuk et al., arXiv 1909.13719; TrivialAugment ("wide"): Mueller and Hutter, arXiv
2103.10158. Operations and their ranges are torchvision's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from planter.training.transforms import colour
from planter.training.transforms.geometry import moved, together

BINS = 31
"""Strengths from none to the most."""


@dataclass(frozen=True)
class Ranges:
    """The most that operations do: the tangent of a shear, pixels (x, y), degrees, a factor's
    distance from 1, bits taken away."""

    shear: float
    translate: tuple[float, float]
    rotate: float
    factor: float
    bits: int


def randaugment(images: Tensor, setting: Mapping[str, Any], generator: torch.Generator) -> Tensor:
    """Images `[batch, 1 or 3, height, width]` of uint8 after `num_ops` operations at random, all of
    strength `magnitude`. Raises ValueError for other images."""
    height, width = images.shape[2:]
    part = 150 / 331  # of the paper's ImageNet pictures
    ranges = Ranges(0.3, (part * width, part * height), 30.0, 0.9, 4)
    strength = torch.full((len(images),), setting["magnitude"])
    for _ in range(setting["num_ops"]):
        images = _operated(images, ranges, strength, generator)
    return images


def trivial(images: Tensor, _: bool, generator: torch.Generator) -> Tensor:
    """Images `[batch, 1 or 3, height, width]` of uint8 after one operation of one strength, both at
    random. Raises ValueError for other images."""
    ranges = Ranges(0.99, (32.0, 32.0), 135.0, 0.99, 6)
    strength = torch.randint(BINS, (len(images),), generator=generator)
    return _operated(images, ranges, strength, generator)


def _operated(
    images: Tensor, ranges: Ranges, strength: Tensor, generator: torch.Generator
) -> Tensor:
    """An operation at random on each image; `strength` is 0 to 30 `[batch]`."""
    colour.check_pictures(images)
    chosen = torch.randint(len(OPERATIONS), (len(images),), generator=generator)
    signs = torch.where(torch.rand(len(images), generator=generator) <= 0.5, -1.0, 1.0)
    made = images.clone(memory_format=torch.contiguous_format)
    for one, operation in enumerate(OPERATIONS.values()):
        if operation is None:
            continue
        for at in torch.split((chosen == one).nonzero()[:, 0], together(images)):
            if len(at):
                here = at.to(images.device)
                made[here] = operation(images[here], ranges, strength[at], signs[at])
    return made


def _even(most: float, strength: Tensor, signs: Tensor | float = 1.0) -> Tensor:
    """A number for each image, from 0 to `most` in even steps."""
    return torch.linspace(0.0, most, BINS)[strength].double() * signs


def _sheared(axis: int) -> Callable[..., Tensor]:
    def operation(images: Tensor, ranges: Ranges, strength: Tensor, signs: Tensor) -> Tensor:
        tangent = _even(ranges.shear, strength, signs)
        matrices = _unmoved(len(images))
        matrices[:, axis, 1 - axis] = tangent
        # From the upper left corner, not the middle.
        matrices[:, axis, 2] = tangent * images.shape[2 + axis] / 2
        return moved(images, matrices)

    return operation


def _translated(axis: int) -> Callable[..., Tensor]:
    def operation(images: Tensor, ranges: Ranges, strength: Tensor, signs: Tensor) -> Tensor:
        matrices = _unmoved(len(images))
        matrices[:, axis, 2] = -_even(ranges.translate[axis], strength, signs).trunc()
        return moved(images, matrices)

    return operation


def _rotated(images: Tensor, ranges: Ranges, strength: Tensor, signs: Tensor) -> Tensor:
    angle = _even(ranges.rotate, strength, signs) * (math.pi / 180)
    matrices = _unmoved(len(images))
    matrices[:, 0, 0] = matrices[:, 1, 1] = angle.cos()
    matrices[:, 0, 1], matrices[:, 1, 0] = -angle.sin(), angle.sin()
    return moved(images, matrices)


def _unmoved(count: int) -> Tensor:
    return torch.eye(2, 3, dtype=torch.float64).repeat(count, 1, 1)


def _coloured(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def operation(images: Tensor, ranges: Ranges, strength: Tensor, signs: Tensor) -> Tensor:
        factor = 1 + _even(ranges.factor, strength, signs).float()
        return colour.whole(change(images.float() / 255, factor.to(images.device)))

    return operation


def _posterized(images: Tensor, ranges: Ranges, strength: Tensor, signs: Tensor) -> Tensor:
    bits = 8 - strength * (ranges.bits / (BINS - 1))
    lost = 8 - bits.round().long()
    kept = (255 >> lost << lost).to(torch.uint8)
    return images & kept[:, None, None, None].to(images.device)


def _solarized(images: Tensor, ranges: Ranges, strength: Tensor, signs: Tensor) -> Tensor:
    threshold = 255 * torch.linspace(1.0, 0.0, BINS)[strength]
    bright = images >= threshold[:, None, None, None].to(images.device)
    return torch.where(bright, 255 - images, images)


def _stretched(images: Tensor, ranges: Ranges, strength: Tensor, signs: Tensor) -> Tensor:
    from torchvision.transforms.v2.functional import autocontrast

    found: Tensor = autocontrast(images)
    return found


def _equalized(images: Tensor, ranges: Ranges, strength: Tensor, signs: Tensor) -> Tensor:
    from torchvision.transforms.v2.functional import equalize

    found: Tensor = equalize(images)
    return found


OPERATIONS: dict[str, Callable[..., Tensor] | None] = {
    "Identity": None,
    "ShearX": _sheared(0),
    "ShearY": _sheared(1),
    "TranslateX": _translated(0),
    "TranslateY": _translated(1),
    "Rotate": _rotated,
    "Brightness": _coloured(colour.brightness),
    "Color": _coloured(colour.saturation),
    "Contrast": _coloured(colour.contrast),
    "Sharpness": _coloured(colour.sharpness),
    "Posterize": _posterized,
    "Solarize": _solarized,
    "AutoContrast": _stretched,
    "Equalize": _equalized,
}
"""By torchvision's names; each with images, ranges, strengths and signs `[batch]`."""
