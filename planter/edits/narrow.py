"""From a network to one with fewer channels: those that stay keep their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from planter.channels.groups import Group
from planter.kernels.blocks import expanded_layers


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
    axes = _axes(groups, kept)
    old, new = parent.state_dict(), child.state_dict()
    if other := sorted(old.keys() ^ new.keys()):
        raise ValueError(f"the narrower network has other layers than its parent: {other[0]}")
    with torch.no_grad():
        for name, target in new.items():
            source = _taken(old[name], axes.get(name, []))
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
    axes = _axes(groups, kept)
    return {
        name: {
            key: _taken(value, axes.get(name, [])) if value.dim() else value
            for key, value in learned.items()
        }
        for name, learned in moments.items()
    }


def _axes(groups: Sequence[Group], kept: Sequence[Tensor]) -> dict[str, list[tuple[int, Tensor]]]:
    """By tensor, the axes that lose channels, each with the indices that stay."""
    axes: dict[str, list[tuple[int, Tensor]]] = {}
    for group, channels in zip(groups, kept, strict=True):
        for axis in group.axes:
            axes.setdefault(axis.tensor, []).append((axis.axis, axis.indices(channels)))
    return axes


def _taken(tensor: Tensor, axes: Sequence[tuple[int, Tensor]]) -> Tensor:
    for place, indices in axes:
        tensor = tensor.index_select(place, indices.to(tensor.device))
    return tensor


def widths_of(groups: Sequence[Group], sizes: Mapping[int, int] | Sequence[int]) -> dict[str, int]:
    """The widths of groups of these sizes, by name."""
    return {name: sizes[i] for i, group in enumerate(groups) for name in group.widths}
