"""Images of any shape brought to one size: cropped, padded or squashed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from planter.data.cache.lent import lent

Fit = Literal["crop", "pad", "squash"]
Size = tuple[int, int]
"""Height and width."""
FITTED = {"crop": "cropped", "pad": "padded with black", "squash": "squashed"}


def size_of(resize: int | Sequence[int] | None) -> Size | None:
    """The height and width that `resize`, N or [height, width], asks for. Raises ValueError for
    anything else."""
    if resize is None:
        return None
    sides = [resize, resize] if isinstance(resize, int) else list(resize)
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise ValueError(f"resize is a number of pixels, or [height, width]; got {resize!r}")
    return sides[0], sides[1]


def check_fit(fit: str) -> None:
    """Raises ValueError for anything but a way to fit images."""
    if fit not in get_args(Fit):
        raise ValueError(f"fit is {', '.join(get_args(Fit))}; got {fit!r}")


def is_shaped(image: Size, size: Size) -> bool:
    """Whether an image has the proportions of a size, so that all ways to fit it are one."""
    return image[0] * size[1] == image[1] * size[0]


def within(image: Size, size: Size, fit: Fit) -> Size:
    """The least height and width that an image is needed in, before it is cropped or padded."""
    if fit == "squash":
        return size
    scales = [needed / given for needed, given in zip(size, image, strict=True)]
    scale = max(scales) if fit == "crop" else min(scales)
    return math.ceil(image[0] * scale), math.ceil(image[1] * scale)


def fitted(images: Tensor, size: Size, fit: Fit) -> Tensor:
    """Images `[n, channels, height, width]` brought to a size, in their own type: of other
    proportions, the shorter side is brought to it and the middle cut out ("crop"), the longer side
    and the rest is 0 ("pad"), or both sides ("squash"). Bilinear, antialiased."""
    given = images.shape[-2], images.shape[-1]
    if given == size:
        return images
    if fit == "squash" or is_shaped(given, size):
        return _resized(images, size)
    return _placed(images, size, fit, _resized)


def fitted_photo(photo: NDArray[np.uint8] | Image.Image, size: Size, fit: Fit) -> NDArray[np.uint8]:
    """A photo, pixels `[height, width, 3]` or an RGB picture, as `[3, *size]`: `fitted`, computed
    in whole numbers, which takes half the time, where its proportions are others."""
    pixels = lent(photo) if isinstance(photo, Image.Image) else np.require(photo, None, ["C", "W"])
    if fit == "squash" or is_shaped((pixels.shape[0], pixels.shape[1]), size):
        rgb = np.ascontiguousarray(pixels[..., :3])
        return _resized(torch.from_numpy(rgb).permute(2, 0, 1)[None], size)[0].numpy()
    # With its own axis for the one image, torch knows it as channels last, and copies nothing.
    one = torch.from_numpy(pixels[None]).permute(0, 3, 1, 2)
    return _placed(one, size, fit, in_size).contiguous()[0, :3].numpy()


def _placed(
    images: Tensor, size: Size, fit: Fit, resized: Callable[[Tensor, Size], Tensor]
) -> Tensor:
    given = images.shape[-2], images.shape[-1]
    scales = [needed / side for needed, side in zip(size, given, strict=True)]
    scale = max(scales) if fit == "crop" else min(scales)
    height, width = (max(1, round(side * scale)) for side in given)
    made = resized(images, (height, width))
    # Of an odd difference the larger half lies below and to the right.
    top, left = (abs(size[0] - height) // 2, abs(size[1] - width) // 2)
    if fit == "crop":
        return made[..., top : top + size[0], left : left + size[1]].contiguous()
    return functional.pad(made, (left, size[1] - width - left, top, size[0] - height - top))


def in_size(images: Tensor, size: Size) -> Tensor:
    """Images `[n, channels, height, width]` in another height and width (bilinear, antialiased);
    of bytes, each direction is rounded."""
    return functional.interpolate(
        images, size, mode="bilinear", antialias=True, align_corners=False
    )


def _resized(images: Tensor, size: Size) -> Tensor:
    made = in_size(images.float(), size)
    if images.dtype == torch.uint8:
        return made.round().clamp(0, 255).to(torch.uint8)
    return made
