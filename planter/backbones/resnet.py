"""Residual networks (He et al., CVPR 2016): those for CIFAR, and ResNet-18."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from planter.backbones.branch_plan import (
    Plan,
    counted_blocks,
    first_convolutions,
    grouped_blocks,
    groups_left,
    reduced,
    released_plan,
    short_plan,
)
from planter.backbones.staged import StagedNet, mean_head

WIDTHS = {"stem": 16, "group1": 16, "group2": 32, "group3": 64}
WIDTHS18 = {"stem": 64, "group1": 64, "group2": 128, "group3": 256, "group4": 512}
_GROUPS, _GROUPS18 = list(WIDTHS)[1:], list(WIDTHS18)[1:]


def blocks(*, depth: int = 32, blocks: Sequence[int] | None = None, **_: object) -> dict[str, int]:
    """The blocks of each group of a `resnet`."""
    return counted_blocks(_GROUPS, _blocks(depth), blocks)


def inner(*, depth: int = 32, blocks: Sequence[int] | None = None, **_: object) -> list[str]:
    """The first convolution of each block of a `resnet`."""
    return first_convolutions(counted_blocks(_GROUPS, _blocks(depth), blocks))


def inner18(**_: object) -> list[str]:
    """The first convolution of each block of a `resnet18`."""
    return first_convolutions(dict.fromkeys(_GROUPS18, 2))


def resnet(
    widths: Mapping[str, int],
    *,
    classes: int = 10,
    image: Sequence[int] = (3, 32, 32),
    depth: int = 32,
    shortcut: Literal["pad", "conv"] = "pad",
    blocks: Sequence[int] | None = None,
) -> StagedNet:
    """ResNet-`depth` for small images: a stem, three groups of (depth - 2) / 6 blocks, each block a
    stage (`group1_1`, ...), mean and one linear layer.

    464,154 parameters as ResNet-32 with ten classes. Where channels or size change, the shortcut
    takes every second pixel and pads with zero channels (option A of the paper, sec. 4.2), or is a
    1x1 convolution with batch norm (option B). `blocks` are those of each group where they are not
    as many.
    """
    counts = counted_blocks(_GROUPS, _blocks(depth), blocks)
    if shortcut not in ("pad", "conv"):
        raise ValueError(f"shortcut of a resnet is 'pad' or 'conv', got {shortcut!r}")
    _check_image("resnet", image, 4)
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    stages["stem"] = _stem(image[0], widths["stem"], kernel=3, stride=1)
    plan = {group: [widths[group]] * count for group, count in counts.items()}
    stages.update(grouped_blocks(widths["stem"], plan, partial(Block, shortcut=shortcut), widths))
    return StagedNet(nn.Sequential(stages), mean_head(widths["group3"], classes))


def resnet18(
    widths: Mapping[str, int],
    *,
    classes: int = 10,
    image: Sequence[int] = (3, 32, 32),
    stem: Literal["small", "imagenet"] = "small",
) -> StagedNet:
    """ResNet-18: a stem, four groups of two blocks, mean and one linear layer.

    The small stem is a 3x3 convolution (11,173,962 parameters with ten classes), ImageNet's a 7x7
    one of stride 2 with max-pooling (11,689,512 with a thousand).
    """
    if stem not in ("small", "imagenet"):
        raise ValueError(f"stem of a resnet18 is 'small' or 'imagenet', got {stem!r}")
    _check_image("resnet18", image, 8 if stem == "small" else 32)
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    if stem == "small":
        stages["stem"] = _stem(image[0], widths["stem"], kernel=3, stride=1)
    else:
        first = _stem(image[0], widths["stem"], kernel=7, stride=2)
        first.add_module("pool", nn.MaxPool2d(3, 2, padding=1))
        stages["stem"] = first
    plan = {group: [widths[group]] * 2 for group in _GROUPS18}
    stages.update(grouped_blocks(widths["stem"], plan, partial(Block, shortcut="conv"), widths))
    return StagedNet(nn.Sequential(stages), mean_head(widths["group4"], classes))


def branch(
    stages: nn.Sequential,
    after: str,
    channels: int,
    widths: Mapping[str, int],
    *,
    kind: str,
    classes: int,
    depth: int,
    shortcut: str,
    **_: object,
) -> nn.Sequential:
    """DKS's auxiliary classifier of the map behind stage `after` of a `resnet`."""
    left = groups_left(stages, after, _GROUPS)
    plan = released_plan({group: widths[group] for group in left}, _blocks(depth))
    return _branch(channels, reduced(plan, kind), shortcut, classes)


def branch18(
    stages: nn.Sequential,
    after: str,
    channels: int,
    widths: Mapping[str, int],
    *,
    kind: str,
    classes: int,
    **_: object,
) -> nn.Sequential:
    """DKS's auxiliary classifier of the map behind stage `after` of a `resnet18`."""
    left = groups_left(stages, after, _GROUPS18)
    plan = short_plan({group: widths[group] for group in left})
    return _branch(channels, reduced(plan, kind), "conv", classes)


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm, `inner` channels between them, around them a shortcut,
    ReLU after the sum."""

    def __init__(
        self, channels: int, inner: int, out_channels: int, stride: int, shortcut: str
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inner, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()  # a module: planter.cost counts those for macs_all
        self.shortcut: nn.Module
        if stride == 1 and channels == out_channels:
            self.shortcut = nn.Identity()
        elif shortcut == "pad":
            self.shortcut = PaddedShortcut(channels, out_channels, stride)
        else:
            conv = nn.Conv2d(channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(out_channels)))

    def start_as_identity_(self) -> None:
        """Makes the block hand on what it gets (a map behind a ReLU, of its own width) until it
        has learned."""
        nn.init.zeros_(self.norm2.weight)
        nn.init.zeros_(self.norm2.bias)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.relu(self.norm1(self.conv1(x)))
        total: Tensor = self.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))
        return total


class PaddedShortcut(nn.Module):
    """Every `stride`-th pixel; missing channels are zero, channels too many left out."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.missing = out_channels - channels

    def forward(self, x: Tensor) -> Tensor:
        picked = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(picked, [0, 0, 0, 0, 0, self.missing])


def _blocks(depth: int) -> int:
    """How many blocks each group of a `resnet` has."""
    if not isinstance(depth, int) or depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth of a resnet is 6 n + 2 (8, 14, 20, 26, 32, ...), got {depth!r}")
    return (depth - 2) // 6


def _stem(channels: int, out_channels: int, *, kernel: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(out_channels), relu=nn.ReLU()))


def _branch(channels: int, plan: Plan, shortcut: str, classes: int) -> nn.Sequential:
    *_, last = plan.values()
    head = mean_head(last[-1], classes)
    blocks = grouped_blocks(channels, plan, partial(Block, shortcut=shortcut))
    return nn.Sequential(OrderedDict(blocks, head=head))


def _check_image(name: str, image: Sequence[int], least: int) -> None:
    channels, height, width = image
    if min(height, width) < least:
        raise ValueError(
            f"image {channels}x{height}x{width} is too small for {name}: "
            f"its strides need at least {least} x {least} pixels"
        )
