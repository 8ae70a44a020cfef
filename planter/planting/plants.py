"""Channel planting (Mitsuno, Nomura and Kurita, ICPR 2020): a plant, and what a round accepts."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor, nn

from planter.arch import Architecture
from planter.backbones import canonical
from planter.data import Split
from planter.edits.freeze import freeze_inherited_, thaw_
from planter.edits.grouping import regrouped
from planter.edits.inherit import inherit_weights
from planter.networks.assembly import build, build_network
from planter.networks.cut_points import image_of
from planter.networks.pipelines import Pipelines
from planter.planting.starts import (
    PROPOSALS,
    Filters,
    Outgoing,
    check_init,
    pick_filters_,
    scale_filters_,
    scale_outgoing_,
    zero_filters_,
)
from planter.training.batches import Batch
from planter.training.loop import Epoch, fit
from planter.training.recipe import Recipe
from planter.training.scores import predict

_NAMED = 3


def plant(
    architecture: Architecture,
    parent: nn.Module,
    layer: str,
    channels: int,
    *,
    seed: int,
    filters: Filters = "random",
    outgoing: Outgoing = "zero",
    images: Tensor | None = None,
    loss: Callable[[nn.Module], Tensor] | None = None,
) -> tuple[Architecture, nn.Module]:
    """The parent with `channels` more output channels in one layer, and the input slices of what
    reads them (step 3 of the slides).

    With `outgoing="zero"`, our reading of what the slides leave open, or `filters="zero"`, the
    child starts as the function its parent is; a network where that cannot be is refused with a
    ValueError. "scaled" starts measure `images` `[n, channels, height, width]`, normalised; the
    filters "gradient" picks have the largest gradients of `loss(network)` (see planting/starts.py).
    An architecture with pipelines takes `Pipelines` as parent and grows all of its ways.
    """
    check_init(filters, outgoing)
    wider = canonical(architecture.widen(layer, channels))
    child = _grown(wider, parent, seed, outgoing)
    if filters == "zero":
        zero_filters_(child, parent)
    elif filters == "gradient":
        if loss is None:
            raise ValueError("filters gradient needs loss=, a function of the network")
        many = architecture.widen(layer, PROPOSALS * channels)
        pick_filters_(child, parent, _grown(many, parent, seed, outgoing), loss, channels)
    if "scaled" in (filters, outgoing):
        if images is None:
            raise ValueError("a scaled start needs images= to measure")
        if filters == "scaled":
            scale_filters_(child, parent, images)
        if outgoing == "scaled":
            scale_outgoing_(child, parent, images)
    if "zero" in (filters, outgoing) and not _starts_equal(
        child, parent, image_of(architecture), filters, outgoing
    ):
        why = "new channels meet old ones in a shortcut, a concatenation, ..."
        if cut_anew := regrouped(child, parent):
            more = f" (and {len(cut_anew) - _NAMED} more)" if len(cut_anew) > _NAMED else ""
            why = f"{', '.join(cut_anew[:_NAMED])}{more}; let their number follow the width"
        raise ValueError(
            f"{architecture.builder} cannot grow in {layer}: the wider network does not start as "
            f"its parent's function ({why})"
        )
    return wider, child


def _grown(wider: Architecture, parent: nn.Module, seed: int, outgoing: Outgoing) -> nn.Module:
    if isinstance(parent, Pipelines):
        child = build(wider, seed, parent.norm_mode)
    else:
        child = build_network(wider, seed=seed)
    child.to(next(parent.parameters()))
    inherit_weights(child, parent, "zero" if outgoing == "zero" else "random")
    return child


def merge(
    architecture: Architecture, parent: nn.Module, plants: Sequence[tuple[Architecture, nn.Module]]
) -> tuple[Architecture, nn.Module]:
    """One network with several plants of one parent, each in a layer of its own, as it was
    trained: filters of one plant do not read the channels of another.

    Raises ValueError for two plants of which one has channels where the other has its own: in
    `group1` and in an inner width that follows it."""
    grown = _grown_widths(architecture, [wider for wider, _ in plants])
    for one, other in combinations(grown, 2):
        if architecture.overlap(one, other):
            raise ValueError(
                f"plants in {one} and {other} cannot be merged: one follows the other, and both "
                "have channels of their own in it"
            )
    wider = architecture
    for name, channels in grown.items():
        wider = wider.widen(name, channels)
    wider = canonical(wider)
    network = _grown(wider, parent, 0, "zero")
    for _, child in plants:
        inherit_weights(network, child, "random")
    return wider, network


def _grown_widths(architecture: Architecture, wider: Iterable[Architecture]) -> dict[str, int]:
    """How many channels more the wider ones of an architecture have, by the name of the width."""
    grown: dict[str, int] = {}
    for other in wider:
        # A width may be given in one alone: it follows another, or has come to be as wide.
        for name in {**architecture.widths, **other.widths}:
            if other.width(name) > architecture.width(name):
                grown[name] = other.width(name) - architecture.width(name)
    return grown


def _starts_equal(
    child: nn.Module,
    parent: nn.Module,
    image: tuple[int, int, int],
    filters: Filters,
    outgoing: Outgoing,
) -> bool:
    """Whether the child computes what its parent does, now and whatever the parent's weights.

    The second is tried with positive weights and images: no ReLU is silent then, so that the
    answer is one polynomial of the weights, and two of them are equal at random ones only where
    they are equal everywhere."""
    generator = torch.Generator().manual_seed(0)
    # Two tell as much as eight, and of large images eight in double precision take minutes.
    count = 8 if image[1] * image[2] <= 64 * 64 else 2
    images = torch.randn(count, *image, generator=generator, dtype=torch.float64)
    new, old = (copy.deepcopy(net).cpu().double().eval() for net in (child, parent))
    if not _same_answers(new, old, images):
        return False
    with torch.no_grad():
        for name, tensor in old.state_dict().items():
            if tensor.is_floating_point() and "running" not in name:
                scale = 1.0 if tensor.dim() < 2 else tensor[0].numel() ** -0.5
                tensor.copy_(scale * torch.randn(tensor.shape, generator=generator))
    inherit_weights(new, old, "zero" if outgoing == "zero" else "random")
    if filters == "zero":
        zero_filters_(new, old)
    for network in (new, old):
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                tensor.zero_() if "running_mean" in name else tensor.abs_()
    return _same_answers(new, old, images.abs())


def _same_answers(child: nn.Module, parent: nn.Module, images: Tensor) -> bool:
    with torch.no_grad():
        new, old = child(images), parent(images)
    if isinstance(old, Tensor):
        new, old = {"base": new}, {"base": old}
    return all(
        bool((new[name] - old[name]).abs().max() <= 1e-9 * (1 + old[name].abs().max()))
        for name in old
    )


def train_plant(
    child: nn.Module,
    parent: nn.Module,
    split: Split,
    recipe: Recipe,
    loss: Callable[[nn.Module, Batch], Tensor],
    *,
    teacher: Tensor | nn.Module | None,
    seed: int,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    pause: Callable[[], bool] = lambda: False,
) -> nn.Module:
    """Trains what is new in the child and nothing else (step 4), computing all of the child in each
    step; older parameters and statistics are bit for bit the parent's afterwards. What
    `train_round` computes faster, and the way for networks of several pipelines."""
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
        pause=pause,
    )
    return thaw_(child)


def live_channels(
    child: nn.Module, layer: str, first: int, split: Split, images: int = 10_000
) -> int | None:
    """How many channels of stage `layer` from `first` on answer to any of `images` images, drawn
    from the split.

    A ReLU that a bold learning rate has killed never does. None where no stage has that name.
    """
    stages = dict(child.named_children())
    if layer not in stages:
        return None
    answered: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        answered.append((output[:, first:] != 0).transpose(0, 1).flatten(1).any(dim=1))

    if len(split) > images:
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
        index = order[:images].to(split.labels.device)
        split = split.sample(index)
    hook = stages[layer].register_forward_hook(note)
    try:
        predict(child, split)
    finally:
        hook.remove()
    return int(torch.stack(answered).any(dim=0).sum())


def accept(
    losses: Mapping[str, float],
    parent_loss: float,
    added: Mapping[str, float] | None = None,
    most: int = 1,
) -> list[str]:
    """The candidates whose validation loss is below the parent's, best first, at most `most` (steps
    6 and 7: the smallest loss). With `added`, what each costs more than the parent (multiply-adds,
    parameters), best is the largest fall of the loss for it. Of equal ones the first is better."""
    fall = {name: parent_loss - loss for name, loss in losses.items() if loss < parent_loss}
    if added is None:
        key = {name: losses[name] for name in fall}
    else:
        key = {name: -fall[name] / added[name] for name in fall}
    return sorted(fall, key=lambda name: key[name])[:most]


def channels_to_plant(width: int, channels: int | float, multiple: int = 1) -> int:
    """How many channels a plant adds to a layer of `width`: a number, or a share of the width, such
    that the new width is a multiple of `multiple`; at least one, and rounded up."""
    wanted = width + (channels if isinstance(channels, int) else math.ceil(width * channels - 1e-9))
    return math.ceil(wanted / multiple) * multiple - width
