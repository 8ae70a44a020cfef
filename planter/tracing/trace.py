"""The widths of a network, followed and tried out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
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
    light = without_data(network).eval()
    first = _followed(light, image)
    if first.found is None:  # its code asks for numbers, or makes tensors of its own
        light = copy.deepcopy(network).eval()
        first = _followed(light, image)
    if first.found is None:
        raise ValueError(f"the network cannot take an image of {list(image)}: {first.failed}")
    groups, fixed = list(first.found.groups), dict(first.found.fixed)
    free = _that_go_along(light, image, groups, range(len(groups)), fixed)
    return Found(tuple(groups[i] for i in free), fixed)


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
    # By several numbers: where two widths are equal by chance, they no longer are.
    sizes = [group.size + (1 + i % 3 if i in chosen else 0) for i, group in enumerate(groups)]
    wider = resize_(copy.deepcopy(network), groups, sizes)
    found, failed = _followed(wider, image)
    if found is None:
        return failed
    expected = with_sizes(groups, sizes)
    if {_plain(expected[i]) for i in chosen} <= {_plain(group) for group in found.groups}:
        return None
    return "with another number of channels the network reads others"


def _plain(group: Group) -> Group:
    return replace(
        group, axes=tuple(sorted(group.axes, key=lambda a: (a.tensor, a.axis, a.offset)))
    )


def _followed(network: nn.Module, image: Sequence[int]) -> Tried:
    following = Follow(network)
    device = next((tensor.device for tensor in network.parameters()), None)
    try:
        with torch.no_grad(), following:
            outputs = network(torch.ones(1, *image, device=device))
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
