"""Auxiliary branches of torchvision's residual networks, made of torchvision's own blocks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import nn

from planter.backbones.branch_plan import groups_left, reduced, short_plan

_LAYERS = ("layer1", "layer2", "layer3", "layer4")


def branch(
    stages: nn.Sequential,
    after: str,
    channels: int,
    widths: Mapping[str, int],
    *,
    kind: str,
    classes: int,
    **_: object,
) -> nn.Sequential:
    """DKS's auxiliary classifier of the map behind stage `after` of a torchvision `ResNet`, with
    the initial weights that it would have there. The networks' widths are read off `stages`."""
    left = groups_left(stages, after, _LAYERS)
    copied: dict[str, Any] = {layer: stages.get_submodule(f"{layer}_1") for layer in left}
    plan = short_plan({layer: _planes(block) for layer, block in copied.items()})
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for layer, planned in reduced(plan, kind).items():
        for i, planes in enumerate(planned):
            stride = 2 if i == 0 and layer != "layer1" else 1
            parts[f"{layer}_{i + 1}"] = _like(copied[layer], channels, planes, stride)
            channels = planes * copied[layer].expansion
    head = OrderedDict(
        avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(channels, classes)
    )
    made = nn.Sequential(OrderedDict(parts, head=nn.Sequential(head)))
    for module in made.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return made


def _planes(block: Any) -> int:
    convs = [part for part in block.children() if isinstance(part, nn.Conv2d)]
    planes: int = convs[-1].out_channels // block.expansion
    return planes


def _like(block: Any, channels: int, planes: int, stride: int) -> nn.Module:
    """A fresh block of the same class, groups and inner width for each of its planes."""
    # torchvision's BasicBlock (expansion 1) takes no other than 1 and 64.
    groups = block.conv2.groups
    inner = 64 * block.conv2.out_channels // (groups * _planes(block))
    out = planes * block.expansion
    downsample = None
    if stride != 1 or channels != out:
        conv = nn.Conv2d(channels, out, 1, stride, bias=False)
        downsample = nn.Sequential(conv, nn.BatchNorm2d(out))
    made: nn.Module = type(block)(
        channels, planes, stride, downsample, groups=groups, base_width=inner
    )
    return made
