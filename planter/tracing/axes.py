"""Groups of coupled channels, as data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """A part of an axis of a tensor of the network's state, from `offset` on, with `repeat` entries
    for each channel, one after another: several where a map was flattened.

    `reads` says that a sum runs over it: with zeros there a new channel is not heard.
    """

    tensor: str
    axis: int
    repeat: int = 1
    offset: int = 0
    reads: bool = False

    def indices(self, channels: Tensor) -> Tensor:
        """The axis's entries of these channels."""
        each = torch.arange(self.repeat, device=channels.device)
        return (channels[:, None] * self.repeat + each).flatten() + self.offset


@dataclass(frozen=True)
class Group:
    """Channels that come and go together: those of a width, or of several that a shortcut joins.

    `free` says that they may stand in any order, so that any of them can be taken out; of others
    the leading ones alone stay where their readers expect them. `keeps` says that the network
    computes the same with more of them, where what reads them is zero.
    """

    widths: tuple[str, ...]
    size: int
    axes: tuple[Axis, ...]
    free: bool = True
    keeps: bool = True
