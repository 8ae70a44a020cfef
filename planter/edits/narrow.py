"""From a network to one with fewer channels: those that stay keep their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from planter.kernels.blocks import expanded_layers
from planter.tracing.axes import Axis, Group

_Part = tuple[Axis, int, Tensor]
"""A part of an axis, its group's size, and the channels of it that stay."""


def inherit_channels_(
    child: nn.Module, parent: nn.Module, groups: Sequence[Group], kept: Sequence[Tensor]
) -> nn.Module:
    """Copies into a narrower child what the parent has of the channels that stay: `kept` are their
    indices, rising, a tensor for each of the `groups` (`planter.channels`). All other axes are
    copied whole. Returns the child.

    Where `kept` are all channels, the child is the parent. Norm statistics come along, though what
    reads fewer channels has others: train, or recompute them (`recalibrate_batchnorm_`). Raises
    ValueError where a layer of the parent is expanded, and for a child of other layers or widths.
    """
    if expanded := expanded_layers(parent):
        raise ValueError(f"{expanded[0]} is expanded; collapse_kernels_(model) first")
    places = _places(groups, kept)
    old, new = parent.state_dict(), child.state_dict()
    if other := sorted(old.keys() ^ new.keys()):
        raise ValueError(f"the narrower network has other layers than its parent: {other[0]}")
    with torch.no_grad():
        for name, target in new.items():
            source = _taken(old[name], places.get(name, {}))
            if source.shape != target.shape:
                raise ValueError(
                    f"{name} is {list(source.shape)} in the channels that stay, "
                    f"{list(target.shape)} in the child"
                )
            target.copy_(source)
    return child


def narrowed(
    moments: Mapping[str, Mapping[str, Tensor]], groups: Sequence[Group], kept: Sequence[Tensor]
) -> dict[str, dict[str, Tensor]]:
    """What an optimiser has learned of a network's parameters, by name, of the channels that stay
    alone: each number belongs to an entry of its parameter, those without axes (counts of steps)
    to all of it. `kept` as for `inherit_channels_`."""
    places = _places(groups, kept)
    return {
        name: {
            key: _taken(value, places.get(name, {})) if value.dim() else value
            for key, value in learned.items()
        }
        for name, learned in moments.items()
    }


def _places(groups: Sequence[Group], kept: Sequence[Tensor]) -> dict[str, dict[int, list[_Part]]]:
    """By tensor and axis, the parts that lose channels."""
    places: dict[str, dict[int, list[_Part]]] = {}
    for group, channels in zip(groups, kept, strict=True):
        for axis in group.axes:
            parts = places.setdefault(axis.tensor, {}).setdefault(axis.axis, [])
            parts.append((axis, group.size, channels))
    return places


def _taken(tensor: Tensor, places: Mapping[int, Sequence[_Part]]) -> Tensor:
    """The entries that stay, in their order: of parts those of the channels kept."""
    for place, parts in places.items():
        stays = torch.ones(tensor.shape[place], dtype=torch.bool)
        for axis, size, channels in parts:
            stays[axis.indices(torch.arange(size))] = False
            stays[axis.indices(channels.cpu())] = True
        tensor = tensor.index_select(place, stays.nonzero().flatten().to(tensor.device))
    return tensor


def widths_of(groups: Sequence[Group], sizes: Mapping[int, int] | Sequence[int]) -> dict[str, int]:
    """The widths of groups of these sizes, by name."""
    return {name: sizes[i] for i, group in enumerate(groups) for name in group.widths}
