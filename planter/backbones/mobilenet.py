"""MobileNet (Howard et al., arXiv 1704.04861) for small images, as DKS uses it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from torch import nn

from planter.backbones.staged import StagedNet

_CHANNELS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
_STRIDED = ("sep6", "sep12")
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
        stride = 2 if name in _STRIDED else 1
        layers = _conv_norm("depth", channels, channels, 3, stride, groups=channels)
        layers.update(_conv_norm("point", channels, widths[name], 1))
        stages[name] = nn.Sequential(layers)
        channels = widths[name]
    head = nn.Sequential(
        OrderedDict(
            pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(channels, classes)
        )
    )
    return StagedNet(nn.Sequential(stages), head)


def _conv_norm(
    prefix: str, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1
) -> OrderedDict[str, nn.Module]:
    conv = nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    parts = {"conv": conv, "norm": nn.BatchNorm2d(out), "relu": nn.ReLU()}
    named = ((f"{prefix}_{name}" if prefix else name, part) for name, part in parts.items())
    return OrderedDict(named)
