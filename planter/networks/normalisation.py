"""Images as the file of a network says it takes them, whatever data set they stand in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from planter.data import Split


def as_taken(split: Split, spec: Mapping[str, Any]) -> Split:
    """The split, normalised by the `mean` and `std` in a network's `arch.json`; as it is for a file
    that names none (older ones)."""
    if "mean" not in spec or "std" not in spec:
        return split
    mean, std = (
        torch.tensor(spec[key]).to(split.mean).view_as(split.mean) for key in ("mean", "std")
    )
    return split.taken_by(mean, std)


class Renormalised(nn.Module):
    """A network that is given images `[batch, channels, height, width]` normalised as those of
    `given` are, and takes them as those of `taken`: a teacher of other data than its students'."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, given: Split, taken: Split) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("scale", given.std / taken.std)
        self.register_buffer("shift", (given.mean - taken.mean) / taken.std)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images * self.scale + self.shift)
        return logits


def seeing(network: nn.Module, given: Split, taken: Split) -> nn.Module:
    """A network that takes images normalised as those of `taken` are, for those of `given`; itself
    where both are alike."""
    if torch.equal(taken.mean, given.mean) and torch.equal(taken.std, given.std):
        return network
    return Renormalised(network, given, taken)


def taking(network: nn.Module, given: Split, spec: Mapping[str, Any]) -> nn.Module:
    """The network for images normalised as those of `given` are; itself where its file says the
    same."""
    return seeing(network, given, as_taken(given, spec))
