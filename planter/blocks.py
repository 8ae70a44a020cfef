"""Training forms that take a convolution's place: ACNet's asymmetric block and ExpandNets' chain.

Unlike a parametrization a block is another module with another start. `fused()` gives the one
kernel and bias that compute what the block computes in eval mode.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

_Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
_CONVS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


class Link:
    """Says which block made a tensor; a deep copy of block and norm has a link of its own."""


class Block(nn.Module):
    """Stands where a convolution stood; `plain` is that convolution, to be put back."""

    def fused(self) -> tuple[Tensor, Tensor | None]:
        """Kernel `[out, in / groups, *kernel]` and bias `[out]` (None: no bias)."""
        raise NotImplementedError

    @property
    def plain(self) -> _Conv:
        raise NotImplementedError

    def __getstate__(self) -> object:
        raise RuntimeError(
            f"a network with a {type(self).__name__} in it is not pickled: "
            "collapse_kernels_(model) first, or send the architecture and the state dict"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Block:
        replica = type(self).__new__(type(self))
        memo[id(self)] = replica
        replica.__dict__ = copy.deepcopy(self.__dict__, memo)
        return replica


def expanded_layers(model: nn.Module) -> list[str]:
    """Names of the layers that are in a training form: parametrized, or replaced by a block."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, Block) or parametrize.is_parametrized(module)
    ]


class AsymmetricConv(Block):
    """ACNet's block (Ding et al., ICCV 2019): a k x k, a k x 1 and a 1 x k convolution, each with
    its own batch norm, summed.

    The square one is the convolution itself. All see the same centres: where the square one pads
    by less than half a kernel, the others read a cropped image.
    """

    def __init__(self, square: nn.Conv2d, gamma: float, norm: nn.BatchNorm2d | None) -> None:
        super().__init__()
        self.square = square
        size, dilation = square.kernel_size[0], square.dilation
        padding = _numeric_padding(square)
        spare = [p - d * (size // 2) for p, d in zip(padding, dilation, strict=True)]
        self._crop = [min(s, 0) for s in spare]
        self.vertical, self.horizontal = (
            nn.Conv2d(
                square.in_channels,
                square.out_channels,
                kernel,
                square.stride,  # type: ignore[arg-type]  # torch types it wider than it takes
                pads,
                dilation,  # type: ignore[arg-type]
                square.groups,
                bias=False,
                padding_mode=square.padding_mode,
                device=square.weight.device,
                dtype=square.weight.dtype,
            )
            for kernel, pads in (
                ((size, 1), (padding[0], max(spare[1], 0))),
                ((1, size), (max(spare[0], 0), padding[1])),
            )
        )
        self.norms = nn.ModuleList()
        for _ in range(3):
            own = nn.BatchNorm2d(
                square.out_channels, device=square.weight.device, dtype=square.weight.dtype
            )
            if norm is not None:
                own.eps, own.momentum = norm.eps, norm.momentum
            nn.init.constant_(own.weight, gamma)
            self.norms.append(own)

        self.link = Link()

    @property
    def plain(self) -> nn.Conv2d:
        return self.square

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self._crop
        parts = (
            self.square(x),
            self.vertical(functional.pad(x, [columns, columns]) if columns else x),
            self.horizontal(functional.pad(x, [0, 0, rows, rows]) if rows else x),
        )
        normed = [norm(part) for norm, part in zip(self.norms, parts, strict=True)]
        total: Tensor = normed[0] + normed[1] + normed[2]
        if not torch.compiler.is_compiling():
            total.made_by = (self.link, _version(total))  # type: ignore[attr-defined]
        return total

    def fused(self) -> tuple[Tensor, Tensor]:
        half = self.square.kernel_size[0] // 2
        kernels = (
            self.square.weight,
            functional.pad(self.vertical.weight, [half, half]),
            functional.pad(self.horizontal.weight, [0, 0, half, half]),
        )
        kernel = torch.zeros_like(self.square.weight)
        bias = torch.zeros_like(kernel[:, 0, 0, 0])
        for part, norm, own in zip(
            kernels, self.norms, (self.square.bias, None, None), strict=True
        ):
            assert isinstance(norm, nn.BatchNorm2d)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            kernel = kernel + part * scale[:, None, None, None]
            bias = bias + norm.bias - norm.running_mean * scale
            if own is not None:
                bias = bias + own * scale
        return kernel, bias


class TrackedNorm(nn.Module):
    """Stands where the batch norm behind a block stood: hands its input on, as the block has norms
    of its own, and follows its statistics, so that `fold_` can put the norm back."""

    def __init__(self, norm: nn.BatchNorm2d, block: AsymmetricConv) -> None:
        super().__init__()
        self.norm = norm
        self.link = block.link

    def forward(self, x: Tensor) -> Tensor:
        # The version tells an operation in place between the two, which keeps the tensor.
        if not torch.compiler.is_compiling() and getattr(x, "made_by", None) != (
            self.link,
            _version(x),
        ):
            raise RuntimeError(
                "the batch norm after an asymmetric block does not read that block's output: its "
                "place among the layers is not its place in forward(); leave the convolution "
                "before it out with where="
            )
        if self.norm.training:
            with torch.no_grad():
                self.norm(x)
        return x

    def fold_(self, bias: Tensor | None) -> nn.BatchNorm2d:
        """The norm, such that on `x - bias` it computes `x` in eval mode (None: no bias)."""
        norm = self.norm
        mean, var = norm.running_mean, norm.running_var
        assert mean is not None
        assert var is not None
        with torch.no_grad():
            norm.weight.copy_((var + norm.eps).sqrt())
            norm.bias.copy_(mean)
            if bias is not None:
                mean.sub_(bias)
        return norm


class ConvChain(Block):
    """Feature filtering: the convolution with `rho` times the filters, and a 1 x 1 convolution that
    mixes its outputs; with `expand_inputs` also one before it that widens its inputs (ExpandNets,
    Guo et al., NeurIPS 2020). Nothing stands between them, so that they are one convolution.
    """

    def __init__(self, plain: _Conv, rho: float, *, expand_inputs: bool) -> None:
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
    def plain(self) -> _Conv:
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


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _numeric_padding(conv: nn.Conv2d) -> tuple[int, int]:
    """The padding as numbers, for an odd kernel."""
    if conv.padding == "valid":
        return 0, 0
    if conv.padding == "same":
        rows, columns = (d * (k // 2) for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
        return rows, columns
    assert not isinstance(conv.padding, str)
    return conv.padding[0], conv.padding[1]
