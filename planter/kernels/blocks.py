"""Modules that take a convolution's place in training, and how modules give way to one another.

Unlike a parametrization a block is another module with another start. `fused()` gives the one
kernel and bias that compute what the block computes in eval mode.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from planter.kernels.filters import CONVOLUTIONS, TRANSPOSED

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d


class Block(nn.Module):
    """Stands where a convolution stood; `plain` is that convolution, to be put back."""

    def fused(self) -> tuple[Tensor, Tensor | None]:
        """Kernel `[out, in / groups, *kernel]` and bias `[out]` (None: no bias)."""
        raise NotImplementedError

    @property
    def plain(self) -> Conv:
        raise NotImplementedError

    def restore_(self, model: nn.Module, bias: Tensor | None) -> None:
        """Puts back what else of the model gave way to the block, which is about to be fused with
        that bias: where `plain` has none, what is behind it has to take it in."""

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


def cannot_give_way(model: nn.Module, layer: nn.Module, form: object) -> str | None:
    """Why a layer cannot give its place to a block of a form, as said after its name; None where it
    can."""
    kind = type(layer).__name__
    if not isinstance(layer, CONVOLUTIONS):
        return f"is a {kind}: {form} is for convolutions"
    if isinstance(layer, TRANSPOSED):
        return f"is a {kind}: {form} is for convolutions that are not transposed"
    if layer is model:
        return f"is the layer that {form} would replace: put it into nn.Sequential"
    return None


def behind(model: nn.Module, layer: nn.Module) -> Iterator[nn.Module]:
    """What follows a layer among the children of its parents, as in `Sequential(conv, norm)`."""
    for parent in model.modules():
        for one, following in pairwise(parent._modules.values()):
            if one is layer and following is not None:
                yield following


def replace_(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts a module everywhere another one stands, outside of the new one."""
    inside = set(new.modules())
    for parent in model.modules():
        if parent not in inside:
            for name, child in parent._modules.items():
                if child is old:
                    parent._modules[name] = new
