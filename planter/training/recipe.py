"""How a network is trained: the recipe, its optimiser and the course of its learning rate."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from planter.kernels.filters import decays_of_factors
from planter.training.augment import Augment


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
