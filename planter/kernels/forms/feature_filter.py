"""Filtering of features: wider convolutions, and 1 x 1 ones that mix what these give (KFLO's
comparison; ExpandNets, Guo et al., NeurIPS 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from planter.kernels.blocks import Block, Conv, cannot_give_way, replace_
from planter.kernels.filters import is_larger_than_a_point
from planter.kernels.forms.form import TrainingForm
from planter.kernels.forms.short_names import is_number, number_text, read_numbers, read_settings

_CONVS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


@dataclass(frozen=True)
class FeatureFilter(TrainingForm):
    """`rho` times the filters, mixed by a 1 x 1 convolution behind; `expand_inputs` puts one that
    widens the inputs `rho` times before it, as ExpandNets do."""

    rho: float = 4.0
    expand_inputs: bool = True

    def __post_init__(self) -> None:
        if not (is_number(self.rho) and self.rho >= 1):
            raise ValueError(f"rho must be >= 1, got {self.rho}")

    def __str__(self) -> str:
        return f"{'expandnet' if self.expand_inputs else 'features'}:{number_text(self.rho)}"

    @classmethod
    def read_expandnet(cls, numbers: str, settings: Sequence[str]) -> FeatureFilter:
        return cls._read("expandnet", numbers, settings, expand_inputs=True)

    @classmethod
    def read_features(cls, numbers: str, settings: Sequence[str]) -> FeatureFilter:
        return cls._read("features", numbers, settings, expand_inputs=False)

    @classmethod
    def _read(
        cls, word: str, numbers: str, settings: Sequence[str], *, expand_inputs: bool
    ) -> FeatureFilter:
        (rho,) = read_numbers(numbers, r"(.+)", f"{word}:RHO, e.g. {word}:4")
        return cls(rho, expand_inputs, **read_settings(settings, cls))

    def takes(self, model: nn.Module, layer: nn.Module, name: str) -> bool:
        return is_larger_than_a_point(layer) and self.unsuited(model, layer) is None

    def unsuited(self, model: nn.Module, layer: nn.Module) -> str | None:
        return cannot_give_way(model, layer, self)

    def expand_(self, model: nn.Module, layer: nn.Module) -> None:
        assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        chain = ConvChain(layer, self.rho, expand_inputs=self.expand_inputs)
        replace_(model, layer, chain.train(layer.training))


class ConvChain(Block):
    """Feature filtering: the convolution with `rho` times the filters, and a 1 x 1 convolution that
    mixes its outputs; with `expand_inputs` also one before it that widens its inputs (ExpandNets,
    Guo et al., NeurIPS 2020). Nothing stands between them, so that they are one convolution.
    """

    def __init__(self, plain: Conv, rho: float, *, expand_inputs: bool) -> None:
        super().__init__()
        # Not a child: its weight takes no part in the training.
        self._plain = (plain,)
        weight, groups = plain.weight, plain.groups
        inputs, outputs = plain.in_channels, plain.out_channels
        wide_in = groups * max(1, round(rho * inputs / groups)) if expand_inputs else inputs
        wide_out = groups * max(1, round(rho * outputs / groups))
        conv: Any = _CONVS[weight.dim()]  # 1, 2 or 3 axes, whose constructors are typed apart
        make = partial(conv, groups=groups, device=weight.device, dtype=weight.dtype)
        self.before = make(inputs, wide_in, 1, bias=False) if expand_inputs else None
        self.middle = make(
            wide_in,
            wide_out,
            plain.kernel_size,
            stride=plain.stride,
            padding=plain.padding,
            dilation=plain.dilation,
            bias=False,
            padding_mode=plain.padding_mode,
        )
        self.after = make(wide_out, outputs, 1, bias=plain.bias is not None)
        if plain.bias is not None:
            self.after.bias = nn.Parameter(plain.bias.detach().clone())

    @property
    def plain(self) -> Conv:
        return self._plain[0]

    def forward(self, x: Tensor) -> Tensor:
        if self.before is not None:
            x = self.before(x)
        mixed: Tensor = self.after(self.middle(x))
        return mixed

    def fused(self) -> tuple[Tensor, Tensor | None]:
        groups = self.middle.groups
        size = self.middle.weight.shape[2:]

        def by_group(conv: nn.Module) -> Tensor:
            weight = conv.weight
            assert isinstance(weight, Tensor)
            return weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)

        kernel = torch.einsum("goma,gmns->gons", by_group(self.after), by_group(self.middle))
        if self.before is not None:
            kernel = torch.einsum("gons,gnia->gois", kernel, by_group(self.before))
        return kernel.reshape(-1, kernel.shape[2], *size), self.after.bias
