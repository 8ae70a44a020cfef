"""Images with a rectangle filled, each by its own draws (Zhong et al., arXiv 1708.04896)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from planter.training.transforms.geometry import rectangles


def erased(
    images: Tensor,
    setting: Mapping[str, Any],
    generator: torch.Generator,
    mean: Tensor,
    std: Tensor,
) -> Tensor:
    """Images `[batch, channels, height, width]`, a share `p` of them with a rectangle at random
    filled: torchvision's RandomErasing. `mean` and `std` `[channels, 1, 1]` are those of the data
    in the images' unit. A rectangle is smaller than the image both ways; where ten draws are not,
    nothing is erased."""
    count, _, height, width = images.shape
    chosen = torch.rand(count, generator=generator) < setting["p"]
    low, high = setting["ratio"]  # of height over width
    drawn = rectangles(
        count,
        (height, width),
        setting["scale"],
        (1 / high, 1 / low),
        generator,
        within=(height - 1, width - 1),
    )
    at = (chosen & drawn.fits).nonzero()[:, 0]
    top, left, tall, wide = (numbers[at, None] for numbers in drawn[:4])
    rows, columns = torch.arange(height), torch.arange(width)
    down = ((rows >= top) & (rows < top + tall)).to(images.device)
    across = ((columns >= left) & (columns < left + wide)).to(images.device)
    value = setting["value"]
    if value == "mean":
        fill = mean
    elif value == "random":
        noise = torch.randn(len(at), *images.shape[1:], generator=generator)
        fill = noise.to(images.device) * std + mean
    else:
        fill = torch.tensor(value, dtype=mean.dtype, device=images.device).view(-1, 1, 1)
        fill = fill * 255 if images.dtype == torch.uint8 else fill
    if images.dtype == torch.uint8:
        fill = fill.round().clamp(0, 255)
    here = at.to(images.device)
    made = images.clone()
    inside = down[:, None, :, None] & across[:, None, None, :]
    made[here] = torch.where(inside, fill.to(images.dtype), images[here])
    return made
