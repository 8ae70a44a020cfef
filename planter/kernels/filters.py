"""Kernels made of factors, as parametrizations, and how such kernels decay.

Factors think of a kernel in the layout of a convolution, `[out, in / groups, *kernel]`; the kernel
of a transposed convolution, `[in, out / groups, *kernel]`, is brought to it and back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)


def is_conv_or_linear(module: nn.Module, name: str) -> bool:
    """A `where` that takes every convolution, transposed or not, and every linear layer."""
    return isinstance(module, (*CONVOLUTIONS, nn.Linear))


def is_larger_than_a_point(layer: nn.Module) -> bool:
    """Whether a layer is a convolution whose kernel has more than one place."""
    return isinstance(layer, CONVOLUTIONS) and math.prod(layer.kernel_size) > 1


def number_of_filters(layer: nn.Module) -> int:
    """The outputs of a convolution or linear layer."""
    out = getattr(layer, "out_channels", None) or getattr(layer, "out_features", None)
    assert isinstance(out, int)
    return out


class Layout(NamedTuple):
    """How a layer stores its kernel, and the way to a convolution's `[out, in / groups, ...]`."""

    transposed: bool
    groups: int

    @classmethod
    def of(cls, layer: nn.Module) -> Layout:
        return cls(isinstance(layer, TRANSPOSED), getattr(layer, "groups", 1))

    def to_convolution(self, kernel: Tensor) -> Tensor:
        return self._swapped(kernel) if self.transposed else kernel

    def from_convolution(self, kernel: Tensor) -> Tensor:
        return self._swapped(kernel) if self.transposed else kernel

    def _swapped(self, kernel: Tensor) -> Tensor:
        """Within each group inputs and outputs change places: the same step both ways."""
        rows, columns, *size = kernel.shape
        grouped = kernel.reshape(self.groups, rows // self.groups, columns, *size)
        return grouped.transpose(1, 2).reshape(self.groups * columns, rows // self.groups, *size)


class Factors(nn.Module):
    """Makes a tensor of a layer, as a parametrization of a training form: out of what is stored in
    the tensor's place and parameters of its own.

    Decays: `stored_decay` is that of what is stored, `own_decay` that of the parameters, each None
    for the recipe's. The weight it makes decays in the loss, `decay_scale` times as strong as the
    recipe says; None: not there.
    """

    stored_decay: float | None = None
    own_decay: float | None = None
    decay_scale: float | None = None


def full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """Without autocast, where it is on."""
    kind = tensor.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def generated(model: nn.Module) -> list[tuple[nn.Module, str, Factors]]:
    """Layers with a generated tensor, the tensor's name and what generates it."""
    found: list[tuple[nn.Module, str, Factors]] = []
    for module in model.modules():
        if not parametrize.is_parametrized(module):
            continue
        parametrizations = module.parametrizations
        assert isinstance(parametrizations, nn.ModuleDict)
        for tensor, chain in parametrizations.items():
            for part in chain.children():
                if isinstance(part, Factors):
                    found.append((module, tensor, part))
    return found


def kernel_decay(model: nn.Module) -> Tensor | None:
    """`1/2 * sum ||W'||^2` over kernels that decay in the loss, each times its `decay_scale`; None
    without any. Times lambda, it gives the generated kernel the gradient that SGD's decay gives a
    plain one. (KFLO's released code lacks the 1/2 and so decays twice as fast: `wd_scale=2`.)"""
    found = [
        (getattr(module, tensor), made.decay_scale)
        for module, tensor, made in generated(model)
        if tensor == "weight" and made.decay_scale is not None
    ]
    if not found:
        return None
    kernels, scales = zip(*found, strict=True)
    total: Tensor = _HalfSquares.apply(scales, *kernels)
    return total


class _HalfSquares(torch.autograd.Function):
    """`1/2 * sum of scale * ||kernel||^2`, all kernels in a few operations: by autograd's own rules
    it cost a small network a fiftieth of its step."""

    @staticmethod
    def forward(ctx: Any, scales: Sequence[float], *kernels: Tensor) -> Tensor:
        ctx.scales = scales
        ctx.save_for_backward(*kernels)
        norms = torch.stack(torch._foreach_norm(kernels))
        return (norms.square() * norms.new_tensor(scales)).sum() / 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if len(set(ctx.scales)) == 1:
            return (None, *torch._foreach_mul(ctx.saved_tensors, grads[0] * ctx.scales[0]))
        scaled = [grads[0] * scale for scale in ctx.scales]
        return (None, *torch._foreach_mul(ctx.saved_tensors, scaled))


def decays_of_factors(model: nn.Module) -> dict[int, float]:
    """Decays that factors have in place of the recipe's, by the `id` of a parameter."""
    found: dict[int, float] = {}
    for layer, tensor, factors in generated(model):
        assert isinstance(layer.parametrizations, nn.ModuleDict)
        stored = layer.parametrizations[tensor].parameters(recurse=False)
        for parameters, decay in (
            (stored, factors.stored_decay),
            (factors.parameters(), factors.own_decay),
        ):
            if decay is not None:
                found.update((id(parameter), decay) for parameter in parameters)
    return found
