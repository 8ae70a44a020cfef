"""Fine-tuning of a network with its INT8 file's rounding, guided by the network as it was."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from planter.data import Split
from planter.export.int8.simulated import simulated
from planter.training.batches import Batch
from planter.training.loop import Epoch, fit
from planter.training.losses import distillation_loss
from planter.training.recipe import Recipe
from planter.training.scores import predict


@dataclass(frozen=True)
class FineTuning:
    """On which images, for how many passes over them, and in which order, which depends on `seed`
    alone. Raises ValueError for no epoch or no images."""

    images: Split
    epochs: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"--qat {self.epochs}: expected a whole number of epochs above 0")
        if not len(self.images):
            raise ValueError("--qat needs training images, got a split without any")

    @property
    def recipe(self) -> Recipe:
        """Small steps: the network has been trained, rounding moves it a little."""
        return Recipe(epochs=self.epochs, batch=64, optimizer="adam", lr=1e-3, weight_decay=0.0)


class FineTuned(NamedTuple):
    """What fine-tuning came to: the accuracies on the validation images of the INT8 file without
    it and with it, and whether the file has the fine-tuned weights, as it has where these are
    better."""

    epochs: int
    seed: int
    static_accuracy: float
    accuracy: float
    kept: bool

    def told(self) -> dict[str, int | float | bool]:
        """As JSON holds it."""
        accuracies = {
            "static_accuracy": round(self.static_accuracy, 6),
            "accuracy": round(self.accuracy, 6),
        }
        return {**self._asdict(), **accuracies}


def fine_tuned(network: nn.Module, calibration: Split, tuning: FineTuning) -> nn.Module:
    """A copy of a network, in eval mode and with its norms folded, whose weights were trained to
    give the network's own probabilities (the KL term of `distillation_loss`) in spite of the
    rounding to 8 bits. Ranges are taken anew from the calibration images before each epoch."""
    tuned = copy.deepcopy(network)
    images = calibration.normalise(calibration.batch(slice(len(calibration))))
    twin = simulated(tuned, images)

    def again(_: Epoch) -> None:
        twin.set_ranges_(images)

    fit(
        twin,
        _loss,
        tuning.images,
        tuning.recipe,
        seed=tuning.seed,
        teacher=predict(network, tuning.images),
        on_epoch=again,
    )
    return tuned.eval()


def _loss(twin: nn.Module, batch: Batch) -> Tensor:
    assert batch.teacher is not None
    return distillation_loss(twin(batch.images), batch.teacher)
