"""One pass of a training over its images, for others to make together with theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from planter.data import Split
from planter.training.batches import Batch
from planter.training.recipe import Recipe


class Pass(NamedTuple):
    """What a pass takes, and `alone`, which makes it and returns the mean loss over the images."""

    model: nn.Module
    loss: Callable[[nn.Module, Batch], Tensor]
    split: Split
    recipe: Recipe
    optimizer: torch.optim.Optimizer
    epoch: int
    seed: int
    teacher: Tensor | nn.Module | None
    average: AveragedModel | None
    alone: Callable[[], float]


class Company(Protocol):
    """Who makes the passes of several trainings (`together`)."""

    def run(self, one: Pass) -> float:
        """Makes a pass, when the others have come to theirs; the mean loss over its images."""

    def clock(self) -> float:
        """Seconds that the training which asks has taken, from any moment on: its share of those
        in which several were trained."""
