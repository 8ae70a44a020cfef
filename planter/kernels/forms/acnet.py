"""ACNet's asymmetric block (Ding et al., ICCV 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from planter.kernels.blocks import Block, behind, cannot_give_way, replace_
from planter.kernels.filters import is_larger_than_a_point, number_of_filters
from planter.kernels.forms.form import TrainingForm
from planter.kernels.forms.short_names import is_number, read_settings, settings_text


@dataclass(frozen=True)
class AsymmetricBlock(TrainingForm):
    """ACNet's block; `gamma` is the start of its norms' scales (1/3 in its CIFAR experiments).

    By default it takes kernels of 3 and 5 whose bias or batch norm can take the block's bias in.
    """

    gamma: float = 1 / 3

    def __post_init__(self) -> None:
        if not is_number(self.gamma):
            raise ValueError(f"gamma must be a finite number, got {self.gamma}")

    def __str__(self) -> str:
        return "acnet" + settings_text(self, "gamma")

    @classmethod
    def read(cls, numbers: str, settings: Sequence[str]) -> AsymmetricBlock:
        return cls(**read_settings(settings, cls, "gamma"))

    def takes(self, model: nn.Module, layer: nn.Module, name: str) -> bool:
        if not is_larger_than_a_point(layer):
            return False
        assert isinstance(layer.kernel_size, tuple)
        return layer.kernel_size[0] <= 5 and self.unsuited(model, layer) is None

    def unsuited(self, model: nn.Module, layer: nn.Module) -> str | None:
        if reason := cannot_give_way(model, layer, self):
            return reason
        assert isinstance(layer.kernel_size, tuple)
        size = set(layer.kernel_size)
        if not isinstance(layer, nn.Conv2d) or len(size) > 1 or min(size) % 2 == 0 or size == {1}:
            return f"has the kernel {layer.kernel_size}: {self} needs an odd square one above 1"
        if layer.bias is None and _norm_behind(model, layer) is None:
            return f"has no bias and no one batch norm behind it to take the bias of {self} in"
        return None

    def check(self, model: nn.Module) -> None:
        for name, module in model.named_modules():
            # `Pipelines` stands above this room and imports from it: known by its mark.
            if getattr(type(module), "entries_have_statistics", False) and module.entries:
                entries = ", ".join(module.entries)
                raise ValueError(
                    f"{name or 'the model'} has pipelines {entries}, each with "
                    "norm statistics of its own: an asymmetric block cannot be fused into one "
                    "kernel for all of them"
                )

    def expand_(self, model: nn.Module, layer: nn.Module) -> None:
        assert isinstance(layer, nn.Conv2d)
        norm = _norm_behind(model, layer)
        block = AsymmetricConv(layer, self.gamma, norm)
        replace_(model, layer, block.train(layer.training))
        if norm is not None:
            replace_(model, norm, TrackedNorm(norm, block).train(norm.training))


def _norm_behind(model: nn.Module, conv: nn.Module) -> nn.BatchNorm2d | None:
    """The batch norm behind a convolution that could take a bias in."""
    following = set(behind(model, conv))
    norm = following.pop() if len(following) == 1 else None
    if not isinstance(norm, nn.BatchNorm2d) or norm.num_features != number_of_filters(conv):
        return None
    return norm if norm.affine and norm.track_running_stats else None


class Link:
    """Says which block made a tensor; a deep copy of block and norm has a link of its own."""


class AsymmetricConv(Block):
    """A k x k, a k x 1 and a 1 x k convolution, each with its own batch norm, summed.

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

    def restore_(self, model: nn.Module, bias: Tensor | None) -> None:
        tracked = [after for after in behind(model, self) if isinstance(after, TrackedNorm)]
        if tracked:
            # A bias of the convolution's own is the better place: other readers see it too.
            left = bias if self.square.bias is None else None
            replace_(model, tracked[0], tracked[0].fold_(left))


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
