"""What a network would cost at other widths, without making it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from planter.arch import Architecture
from planter.channels.groups import with_widths
from planter.costs.macs import cost
from planter.machine.torch_state import ShapesOnly, evaluating
from planter.networks.assembly import build_network
from planter.networks.cut_points import image_of
from planter.tracing.axes import Axis, Group
from planter.tracing.trace import without_data

Count = Callable[[Sequence[int]], int]
"""Multiply-adds for one image, of sizes of groups."""


def macs_by_sizes(
    architecture: Architecture, pipeline: str, groups: Sequence[Group]
) -> Count | None:
    """How many multiply-adds a traced network has at other sizes of its groups: a convolution or
    linear layer uses each of its weights as often as before. None where other operations multiply
    too."""
    network = without_data(build_network(architecture, pipeline))
    uses = _uses(network, image_of(architecture))
    shapes = {name: t.shape for name, t in network.state_dict().items() if name in uses}
    parts: dict[tuple[str, int], list[tuple[int, Axis]]] = defaultdict(list)
    for i, group in enumerate(groups):
        for axis in group.axes:
            if axis.tensor in uses:
                parts[axis.tensor, axis.axis].append((i, axis))

    def macs(sizes: Sequence[int]) -> int:
        lengths = {name: list(shape) for name, shape in shapes.items()}
        for (name, place), own in parts.items():
            lengths[name][place] += sum((sizes[i] - groups[i].size) * a.repeat for i, a in own)
        return sum(uses[name] * math.prod(length) for name, length in lengths.items())

    # Where channels are rows of a product, their number is that of its uses, too.
    for more in (0, 1):
        sizes = [group.size + more * (1 + i % 3) for i, group in enumerate(groups)]
        widths = {name: sizes[i] for i, group in enumerate(groups) for name in group.widths}
        built = with_widths(architecture, widths) if more else architecture
        if macs(sizes) != cost(built).pipelines[pipeline].macs:
            return None
    return macs


def _uses(network: nn.Module, image: Sequence[int]) -> dict[str, int]:
    """How often each weight of a layer is multiplied for one image."""
    found: dict[str, int] = defaultdict(int)
    names = {module: f"{name}.weight" for name, module in network.named_modules()}

    def add(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if isinstance(module, nn.Linear):
            found[names[module]] += output.numel() // module.out_features
        elif isinstance(module, nn.modules.conv._ConvNd):
            places = inputs[0][0, 0] if module.transposed else output[0, 0]
            found[names[module]] += places.numel()

    hooks = [module.register_forward_hook(add) for module in network.modules()]
    try:
        with evaluating(network), torch.no_grad(), ShapesOnly():
            network(torch.empty(1, *image, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return dict(found)
