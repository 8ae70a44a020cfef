"""The widths of a network, followed and tried out."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn

from planter.tracing.axes import Group
from planter.tracing.follow import Follow
from planter.tracing.resize import resize_, with_sizes
from planter.tracing.units import Found, groups_of


class Tried(NamedTuple):
    """What a forward pass found, or why there was none."""

    found: Found | None
    failed: str


def trace(network: nn.Module, image: Sequence[int]) -> Found:
    """The groups of channels of a network of images (channels, height, width), each with the name
    of its first layer, and the layers whose widths are fixed, with the operation that fixes them.

    One forward pass in eval mode is followed (`Follow`). Then all groups are made larger and
    followed again: those that the network's own code does not go along with are fixed. The
    network stays as it is. Raises ValueError where it cannot take the image.
    """
    with torch.device("cpu"):  # whatever the default is: labels are numbers
        return _traced(network, image)


def _traced(network: nn.Module, image: Sequence[int]) -> Found:
    light = without_data(network).eval()
    first = _followed(light, image)
    if first.found is None:  # its code asks for numbers, or makes tensors of its own
        light = copy.deepcopy(network).eval()
        first = _followed(light, image)
    if first.found is None:
        raise ValueError(f"the network cannot take an image of {list(image)}: {first.failed}")
    groups, fixed = list(first.found.groups), dict(first.found.fixed)
    free = _that_go_along(light, image, groups, range(len(groups)), fixed)
    bound = [group for i, group in enumerate(groups) if i not in free]
    groups = [groups[i] for i in free]
    for tied in _ties(bound):
        if _fails(light, image, [*groups, tied], range(len(groups) + 1)) is None:
            groups.append(tied)
            for name in [name for group in bound for name in group.widths if _shares(group, tied)]:
                fixed.pop(name, None)
    order = [group.widths for group in first.found.groups]
    return Found(tuple(sorted(groups, key=lambda group: order.index(group.widths))), fixed)


def _ties(bound: Sequence[Group]) -> Iterator[Group]:
    """Groups that cannot change alone, those of one layer as one: its maps are split into parts of
    one size, each of which goes a way of its own."""
    rest = list(bound)
    while rest:
        first = rest.pop(0)
        parts = [one for one in rest if one.size == first.size and _shares(one, first)]
        rest = [one for one in rest if one not in parts]
        if parts:
            axes = [axis for group in (first, *parts) for axis in group.axes]
            keeps = all(group.keeps for group in (first, *parts))
            yield Group(first.widths, first.size, tuple(axes), keeps=keeps)


def _shares(one: Group, other: Group) -> bool:
    """Whether one layer makes channels of both groups."""
    made = [{(a.tensor, a.axis) for a in group.axes if not a.reads} for group in (one, other)]
    return bool(made[0] & made[1])


def _that_go_along(
    network: nn.Module,
    image: Sequence[int],
    groups: Sequence[Group],
    chosen: Sequence[int],
    fixed: dict[str, str],
) -> list[int]:
    """Those of the chosen groups that can change, alone and together."""
    if not chosen:
        return []
    failed = _fails(network, image, groups, chosen)
    if failed is None:
        return list(chosen)
    if len(chosen) == 1:
        fixed[groups[chosen[0]].widths[0]] = failed
        return []
    middle = len(chosen) // 2
    free = _that_go_along(network, image, groups, chosen[:middle], fixed)
    more = _that_go_along(network, image, groups, chosen[middle:], fixed)
    if not free or not more or _fails(network, image, groups, [*free, *more]) is None:
        return [*free, *more]
    for i in more:
        failed = _fails(network, image, groups, [*free, i])
        if failed is None:
            free.append(i)
        else:
            fixed[groups[i].widths[0]] = failed
    return free


def _fails(
    network: nn.Module, image: Sequence[int], groups: Sequence[Group], chosen: Sequence[int]
) -> str | None:
    """Why the network cannot have more channels in these groups; None where it can."""
    # By several numbers, so that widths that are equal by chance no longer are, and by more than
    # one, which one half of a layer's maps could take alone.
    sizes = [group.size + (2 + i % 3 if i in chosen else 0) for i, group in enumerate(groups)]
    wider = resize_(copy.deepcopy(network), groups, sizes)
    found, failed = _followed(wider, image)
    if found is None:
        return failed
    expected = with_sizes(groups, sizes)
    known = {axis for group in found.groups for axis in group.axes}
    if not all(set(expected[i].axes) <= known for i in chosen):
        return "with another number of channels the network reads others"
    return _fails_in_training(wider, image) if _fails_in_training(network, image) is None else None


def _fails_in_training(network: nn.Module, image: Sequence[int]) -> str | None:
    """Why a network cannot take images in train mode, where it may do other things."""
    learning = copy.deepcopy(network).train()
    like = next(learning.parameters(), torch.empty(()))
    try:
        with torch.no_grad():
            learning(like.new_ones(2, *image))
    except Exception as error:  # as in `_followed`
        return f"train mode: {str(error).strip().partition(chr(10))[0]}"
    return None


def _followed(network: nn.Module, image: Sequence[int]) -> Tried:
    following = Follow(network)
    like = next(network.parameters(), torch.empty(()))
    images = like.new_ones(1, *image)
    try:
        with torch.no_grad(), following:
            outputs = network(images)
    except Exception as error:  # the user's code runs: whatever it raises is told
        first = str(error).strip().partition("\n")[0]
        return Tried(None, f"{following.last}: {first}" if following.last else first)
    following.finish(outputs)
    return Tried(groups_of(following.classes, network.state_dict()), "")


def without_data(network: nn.Module) -> nn.Module:
    """A copy of a network on torch's meta device: shapes without numbers."""
    tensors = [*network.parameters(), *network.buffers()]
    light: dict[int, object] = {}
    for tensor in tensors:
        empty = tensor.detach().to("meta")
        trained = isinstance(tensor, nn.Parameter)
        light[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if trained else empty
    return copy.deepcopy(network, light)
