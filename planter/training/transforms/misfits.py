"""Images that a change cannot take: each function says what was expected of them, or None.

Images are told by their setting's value, their shape (channels, height, width) and their type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

_Image = tuple[int, int, int]


def none(_: Any, image: _Image, dtype: torch.dtype) -> str | None:
    return None


def padding(pixels: int, image: _Image, dtype: torch.dtype) -> str | None:
    """Crops that could miss the whole image."""
    _, height, width = image
    if pixels < min(height, width):
        return None
    return f"fewer pixels than an image of {height} x {width} has"


def one_pixel(_: Any, image: _Image, dtype: torch.dtype) -> str | None:
    _, height, width = image
    if min(height, width) > 1:
        return None
    return f"images of 2 x 2 pixels or more, these have {height} x {width}: leave it out"


def colours(_: Any, image: _Image, dtype: torch.dtype) -> str | None:
    """Colours are those of pictures: what numbers of other data mean is not known."""
    if image[0] not in (1, 3):
        return f"images of 1 or 3 channels, these have {image[0]}: leave it out"
    if dtype != torch.uint8:
        kind = str(dtype).removeprefix("torch.")
        return f"images of 0..255 (uint8), these are {kind}: give the data as uint8 or leave it out"
    return None


def erased(setting: Mapping[str, Any], image: _Image, dtype: torch.dtype) -> str | None:
    value = setting["value"]
    numbers = value if isinstance(value, list) else [] if isinstance(value, str) else [value]
    if isinstance(value, list) and len(value) != image[0]:
        return f"a value for each of {image[0]} channels, or one number"
    if dtype == torch.uint8 and not all(0 <= number <= 1 for number in numbers):
        return "value between 0 (black) and 1 (white), as the images are of 0..255"
    return one_pixel(setting, image, dtype)
