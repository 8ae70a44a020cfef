"""How large each group of channels is to be, so that a network costs what it shall."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from planter.arch import Architecture
from planter.backbones import canonical, is_traced
from planter.channels.groups import network_without_data, with_widths
from planter.costs.resized import macs_by_sizes
from planter.edits.narrow import widths_of
from planter.evolution.edit import EditError, macs_of
from planter.tracing.axes import Group

_HALVINGS = 14
"""Of the interval in which the factor of all sizes is searched."""

SizesAt = Callable[[float], list[int]]
"""Sizes of the groups that grow with a number between 0 and 1."""


def sizes_for(
    architecture: Architecture,
    pipeline: str,
    groups: Sequence[Group],
    most: float,
    sizes_at: SizesAt,
    within: Callable[[Architecture], bool] = lambda _: True,
) -> tuple[Architecture, list[int]]:
    """The architecture of the largest sizes whose network costs `most` multiply-adds or less, and
    is `within` what else bounds it.

    Raises EditError where not even the smallest is, or where another layer would come or go with
    every size nearby.
    """

    def built(sizes: Sequence[int]) -> int:
        return macs_of(with_widths(architecture, widths_of(groups, sizes)), pipeline)

    counted = macs_by_sizes(architecture, pipeline, groups) if is_traced(architecture) else None
    macs = counted or built

    def fits(sizes: Sequence[int]) -> bool:
        # Multiply-adds first: of a traced network they are known without building it.
        return macs(sizes) <= most and within(with_widths(architecture, widths_of(groups, sizes)))

    low, high = 0.0, 1.0
    best = sizes_at(low)
    if macs(best) > most:
        raise EditError(f"its smallest network costs {macs(best):,} macs, more than {int(most):,}")
    if not fits(best):
        raise EditError("its smallest network is beyond the study's bounds")
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        sizes = sizes_at(middle)
        if fits(sizes):
            low, best = middle, sizes
        else:
            high = middle
    best = _filled(groups, best, fits, sizes_at(1.0))
    sizes = _with_the_same_layers(architecture, pipeline, groups, best)
    return canonical(with_widths(architecture, widths_of(groups, sizes))), sizes


def _filled(
    groups: Sequence[Group],
    sizes: list[int],
    fits: Callable[[list[int]], bool],
    largest: Sequence[int],
) -> list[int]:
    """The sizes with single channels more, as long as they fit: where layers are narrow, one factor
    of all sizes jumps. The group that has lost most gets the first."""
    open_ = [i for i in range(len(sizes)) if sizes[i] < largest[i]]
    while open_:
        i = min(open_, key=lambda i: sizes[i] / groups[i].size)
        more = [*sizes[:i], sizes[i] + 1, *sizes[i + 1 :]]
        if fits(more):
            sizes = more
        if sizes is not more or sizes[i] >= largest[i]:
            open_.remove(i)
    return sizes


def _with_the_same_layers(
    architecture: Architecture, pipeline: str, groups: Sequence[Group], sizes: list[int]
) -> list[int]:
    """The sizes, one of them smaller by one where two that have become equal would take a
    shortcut's layer away."""
    if is_traced(architecture):  # its layers are what they are
        return sizes
    layers = network_without_data(architecture, pipeline).state_dict().keys()
    nearby = [sizes] + [
        [*sizes[:i], sizes[i] - 1, *sizes[i + 1 :]] for i in range(len(sizes)) if sizes[i] > 1
    ]
    for tried in nearby:
        child = with_widths(architecture, widths_of(groups, tried))
        if network_without_data(child, pipeline).state_dict().keys() == layers:
            return tried
    raise EditError("widths near these would add or remove the layer of a shortcut")


def even(groups: Sequence[Group], smallest: float, largest: float) -> SizesAt:
    """All sizes times one factor, between `smallest` and `largest`; one channel at least."""

    def sizes_at(at: float) -> list[int]:
        # In the logarithm, so that halving and doubling are equally far.
        factor = smallest * (largest / smallest) ** at
        return [max(round(group.size * factor), 1) for group in groups]

    return sizes_at


def ranked(scores: Sequence[Tensor], least: float) -> SizesAt:
    """The channels of the largest scores over all groups, `least` of each group at least. Scores of
    a group count by their mean."""
    relative = [score / score.mean().clamp_min(1e-30) for score in scores]
    every = torch.cat(relative)
    # Stable: of equal scores the earlier channel stays, so that a number of channels is that many.
    order = every.sort(descending=True, stable=True).indices
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    places = place.split([len(score) for score in relative])  # type: ignore[no-untyped-call]

    def sizes_at(at: float) -> list[int]:
        kept = round(at * len(order))
        return [
            max(int((places_of < kept).sum()), math.ceil(least * len(places_of)), 1)
            for places_of in places
        ]

    return sizes_at


def chosen(group: Group, scores: Tensor, size: int) -> Tensor:
    """Indices, rising, of the channels of a group that stay: those of the largest scores, or the
    leading ones where the order of channels matters."""
    if not group.free:
        return torch.arange(size)
    best = scores.sort(descending=True, stable=True).indices[:size]
    return best.sort().values.cpu()
