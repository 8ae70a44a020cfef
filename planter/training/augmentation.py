"""Random changes of training images, in one table that users may add to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError
from torch import Tensor

from planter.training.transforms import misfits, settings
from planter.training.transforms.colour import color_jitter
from planter.training.transforms.erasing import erased
from planter.training.transforms.geometry import cropped, flipped, resized_crop
from planter.training.transforms.mixing import cutmix, mixup
from planter.training.transforms.policies import randaugment, trivial


@dataclass(frozen=True)
class Augmentation:
    """A random change of images, and the setting under its name in a recipe's `augment`.

    `setting` is a type as pydantic reads it, `Annotated[float, Field(ge=0, le=1, description=
    "...")]`: what a study says is checked by it and `planter check --schema` shows it. Its values
    are plain ones (a number, true or false, a text, lists and mappings of these), as YAML holds
    them. At `off`, the default, nothing changes.

    `apply(images, setting, generator)` is given raw images `[batch, channels, height, width]`
    (uint8 of 0 to 255, or floating point as the data have it), returns changed ones of the same
    shape, type and device, and leaves those it was given as they are. All its random numbers are
    of `generator`, which is one of the CPU. With `statistics` it is also given the mean and the
    deviation of the data `[channels, 1, 1]`, in the images' unit.

    `misfit(setting, image, dtype)` says what it expected of images that it cannot take, by their
    shape (channels, height, width) and type; None of others.
    """

    setting: Any
    off: Any
    apply: Callable[..., Tensor]
    misfit: Callable[[Any, tuple[int, int, int], torch.dtype], str | None] = misfits.none
    statistics: bool = False


@dataclass(frozen=True)
class Mixing:
    """A change of a whole batch, images and labels, as `Augmentation` but for `apply`.

    `apply(images, labels, setting, generator)` is given images as the network takes them,
    normalised, and labels `[batch, classes]` whose rows are shares that sum to 1; it returns both
    mixed. Of several in a recipe one is drawn for each batch, as torchvision's references do.
    """

    setting: Any
    off: Any
    apply: Callable[[Tensor, Tensor, Any, torch.Generator], tuple[Tensor, Tensor]]
    misfit: Callable[[Any, tuple[int, int, int], torch.dtype], str | None] = misfits.none


AUGMENTATIONS: dict[str, Augmentation | Mixing] = {
    "crop": Augmentation(settings.Crop, 0, cropped, misfits.padding),
    "flip": Augmentation(settings.Flip, False, flipped),
    "resized_crop": Augmentation(settings.RESIZED_CROP, False, resized_crop, misfits.one_pixel),
    "color_jitter": Augmentation(settings.COLOR_JITTER, False, color_jitter, misfits.colours),
    "randaugment": Augmentation(settings.RANDAUGMENT, False, randaugment, misfits.colours),
    "trivial": Augmentation(settings.TRIVIAL, False, trivial, misfits.colours),
    "erasing": Augmentation(settings.ERASING, False, erased, misfits.erased, statistics=True),
    "mixup": Mixing(settings.MIXUP, 0.0, mixup),
    "cutmix": Mixing(settings.CUTMIX, 0.0, cutmix, misfits.one_pixel),
}
"""By name, in the order in which they are applied."""


def augmentation(name: str) -> Augmentation | Mixing:
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
    return TypeAdapter(entry.setting, config=settings.STRICT).validate_python(setting)


def schema_of(name: str) -> dict[str, Any]:
    """The JSON schema of an entry's setting, which refers to nothing outside itself."""
    entry = augmentation(name)
    about = TypeAdapter(entry.setting, config=settings.STRICT).json_schema()
    parts = about.pop("$defs", {})
    for place in about.get("anyOf", []):
        if "$ref" in place:
            place.update(parts[place.pop("$ref").rsplit("/", 1)[1]])
    return {"default": entry.off, "title": name.capitalize(), **about}
