"""Children that grow while they train: one recipe, one schedule, more channels on the way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from planter.arch import Architecture
from planter.driver.tasks.context import Context
from planter.driver.tasks.whole import Trained
from planter.edits.inherit import optimizer_state
from planter.evolution.edit import Bench, Edit, EditError, Individual
from planter.evolution.grow import Grow
from planter.evolution.whole import Reform
from planter.machine.disk import when_there_is_space
from planter.networks import checkpoint
from planter.networks.assembly import build_network
from planter.training.recipe import Recipe

log = logging.getLogger(__name__)


def growth_of(edits: Sequence[Edit]) -> tuple[list[Edit], Grow | None]:
    """The edits that come before a child's training, and the one that takes place in it, if any.
    Raises EditError where that one is not the last, but for training forms."""
    for at, edit in enumerate(edits):
        if not isinstance(edit, Grow) or edit.steps == 1:
            continue
        if not all(isinstance(other, Reform) for other in edits[at + 1 :]):
            raise EditError("growth in steps takes place while a child trains: no edit follows it")
        return list(edits[:at]), edit
    return list(edits), None


def train_growing(
    context: Context,
    trial: str,
    parent: Individual,
    growth: Grow,
    bench: Bench,
    recipe: Recipe,
    train: Callable[..., Trained],
    *,
    before: int,
) -> tuple[Individual, Trained]:
    """The child that `growth` makes of its parent while it trains, and what both took: each epoch
    the multiply-adds of the network it had.

    All weights train all the time, by `train` (`train_whole` with what does not change), under one
    schedule of the rate. The optimiser begins with the parent's moments; what it has learned of a
    weight stays, but for factors of expanded kernels, which are drawn anew. A moving average begins
    after the last step, and so does patience. Interrupted, the same call goes on: each step is
    written before the network trains further. What the trial took `before`, in multiply-adds,
    stands in its log alone.
    """
    file = context.checkpoint_of(f"{trial}/grown")
    begun = checkpoint.read_training(file)
    child, macs = parent, 0
    parts = growth.parts(recipe.epochs)
    for number, (start, end) in enumerate(parts):
        if begun is not None and number < begun["step"]:
            continue
        if begun is not None and number == begun["step"]:
            child, macs = _taken_up(begun, parent)
        else:
            child, more = growth.step(number, parent.macs, child, bench)
            macs += more
            state = {
                "step": number,
                "architecture": child.architecture.to_dict(),
                "model": child.network.state_dict(),
                "moments": {name: dict(learned) for name, learned in child.moments.items()},
                "macs": macs,
            }
            when_there_is_space(partial(checkpoint.write_training, file, state), file.parent)
            log.info("step %d of %d: %s", number + 1, len(parts), child.architecture.widths)
        if start == end:
            continue  # more steps than epochs
        last = number + 1 == len(parts)
        trained = train(
            network=child.network.train(),
            architecture=child.architecture,
            recipe=recipe if last else recipe.model_copy(update={"ema": None, "patience": None}),
            learned=child.moments,
            start=start,
            until=end,
            checkpoint=context.checkpoint_of(f"{trial}/step{number}"),
            before=before + macs,
        )
        macs, epochs = macs + trained.macs, trained.epochs
        child = replace(child, network=child.network.eval(), moments=_kept(trained.optimizer))
    return child, Trained(macs, trained.optimizer, epochs)


def _kept(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """What an optimiser has learned of the weights that a grown network has too."""
    learned = optimizer_state(optimizer)
    return {name: state for name, state in learned.items() if "parametrizations" not in name}


def _taken_up(state: Mapping[str, Any], parent: Individual) -> tuple[Individual, int]:
    """The child after the step that was written last, and what it took."""
    architecture = Architecture.from_dict(state["architecture"])
    network = build_network(architecture, parent.pipeline)
    network.load_state_dict(state["model"])
    network.to(next(parent.network.parameters())).eval()
    child = Individual(architecture, parent.pipeline, network, state["moments"])
    return child, int(state["macs"])
