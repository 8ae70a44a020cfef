"""MobileNet (Howard et al., arXiv 1704.04861) for small images, as DKS uses it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from torch import nn

from planter.backbones.branch_plan import groups_left, reduced
from planter.backbones.staged import StagedNet, mean_head

_CHANNELS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
_STRIDED = ("sep6", "sep12")
_COPIED = {"sep6": ("sep6", "sep7", "sep8", "sep9"), "sep12": ("sep12", "sep13")}  # by a branch
WIDTHS = {"stem": 32, **{f"sep{i}": c for i, c in enumerate(_CHANNELS, start=1)}}


def mobilenet(
    widths: Mapping[str, int], *, classes: int = 10, image: Sequence[int] = (3, 32, 32)
) -> StagedNet:
    """A 3x3 convolution and thirteen depthwise separable ones, each a stage, mean, a linear layer.

    3,309,476 parameters with a hundred classes. `sepN` is the width of the pointwise convolution;
    the depthwise one has its input's. Two strides of 2, at `sep6` and `sep12`.
    """
    channels, height, width = image
    if min(height, width) < 4:
        raise ValueError(
            f"image {channels}x{height}x{width} is too small for mobilenet: "
            "two strides of 2 need at least 4 x 4 pixels"
        )
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    stages["stem"] = nn.Sequential(_conv_norm("", channels, widths["stem"], 3))
    channels = widths["stem"]
    for name in (name for name in WIDTHS if name != "stem"):
        stages[name] = _separable(name, channels, widths[name])
        channels = widths[name]
    return StagedNet(nn.Sequential(stages), mean_head(channels, classes))


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
    """DKS's auxiliary classifier of the map behind stage `after`, as in its authors' later code
    (DCM): four of the six layers from `sep6` on and the two from `sep12` on, or, where only these
    are left, the two at twice their width.

    2.64 M parameters before `sep6` with a hundred classes, 5.48 M before `sep12`.
    """
    left = groups_left(stages, after, _STRIDED)
    times = 2 if len(left) == 1 else 1
    plan = reduced(
        {group: [times * widths[name] for name in _COPIED[group]] for group in left}, kind
    )
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for group, planned in plan.items():
        for name, width in zip(_COPIED[group], planned, strict=False):
            parts[name] = _separable(name, channels, width)
            channels = width
    return nn.Sequential(OrderedDict(parts, head=mean_head(channels, classes)))


def _separable(name: str, channels: int, width: int) -> nn.Sequential:
    stride = 2 if name in _STRIDED else 1
    layers = _conv_norm("depth", channels, channels, 3, stride, groups=channels)
    layers.update(_conv_norm("point", channels, width, 1))
    return nn.Sequential(layers)


def _conv_norm(
    prefix: str, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1
) -> OrderedDict[str, nn.Module]:
    conv = nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    parts = {"conv": conv, "norm": nn.BatchNorm2d(out), "relu": nn.ReLU()}
    named = ((f"{prefix}_{name}" if prefix else name, part) for name, part in parts.items())
    return OrderedDict(named)
