"""Random changes of training images, in one table that users may add to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError
from torch import Tensor
from torch.nn import functional

STRICT = ConfigDict(strict=True, allow_inf_nan=False)
"""How settings are read: 1 is not true, "1" is not 1."""
Crop = Annotated[int, Field(ge=0, description="pixels of zero padding before a random crop")]
Flip = Annotated[bool, Field(description="mirror half of the images left to right")]


@dataclass(frozen=True)
class Augmentation:
    """A random change of images, and the setting under its name in a recipe's `augment`.

    `setting` is a type as pydantic reads it, `Annotated[float, Field(ge=0, le=1, description=
    "...")]`: what a study says is checked by it and `planter check --schema` shows it. Its values
    are plain ones (a number, true or false, a text, a list of these), as YAML holds them. At `off`,
    the default, nothing changes.

    `apply(images, setting, generator)` is given raw images `[batch, channels, height, width]`
    (uint8 of 0 to 255, or floating point as the data have it), returns changed ones of the same
    shape, type and device, and leaves those it was given as they are. All its random numbers are
    of `generator`, which is one of the CPU.
    """

    setting: Any
    off: Any
    apply: Callable[[Tensor, Any, torch.Generator], Tensor]


def cropped(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Images `[batch, channels, height, width]`, each a window at random of itself with `pixels` of
    zeros around it."""
    count, channels, height, width = images.shape
    device = images.device
    padded = functional.pad(images, [pixels] * 4)
    offsets = torch.randint(0, 2 * pixels + 1, (2, count, 1), generator=generator)
    rows, columns = offsets.to(device)
    rows = rows + torch.arange(height, device=device)
    columns = columns + torch.arange(width, device=device)
    # One flat index an image, the same for its channels: 4 times faster than indexing by axis.
    place = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    place = place.view(count, 1, -1).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, place).view(images.shape)


def flipped(images: Tensor, _: bool, generator: torch.Generator) -> Tensor:
    """Images `[batch, channels, height, width]`, half of them at random mirrored left to right."""
    mirrored = torch.rand(len(images), generator=generator).to(images.device) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


AUGMENTATIONS: dict[str, Augmentation] = {
    "crop": Augmentation(Crop, 0, cropped),
    "flip": Augmentation(Flip, False, flipped),
}
"""By name, in the order in which they are applied."""


def augmentation(name: str) -> Augmentation:
    """The entry of that name. Raises ValueError where the table of this process has none."""
    if name not in AUGMENTATIONS:
        raise ValueError(
            f"no augmentation {name!r} in this process, which knows {', '.join(AUGMENTATIONS)}; "
            "one of your own is known where the module that adds it to AUGMENTATIONS is imported: "
            "for Ray's workers by the module of the builder or of the search space"
        )
    return AUGMENTATIONS[name]


def checked(name: str, setting: Any) -> Any:
    """A setting as the entry of that name takes it, strictly.

    Raises pydantic's ValidationError for a value that it does not take, of the type of an unknown
    key ("extra_forbidden") where there is no such entry.
    """
    try:
        entry = augmentation(name)
    except ValueError as error:
        unknown = PydanticCustomError("extra_forbidden", "{told}", {"told": str(error)})
        line: InitErrorDetails = {"type": unknown, "input": setting}
        raise ValidationError.from_exception_data(name, [line]) from None
    return TypeAdapter(entry.setting, config=STRICT).validate_python(setting)


def schema_of(name: str) -> dict[str, Any]:
    """The JSON schema of an entry's setting."""
    entry = augmentation(name)
    about = TypeAdapter(entry.setting, config=STRICT).json_schema()
    return {"default": entry.off, "title": name.capitalize(), **about}
