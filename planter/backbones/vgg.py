"""VGG16 with batch norm for small images, as CNSN and KFLO use it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import nn

from planter.backbones.staged import StagedNet

_CHANNELS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
_POOL_AFTER = ("conv2", "conv4", "conv7", "conv10", "conv13")
_CONVS = {f"conv{i}": channels for i, channels in enumerate(_CHANNELS, start=1)}


def widths(*, head: str = "single", **_: object) -> dict[str, int]:
    """Channels of each convolution and, where the head has one, units of its hidden layer."""
    return {**_CONVS, "fc1": 512} if head == "hidden" else dict(_CONVS)


def vgg16(
    widths: Mapping[str, int],
    *,
    classes: int = 10,
    image: Sequence[int] = (3, 32, 32),
    head: Literal["single", "hidden"] = "single",
) -> StagedNet:
    """Thirteen 3x3 convolutions without bias, each with batch norm and ReLU, and a head: one linear
    layer (CNSN), or two with ReLU between them and `fc1` units (KFLO).

    14,724,042 parameters with ten classes and the single layer. A map larger than 1 x 1 at the end
    is averaged.
    """
    if head not in ("single", "hidden"):
        raise ValueError(f"head of a vgg16 is 'single' or 'hidden', got {head!r}")
    channels, height, width = image
    if min(height, width) < 32:
        raise ValueError(
            f"image {channels}x{height}x{width} is too small for vgg16: "
            "five poolings need at least 32 x 32 pixels"
        )
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    for name in _CONVS:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv"] = nn.Conv2d(channels, widths[name], 3, padding=1, bias=False)
        layers["norm"] = nn.BatchNorm2d(widths[name])
        layers["relu"] = nn.ReLU()
        if name in _POOL_AFTER:
            layers["pool"] = nn.MaxPool2d(2)
        stages[name] = nn.Sequential(layers)
        channels = widths[name]
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["pool"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    if head == "hidden":
        parts["fc1"] = nn.Linear(channels, widths["fc1"])
        parts["relu"] = nn.ReLU()
        channels = widths["fc1"]
    parts["fc"] = nn.Linear(channels, classes)
    return StagedNet(nn.Sequential(stages), nn.Sequential(parts))
