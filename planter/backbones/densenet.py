"""DenseNet for small images (Huang et al., CVPR 2017), without bottlenecks and compression."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from planter.backbones.branch_plan import groups_left, reduced, released_plan
from planter.backbones.staged import StagedNet, mean_head

WIDTHS = {"stem": 16, "growth": 12}


def densenet(
    widths: Mapping[str, int],
    *,
    classes: int = 10,
    image: Sequence[int] = (3, 32, 32),
    depth: int = 40,
    dropout: float = 0.0,
) -> StagedNet:
    """DenseNet-`depth`: a stem, three dense blocks of (depth - 4) / 3 layers, transitions between
    them, batch norm, ReLU, mean and one linear layer. A block and a transition are each a stage.

    1.0 M parameters as DenseNet-40 with growth 12, 7.0 M as DenseNet-100.
    """
    channels, height, width = image
    if not isinstance(depth, int) or depth < 7 or (depth - 4) % 3:
        raise ValueError(f"depth of a densenet is 3 n + 4 (7, 10, ..., 40, 100), got {depth!r}")
    if min(height, width) < 4:
        raise ValueError(
            f"image {channels}x{height}x{width} is too small for densenet: "
            "two poolings need at least 4 x 4 pixels"
        )
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    stages["stem"] = nn.Conv2d(channels, widths["stem"], 3, padding=1, bias=False)
    channels = widths["stem"]
    for i in (1, 2, 3):
        growths = [widths["growth"]] * ((depth - 4) // 3)
        stages[f"block{i}"] = _block(channels, growths, dropout)
        channels += sum(growths)
        if i < 3:
            stages[f"transition{i}"] = _transition(channels, dropout)
    return StagedNet(nn.Sequential(stages), mean_head(channels, classes, norm=True))


def branch(
    stages: nn.Sequential,
    after: str,
    channels: int,
    widths: Mapping[str, int],
    *,
    kind: str,
    classes: int,
    depth: int,
    dropout: float,
    **_: object,
) -> nn.Sequential:
    """DKS's auxiliary classifier of the map behind stage `after`: dense blocks, where the rule has
    widths their growth, and the transitions that `after` does not yet have behind it.

    Transitions keep their channels, in a "narrow" branch too.
    """
    blocks = groups_left(stages, after, ("block1", "block2", "block3"))
    plan = reduced(released_plan(dict.fromkeys(blocks, widths["growth"]), (depth - 4) // 3), kind)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    names = list(stages._modules)
    for name in names[names.index(after) + 1 :]:
        if name in plan:
            parts[name] = _block(channels, plan[name], dropout)
            channels += sum(plan[name])
        else:
            parts[name] = _transition(channels, dropout)
    return nn.Sequential(OrderedDict(parts, head=mean_head(channels, classes, norm=True)))


class DenseLayer(nn.Module):
    """Appends the `growth` channels it makes of its input (norm, ReLU, 3x3 convolution) to it."""

    def __init__(self, channels: int, growth: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, growth, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.relu = nn.ReLU()  # a module: planter.cost counts those for macs_all

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.dropout(self.conv(self.relu(self.norm(x))))
        return torch.cat([x, made], dim=1)


def _block(channels: int, growths: Sequence[int], dropout: float) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, growth in enumerate(growths, start=1):
        layers[f"layer{i}"] = DenseLayer(channels, growth, dropout)
        channels += growth
    return nn.Sequential(layers)


def _transition(channels: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(channels),
            relu=nn.ReLU(),
            conv=nn.Conv2d(channels, channels, 1, bias=False),
            dropout=nn.Dropout(dropout),
            pool=nn.AvgPool2d(2),
        )
    )
