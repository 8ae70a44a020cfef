"""Images as the file of a network says it takes them, whatever data set they stand in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from planter.data import Split
from planter.data.fit import in_size


def as_taken(split: Split, spec: Mapping[str, Any]) -> Split:
    """The split, normalised by the `mean` and `std` in a network's `arch.json`, as it is for a file
    that names none (older ones), and in the size of the images that the network is made for."""
    mean, std = split.mean, split.std
    if "mean" in spec and "std" in spec:
        mean, std = (
            torch.tensor(spec[key]).to(split.mean).view_as(split.mean) for key in ("mean", "std")
        )
    image = spec.get("architecture", {}).get("options", {}).get("image")
    if image is not None and tuple(image[1:]) != split.image[1:]:
        return split.taken_by(mean, std, (image[1], image[2]))
    return split if mean is split.mean else split.taken_by(mean, std)


def taken_like(split: Split, other: Split) -> Split:
    """The split, normalised and in the size as the images of another are."""
    size = None if split.image[1:] == other.image[1:] else (other.image[1], other.image[2])
    return split.taken_by(other.mean, other.std, size)


class Renormalised(nn.Module):
    """A network that is given images `[batch, channels, height, width]` normalised and in the size
    as those of `given` are, and takes them as those of `taken`: a teacher of other data than its
    students'."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, given: Split, taken: Split) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("scale", given.std / taken.std)
        self.register_buffer("shift", (given.mean - taken.mean) / taken.std)
        height, width = taken.image[1:]
        self.size = None if given.image == taken.image else (height, width)

    def forward(self, images: Tensor) -> Tensor:
        taken = images * self.scale + self.shift
        logits: Tensor = self.network(taken if self.size is None else in_size(taken, self.size))
        return logits


def seeing(network: nn.Module, given: Split, taken: Split) -> nn.Module:
    """A network that takes images as those of `taken` are, for those of `given`; itself where both
    are alike, in normalisation and size."""
    alike = given.image == taken.image
    if alike and torch.equal(taken.mean, given.mean) and torch.equal(taken.std, given.std):
        return network
    return Renormalised(network, given, taken)


def taking(network: nn.Module, given: Split, spec: Mapping[str, Any]) -> nn.Module:
    """The network for images as those of `given` are; itself where its file says the same."""
    return seeing(network, given, as_taken(given, spec))
