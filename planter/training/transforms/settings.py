"""What a study may say of each random change of images: true, a number or a mapping of options."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator
from pydantic_core import PydanticCustomError

STRICT = ConfigDict(strict=True, allow_inf_nan=False)
"""How settings are read: 1 is not true, "1" is not 1."""


def _rising(pair: list[float]) -> list[float]:
    if pair[0] > pair[1]:
        raise ValueError(f"the lower end first, [{pair[1]}, {pair[0]}]")
    return pair


Crop = Annotated[int, Field(ge=0, description="pixels of zero padding before a random crop")]
Flip = Annotated[bool, Field(description="mirror half of the images left to right")]
_Share = Annotated[float, Field(ge=0, le=1)]
_Positive = Annotated[float, Field(gt=0)]
_Two = Field(min_length=2, max_length=2)
_Range = Annotated[list[_Positive], _Two, AfterValidator(_rising)]
_Part = Annotated[list[Annotated[float, Field(gt=0, le=1)]], _Two, AfterValidator(_rising)]


def _fill(value: Any) -> Any:
    numbers = value if isinstance(value, list) else [value]
    if value in ("mean", "random"):
        return value
    if numbers and all(type(x) in (int, float) and math.isfinite(x) for x in numbers):
        return [float(x) for x in value] if isinstance(value, list) else float(value)
    told = "Input should be mean, random, a number or a list of one for each channel"
    raise PydanticCustomError("erasing_value", "{told}", {"told": told})


class Options(BaseModel):
    """The options of one change of images."""

    model_config = ConfigDict(**STRICT, extra="forbid", frozen=True)

    def changes(self) -> bool:
        """Whether any image may be another with these."""
        return True


class ResizedCrop(Options):
    """torchvision's RandomResizedCrop to the size that images have (bilinear)."""

    scale: Annotated[_Part, Field(description="share of an image's area, from and to")] = [
        0.08,
        1.0,
    ]
    ratio: Annotated[_Range, Field(description="width over height, from and to")] = [3 / 4, 4 / 3]


class ColorJitter(Options):
    """torchvision's ColorJitter: factors between 1 - x and 1 + x, in an order at random."""

    brightness: Annotated[float, Field(ge=0, description="strength of brightness")] = 0.0
    contrast: Annotated[float, Field(ge=0, description="strength of contrast")] = 0.0
    saturation: Annotated[float, Field(ge=0, description="strength of saturation")] = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5, description="turns of the colour circle")] = 0.0

    def changes(self) -> bool:
        return any(self.model_dump().values())


class RandAugment(Options):
    """torchvision's RandAugment: operations at random, all of one strength."""

    num_ops: Annotated[int, Field(ge=1, description="operations on an image")] = 2
    magnitude: Annotated[int, Field(ge=0, le=30, description="strength, in 30ths of the most")] = 9


class Erasing(Options):
    """torchvision's RandomErasing: a rectangle of an image filled."""

    p: Annotated[_Share, Field(description="share of images with a rectangle erased")] = 0.25
    scale: Annotated[_Part, Field(description="share of an image's area, from and to")] = [
        0.02,
        0.33,
    ]
    ratio: Annotated[_Range, Field(description="height over width, from and to")] = [0.3, 3.3]
    value: Annotated[
        Any,
        PlainValidator(
            _fill, json_schema_input_type=Literal["mean", "random"] | float | list[float]
        ),
        Field(
            description="what fills it: mean (the data's mean colour, 0 once normalised), random "
            "(noise of the data's mean and deviation), or a colour, one number or one a channel, "
            "0..1 for images of 0..255, else in their unit"
        ),
    ] = "mean"

    def changes(self) -> bool:
        return self.p > 0


def setting(options: type[Options], default: Options, numbers: tuple[str, ...] = ()) -> Any:
    """The type of a setting that is true (`default`), false, a mapping of `options` or, if there
    are `numbers`, a number that stands for the options of these names.

    What is read is the whole mapping of plain values, or False where it changes nothing: equal
    settings are equal however they were said.
    """

    def read(given: Any) -> dict[str, Any] | bool:
        if isinstance(given, bool):
            made = default if given else None
        elif numbers and isinstance(given, int | float):
            first = getattr(options.model_validate({numbers[0]: given}), numbers[0])
            made = options(**dict.fromkeys(numbers, first))
        elif isinstance(given, dict):
            made = options.model_validate(given)
        else:
            number = "a number, " if numbers else ""
            told = (
                f"Input should be true, {number}or a mapping of {', '.join(options.model_fields)}"
            )
            raise PydanticCustomError("augmentation_setting", "{told}", {"told": told})
        return made.model_dump() if made is not None and made.changes() else False

    shown: Any = bool | float | options if numbers else bool | options
    about = (options.__doc__ or "").rstrip(".")
    return Annotated[
        Any,
        PlainValidator(read, json_schema_input_type=shown),
        Field(description=f"{about}; true: {_said(default)}"),
    ]


def alpha(default: float, about: str) -> Any:
    """The type of a setting that is the parameter of a Beta distribution, true for its default."""

    def read(given: Any) -> Any:
        return (default if given else 0.0) if isinstance(given, bool) else given

    return Annotated[
        float,
        Field(ge=0, description=f"{about}: its share is drawn from Beta(x, x); true: {default}"),
        BeforeValidator(read, json_schema_input_type=bool | Annotated[float, Field(ge=0)]),
    ]


def _said(options: Options) -> str:
    def shown(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    def told(value: Any) -> str:
        return f"[{', '.join(map(shown, value))}]" if isinstance(value, list) else shown(value)

    return ", ".join(f"{name} {told(value)}" for name, value in options.model_dump().items())


RESIZED_CROP = setting(ResizedCrop, ResizedCrop())
COLOR_JITTER = setting(
    ColorJitter,
    ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4),
    ("brightness", "contrast", "saturation"),
)
RANDAUGMENT = setting(RandAugment, RandAugment())
TRIVIAL = Annotated[
    bool, Field(description="torchvision's TrivialAugmentWide: one operation, of any strength")
]
ERASING = setting(Erasing, Erasing(), ("p",))
MIXUP = alpha(0.2, "each image and its label mixed with another's")
CUTMIX = alpha(1.0, "a rectangle of each image is another's, and as much of its label")
