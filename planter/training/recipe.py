"""How a network is trained: the recipe, its optimiser and the course of its learning rate."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError
from torch import Tensor, nn

from planter.kernels.filters import decays_of_factors
from planter.training.augmentation import AUGMENTATIONS, STRICT, Crop, Flip, checked, schema_of


def _listed(schema: dict[str, Any]) -> None:
    """Adds the table's other entries to the schema, and that nothing else may be said."""
    others = {name: schema_of(name) for name in AUGMENTATIONS if name not in schema["properties"]}
    schema["properties"] |= others
    schema["additionalProperties"] = False


def _line(error: ErrorDetails, *place: str) -> InitErrorDetails:
    """An error again, further in."""
    kind = PydanticCustomError(error["type"], "{told}", {"told": error["msg"]})
    return {"type": kind, "loc": (*place, *error["loc"]), "input": error["input"]}


class Augment(BaseModel):
    """Random changes of the training images, drawn anew for each batch, or once for a pool."""

    # Beside its fields it holds settings of the other entries of AUGMENTATIONS, in that table's
    # order and only where they are not off: what a study does not use changes no key of content.
    model_config = ConfigDict(**STRICT, frozen=True, extra="allow", json_schema_extra=_listed)

    crop: Crop = 0
    flip: Flip = False
    views: Annotated[
        int | None,
        Field(
            ge=2,
            description="draw from a fixed pool of this many views of each image, itself among "
            "them: a teacher then answers once for all trainings, and planting keeps what is "
            "frozen; default: new views in every epoch",
        ),
    ] = None

    @model_validator(mode="wrap")
    @classmethod
    def _with_others(cls, given: Any, read: ModelWrapValidatorHandler[Augment]) -> Augment:
        """Checks the settings that are no fields; what is wrong with either is told together."""
        fields, others = cls.model_fields, {}
        if isinstance(given, dict):
            others = {k: v for k, v in given.items() if isinstance(k, str) and k not in fields}
        if not others:
            return read(given)
        known = {key: value for key, value in given.items() if key not in others}
        settings: dict[str, Any] = {}
        wrong: list[InitErrorDetails] = []
        for name, value in others.items():
            try:
                settings[name] = checked(name, value)
            except ValidationError as error:
                wrong += [_line(one, name) for one in error.errors()]
        if not wrong:
            on = {n: settings[n] for n in AUGMENTATIONS if n in settings}
            return read(known | {n: v for n, v in on.items() if v != AUGMENTATIONS[n].off})
        try:
            read(known)
        except ValidationError as error:  # what the whole lacks may follow from what is wrong
            wrong = [_line(one) for one in error.errors() if one["loc"]] + wrong
        raise ValidationError.from_exception_data(cls.__name__, wrong)

    @model_validator(mode="after")
    def _has_views(self) -> Augment:
        if self.views is not None and not self.chosen():
            names = dict.fromkeys([*type(self).model_fields, *AUGMENTATIONS])
            *most, last = (name for name in names if name != "views")
            raise ValueError(
                f"views {self.views} of each image, but neither {', '.join(most)} nor {last} is set"
            )
        return self

    def changes(self) -> bool:
        """Whether a step sees images that no other step sees."""
        return self.views is None and bool(self.chosen())

    def chosen(self) -> dict[str, Any]:
        """All that changes an image, in the order in which it does: every setting that is not off
        but `views`, which says how often."""
        return self.model_dump(exclude={"views"}, exclude_defaults=True)


class Recipe(BaseModel):
    """One training. Lengths of the schedule are in epochs."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    epochs: Annotated[int, Field(ge=1, description="passes over the training images")] = 20
    batch: Annotated[int, Field(ge=1, description="images a step, at most")] = 128
    optimizer: Annotated[
        Literal["sgd", "adam", "adamw"], Field(description="torch's optimiser of that name")
    ] = "sgd"
    lr: Annotated[float, Field(gt=0, description="peak learning rate")] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1, description="SGD's momentum")] = 0.9
    nesterov: Annotated[bool, Field(description="SGD with Nesterov's momentum")] = False
    weight_decay: Annotated[float, Field(ge=0, description="decay of every parameter")] = 5e-4
    schedule: Annotated[
        Literal["constant", "multistep", "step", "cosine", "onecycle"],
        Field(description="course of the learning rate after the warm-up"),
    ] = "cosine"
    warmup: Annotated[
        float | None,
        Field(ge=0, description="epochs of linear rise; default 0, for onecycle 30 % of all"),
    ] = None
    milestones: Annotated[
        list[float], Field(description="multistep: epochs at which the rate falls")
    ] = []
    step: Annotated[float | None, Field(gt=0, description="step: epochs between falls")] = None
    gamma: Annotated[
        float, Field(gt=0, le=1, description="multistep and step: factor at each fall")
    ] = 0.1
    ema: Annotated[
        float | None,
        Field(
            gt=0,
            lt=1,
            description="decay a step of a moving average of the weights, which is what is kept",
        ),
    ] = None
    augment: Annotated[Augment, Field(description="random changes of the images")] = Augment()

    @model_validator(mode="after")
    def _complete(self) -> Recipe:
        if self.schedule == "multistep" and not self.milestones:
            raise ValueError("schedule multistep needs milestones, e.g. [10, 15]")
        if self.schedule == "step" and self.step is None:
            raise ValueError("schedule step needs step: epochs between two falls of the rate")
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ValueError("nesterov needs optimizer sgd and a momentum above 0")
        if self._warmup() > self.epochs:
            raise ValueError(f"warmup {self.warmup} is longer than the {self.epochs} epochs")
        return self

    def _warmup(self) -> float:
        if self.warmup is not None:
            return self.warmup
        return 0.3 * self.epochs if self.schedule == "onecycle" else 0.0

    def lr_at(self, epoch: float) -> float:
        """The learning rate at a (fractional) epoch, counted from 0."""
        warmup = self._warmup()
        if epoch < warmup:
            return self.lr * (epoch / warmup)
        if self.schedule == "multistep":
            return self.lr * float(self.gamma ** sum(epoch >= m for m in self.milestones))
        if self.schedule == "step":
            assert self.step is not None
            return self.lr * float(self.gamma ** (epoch // self.step))
        if self.schedule in ("cosine", "onecycle"):
            # Both fall along half a cosine to zero; onecycle is the one with a warm-up by default.
            left = max(self.epochs - warmup, 1e-9)
            return self.lr * 0.5 * (1 + math.cos(math.pi * min((epoch - warmup) / left, 1.0)))
        return self.lr


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over the model's trainable parameters, by name.

    Parameters of expanded kernels leave the optimiser's decay, as KFLO asks (sec. 3.3 of its
    paper): none on W_1, 1e-9 on the mixing matrices; the generated kernel decays in the loss.
    """
    groups: dict[float, list[tuple[str, Tensor]]] = {}
    own = decays_of_factors(model)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = own.get(id(parameter), recipe.weight_decay)
        groups.setdefault(decay, []).append((name, parameter))
    named = [{"params": params, "weight_decay": decay} for decay, params in groups.items()]
    if not named:
        raise ValueError("the model has no trainable parameter")
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            named, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=True
        )
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(named, lr=recipe.lr, fused=True)
