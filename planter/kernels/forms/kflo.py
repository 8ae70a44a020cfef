"""Kernel Filtering Linear Overparameterization (KFLO, arXiv 2207.05532).

The deployed kernel W' [out, in/groups, kh, kw] is made of a bank W_1 of r = round(rho * out)
filters and matrices that mix them, W' = (W_B ... W_2) W_1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from planter.kernels.filters import (
    Factors,
    Layout,
    full_precision,
    is_conv_or_linear,
    number_of_filters,
)
from planter.kernels.forms.form import TrainingForm
from planter.kernels.forms.short_names import (
    is_number,
    number_text,
    read_numbers,
    read_settings,
    settings_text,
)

WIDEST = 256  # filters of a layer that is expanded by default
MIXING_DECAY = 1e-9  # sec. 3.3: on W_i, i >= 2; W_1 has none


@dataclass(frozen=True)
class KernelFilter(TrainingForm):
    """KFLO's settings: `depth` B (number of factors; 1 is the plain layer) and `rho`, the ratio of
    filters in the bank to filters of the layer.

    `wd_scale` multiplies the decay of the generated kernel; 2 is what the released code does, 1
    what the paper says. `low_rank` allows rho < 1: the kernel's rank is then bounded by the bank,
    and its last filters start at zero.
    """

    depth: int = 2
    rho: float = 4.0
    wd_scale: float = 1.0
    low_rank: bool = False

    keeps_function: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not is_number(self.depth) or self.depth != int(self.depth) or self.depth < 1:
            raise ValueError(f"depth (B) must be a whole number >= 1, got {self.depth}")
        object.__setattr__(self, "depth", int(self.depth))
        if not (is_number(self.rho) and self.rho > 0):
            raise ValueError(f"rho must be a number above 0, got {self.rho}")
        if self.rho < 1 and not self.low_rank:
            raise ValueError(
                f"rho must be >= 1, got {self.rho}: with fewer filters than the layer has, "
                "the expanded kernel cannot start as the present one; low_rank=True allows it"
            )
        if not (is_number(self.wd_scale) and self.wd_scale >= 0):
            raise ValueError(f"wd_scale must be a number >= 0, got {self.wd_scale}")

    def __str__(self) -> str:
        more = settings_text(self, "wd_scale", "low_rank")
        return f"kflo:{self.depth}x{number_text(self.rho)}{more}"

    @classmethod
    def read(cls, numbers: str, settings: Sequence[str]) -> KernelFilter:
        depth, rho = read_numbers(numbers, r"([^x]+)x([^x]+)", "kflo:BxRHO, e.g. kflo:2x4")
        more = read_settings(settings, cls, "wd_scale", "low_rank")
        return cls(depth, rho, **more)  # type: ignore[arg-type]  # checks it itself

    @property
    def is_plain(self) -> bool:
        return self.depth == 1

    def takes(self, model: nn.Module, layer: nn.Module, name: str) -> bool:
        return is_cheap_to_filter(layer, name)

    def unsuited(self, model: nn.Module, layer: nn.Module) -> str | None:
        filters = number_of_filters(layer)
        if round(self.rho * filters) < 1:
            return f"has {filters} filters: rho {self.rho:g} rounds to none"
        return None

    def expand_(self, model: nn.Module, layer: nn.Module) -> None:
        weight, layout, out = layer.weight, Layout.of(layer), number_of_filters(layer)
        assert isinstance(weight, Tensor)
        filters = round(self.rho * out)
        mixing = Mixing(out, filters, self.depth, weight)
        for tensor in ("weight", "bias"):
            if getattr(layer, tensor, None) is not None:
                made = Filtered(mixing, filters, layout, self.wd_scale)
                parametrize.register_parametrization(layer, tensor, made)


def is_cheap_to_filter(module: nn.Module, name: str) -> bool:
    """The default `where` of `KernelFilter`: convolutions and linear layers of up to 256 filters.

    Filtering costs `rho * out` multiply-adds a step for each weight, whatever the batch; the layer
    itself costs `batch * height * width` of its output. Wide layers stand where maps are small: in
    VGG16 at batch 128 and rho 4 those of 512 filters cost 1 to 4 times the layer itself, the other
    convolutions at most an eighth.
    """
    return is_conv_or_linear(module, name) and number_of_filters(module) <= WIDEST


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


class Filtered(Factors):
    """Makes a layer's weight or bias out of its filter bank, W' = (W_B ... W_2) W_1.

    Weight and bias share the mixing, which makes b' = W_B ... W_2 b_1. Nothing is mixed in the
    lower precision of autocast: a plain layer's weight is not either.
    """

    stored_decay = 0.0
    own_decay = MIXING_DECAY

    def __init__(self, mixing: Mixing, filters: int, layout: Layout, decay_scale: float) -> None:
        super().__init__()
        self.mixing = mixing
        self.filters = filters
        self.layout = layout
        self.decay_scale = decay_scale

    def forward(self, bank: Tensor) -> Tensor:
        with full_precision(bank):
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
