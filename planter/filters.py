"""Kernels made of factors, as parametrizations: KFLO's filter bank and DO-Conv's depthwise factor.

Both think of a kernel in the layout of a convolution, `[out, in / groups, *kernel]`; the kernel of
a transposed convolution, `[in, out / groups, *kernel]`, is brought to it and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
MIXING_DECAY = 1e-9  # KFLO sec. 3.3: on W_i, i >= 2; W_1 has none


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


class Mixing(nn.Module):
    """The factors W_2 ... W_B, each the identity (cut or padded with zeros) at the start.

    W_i is `[filters, filters]` for i < B, W_B is `[out, filters]`.
    """

    def __init__(self, out: int, filters: int, depth: int, like: Tensor) -> None:
        super().__init__()
        rows = [filters] * (depth - 2) + [out]
        self.factors = nn.ParameterList(
            torch.eye(n, filters, dtype=like.dtype, device=like.device) for n in rows
        )

    def forward(self, bank: Tensor) -> Tensor:
        """W_B ... W_2 applied to `[filters, n]` or `[filters]`, in the cheapest order."""
        if bank.dim() == 1 or len(self.factors) == 1:
            for factor in self.factors:
                bank = factor @ bank
            return bank
        product: Tensor = torch.linalg.multi_dot([*reversed(list(self.factors)), bank])
        return product


class Filtered(nn.Module):
    """Makes a layer's weight or bias out of its filter bank, W' = (W_B ... W_2) W_1.

    Weight and bias share the mixing, which makes b' = W_B ... W_2 b_1. Nothing is mixed in the
    lower precision of autocast: a plain layer's weight is not either.
    """

    def __init__(self, mixing: Mixing, filters: int, layout: Layout, decay_scale: float) -> None:
        super().__init__()
        self.mixing = mixing
        self.filters = filters
        self.layout = layout
        self.decay_scale = decay_scale

    def forward(self, bank: Tensor) -> Tensor:
        with _full_precision(bank):
            if bank.dim() == 1:
                return self._mixed(bank)
            if bank.dim() == 4 and not bank.is_contiguous():
                # Channels last, as the rows lie in memory: nothing is copied either way.
                rows = bank.permute(0, 2, 3, 1)
                mixed = self._mixed(rows.reshape(self.filters, -1))
                kernel = mixed.view(-1, *rows.shape[1:]).permute(0, 3, 1, 2)
            else:
                mixed = self._mixed(bank.reshape(self.filters, -1))
                kernel = mixed.view(-1, *bank.shape[1:])
            return self.layout.from_convolution(kernel)

    def _mixed(self, rows: Tensor) -> Tensor:
        mixed: Tensor = self.mixing(rows)
        return mixed

    def right_inverse(self, tensor: Tensor) -> Tensor:
        """A bank whose first filters are the present ones, the rest as torch would draw them."""
        present = tensor if tensor.dim() == 1 else self.layout.to_convolution(tensor)
        bank = present.new_zeros(self.filters, *present.shape[1:])
        if tensor.dim() > 1 and self.filters > len(present) and not bank.is_meta:
            bound = present[0].numel() ** -0.5  # kaiming_uniform(a=sqrt(5)), torch's default
            bank.copy_(torch.empty(bank.shape, device="cpu").uniform_(-bound, bound))
        kept = min(self.filters, len(present))
        bank[:kept] = present[:kept]
        return bank


class DepthwiseFactor(nn.Module):
    """DO-Conv's W'[o, i, m] = sum_s (D + I)[i, m, s] W[o, i, s] over kernel places m and s.

    D `[in, places, places]` starts at zero, so that W' starts as W.
    """

    def __init__(self, kernel: Tensor, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        _, inputs, *size = layout.to_convolution(kernel).shape
        places = torch.Size(size).numel()
        self.depthwise = nn.Parameter(kernel.new_zeros(inputs * layout.groups, places, places))

    def forward(self, weight: Tensor) -> Tensor:
        with _full_precision(weight):
            kernel = self.layout.to_convolution(weight)
            out, inputs, *_ = kernel.shape
            groups = self.layout.groups
            # One matrix product for each input channel of each group.
            rows = kernel.reshape(groups, out // groups, inputs, -1).transpose(1, 2)
            factor = self.depthwise.view(groups, inputs, *self.depthwise.shape[1:])
            changed = rows + rows @ factor.transpose(2, 3)
            return self.layout.from_convolution(changed.transpose(1, 2).reshape(kernel.shape))

    def right_inverse(self, kernel: Tensor) -> Tensor:
        return kernel


def _full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """Without autocast, where it is on."""
    kind = tensor.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def generated(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Layers with a generated tensor, the tensor's name and what generates it."""
    found: list[tuple[nn.Module, str, nn.Module]] = []
    for module in model.modules():
        if not parametrize.is_parametrized(module):
            continue
        parametrizations = module.parametrizations
        assert isinstance(parametrizations, nn.ModuleDict)
        for tensor, chain in parametrizations.items():
            for part in chain.children():
                if isinstance(part, Filtered | DepthwiseFactor):
                    found.append((module, tensor, part))
    return found


def kernel_decay(model: nn.Module) -> Tensor | None:
    """`1/2 * sum ||W'||^2` over kernels generated by KFLO, each times its `wd_scale`; None without
    any. Times lambda, it gives the generated kernel the gradient that SGD's decay gives a plain
    one. (The released code of KFLO lacks the 1/2 and so decays twice as fast: `wd_scale=2`.)"""
    found = [
        (getattr(module, tensor), made.decay_scale)
        for module, tensor, made in generated(model)
        if tensor == "weight" and isinstance(made, Filtered)
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


def is_filter_bank(model: nn.Module, parameter: str) -> bool:
    """Whether a parameter name of the model is a bank W_1 (or b_1)."""
    owner, _, leaf = parameter.rpartition(".")
    return leaf == "original" and any(
        isinstance(part, Filtered) for part in model.get_submodule(owner).children()
    )


def is_mixing(model: nn.Module, parameter: str) -> bool:
    """Whether a parameter name of the model is a factor of a mixing matrix."""
    owner = parameter.rpartition(".factors.")[0]
    return bool(owner) and isinstance(model.get_submodule(owner), Mixing)
