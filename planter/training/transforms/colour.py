"""Images of other brightness, contrast, saturation, sharpness and hue, each by its own draws.

The functions of one change take images `[batch, 1 or 3, height, width]` of 0..1 and a number for
each `[batch]`, and are torchvision's `adjust_...` with it: those take one number for a whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from planter.training.transforms import misfits
from planter.training.transforms.geometry import together


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * _each(factor)).clamp_(0, 1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(images, _grey(images).mean((1, 2, 3), keepdim=True), factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    return images if images.shape[1] == 1 else _blend(images, _grey(images), factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    from torchvision.transforms.v2.functional import adjust_sharpness

    return _blend(images, adjust_sharpness(images, 0.0), factor)


def hue(images: Tensor, turn: Tensor) -> Tensor:
    """Colours turned by -0.5 to 0.5 of the colour circle."""
    if images.shape[1] == 1:
        return images
    low, high = torch.aminmax(images, dim=1)
    chroma = high - low
    divisor = torch.where(chroma == 0, 1, chroma)
    red, green, blue = images.unbind(1)
    sixths = torch.where(
        high == red,
        (green - blue) / divisor,
        torch.where(high == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sixths = (sixths + 6 * turn[:, None, None])[:, None]
    # A channel falls by the chroma on a third of the circle: red 5, green 3, blue 1 sixths on.
    ahead = torch.tensor([5.0, 3.0, 1.0], device=images.device)[:, None, None]
    place = (sixths + ahead) % 6
    return high[:, None] - chroma[:, None] * torch.minimum(place, 4 - place).clamp_(0, 1)


JITTER: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {
    "brightness": (brightness, 1.0),
    "contrast": (contrast, 1.0),
    "saturation": (saturation, 1.0),
    "hue": (hue, 0.0),
}
"""What a jitter changes, and the number at which nothing does."""


def color_jitter(images: Tensor, setting: Mapping[str, Any], generator: torch.Generator) -> Tensor:
    """Images `[batch, 1 or 3, height, width]` of uint8, each with factors and an order of its own:
    torchvision's ColorJitter. In between nothing is rounded. Raises ValueError for other images."""
    check_pictures(images)
    count = len(images)
    numbers = []
    for name in (active := [name for name in JITTER if setting[name]]):
        middle, strength = JITTER[name][1], setting[name]
        low, high = max(middle - strength, 0.0) if middle else -strength, middle + strength
        numbers.append(low + (high - low) * torch.rand(count, generator=generator))
    orders = torch.rand(count, len(active), generator=generator).argsort(1)
    made = torch.empty_like(images)
    for order in orders.unique(dim=0):  # type: ignore[no-untyped-call]
        for at in torch.split((orders == order).all(1).nonzero()[:, 0], together(images)):
            here = at.to(images.device)
            changed = images[here].float() / 255
            for one in order.tolist():
                changed = JITTER[active[one]][0](changed, numbers[one][at].to(images.device))
            made[here] = whole(changed)
    return made


def check_pictures(images: Tensor) -> None:
    """Raises ValueError for images that have no colours to change."""
    channels, height, width = images.shape[1:]
    if (expected := misfits.colours(None, (channels, height, width), images.dtype)) is not None:
        raise ValueError(f"changes of colours: expected {expected}")


def whole(images: Tensor) -> Tensor:
    """Images of 0..1 as uint8."""
    return (images * 255).round_().to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    from torchvision.transforms.v2.functional import rgb_to_grayscale

    grey: Tensor = rgb_to_grayscale(images)
    return grey


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(other.expand_as(images), images, _each(factor)).clamp_(0, 1)


def _each(numbers: Tensor) -> Tensor:
    return numbers.view(-1, 1, 1, 1)
