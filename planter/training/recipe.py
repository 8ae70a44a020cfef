"""How a network is trained: the recipe, its optimiser and the course of its learning rate."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor, nn

from planter.kernels.filters import decays_of_factors
from planter.training.augment import Augment
from planter.training.named import NAMED, RecipeName, named
from planter.training.running.forward import Compile, Precision

_MOST_VALIDATION = 0.02
"""Of a training's multiply-adds, for what is validated on the way without being asked for."""


class Recipe(BaseModel):
    """One training. Lengths of the schedule are in epochs."""

    # Keys with `exclude_if` are younger than the others: where they say nothing they stand in no
    # key of content and no run folder, which so are those of before.

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    base: Annotated[
        RecipeName | None,
        Field(
            exclude=True,
            description="a named recipe to start from: what stands beside it replaces its keys; "
            "lengths of its schedule follow epochs",
        ),
    ] = None
    epochs: Annotated[int, Field(ge=1, description="passes over the training images")] = 20
    batch: Annotated[int, Field(ge=1, description="images a step, at most")] = 128
    accumulate: Annotated[
        int,
        Field(
            ge=1,
            exclude_if=lambda parts: parts == 1,
            description="parts of a step's batch that go through the network one after another, "
            "for less memory; the gradients are those of the whole, batch norms see the parts",
        ),
    ] = 1
    optimizer: Annotated[
        Literal["sgd", "adam", "adamw"], Field(description="torch's optimiser of that name")
    ] = "sgd"
    lr: Annotated[float, Field(gt=0, description="peak learning rate")] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1, description="SGD's momentum")] = 0.9
    nesterov: Annotated[bool, Field(description="SGD with Nesterov's momentum")] = False
    weight_decay: Annotated[float, Field(ge=0, description="decay of every parameter")] = 5e-4
    no_decay: Annotated[
        bool,
        Field(
            exclude_if=lambda on: not on,
            description="no decay of biases and of norms' parameters (all of one axis)",
        ),
    ] = False
    clip_grad: Annotated[
        float | None,
        Field(
            gt=0,
            exclude_if=lambda norm: norm is None,
            description="largest norm of all gradients of a step together; default: no limit",
        ),
    ] = None
    label_smoothing: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            exclude_if=lambda share: share == 0,
            description="share of each label that is spread over all classes, in cross-entropies",
        ),
    ] = 0.0
    class_weights: Annotated[
        Literal["balanced"] | list[Annotated[float, Field(ge=0)]] | None,
        Field(
            exclude_if=lambda weights: weights is None,
            description="weight of each class's images in cross-entropies, in the order of the "
            "classes, or balanced: n / (classes * n of the class); default: 1 each",
        ),
    ] = None
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
    validate_every: Annotated[
        int | None,
        Field(
            ge=0,
            exclude_if=lambda epochs: epochs is None,
            description="epochs from one validation on the way to the next, 0: none; default: 1 "
            "with patience, else as few as take 2 % of the training",
        ),
    ] = None
    patience: Annotated[
        int | None,
        Field(
            ge=1,
            exclude_if=lambda epochs: epochs is None,
            description="epochs without a better validation accuracy (of equal ones, loss) after "
            "which the training ends, and the best epoch's weights stay; default: all epochs",
        ),
    ] = None
    precision: Annotated[
        Precision,
        Field(
            exclude_if=lambda precision: precision == "float32",
            description="in which layers compute while they train: float32, bfloat16, float16 (on "
            "a GPU), or auto: what this machine is fastest with, measured once and kept",
        ),
    ] = "float32"
    compile: Annotated[
        Compile,
        Field(
            exclude_if=lambda on: on is False,
            description="whether networks are compiled to train (torch.compile); auto: where that "
            "saves more than it takes, measured once and kept",
        ),
    ] = False
    augment: Annotated[Augment, Field(description="random changes of the images")] = Augment()

    @model_validator(mode="before")
    @classmethod
    def _from_base(cls, given: Any) -> Any:
        """The keys of `base`, with what stands beside it; an unknown one is told by its field."""
        if isinstance(given, dict) and given.get("base") in tuple(NAMED):
            return named(**given)
        return given

    @field_validator("class_weights")
    @classmethod
    def _weigh(cls, weights: Any) -> Any:
        if isinstance(weights, list) and not any(weights):
            raise ValueError("no weight above 0: nothing would be learned")
        return weights

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
        if self.accumulate > self.batch:
            raise ValueError(
                f"accumulate {self.accumulate}: parts of a batch of {self.batch} images; as many "
                "as it has, or fewer"
            )
        if self.patience is not None and self.validate_every == 0:
            raise ValueError("patience needs validations: validate_every 1, or leave it out")
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

    def validates(self, epoch: int, images: int, validation: int) -> bool:
        """Whether an epoch, counted from 1, is followed by a pass over the validation images, where
        there are so many of them beside those of the training. By default that pass, forward only,
        is a third of one image's training for each."""
        every = self.validate_every
        if every is None and self.patience is not None:
            every = 1
        if every is None:
            every = math.ceil(validation / (3 * images * _MOST_VALIDATION))
        return every > 0 and epoch % every == 0


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over the model's trainable parameters, by name.

    Parameters of expanded kernels leave the optimiser's decay, as KFLO asks (sec. 3.3 of its
    paper): none on W_1, 1e-9 on the mixing matrices; the generated kernel decays in the loss. With
    `no_decay`, so do all of one axis at most, as in timm: biases, norms.
    """
    groups: dict[float, list[tuple[str, Tensor]]] = {}
    own = decays_of_factors(model)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        spared = recipe.no_decay and parameter.dim() <= 1
        decay = own.get(id(parameter), 0.0 if spared else recipe.weight_decay)
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
