"""What a backbone is: named stages and a head; and the heads that several have."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn


class StagedNet(nn.Module):
    """`head(stages(images))` with named stages, so that pipelines can enter before any of them."""

    def __init__(self, stages: nn.Sequential, head: nn.Module) -> None:
        super().__init__()
        self.stages = stages
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[batch, classes]` of images `[batch, channels, height, width]`."""
        logits: Tensor = self.head(self.stages(images))
        return logits


class FitMap(nn.AdaptiveAvgPool2d):
    """Means over fields, so many that a map gets the given size; one of that size is handed on."""

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[-2:]) == self.output_size:
            if x.requires_grad and x.is_contiguous(memory_format=torch.channels_last):
                # Behind it is flattened, so its gradient does not lie as it does; the pooling
                # before it would then take three times as long backward.
                x.register_hook(_channels_last)  # type: ignore[no-untyped-call]
            return x
        pooled: Tensor = super().forward(x)
        return pooled


def _channels_last(gradient: Tensor) -> Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)


def dense_head(shape: tuple[int, int, int], units: int, classes: int) -> nn.Sequential:
    """Two linear layers, `fc1` with ReLU and `fc2`, on a map of shape (channels, height, width)."""
    channels, height, width = shape
    return nn.Sequential(
        OrderedDict(
            # Does nothing to the map of a whole image; lets a pipeline whose step-down has another
            # stride than the cut part meet fc1 with a map of the right size.
            fit=FitMap((height, width)),
            flatten=nn.Flatten(),
            fc1=nn.Linear(channels * height * width, units),
            relu=nn.ReLU(),
            fc2=nn.Linear(units, classes),
        )
    )


def mean_head(channels: int, classes: int, *, norm: bool = False) -> nn.Sequential:
    """The mean over places and one linear layer, `fc`; with `norm`, batch norm and ReLU before."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if norm:
        parts["norm"] = nn.BatchNorm2d(channels)
        parts["relu"] = nn.ReLU()
    parts["pool"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts["fc"] = nn.Linear(channels, classes)
    return nn.Sequential(parts)
