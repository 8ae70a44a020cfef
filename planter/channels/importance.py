"""How much each channel of a group matters, by what its weights say."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from planter.tracing.axes import Axis, Group

Measure = Callable[[Group, Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]
"""Of a group, the network's state and gradients of its parameters (empty where the measure asks for
none): a number for each channel `[size]`, larger for those that matter more."""


def magnitude(group: Group, state: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> Tensor:
    """The norm of all weights that make or read a channel (group magnitude, Fang et al., CVPR
    2023, without its sparse training)."""
    squares = [
        _by_channel(state[axis.tensor].double().square(), axis, group.size)
        for axis in group.axes
        if state[axis.tensor].dim() > 1
    ]
    return torch.stack(squares).sum(dim=0).sqrt()


def norm_scale(
    group: Group, state: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
) -> Tensor:
    """The scales of the norms behind a channel (Liu et al., ICCV 2017); group magnitude where no
    norm stands behind it."""
    scales = [
        _by_channel(state[axis.tensor].double().abs(), axis, group.size)
        for axis in group.axes
        if axis.tensor.endswith(".weight") and state[axis.tensor].dim() == 1
    ]
    if not scales:
        return magnitude(group, state, gradients)
    return torch.stack(scales).sum(dim=0)


def taylor(group: Group, state: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> Tensor:
    """What the loss would change, to first order, without a channel: the sum of weight times
    gradient over all that makes it (Molchanov et al., CVPR 2019, equation 8)."""
    terms = [
        _by_channel(state[axis.tensor].double() * gradients[axis.tensor].double(), axis, group.size)
        for axis in group.axes
        if axis.axis == 0 and axis.tensor in gradients
    ]
    return torch.stack(terms).sum(dim=0).abs()


MEASURES: dict[str, Measure] = {"magnitude": magnitude, "norm": norm_scale, "taylor": taylor}
"""By the name a study gives them."""


def _by_channel(values: Tensor, axis: Axis, size: int) -> Tensor:
    """The sum over the entries of each channel `[size]`."""
    part = values.narrow(axis.axis, axis.offset, size * axis.repeat)
    return part.movedim(axis.axis, 0).reshape(size, -1).sum(dim=1)
