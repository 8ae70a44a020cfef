"""Awkward toy networks: builder functions ("nets:residual") and helpers that fill them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from planter.backbones import StagedNet
from planter.data import InMemorySplit, Split


def _stages(**stages: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(stages))


def _conv_norm(channels: int, width: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layers = OrderedDict(
        conv=nn.Conv2d(channels, width, 3, stride, 1, groups=groups, bias=False),
        norm=nn.BatchNorm2d(width),
        relu=nn.ReLU(),
    )
    return nn.Sequential(layers)


class Block(nn.Module):
    """A residual block whose inner width is its own."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.first = _conv_norm(channels, inner)
        self.second = nn.Conv2d(inner, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm(self.second(self.first(x))))


def residual(
    widths: Mapping[str, int], *, classes: int = 10, image: Sequence[int] = (3, 32, 32)
) -> StagedNet:
    """Two residual blocks with batch norm, a strided convolution between them."""
    stem, down = widths["stem"], widths["down"]
    stages = _stages(
        stem=_conv_norm(image[0], stem),
        block1=Block(stem, widths["inner1"]),
        down=_conv_norm(stem, down, stride=2),
        block2=Block(down, widths["inner2"]),
    )
    head = _stages(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(down, classes))
    return StagedNet(stages, head)


residual.widths = {"stem": 4, "inner1": 3, "down": 6, "inner2": 5}


def depthwise(
    widths: Mapping[str, int], *, classes: int = 10, image: Sequence[int] = (3, 32, 32)
) -> StagedNet:
    """A depthwise convolution between two ordinary ones, batch norm after each."""
    stem, point = widths["stem"], widths["point"]
    stages = _stages(
        stem=_conv_norm(image[0], stem),
        deep=_conv_norm(stem, stem, stride=2, groups=stem),
        point=_conv_norm(stem, point),
    )
    head = _stages(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(point, classes))
    return StagedNet(stages, head)


depthwise.widths = {"stem": 4, "point": 6}


def flat(
    widths: Mapping[str, int], *, classes: int = 10, image: Sequence[int] = (3, 32, 32)
) -> StagedNet:
    """A map that is flattened into a linear layer, no norm."""
    channels, height, width = image
    stages = _stages(
        conv1=_stages(conv=nn.Conv2d(channels, widths["conv1"], 3, padding=1), relu=nn.ReLU()),
        conv2=_stages(
            conv=nn.Conv2d(widths["conv1"], widths["conv2"], 3, 2, 1),
            relu=nn.ReLU(),
        ),
    )
    features = widths["conv2"] * ((height + 1) // 2) * ((width + 1) // 2)
    head = _stages(
        flatten=nn.Flatten(),
        fc1=nn.Linear(features, widths["fc1"]),
        relu=nn.ReLU(),
        fc2=nn.Linear(widths["fc1"], classes),
    )
    return StagedNet(stages, head)


flat.widths = {"conv1": 3, "conv2": 4, "fc1": 7}


def flat_norm(
    widths: Mapping[str, int], *, classes: int = 10, image: Sequence[int] = (3, 32, 32)
) -> StagedNet:
    """`flat` with a BatchNorm1d behind its first linear layer."""
    net = flat(widths, classes=classes, image=image)
    head = dict(net.head.named_children())
    parts = OrderedDict(
        flatten=head["flatten"],
        fc1=head["fc1"],
        norm=nn.BatchNorm1d(widths["fc1"]),
        relu=head["relu"],
        fc2=head["fc2"],
    )
    return StagedNet(net.stages, nn.Sequential(parts))


flat_norm.widths = flat.widths


def fill_(net: nn.Module, seed: int = 0) -> nn.Module:
    """Random norms: fresh ones (mean 0, variance 1, gamma 1) would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.5, 1.5, generator=generator)
                for tensor in (module.bias, module.running_mean):
                    tensor.uniform_(-0.5, 0.5, generator=generator)
                module.num_batches_tracked.fill_(7)
    return net


def images(count: int, image: Sequence[int] = (3, 8, 8), seed: int = 0) -> Tensor:
    """Normal images in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *image, generator=generator, dtype=torch.float64)


def split(count: int, image: Sequence[int] = (3, 8, 8), classes: int = 10, seed: int = 0) -> Split:
    """uint8 noise with random labels."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, *image), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, classes, (count,), generator=generator)
    middle = torch.full((image[0], 1, 1), 0.5)
    return InMemorySplit(pixels, labels, middle, middle / 2)
