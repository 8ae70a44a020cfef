"""What sections of a study share: their rules, numbers, plain networks, distillation, halving."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from planter.study.quantities import plain_quantity

Widths = int | dict[str, int]
Count = Annotated[
    int, BeforeValidator(plain_quantity), WithJsonSchema({"type": ["integer", "string"]})
]
"""A number of multiply-adds or parameters, also as 5M."""
Amount = Annotated[
    float, BeforeValidator(plain_quantity), WithJsonSchema({"type": ["number", "string"]})
]

NAMED_WEIGHTS = ("DEFAULT", "OWN")
"""What stands for the path of a file of weights. See `planter.networks.weights`."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Network(Section):
    """A plain network: a builder, its widths and its options, and the weights it begins with."""

    builder: Annotated[
        str | None,
        Field(
            description="a key of planter.BUILDERS, torchvision:NAME, timm:NAME or "
            "my_pkg.nets:build; default: the teacher's"
        ),
    ] = None
    widths: Annotated[
        Widths | None,
        Field(description="one number for every convolution, or width by name; default: builder's"),
    ] = None
    options: Annotated[dict[str, Any], Field(description="the builder's keyword options")] = {}
    weights: Annotated[
        str | None,
        Field(
            description="a file of weights to begin with (.pth, .pt, .safetensors), DEFAULT: those "
            "that torchvision or timm publishes, or OWN: those the network is built with; "
            "default: drawn anew"
        ),
    ] = None
    download: Annotated[bool, Field(description="fetch DEFAULT weights that are not here")] = False

    @model_validator(mode="after")
    def _fetches(self) -> Network:
        if self.download and self.weights != "DEFAULT":
            raise ValueError("download: true is for weights: DEFAULT")
        return self


class Normalise(Section):
    """How images are brought to what a network was trained on: `(pixel - mean) / std`, pixels of
    files in 0..1; one number for each channel."""

    mean: Annotated[list[float], Field(min_length=1, description="of each channel")]
    std: Annotated[list[float], Field(min_length=1, description="of each channel, above 0")]

    @model_validator(mode="after")
    def _fits(self) -> Normalise:
        if len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ValueError("mean and std have a number for each channel, std above 0")
        return self


class Distillation(Section):
    """`ce_weight * cross-entropy + weight * T^2 * KL(teacher || student)`."""

    weight: Annotated[float, Field(ge=0, description="weight of the distillation term")] = 1.0
    temperature: Annotated[float, Field(gt=0, description="softening of both softmaxes")] = 1.0
    ce_weight: Annotated[float, Field(ge=0, description="weight of the cross-entropy")] = 1.0

    @model_validator(mode="after")
    def _learns(self) -> Distillation:
        if not self.weight and not self.ce_weight:
            raise ValueError("weight and ce_weight are both 0: nothing is learned")
        return self


class EarlyStopping(Section):
    """Successive halving: which sampled trials, or children, train to their end."""

    rungs: Annotated[
        list[float],
        Field(min_length=1, description="shares of a training after which trials are compared"),
    ] = [0.0625, 0.1875, 0.3125, 0.5625]
    keep: Annotated[
        float, Field(gt=0, lt=1, description="share of the trials on a rung that goes on")
    ] = 0.72
    wait: Annotated[
        int,
        Field(
            ge=1,
            description="trials that reach a rung before they are compared: until then sampled "
            "ones wait there, children go on",
        ),
    ] = 12

    @field_validator("rungs")
    @classmethod
    def _climbs(cls, rungs: list[float]) -> list[float]:
        if not all(0 < rung < 1 for rung in rungs) or sorted(set(rungs)) != rungs:
            raise ValueError(f"rungs {rungs}: expected rising shares between 0 and 1")
        return rungs

    def share(self) -> float:
        """What of all trainings is done where each rung lets exactly `keep` of its trials on."""
        edges = [0.0, *self.rungs, 1.0]
        return sum(self.keep**i * (b - a) for i, (a, b) in enumerate(pairwise(edges)))
