"""A network with other widths, made of the network itself."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from planter.tracing.axes import Axis, Group

_Part = tuple[int, Axis]
"""A group's place among the groups, and a part of an axis that is its."""


def with_sizes(groups: Sequence[Group], sizes: Sequence[int]) -> list[Group]:
    """The groups of the network whose groups have these sizes: what stands behind a part of an axis
    moves with it."""
    moved: dict[_Part, Axis] = {}
    for parts in _by_place(groups).values():
        shift = 0
        for i, axis in parts:
            moved[i, axis] = replace(axis, offset=axis.offset + shift)
            shift += (sizes[i] - groups[i].size) * axis.repeat
    return [
        replace(group, size=size, axes=tuple(moved[i, axis] for axis in group.axes))
        for i, (group, size) in enumerate(zip(groups, sizes, strict=True))
    ]


def resize_(network: nn.Module, groups: Sequence[Group], sizes: Sequence[int]) -> nn.Module:
    """Gives a freshly initialised network groups of other sizes, in place; returns it.

    The leading channels stay; the values of new ones are drawn from those that the tensor had, so
    that whatever initialisation the network has of its own goes on: ones where all are ones.
    Weights are scaled to their number of inputs, which keeps a layer's outputs as large.
    """
    by_tensor: dict[str, dict[int, list[_Part]]] = defaultdict(dict)
    for (tensor, place), parts in _by_place(groups).items():
        if any(sizes[i] != groups[i].size for i, _ in parts):
            by_tensor[tensor][place] = parts
    made: dict[int, Tensor] = {}
    state = network.state_dict(keep_vars=True)
    for name, axes in by_tensor.items():
        old = state[name]
        if id(old) not in made:  # tied tensors stay tied
            values = old.detach()
            for place, parts in axes.items():
                values = _resized(values, place, parts, groups, sizes)
            trained = isinstance(old, nn.Parameter)
            made[id(old)] = nn.Parameter(values, old.requires_grad) if trained else values
        owner, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(owner), leaf, made[id(old)])
    for name in dict.fromkeys(tensor.rpartition(".")[0] for tensor in by_tensor):
        _tell_(network.get_submodule(name))
    return network


def _by_place(groups: Sequence[Group]) -> dict[tuple[str, int], list[_Part]]:
    """The parts of each axis, in their order."""
    found: dict[tuple[str, int], list[_Part]] = defaultdict(list)
    for i, group in enumerate(groups):
        for axis in group.axes:
            found[axis.tensor, axis.axis].append((i, axis))
    for parts in found.values():
        parts.sort(key=lambda part: part[1].offset)
    return found


def _resized(
    values: Tensor,
    place: int,
    parts: Sequence[_Part],
    groups: Sequence[Group],
    sizes: Sequence[int],
) -> Tensor:
    """The tensor with parts of an axis of other lengths."""
    length = values.shape[place]
    added = sum((sizes[i] - groups[i].size) * axis.repeat for i, axis in parts)
    if values.is_meta:
        shape = list(values.shape)
        shape[place] += added
        return values.new_empty(shape)
    kept: list[Tensor] = []
    at = 0
    for i, axis in parts:
        kept.append(torch.arange(at, axis.offset))
        whole = groups[i].size * axis.repeat
        wanted = torch.arange(sizes[i] * axis.repeat)
        kept.append(torch.where(wanted < whole, wanted + axis.offset, -1))
        at = axis.offset + whole
    source = torch.cat([*kept, torch.arange(at, length)])
    source = source.to(values.device)
    taken = values.index_select(place, source.clamp_min(0))
    fresh = (source < 0).nonzero().flatten()
    if len(fresh):
        block = taken.index_select(place, fresh)
        drawn = torch.randint(values.numel(), block.shape)
        taken.index_copy_(place, fresh, values.reshape(-1)[drawn.to(values.device)])
    if any(axis.reads for _, axis in parts) and values.dim() > 1:
        taken = taken * math.sqrt(length / len(source))
    return taken


def _tell_(layer: nn.Module) -> None:
    """Gives a layer of torch's own the attributes that its tensors' shapes ask for."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        return
    if isinstance(layer, nn.modules.conv._ConvNd):
        # The first axis has all groups, the second the channels of one of them.
        sides = [layer.out_channels, layer.in_channels]
        first = sides[1] if layer.transposed else sides[0]
        layer.groups = weight.shape[0] * layer.groups // first if layer.groups > 1 else 1
        sides = [weight.shape[0], weight.shape[1] * layer.groups]
        layer.out_channels, layer.in_channels = sides[::-1] if layer.transposed else sides
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    elif isinstance(layer, nn.modules.batchnorm._NormBase):
        layer.num_features = len(weight)
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = tuple(weight.shape)
    elif isinstance(layer, nn.GroupNorm):
        if layer.num_groups > 1:
            layer.num_groups = len(weight) * layer.num_groups // layer.num_channels
        layer.num_channels = len(weight)
