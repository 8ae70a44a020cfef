"""Layers that treat channels in groups: what another width makes of the groups they had."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn

_Conv = nn.modules.conv._ConvNd


def is_grouped(model: nn.Module) -> bool:
    """Whether a network has layers whose groups another width could cut anew: group and layer
    norms, and grouped convolutions but depthwise ones."""
    return any(
        isinstance(module, nn.GroupNorm | nn.LayerNorm)
        or (isinstance(module, _Conv) and 1 < module.groups < module.in_channels)
        for module in model.modules()
    )


def regrouped(child: nn.Module, parent: nn.Module) -> list[str]:
    """The layers of a wider network whose groups hold other channels than the parent's do, each in
    words: what they compute of old channels changes, whatever the new ones are."""
    before = dict(parent.named_modules())
    found = []
    for name, new in child.named_modules():
        old = before.get(name)
        if isinstance(new, nn.GroupNorm) and isinstance(old, nn.GroupNorm):
            sizes = _sizes(lambda norm: norm.num_channels // norm.num_groups, old, new)
            how = "normalises"
        elif isinstance(new, nn.LayerNorm) and isinstance(old, nn.LayerNorm):
            sizes = _sizes(lambda norm: math.prod(norm.normalized_shape), old, new)
            how = "normalises"
        elif isinstance(new, _Conv) and isinstance(old, _Conv) and old.groups > 1:
            sizes = _sizes(lambda conv: conv.in_channels // conv.groups, old, new)
            if sizes is None:
                sizes = _sizes(lambda conv: conv.out_channels // conv.groups, old, new)
            how = "computes from"
        else:
            continue
        if sizes is not None:
            kind = type(new).__name__
            found.append(
                f"{kind} {name} {how} groups of {sizes[0]} channels, of {sizes[1]} when wider"
            )
    return found


def _sizes(size: Callable[..., int], old: nn.Module, new: nn.Module) -> tuple[int, int] | None:
    """The channels of a group before and after, None where they are as many."""
    before, after = size(old), size(new)
    return None if before == after else (before, after)
