"""The arena's counter: one for everybody. Multiply-adds are planter's `macs`.

A training is a forward pass and a backward pass of twice its cost for every image of every epoch,
and a forward pass of the teacher that guides it; what a way does beside counts as it comes: forward
passes once, backward passes twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from planter import hypervolume

LEAST_ACCURACY = 0.1
"""Of the hypervolume's reference point: ten classes, drawn."""
LARGE = 0.03
"""Share of the teacher's multiply-adds from which on a point counts in the second figure."""
SLACK = 1.02
"""A point is "at" a size up to this factor: ways do not meet a size to the last channel."""


def training_macs(macs: int, images: int, epochs: int, guide: int = 0) -> int:
    """Multiply-adds of a training; `guide` are those of the teacher for one image, if it guides."""
    return (3 * macs + guide) * images * epochs


def flop_counter_macs(network: nn.Module, image: Sequence[int]) -> int:
    """Half of what torch counts in a forward pass of one image, to compare `planter.cost` with."""
    counter = FlopCounterMode(display=False)
    was = network.training
    network.eval()
    with torch.no_grad(), counter:
        network(torch.zeros(1, *image))
    network.train(was)
    return counter.get_total_flops() // 2


class Passes:
    """Counts, while active, the multiply-adds of every forward pass through a network's
    convolutions and linear layers, by the shapes that they really have then: a search that switches
    channels off pays for what is left."""

    def __init__(self, network: nn.Module) -> None:
        self.macs = 0
        self._network = network
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Passes:
        for module in self._network.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                self._hooks.append(module.register_forward_hook(self._add))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _add(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module.weight, Tensor)
        # Of a dynamic layer `weight` is the slice that is switched on.
        # While torch traces, sizes are tensors.
        self.macs += int(output.numel()) * int(module.weight[0].numel())


def covered(points: Iterable[Mapping[str, Any]], teacher_macs: int, least: float = 0.0) -> float:
    """Hypervolume of the test accuracies over the decimal logarithm of macs, from an accuracy of
    0.1 at the teacher's macs; of points of `least` times these and more.

    The teacher's own point has no volume from there: it counts for nobody.
    """
    counted = [(p["test"], p["macs"]) for p in points if p["macs"] >= least * teacher_macs]
    return hypervolume(counted, (LEAST_ACCURACY, teacher_macs))


def at(points: Sequence[Mapping[str, Any]], macs: float) -> Mapping[str, Any] | None:
    """The point of a size: of those of at most `SLACK` times `macs` the one with the highest
    validation accuracy; None where there is none. Test accuracies do not select."""
    fitting = [point for point in points if point["macs"] <= SLACK * macs]
    return max(fitting, key=lambda point: point["validation"], default=None)


def between(points: Sequence[Mapping[str, Any]], macs: float) -> float | None:
    """The test accuracy at so many macs, by a straight line over their logarithm between the
    neighbours of a front that validation accuracies chose: that of the largest above it, None below
    the smallest."""
    front: list[tuple[float, float]] = []
    best = -math.inf
    for point in sorted(points, key=lambda point: (point["macs"], -point["validation"])):
        if point["validation"] > best:
            best = point["validation"]
            front.append((math.log(point["macs"]), point["test"]))
    where = math.log(macs)
    if not front or where < front[0][0]:
        return None
    for (low, first), (high, second) in pairwise(front):
        if where <= high:
            return first + (second - first) * (where - low) / (high - low)
    return front[-1][1]
