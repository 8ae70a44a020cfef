"""VGG16 with batch norm for small images, as CNSN uses it (Fuengfusin and Tamukoh, sec. 3)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from torch import nn

from planter.backbones.staged import StagedNet

_CHANNELS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
_POOL_AFTER = ("conv2", "conv4", "conv7", "conv10", "conv13")
WIDTHS = {f"conv{i}": channels for i, channels in enumerate(_CHANNELS, start=1)}


def vgg16(
    widths: Mapping[str, int], *, classes: int = 10, image: Sequence[int] = (3, 32, 32)
) -> StagedNet:
    """Thirteen 3x3 convolutions without bias, each with batch norm and ReLU, one linear layer.

    14,724,042 parameters with ten classes. A map larger than 1 x 1 at the end is averaged.
    """
    channels, height, width = image
    if min(height, width) < 32:
        raise ValueError(
            f"image {channels}x{height}x{width} is too small for vgg16: "
            "five poolings need at least 32 x 32 pixels"
        )
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    for name in WIDTHS:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv"] = nn.Conv2d(channels, widths[name], 3, padding=1, bias=False)
        layers["norm"] = nn.BatchNorm2d(widths[name])
        layers["relu"] = nn.ReLU()
        if name in _POOL_AFTER:
            layers["pool"] = nn.MaxPool2d(2)
        stages[name] = nn.Sequential(layers)
        channels = widths[name]
    head = nn.Sequential(
        OrderedDict(
            pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(channels, classes)
        )
    )
    return StagedNet(nn.Sequential(stages), head)
