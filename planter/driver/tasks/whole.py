"""All weights of a network trained: the one way from a network to what its training leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from planter.arch import Architecture
from planter.costs.macs import cost, joint_macs
from planter.data import Split
from planter.driver.tasks.context import Context
from planter.driver.trials.jobs import seed_of
from planter.edits.expand import collapse_kernels_, expand_kernels_
from planter.edits.inherit import inherit_optimizer_state_
from planter.kernels.forms import Kernels
from planter.networks.pipelines import Pipelines
from planter.planting.round import Loss
from planter.training.batches import Batch
from planter.training.distributed import fit_in_processes
from planter.training.loop import Validate
from planter.training.losses import classification_loss
from planter.training.recipe import Recipe, make_optimizer
from planter.training.scores import Validated, validated


class Trained(NamedTuple):
    """What a training took, in multiply-adds, its optimiser with all it has learned, and the epochs
    after which it had ended."""

    macs: int
    optimizer: torch.optim.Optimizer
    epochs: int


def train_whole(
    context: Context,
    trial: str,
    network: nn.Module,
    architecture: Architecture,
    recipe: Recipe,
    loss: Callable[[nn.Module, Batch], Tensor],
    *,
    guided: bool,
    kernels: Kernels | None = None,
    pipelines: Sequence[str] | None = None,
    learned: Mapping[str, Mapping[str, Tensor]] | None = None,
    start: int = 0,
    until: int | None = None,
    last: bool = True,
    images: Split | None = None,
    checkpoint: Path | None = None,
    before: int = 0,
    processes: int = 1,
) -> Trained:
    """Trains a network in place, under the trial's own seed: its kernels expanded, all of it on the
    context's device, then collapsed.

    `pipelines` are those that train, by default the base alone; `learned` is an optimiser's state
    by parameter to begin with (see `inherit_optimizer_state_`); `until` an epoch to end at, `start`
    one before which the network was another: what that one took is not counted. Unless it is the
    `last` phase of its trial, see `Context.phase`; for `images` and `checkpoint`, `Context.fit`.
    What the trial took `before`, in multiply-adds, stands in its log alone. Of validations on the
    way, several pipelines count by their mean. Several `processes`, each with a worker's threads
    and a GPU where workers have one, share the training: see `fit_in_processes`.
    """
    if kernels is not None:
        expand_kernels_(network, kernels, seed=seed_of(context.study.seed, trial))
    network.to(context.device)  # after all draws, which so are the same on every device
    optimizer = make_optimizer(network, recipe)
    inherit_optimizer_state_(optimizer, learned or {})

    costs = cost(architecture)
    each = costs.macs if pipelines is None else joint_macs(costs, pipelines)
    one_epoch = recipe.model_copy(update={"epochs": 1})
    epoch = context.train_macs(each, one_epoch, guided=guided)
    epoch += context.kernel_macs(architecture, kernels, one_epoch, pipelines)

    def macs_after(epochs: int) -> int:
        pool = context.pool_macs(trial, recipe) if guided and not start else 0
        return (epochs - start) * epoch + pool

    validate: Validate | None = None
    if isinstance(network, Pipelines):
        names, measure = pipelines or network.names, context.study.objectives.metric
        validate = partial(mean_score, names=names, measure=measure)

    by: Callable[..., nn.Module] | None = None
    if processes > 1:
        threads = context.study.resources.cpu
        by = partial(fit_in_processes, processes=processes, device=context.device, threads=threads)

    def train() -> int:
        return context.fit(
            trial,
            network,
            loss,
            recipe,
            guided=guided,
            optimizer=optimizer,
            start=start,
            until=until,
            images=images,
            checkpoint=checkpoint,
            macs_after=lambda epochs: before + macs_after(epochs),
            validate=validate,
            by=by,
        )

    # An older planter kept 0 of a training that had ended.
    epochs = context.phase(trial, network, recipe, train, last=last) or until or recipe.epochs
    collapse_kernels_(network)
    return Trained(macs_after(epochs), optimizer, epochs)


def mean_score(
    network: nn.Module, split: Split, names: Sequence[str], measure: str = "accuracy"
) -> Validated:
    """The mean over pipelines of a network, each in eval mode as it is shipped."""
    found = [validated(_Way(network, name), split, measure) for name in names]
    accuracy, loss = (sum(each) / len(found) for each in zip(*(f[:2] for f in found), strict=True))
    values = [one.value for one in found if one.value is not None]
    return Validated(accuracy, loss, measure, sum(values) / len(values) if values else None)


class _Way(nn.Module):
    """One pipeline of a network, as a network."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.network, self.name = network, name

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images, [self.name])[self.name]
        return logits


def class_loss(
    *,
    ce_weight: float = 1.0,
    kd_weight: float = 0.0,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Loss:
    """Cross-entropy and distillation, each by its weight, of logits. See `classification_loss`."""

    def loss(logits: Tensor, labels: Tensor, teacher: Tensor | None) -> Tensor:
        return classification_loss(
            logits,
            labels,
            teacher,
            ce_weight=ce_weight,
            kd_weight=kd_weight,
            temperature=temperature,
            label_smoothing=label_smoothing,
            class_weights=class_weights,
        )

    return loss


def of_batch(loss: Loss) -> Callable[[nn.Module, Batch], Tensor]:
    """A loss of logits as one of a network and a batch."""
    return lambda model, batch: loss(model(batch.images), batch.labels, batch.teacher)
