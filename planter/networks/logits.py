"""Whether what a network returns are logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def check_logits(returned: Any, images: Tensor, classes: int | None, place: str) -> None:
    """Raises ValueError, saying what was returned, unless a network at `place` has made logits
    `[n, classes]` of `images` `[n, channels, height, width]`; of any number of classes where
    `classes` is None, as it is of an architecture without the data's facts."""
    shown = "x".join(map(str, images.shape[1:]))
    count = "one" if len(images) == 1 else str(len(images))
    of = f"{count} {shown} image{'s' * (len(images) > 1)}"
    expected = f"expected logits [{len(images)}, {'classes' if classes is None else classes}]"
    if not isinstance(returned, Tensor):
        raise ValueError(
            f"{place} gives {_told(returned)} for {of}, {expected}: a function that calls it and "
            "returns the logits alone can be named in its place"
        )
    fits = returned.dim() == 2 and len(returned) == len(images)
    if classes is not None and (not fits or returned.shape[1] != classes):
        raise ValueError(f"{place} gives {list(returned.shape)} for {of}, {expected}")
    if not returned.is_floating_point():
        kind = str(returned.dtype).removeprefix("torch.")
        raise ValueError(f"{place} gives {kind} numbers for {of}, {expected} of float")


def _told(returned: Any) -> str:
    """What a network returned instead of one tensor, in words."""
    if isinstance(returned, Mapping):
        return f"{type(returned).__name__} with {', '.join(map(str, returned))}"
    if isinstance(returned, tuple | list):
        parts = (_told(part) for part in returned)
        return f"{type(returned).__name__} of {', '.join(parts) or 'nothing'}"
    if isinstance(returned, Tensor):
        return str(list(returned.shape))
    return type(returned).__name__
