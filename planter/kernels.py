"""Training forms of a kernel: Kernel Filtering Linear Overparameterization (KFLO).

The deployed kernel W' [out, in/groups, kh, kw] is made of a bank W_1 of r = round(rho * out)
filters and matrices that mix them, W' = (W_B ... W_2) W_1 (arXiv 2207.05532, sec. 3.1). While a
network is expanded, each layer keeps its type and its `.weight`, which is W'; collapsing writes W'
back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from planter.modes import remove_parametrization_

MIXING_DECAY = 1e-9  # KFLO sec. 3.3: on W_i, i >= 2; W_1 has none


@dataclass(frozen=True)
class KernelFilter:
    """KFLO's settings: `depth` B (number of factors; 1 is the plain layer) and `rho`, the ratio of
    filters in the bank to filters of the layer."""

    depth: int = 2
    rho: float = 4.0

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"depth (B) must be >= 1, got {self.depth}")
        if self.rho < 1:
            raise ValueError(
                f"rho must be >= 1, got {self.rho}: with fewer filters than the layer has, "
                "the expanded kernel cannot start as the present one"
            )


class _Mixing(nn.Module):
    """W_B ... W_2 as one matrix `[out, filters]`, the identity (padded with zeros) at the start."""

    def __init__(self, like: Tensor, filters: int, depth: int) -> None:
        super().__init__()
        out = len(like)
        rows = [filters] * (depth - 2) + [out]
        self.factors = nn.ParameterList(
            torch.eye(n, filters, dtype=like.dtype, device=like.device) for n in rows
        )

    def forward(self) -> Tensor:
        product: Tensor = self.factors[0]
        for factor in list(self.factors)[1:]:
            product = factor @ product
        return product


class _Filtered(nn.Module):
    """Makes a layer's weight or bias out of the filter bank. Weight and bias share the mixing."""

    def __init__(self, mixing: _Mixing, filters: int, generator: torch.Generator) -> None:
        super().__init__()
        self.mixing = mixing
        self.filters = filters
        self._generator = generator

    def forward(self, bank: Tensor) -> Tensor:
        mixed: Tensor = self.mixing() @ bank.reshape(len(bank), -1)
        return mixed.reshape(-1, *bank.shape[1:])

    def right_inverse(self, kernel: Tensor) -> Tensor:
        """A bank whose first filters are the present kernel, the rest as torch would draw them."""
        bank = kernel.new_zeros(self.filters, *kernel.shape[1:])
        fan_in = kernel[0].numel()
        if kernel.dim() > 1 and self.filters > len(kernel):
            bound = fan_in**-0.5  # kaiming_uniform(a=sqrt(5)), torch's default for Conv and Linear
            drawn = torch.empty(bank.shape).uniform_(-bound, bound, generator=self._generator)
            bank.copy_(drawn)
        bank[: len(kernel)] = kernel
        return bank


def is_conv_or_linear(module: nn.Module, name: str) -> bool:
    """The default `where`: plain convolutions and linear layers."""
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)


def expand_kernels_(
    model: nn.Module,
    form: KernelFilter,
    where: Callable[[nn.Module, str], bool] = is_conv_or_linear,
    seed: int = 0,
) -> nn.Module:
    """Gives every layer `where(module, name)` accepts its training form; the function is unchanged.

    `seed` draws the filters that have no weight at the start. Raises ValueError for a layer that is
    already expanded or is not a convolution or linear layer.
    """
    if form.depth == 1:
        return model
    generator = torch.Generator().manual_seed(seed)
    for name, module in list(model.named_modules()):
        if not where(module, name):
            continue
        if not is_conv_or_linear(module, name):
            raise ValueError(f"{name} is a {type(module).__name__}: only Conv1d/2d/3d and Linear")
        if parametrize.is_parametrized(module):
            raise ValueError(f"{name} is already parametrized; collapse_kernels_(model) first")
        weight = module.weight
        assert isinstance(weight, Tensor)
        filters = round(form.rho * len(weight))
        mixing = _Mixing(weight, filters, form.depth)
        for tensor in ("weight", "bias"):
            if getattr(module, tensor, None) is not None:
                made = _Filtered(mixing, filters, generator)
                parametrize.register_parametrization(module, tensor, made)
    return model


def collapse_kernels_(model: nn.Module) -> nn.Module:
    """Writes every generated kernel and bias into its plain layer and forgets the factors."""
    for module, tensor in _filtered(model):
        remove_parametrization_(module, tensor)
    return model


def kernel_decay(model: nn.Module) -> Tensor | None:
    """`1/2 * sum ||W'||^2` over generated kernels; None without expanded layers. Times lambda, it
    gives the generated kernel the gradient that SGD's decay gives a plain one. (The released code
    of KFLO lacks the 1/2 and so decays twice as fast.)"""
    squares = [
        getattr(module, tensor).square().sum()
        for module, tensor in _filtered(model)
        if tensor == "weight"
    ]
    return torch.stack(squares).sum() / 2 if squares else None


def is_filter_bank(model: nn.Module, parameter: str) -> bool:
    """Whether a parameter name of the model is a bank W_1 (or b_1)."""
    owner, _, leaf = parameter.rpartition(".")
    return leaf == "original" and any(
        isinstance(part, _Filtered) for part in model.get_submodule(owner).children()
    )


def is_mixing(model: nn.Module, parameter: str) -> bool:
    """Whether a parameter name of the model is a factor of a mixing matrix."""
    owner = parameter.rpartition(".factors.")[0]
    return bool(owner) and isinstance(model.get_submodule(owner), _Mixing)


def _filtered(model: nn.Module) -> list[tuple[nn.Module, str]]:
    found = []
    for module in model.modules():
        if not parametrize.is_parametrized(module):
            continue
        parametrizations = module.parametrizations
        assert isinstance(parametrizations, nn.ModuleDict)
        for tensor, chain in parametrizations.items():
            if any(isinstance(part, _Filtered) for part in chain.children()):
                found.append((module, tensor))
    return found
