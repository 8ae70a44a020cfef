"""Cifar-quick with batch norm, the small network of ACNet's and KFLO's CIFAR experiments."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from torch import nn

from planter.backbones.staged import StagedNet, dense_head

WIDTHS = {"conv1": 32, "conv2": 32, "conv3": 64, "fc1": 64}


def cifar_quick(
    widths: Mapping[str, int], *, classes: int = 10, image: Sequence[int] = (3, 32, 32)
) -> StagedNet:
    """Three 5x5 convolutions without bias, each with batch norm, ReLU and a 3x3 pooling of stride
    2 (maximum, mean, mean), then two linear layers.

    116,704 weights of convolutions and linear layers with ten classes (arXiv 2207.05532, sec. 4).
    """
    channels, height, width = image
    if min(height, width) < 15:
        raise ValueError(
            f"image {channels}x{height}x{width} is too small for cifar_quick: "
            "three poolings need at least 15 x 15 pixels"
        )
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    for name, pool in (("conv1", nn.MaxPool2d), ("conv2", nn.AvgPool2d), ("conv3", nn.AvgPool2d)):
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv"] = nn.Conv2d(channels, widths[name], 5, padding=2, bias=False)
        layers["norm"] = nn.BatchNorm2d(widths[name])
        # Rectified after it, a maximum is the same, and so is its gradient; the map is smaller.
        last = ["pool", "relu"] if pool is nn.MaxPool2d else ["relu", "pool"]
        layers.update((part, nn.ReLU() if part == "relu" else pool(3, stride=2)) for part in last)
        height, width = (height - 1) // 2, (width - 1) // 2
        stages[name] = nn.Sequential(layers)
        channels = widths[name]
    head = dense_head((channels, height, width), widths["fc1"], classes)
    return StagedNet(nn.Sequential(stages), head)
