"""The five-convolution network of channel planting (Mitsuno et al., ICPR 2020)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from torch import nn

from planter.backbones.staged import StagedNet, dense_head

WIDTHS = {"conv1": 16, "conv2": 16, "conv3": 16, "conv4": 16, "conv5": 16, "fc1": 128}


def convnet(
    widths: Mapping[str, int],
    *,
    classes: int = 10,
    image: Sequence[int] = (3, 32, 32),
    pool_after: Sequence[str] | None = None,
) -> StagedNet:
    """Five 3x3 convolutions with bias and ReLU, max-pooling, two fully connected layers, no norm.

    `pool_after` names the convolutions followed by 2x2 max-pooling; by default the paper's places:
    conv1, conv2, conv5 for images below 64 pixels (CIFAR), conv3 as well from there on (STL-10).
    `fc1` is 128 whatever the other widths are (settled by the paper's parameter counts).
    """
    channels, height, width = image
    if pool_after is None:
        small = min(height, width) < 64
        pool_after = ("conv1", "conv2", "conv5") if small else ("conv1", "conv2", "conv3", "conv5")
    names = [name for name in WIDTHS if name.startswith("conv")]
    if unknown := set(pool_after) - set(names):
        raise ValueError(f"pool_after names {sorted(unknown)}; convolutions are {', '.join(names)}")
    least = 2 ** len(pool_after)
    if min(height, width) < least:
        raise ValueError(
            f"image {channels}x{height}x{width} is too small for convnet: "
            f"{len(pool_after)} poolings need at least {least} x {least} pixels"
        )
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    for name in names:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv"] = nn.Conv2d(channels, widths[name], 3, padding=1)
        layers["relu"] = nn.ReLU()
        if name in pool_after:
            layers["pool"] = nn.MaxPool2d(2)
            height, width = height // 2, width // 2
        stages[name] = nn.Sequential(layers)
        channels = widths[name]
    head = dense_head((channels, height, width), widths["fc1"], classes)
    return StagedNet(nn.Sequential(stages), head)
