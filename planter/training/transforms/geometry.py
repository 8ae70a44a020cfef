"""Images moved, mirrored, cut out and enlarged, each by its own draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

_TRIES = 10
"""Rectangles drawn for an image until one fits, as torchvision does."""
_TOGETHER = 2**19


def cropped(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Images `[batch, channels, height, width]`, each a window at random of itself with `pixels` of
    zeros around it."""
    count, channels, height, width = images.shape
    device = images.device
    padded = functional.pad(images, [pixels] * 4).contiguous()
    offsets = torch.randint(0, 2 * pixels + 1, (2, count, 1), generator=generator)
    top, left = offsets.to(device)
    # A row of a window lies together in memory: 3.6 times as fast as gathering its pixels.
    high, wide = padded.shape[2:]
    windows = padded.as_strided((padded.numel() - width + 1, width), (1, 1))
    planes = torch.arange(count * channels, device=device).view(count, channels, 1) * (high * wide)
    rows = (top + torch.arange(height, device=device)) * wide + left
    return windows.index_select(0, (planes + rows[:, None]).flatten()).view(images.shape)


def flipped(images: Tensor, _: bool, generator: torch.Generator) -> Tensor:
    """Images `[batch, channels, height, width]`, half of them at random mirrored left to right."""
    count = len(images)
    mirrored = torch.rand(count, generator=generator).to(images.device) < 0.5
    both = torch.cat([images, images.flip(3)])
    return both.index_select(0, torch.arange(count, device=images.device) + count * mirrored)


def together(images: Tensor) -> int:
    """How many of these images are changed at a time: on a CPU as many as stay in a core's cache,
    with all that is computed in between; elsewhere all."""
    most = _TOGETHER // images[0].numel() if images.device.type == "cpu" else len(images)
    return max(1, most)


class Rectangles(NamedTuple):
    """One rectangle for each image, whole pixels `[batch]`, on the CPU; `fits` is false where none
    of those drawn did."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    fits: Tensor


def rectangles(
    count: int,
    size: tuple[int, int],
    scale: Sequence[float],
    ratio: Sequence[float],
    generator: torch.Generator,
    *,
    within: tuple[int, int],
) -> Rectangles:
    """The first of ten rectangles for each image that is at most `within` (height, width): of a
    share of the area between the two of `scale`, and of width over height between those of `ratio`,
    uniform in its logarithm; and a place for it in an image of that size, at random."""
    height, width = size
    drawn = torch.rand(2, _TRIES, count, generator=generator, dtype=torch.float64)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * drawn[0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    shape = (low + (high - low) * drawn[1]).exp()
    widths, heights = (area * shape).sqrt().round(), (area / shape).sqrt().round()
    most_high, most_wide = within
    fit = (heights > 0) & (heights <= most_high) & (widths > 0) & (widths <= most_wide)
    first = fit.int().argmax(0, keepdim=True)
    chosen_h = heights.gather(0, first)[0].long()
    chosen_w = widths.gather(0, first)[0].long()
    place = torch.rand(2, count, generator=generator, dtype=torch.float64)
    top = (place[0] * (height - chosen_h + 1).clamp(min=1)).long()
    left = (place[1] * (width - chosen_w + 1).clamp(min=1)).long()
    return Rectangles(top, left, chosen_h, chosen_w, fit.any(0))


def resized_crop(images: Tensor, setting: Mapping[str, Any], generator: torch.Generator) -> Tensor:
    """A window at random of each image `[batch, channels, height, width]`, enlarged to the size of
    the whole (bilinear): torchvision's RandomResizedCrop. Where ten draws do not fit, the window is
    the middle of the image, as near to the ratios asked for as can be."""
    height, width = size = (images.shape[2], images.shape[3])
    ratio = setting["ratio"]
    drawn = rectangles(len(images), size, setting["scale"], ratio, generator, within=size)
    middle_w = min(width, max(round(height * ratio[1]), 1)) if width / height > ratio[1] else width
    middle_h = min(height, max(round(width / ratio[0]), 1)) if width / height < ratio[0] else height
    rows = torch.where(drawn.fits, drawn.height, middle_h)
    columns = torch.where(drawn.fits, drawn.width, middle_w)
    top = torch.where(drawn.fits, drawn.top, (height - middle_h) // 2)
    left = torch.where(drawn.fits, drawn.left, (width - middle_w) // 2)
    y = _places(top, rows, height).to(images.device)
    x = _places(left, columns, width).to(images.device)

    def grid(part: slice) -> Tensor:
        across, down = x[part, None, :], y[part, :, None]
        return torch.stack([across.expand(-1, height, -1), down.expand(-1, -1, width)], dim=-1)

    return _resampled(images, grid, "bilinear", "border")


def moved(images: Tensor, matrices: Tensor) -> Tensor:
    """Images `[batch, channels, height, width]`, each pixel the nearest of the place that the
    image's matrix `[batch, 2, 3]` names for it, zero outside. Places are (x, y, 1), in pixels from
    the middle of the image."""
    height, width = images.shape[2:]
    device = images.device
    x = torch.linspace((1 - width) / 2, (width - 1) / 2, width)
    y = torch.linspace((1 - height) / 2, (height - 1) / 2, height)
    places = torch.stack(
        [x.expand(height, -1), y[:, None].expand(-1, width), torch.ones(height, width)], -1
    )
    half = torch.tensor([0.5 * width, 0.5 * height], dtype=torch.float32)
    scaled = (matrices.float().transpose(1, 2) / half).to(device)
    flat = places.view(1, -1, 3).to(device)

    def grid(part: slice) -> Tensor:
        mine = scaled[part]
        return flat.expand(len(mine), -1, -1).bmm(mine).view(-1, height, width, 2)

    return _resampled(images, grid, "nearest", "zeros")


def _places(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Where the `size` pixels of an enlarged window lie in its image `[batch, size]`, as
    `grid_sample` counts: -1 to 1 from edge to edge. The window's own border goes on beyond it."""
    pixels = (torch.arange(size) + 0.5) * length[:, None] / size - 0.5
    inside = pixels.clamp(min=torch.zeros(()), max=length[:, None] - 1) + start[:, None]
    return ((2 * inside + 1) / size - 1).float()


def _resampled(images: Tensor, grid: Callable[[slice], Tensor], mode: str, beyond: str) -> Tensor:
    """Images sampled at the places that `grid` gives for a range of them."""
    whole = images.dtype == torch.uint8
    many = together(images)
    made = torch.empty_like(images, memory_format=torch.contiguous_format)
    for start in range(0, len(images), many):
        part = slice(start, start + many)
        taken = images[part].float() if whole else images[part]
        found = functional.grid_sample(
            taken, grid(part).to(taken.dtype), mode=mode, padding_mode=beyond, align_corners=False
        )
        made[part] = found.round_() if whole else found
    return made
