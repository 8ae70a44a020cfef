"""From a network to one with more channels in places that only its groups know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    parts = _parts(before, after)
    with torch.no_grad():
        for name, target in new.items():
            _put_(target, old[name], parts.get(name, []))
    return child


def widened(
    moments: Mapping[str, Mapping[str, Tensor]],
    child: nn.Module,
    before: Sequence[Group],
    after: Sequence[Group],
) -> dict[str, dict[str, Tensor]]:
    """What an optimiser has learned of a parent's parameters, by name, for those of a child with
    more channels; zeros for the new ones. Groups as for `inherit_parts_`."""
    parts = _parts(before, after)
    shapes = {name: parameter.shape for name, parameter in child.named_parameters()}
    grown: dict[str, dict[str, Tensor]] = {}
    for name, learned in moments.items():
        grown[name] = dict(learned)
        for key, value in learned.items():
            if value.dim():
                grown[name][key] = value.new_zeros(shapes[name])
                _put_(grown[name][key], value, parts.get(name, []))
    return grown


_Part = tuple[Axis, int, Axis, int]
"""A part of an axis and its group's size, of the parent and of the child."""


def _parts(before: Sequence[Group], after: Sequence[Group]) -> dict[str, list[_Part]]:
    """By tensor."""
    parts: dict[str, list[_Part]] = {}
    for ours, theirs in zip(before, after, strict=True):
        for axis, wider in zip(ours.axes, theirs.axes, strict=True):
            parts.setdefault(axis.tensor, []).append((axis, ours.size, wider, theirs.size))
    return parts


def _put_(target: Tensor, source: Tensor, parts: Sequence[_Part]) -> None:
    """Writes a parent's tensor into a child's; what reads new channels becomes zero."""
    places: list[Tensor] = []
    for place, length in enumerate(target.shape):
        own = [one for one in parts if one[0].axis == place]
        old = torch.ones(length, dtype=torch.bool)
        for _, size, wider, grown in own:
            old[wider.indices(torch.arange(size, grown))] = False
        if any(axis.reads for axis, *_ in own):
            target.index_fill_(place, (~old).nonzero().flatten().to(target.device), 0)
        # Each axis has its own axis of an index of all: they broadcast to the block that was there.
        shape = [-1 if axis == place else 1 for axis in range(target.dim())]
        places.append(old.nonzero().view(shape).to(target.device))
    if places:
        target[tuple(places)] = source.to(target)
    else:
        target.copy_(source)
