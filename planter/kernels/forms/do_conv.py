"""Depthwise over-parameterised convolution (DO-Conv; Cao et al., arXiv 2006.12030)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from planter.kernels.filters import (
    CONVOLUTIONS,
    Factors,
    Layout,
    full_precision,
    is_larger_than_a_point,
)
from planter.kernels.forms.form import TrainingForm
from planter.kernels.forms.short_names import read_settings


@dataclass(frozen=True)
class DOConv(TrainingForm):
    """Depthwise over-parameterised convolution, as many depthwise filters a channel as the kernel
    has places."""

    keeps_function: ClassVar[bool] = True
    makes: ClassVar[tuple[str, ...]] = ("weight",)

    def __str__(self) -> str:
        return "do-conv"

    @classmethod
    def read(cls, numbers: str, settings: Sequence[str]) -> DOConv:
        return cls(**read_settings(settings, cls))

    def takes(self, model: nn.Module, layer: nn.Module, name: str) -> bool:
        return is_larger_than_a_point(layer)

    def unsuited(self, model: nn.Module, layer: nn.Module) -> str | None:
        if not isinstance(layer, CONVOLUTIONS):
            return f"is a {type(layer).__name__}: {self} is for convolutions"
        return None

    def expand_(self, model: nn.Module, layer: nn.Module) -> None:
        assert isinstance(layer.weight, Tensor)
        factor = DepthwiseFactor(layer.weight, Layout.of(layer))
        parametrize.register_parametrization(layer, "weight", factor)


class DepthwiseFactor(Factors):
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
        with full_precision(weight):
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
