"""Channel planting (Mitsuno, Nomura and Kurita, ICPR 2020): one plant, and what a round accepts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from planter.arch import Architecture
from planter.assembly import build_network
from planter.data import Split
from planter.freeze import freeze_inherited_, thaw_
from planter.losses import classification_loss
from planter.morph import inherit_weights
from planter.places import image_of
from planter.recipe import Recipe
from planter.train import Batch, Epoch, fit, predict


def plant(
    architecture: Architecture,
    parent: nn.Module,
    layer: str,
    channels: int,
    *,
    seed: int,
    outgoing: Literal["zero", "random"] = "zero",
) -> tuple[Architecture, nn.Module]:
    """The parent with `channels` more output channels in one layer, and the input slices of what
    reads them (step 3 of the slides).

    With `outgoing="zero"`, our reading of what the slides leave open, the child starts as the
    function its parent is; a network where that cannot be is refused with a ValueError.
    """
    wider = architecture.widen(layer, channels)
    child = build_network(wider, seed=seed)
    inherit_weights(child, parent, outgoing)
    if outgoing == "zero" and not _same_function(child, parent, image_of(architecture)):
        raise ValueError(
            f"{architecture.builder} cannot grow in {layer}: the wider network does not start as "
            "its parent's function (new channels meet old ones in a shortcut, a concatenation, ...)"
        )
    return wider, child


def _same_function(child: nn.Module, parent: nn.Module, image: tuple[int, int, int]) -> bool:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, *image, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        new, old = (copy.deepcopy(net).cpu().double().eval()(images) for net in (child, parent))
    return bool((new - old).abs().max() <= 1e-9 * (1 + old.abs().max()))


def train_plant(
    child: nn.Module,
    parent: nn.Module,
    split: Split,
    recipe: Recipe,
    *,
    teacher: Tensor | nn.Module,
    seed: int,
    temperature: float = 1.0,
    ce_weight: float = 0.0,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> nn.Module:
    """Trains what is new in the child and nothing else (step 4); older parameters and statistics
    are bit for bit the parent's afterwards. The slides' loss is the KL to the teacher alone."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return classification_loss(
            model(batch.images),
            batch.labels,
            batch.teacher,
            ce_weight=ce_weight,
            kd_weight=1.0,
            temperature=temperature,
        )

    freeze_inherited_(child, parent)
    fit(
        child,
        loss,
        split,
        recipe,
        seed=seed,
        teacher=teacher,
        checkpoint=checkpoint,
        on_epoch=on_epoch,
    )
    return thaw_(child)


def live_channels(child: nn.Module, layer: str, first: int, split: Split) -> int | None:
    """How many channels of stage `layer` from `first` on answer to any image of the split.

    A ReLU that a bold learning rate has killed never does. None where no stage has that name.
    """
    stages = dict(child.named_children())
    if layer not in stages:
        return None
    answered: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        answered.append((output[:, first:] != 0).transpose(0, 1).flatten(1).any(dim=1))

    hook = stages[layer].register_forward_hook(note)
    try:
        predict(child, split)
    finally:
        hook.remove()
    return int(torch.stack(answered).any(dim=0).sum())


def accept(losses: Mapping[str, float], parent_loss: float) -> str | None:
    """The candidate with the smallest validation loss, if it is below the parent's (steps 6 and
    7); of equal ones the first."""
    below = {name: loss for name, loss in losses.items() if loss < parent_loss}
    return min(below, key=lambda name: below[name]) if below else None
