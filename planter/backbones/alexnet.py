"""AlexNet in one tower (Krizhevsky, arXiv 1404.5997), as torchvision has it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from torch import nn

from planter.backbones.staged import StagedNet

WIDTHS = {
    **{"conv1": 64, "conv2": 192, "conv3": 384, "conv4": 256, "conv5": 256},
    **{"fc1": 4096, "fc2": 4096},
}
_SHAPES = {"conv1": (11, 4, 2), "conv2": (5, 1, 2)}  # kernel, stride, padding; others (3, 1, 1)
_POOL_AFTER = ("conv1", "conv2", "conv5")


def alexnet(
    widths: Mapping[str, int],
    *,
    classes: int = 10,
    image: Sequence[int] = (3, 64, 64),
    dropout: float = 0.5,
) -> StagedNet:
    """Five convolutions with bias and ReLU, means over 6 x 6 fields, three linear layers with
    dropout before the first two.

    61,100,840 parameters with a thousand classes, whatever the image's size.
    """
    channels, height, width = image
    if min(height, width) < 63:
        raise ValueError(
            f"image {channels}x{height}x{width} is too small for alexnet: "
            "its first stride and poolings need at least 63 x 63 pixels"
        )
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    for name in (name for name in WIDTHS if name.startswith("conv")):
        kernel, stride, padding = _SHAPES.get(name, (3, 1, 1))
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv"] = nn.Conv2d(channels, widths[name], kernel, stride, padding)
        layers["relu"] = nn.ReLU()
        if name in _POOL_AFTER:
            layers["pool"] = nn.MaxPool2d(3, 2)
        stages[name] = nn.Sequential(layers)
        channels = widths[name]
    head = nn.Sequential(
        OrderedDict(
            pool=nn.AdaptiveAvgPool2d(6),
            flatten=nn.Flatten(),
            dropout1=nn.Dropout(dropout),
            fc1=nn.Linear(36 * channels, widths["fc1"]),
            relu1=nn.ReLU(),
            dropout2=nn.Dropout(dropout),
            fc2=nn.Linear(widths["fc1"], widths["fc2"]),
            relu2=nn.ReLU(),
            fc3=nn.Linear(widths["fc2"], classes),
        )
    )
    return StagedNet(nn.Sequential(stages), head)
