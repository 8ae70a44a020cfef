"""Images of a user's own data: one gate from what arrives to pixels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from planter.data.cache.decoding import AS_IT_IS, Decoding
from planter.data.decode import decoded
from planter.data.fit import fitted_photo
from planter.data.labels import refuse_masked

Pixels = np.dtype[Any]
_RULE = "images are [n, channels, height, width]"
_COLOURS = 4
"""No picture has more channels: red, green, blue and transparency."""


def one_type(types: Mapping[str, Pixels]) -> None:
    """Raises ValueError unless all pixels are of one type. Floats of any width are one: the width
    changes no value, while uint8 counts to 255 where floats may end at 1."""
    kinds = {"float" if one.kind == "f" else one.name for one in types.values()}
    if len(kinds) > 1:
        told = ", ".join(f"{one.name} in {where}" for where, one in types.items())
        raise ValueError(
            f"all images have one type of pixels, since the training images normalise all; got "
            f"{told}: bring them to one type and scale"
        )


def check_items(arrays: Sequence[NDArray[Any]]) -> None:
    """Raises ValueError unless the images of a part are of one shape and one type."""
    shapes = sorted({array.shape for array in arrays})
    if len(shapes) > 1:
        told = ", ".join(map(str, shapes[:4])) + ", ..." * (len(shapes) > 4)
        raise ValueError(f"all images have one shape; got {told}: bring them to one")
    first: dict[Pixels, str] = {}
    for at, array in enumerate(arrays):
        first.setdefault(array.dtype, f"image {at}")
    if all(one.kind in "biuf" for one in first):  # others are told by name, as no numbers
        one_type({where: one for one, where in first.items()})


def image_array(image: Any, how: Decoding = AS_IT_IS) -> NDArray[Any]:
    """An image, or several, as an array in this machine's byte order; a picture of Pillow's is read
    as a file is, `[3, height, width]`, and fitted as `how` says."""
    from PIL.Image import Image

    refuse_masked(image)
    if isinstance(image, Image):
        made = decoded(image)
        if how.size is not None:
            return fitted_photo(made.shown, how.size, how.fit)
        return made.pixels.transpose(2, 0, 1)
    if isinstance(image, Tensor):
        if image.layout != torch.strided or image.is_quantized:
            raise ValueError(f"images are dense tensors; got {image.layout}: to_dense() makes one")
        image = image.detach().cpu().resolve_conj().resolve_neg()
        if image.is_floating_point() and image.dtype not in (torch.float16, torch.float64):
            image = image.float()  # numpy does not know the others
        image = image.numpy()
    try:
        array = np.asarray(image)
    except (ValueError, TypeError) as error:
        raise ValueError(f"an image is an array; got a {type(image).__name__}: {error}") from error
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def pixels_of(images: Any, how: Decoding = AS_IT_IS) -> tuple[Tensor, Pixels]:
    """Images `[n, channels, height, width]`, uint8 as they are, all other numbers as float32, and
    the type they came in."""
    if isinstance(images, list | tuple):
        arrays = [image_array(image, how) for image in images]
        check_items(arrays)
        array = np.stack(arrays) if arrays else np.empty(0)
    else:
        array = image_array(images)
    if array.dtype.kind not in "biuf":
        hint = ": give its real and imaginary part as channels" * (array.dtype.kind == "c")
        raise ValueError(f"pixels are real numbers; got the type {array.dtype}{hint}")
    _check_shape(array.shape)
    if array.dtype == np.uint8:
        return torch.from_numpy(np.array(array, order="C")), array.dtype
    with np.errstate(over="ignore"):  # what float32 cannot hold is told below
        pixels = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    _check_finite(pixels)
    return pixels, array.dtype


def joined(arrays: Iterable[NDArray[Any]], count: int | None = None) -> tuple[Tensor, Pixels]:
    """`pixels_of` of arrays `[n, channels, height, width]` that come one after the other: all of
    `count` images lie in memory once, of an unknown number a little more."""
    held: NDArray[Any] | None = None
    filled, seen = 0, list[NDArray[Any]]()
    for array in arrays:
        if array.dtype.kind not in "biuf":
            pixels_of(array)  # raises
        # One without memory stands for each.
        seen += [np.broadcast_to(np.zeros((), array.dtype), array.shape[1:])] * len(array)
        if held is not None and array.shape[1:] != held.shape[1:]:
            continue  # what is wrong is told of all of them
        if held is None:
            _check_shape(array.shape)
            kind = np.uint8 if array.dtype == np.uint8 else np.float32
            held = np.empty((count or len(array), *array.shape[1:]), kind)
        if filled + len(array) > len(held):
            more = max(len(held) // 2, len(array))
            held.resize((len(held) + more, *held.shape[1:]), refcheck=False)
        with np.errstate(over="ignore"):
            held[filled : filled + len(array)] = array
        filled += len(array)
    check_items(seen)
    if held is None:
        return torch.empty(0), np.dtype(np.uint8)
    held.resize((filled, *held.shape[1:]), refcheck=False)
    pixels = torch.from_numpy(held)
    if pixels.is_floating_point():
        _check_finite(pixels)
    return pixels, seen[0].dtype


def _check_finite(pixels: Tensor) -> None:
    if not pixels.isfinite().all():
        raise ValueError("pixels are finite float32 numbers; some are not: clean or scale them")


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) == 3:
        raise ValueError(f"{_RULE}; got {list(shape)}: images[:, None] adds a grey channel")
    if len(shape) != 4 or 0 in shape[1:]:
        raise ValueError(f"{_RULE}; got {list(shape)}")
    _, first, second, last = shape
    if first <= _COLOURS:
        return
    # Maps of 1 x 1 or 3 x 3 pixels have many channels, and come first.
    picture = last in (1, 3) and second != last
    if picture or (last == 4 and second > _COLOURS):
        raise ValueError(
            f"{_RULE}; got {list(shape)}, whose channels seem to come last: "
            "images.transpose(0, 3, 1, 2), or permute of a tensor, puts them first; if they are "
            "first, images.transpose(0, 1, 3, 2) swaps height and width and is read as meant"
        )


def ambiguous(shape: tuple[int, ...]) -> str | None:
    """A warning for images `[n, channels, height, width]` that might as well have their channels
    last; None for others."""
    _, first, second, last = shape
    wide = last == _COLOURS and first > _COLOURS and second != last
    grey = first == last == 1  # either way, but for a turned image
    if grey or (last not in (1, 3) and not wide):
        return None
    return (
        f"images {list(shape)} are read as {first} channels of {second} x {last} pixels; if their "
        "channels come last, images.transpose(0, 3, 1, 2) puts them first"
    )
