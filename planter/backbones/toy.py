"""The toy network of multi-pipeline training (Hu, arXiv 2112.13727, Table 2)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from torch import nn

from planter.backbones.staged import StagedNet, dense_head

WIDTHS = {"conv1": 32, "conv2": 32, "conv3": 64, "conv4": 64, "fc1": 512}


def toy(
    widths: Mapping[str, int], *, classes: int = 10, image: Sequence[int] = (3, 32, 32)
) -> StagedNet:
    """Four 3x3 convolutions, pooling after the second and the fourth, two fully connected layers.

    The paper does not say how the fully connected layer meets images of 64 or 128 pixels; here
    its input grows with the map (8,459,818 parameters at 64 pixels).
    """
    channels, height, width = image
    if min(height, width) < 4:
        raise ValueError(
            f"image {channels}x{height}x{width} is too small for toy: "
            "two poolings need at least 4 x 4 pixels"
        )
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    for name in ("conv1", "conv2", "conv3", "conv4"):
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv"] = nn.Conv2d(channels, widths[name], 3, padding=1)
        layers["relu"] = nn.ReLU()
        if name in ("conv2", "conv4"):
            layers["pool"] = nn.MaxPool2d(2)
            height, width = height // 2, width // 2
        stages[name] = nn.Sequential(layers)
        channels = widths[name]
    head = dense_head((channels, height, width), widths["fc1"], classes)
    return StagedNet(nn.Sequential(stages), head)
