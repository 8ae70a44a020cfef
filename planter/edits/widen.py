"""From a network to one with more channels in places that only its groups know."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from planter.kernels.blocks import expanded_layers
from planter.tracing.axes import Axis, Group


def inherit_parts_(
    child: nn.Module, parent: nn.Module, before: Sequence[Group], after: Sequence[Group]
) -> nn.Module:
    """Copies a parent's state into a child with more channels, group by group, and returns it:
    `before` are the parent's groups, `after` the same ones of the child (`planter.channels`). New
    channels stand behind the old ones of their group, also where maps are concatenated. What reads
    them is zero, so that the child computes what the parent does where all groups `keep`; else they
    have the child's fresh values.

    Raises ValueError where a layer of the parent is expanded.
    """
    if expanded := expanded_layers(parent):
        raise ValueError(f"{expanded[0]} is expanded; collapse_kernels_(model) first")
    old, new = parent.state_dict(), child.state_dict()
    parts: dict[str, list[tuple[Axis, int, Axis, int]]] = {}
    for ours, theirs in zip(before, after, strict=True):
        for axis, wider in zip(ours.axes, theirs.axes, strict=True):
            parts.setdefault(axis.tensor, []).append((axis, ours.size, wider, theirs.size))
    with torch.no_grad():
        for name, target in new.items():
            source = old[name].to(target)
            places: list[Tensor] = []
            for place, length in enumerate(target.shape):
                own = [one for one in parts.get(name, []) if one[0].axis == place]
                taken = _old_entries(length, own)
                if any(axis.reads for axis, *_ in own):
                    fresh = torch.ones(length, dtype=torch.bool)
                    fresh[taken] = False
                    target.index_fill_(place, fresh.nonzero().flatten().to(target.device), 0)
                # Its own axis of an index of all: they broadcast to the block that was there.
                shape = [-1 if axis == place else 1 for axis in range(target.dim())]
                places.append(taken.to(target.device).view(shape))
            target[tuple(places)] = source
    return child


def _old_entries(length: int, parts: Sequence[tuple[Axis, int, Axis, int]]) -> Tensor:
    """Where on an axis of the child the parent's entries stand, in their order."""
    stays = torch.ones(length, dtype=torch.bool)
    for _, size, wider, grown in parts:
        stays[wider.indices(torch.arange(size, grown))] = False
    return stays.nonzero().flatten()
