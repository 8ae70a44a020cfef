"""A pass of several trainings at once: what may stand in one stack, and its steps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, parametrize

from planter.kernels.filters import kernel_decay
from planter.training.batches import Batch, batch_order, class_count, layout_of, make_batch
from planter.training.stacked.network import answering, shape_of, stack
from planter.training.stacked.passes import Pass

_APART = 1e-2
"""Of the largest value: more than rounding, also of a ReLU that rounding turns, and far less than
what comes of channels that meet another network's."""


def kind_of(one: Pass) -> tuple[object, ...] | None:
    """What passes must have in common to stand in one stack; None for one that stands in none:
    whose batch comes in parts, or whose forward pass is not the network's own."""
    if one.recipe.accumulate > 1 or "forward" in one.model.__dict__:
        return None
    split, recipe = one.split, one.recipe
    images = len(split), split.image, split.labels.device, recipe.batch, recipe.augment.views
    return *shape_of(one.model), *images


def first_batches(passes: Sequence[Pass]) -> list[Batch]:
    """The batches of the first step, to try a stack on."""
    found = []
    for one in passes:
        steps, generator = batch_order(one.split, one.recipe, one.seed, one.epoch)
        found.append(_batch(one, steps[0], generator, class_count(one.split)))
    return found


def gradients(passes: Sequence[Pass], whole: nn.Module | None, batches: Sequence[Batch]) -> Tensor:
    """The losses `[n]` of passes' networks on batches, whose gradients they have afterwards: from
    the `whole` stack of them or, without one, of each alone."""
    models = [one.model for one in passes]
    with ExitStack() as within:
        # Each generated kernel is computed once, for the network and for its decay.
        within.enter_context(parametrize.cached())
        if whole is not None:
            images = [batch.images for batch in batches]
            within.enter_context(answering(models, whole, images, layout_of(models[0])))
        values, decayed = [], []
        for one, batch in zip(passes, batches, strict=True):
            value = total = one.loss(one.model, batch)
            decay = kernel_decay(one.model) if one.recipe.weight_decay else None
            if decay is not None:
                total = value + one.recipe.weight_decay * decay
            if whole is None:
                total.backward()  # type: ignore[no-untyped-call]
            values.append(value.detach())
            decayed.append(total)
        if whole is not None:
            # A sum: each network's gradient is that of its own loss alone.
            torch.stack(decayed).sum().backward()  # type: ignore[no-untyped-call]
    return torch.stack(values)


def copied(passes: Sequence[Pass]) -> list[Pass]:
    """Passes of copies of the networks, without gradients, to try things on."""
    made = [one._replace(model=copy.deepcopy(one.model).train()) for one in passes]
    for one in made:
        one.model.zero_grad()
    return made


def check_stack(passes: Sequence[Pass], batches: Sequence[Batch]) -> None:
    """Tries a stack on copies. Raises ValueError where its losses, gradients or statistics are not
    those of the networks alone, as where a forward pass draws at random or mixes channels."""
    apart, stacked = copied(passes), copied(passes)
    with torch.random.fork_rng(devices=[]):
        losses = gradients(apart, None, batches)
        try:
            found = gradients(stacked, stack([one.model for one in stacked]), batches)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"the networks cannot be stacked: {error}") from error
    pairs = [(losses, found)]
    for a, b in zip(apart, stacked, strict=True):
        pairs.append((_gradient(a.model), _gradient(b.model)))
        pairs += zip(a.model.buffers(), b.model.buffers(), strict=True)
    for expected, given in pairs:
        far = (expected - given).abs().max() if expected.numel() else expected.new_zeros(())
        if float(far) > _APART * max(float(expected.abs().max()), 1e-12):
            raise ValueError(
                "the stacked networks give other losses, gradients or statistics than each alone: "
                "their forward pass draws at random or mixes channels; train them apart"
            )


def _gradient(model: nn.Module) -> Tensor:
    found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat(found) if found else torch.zeros(1)


def stacked_epoch(passes: Sequence[Pass], whole: nn.Module) -> list[float]:
    """The passes made at once, step by step; the mean loss over the images of each."""
    orders = [batch_order(one.split, one.recipe, one.seed, one.epoch) for one in passes]
    classes = [class_count(one.split) for one in passes]
    for one in passes:
        one.model.train()
    whole.train()
    totals = torch.zeros(len(passes), device=passes[0].split.labels.device)
    count = len(orders[0][0])
    for i in range(count):
        batches = [
            _batch(one, steps[i], generator, known)
            for one, (steps, generator), known in zip(passes, orders, classes, strict=True)
        ]
        for one in passes:
            for group in one.optimizer.param_groups:
                group["lr"] = one.recipe.lr_at(one.epoch + i / count)
            one.optimizer.zero_grad()
        totals += gradients(passes, whole, batches) * len(batches[0].labels)
        for one in passes:
            if one.recipe.clip_grad is not None:
                groups = one.optimizer.param_groups
                clip_grad_norm_((p for g in groups for p in g["params"]), one.recipe.clip_grad)
            one.optimizer.step()
            if one.average is not None:
                one.average.update_parameters(one.model)
    return (totals / sum(map(len, orders[0][0]))).tolist()


def _batch(one: Pass, index: Tensor, generator: torch.Generator, classes: int) -> Batch:
    return make_batch(
        one.split,
        index,
        one.recipe.augment,
        generator,
        one.teacher,
        layout_of(one.model),
        classes=classes,
    )
