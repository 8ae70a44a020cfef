"""How well a network does on a split; batch-norm statistics."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from planter.data import Split
from planter.edits.freeze import PlantedNorm
from planter.machine.torch_state import evaluating
from planter.training.answers import TOP, Answers
from planter.training.batches import (
    batch_order,
    eval_logits,
    make_batch,
    plain_batches,
    training_images,
)
from planter.training.recipe import Recipe
from planter.training.running.fastest import chosen_to_answer
from planter.training.running.forward import (
    Precision,
    Running,
    check_precision,
    in_place_of,
    tried,
)


class Score(NamedTuple):
    """Share of images classified correctly (0..1) and mean cross-entropy."""

    accuracy: float
    loss: float


class Validated(NamedTuple):
    """A score on the way of a training, and the measure that decides there: accuracy, loss or one
    that `Answers` names, whose value then stands beside."""

    accuracy: float
    loss: float
    measure: str = "accuracy"
    value: float | None = None

    @property
    def merit(self) -> tuple[float, float]:
        """Larger is better; between equals the cross-entropy decides."""
        known = {"accuracy": self.accuracy, "loss": -self.loss}
        decides = known[self.measure] if self.value is None else self.value
        return decides, -self.loss


def validated(model: nn.Module, split: Split, measure: str = "accuracy") -> Validated:
    """`evaluate`, by a measure."""
    given = answers(model, split)
    value = None if measure in ("accuracy", "loss") else float(getattr(given, measure))
    return Validated(given.accuracy, given.loss, measure, value)


def evaluate(model: nn.Module, split: Split) -> Score:
    """Accuracy and cross-entropy of a network on a split, in eval mode; its mode is kept.

    Raises ValueError for an empty split or for None, which stands for a data set without test
    part.
    """
    given = answers(model, split)
    return Score(given.accuracy, given.loss)


def answers(model: nn.Module, split: Split) -> Answers:
    """What a network answers on every image of a split. See `evaluate`."""
    if split is None or not len(split):
        raise ValueError("nothing to evaluate on: the split is empty or missing")
    device = next(model.parameters()).device
    split = split.to(device)
    # Made before, not gathered: a little that stays of each batch stands in the memory that the
    # next one's photos need in one piece, and the process grows by a batch of photos each time.
    predicted, among = (
        torch.empty(len(split), dtype=t, device=device) for t in (torch.int64, torch.bool)
    )
    losses = torch.empty(len(split), dtype=torch.float64, device=device)
    loss, classes, at = 0.0, 0, 0
    for images, labels in plain_batches(split):
        logits = eval_logits(model, images)
        classes = logits.shape[1]
        here, at = slice(at, at + len(labels)), at + len(labels)
        predicted[here] = logits.argmax(dim=1)
        likeliest = logits.topk(min(TOP, classes)).indices
        among[here] = (likeliest == labels[:, None]).any(dim=1)
        losses[here] = functional.cross_entropy(logits, labels, reduction="none")
        loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
    label, answer, top, each = (
        column.cpu().numpy() for column in (split.labels, predicted, among, losses)
    )
    return Answers(label, answer, top, each, classes, loss / len(split))


def predict(model: nn.Module, split: Split, precision: Precision = "float32") -> Tensor:
    """Logits `[n, classes]` of a network for every image of a split, in eval mode: float32,
    computed in a precision. Raises ValueError for one in which the network does not compute."""
    check_precision(precision, split.labels.device)
    forward, layout = None, torch.contiguous_format
    if precision != "float32":
        images = next(plain_batches(split))[0]
        how = chosen_to_answer(model, images) if precision == "auto" else precision
        forward = tried(model, Running(how), partial(eval_logits, model, images[:1]))
        # 1.2 to 1.6 times as fast; sums in another order, so not where older logits are to be met.
        layout = torch.channels_last
    with in_place_of(model, forward):
        batches = (images.contiguous(memory_format=layout) for images, _ in plain_batches(split))
        first = eval_logits(model, next(batches))
        # Made at once, as above.
        logits, at = first.new_empty(len(split), first.shape[1]), len(first)
        logits[:at] = first
        for images in batches:
            logits[at : at + len(images)] = eval_logits(model, images)
            at += len(images)
    return logits


def recalibrate_batchnorm_(
    model: nn.Module, split: Split, recipe: Recipe, *, seed: int, images: int = 10_000
) -> nn.Module:
    """Batch-norm statistics as the plain mean over what a training under this recipe sees: the
    images of `split` (or its pool of views) in batches of the recipe, augmented as it says, in the
    order of the epoch after the last; `images` of them at most. Changes the model in place.

    For weights that the statistics did not follow: averages of weights, pipelines that shared
    their norms. A network that trained keeps its own: on plain images, without the zeros that
    crops pad with, a ResNet-8 lost 3.4 points on CIFAR-10, narrower ones up to 12
    (benchmarks/scoring.py). Dropout is left out, as it is where the network is used; statistics of
    channels that a plant keeps frozen stay.
    """
    kept = {id(m.norm) for m in model.modules() if isinstance(m, PlantedNorm)}
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and id(m) not in kept]
    if not norms:
        return model
    split = training_images(split, recipe)
    parts, generator = batch_order(split, recipe, seed, recipe.epochs)
    order = torch.cat(parts)[:images]
    momenta = [norm.momentum for norm in norms]
    with evaluating(model), torch.no_grad():
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # torch's word for a cumulative average
                norm.train()  # the norms alone: dropout would change what they see
            # In equal parts again: each batch weighs the same in the mean.
            count = math.ceil(len(order) * recipe.accumulate / recipe.batch)
            for index in order.tensor_split(count):
                model(make_batch(split, index, recipe.augment, generator, None).images)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    return model
