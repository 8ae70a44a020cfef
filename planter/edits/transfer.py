"""From several trained networks to one expanded network for a new task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from planter.edits.expand import Where, expand_kernels_
from planter.kernels.blocks import expanded_layers
from planter.kernels.filters import Layout, is_conv_or_linear
from planter.kernels.forms import KernelFilter


def expand_from_(
    model: nn.Module,
    pretrained: Sequence[nn.Module],
    depth: int = 2,
    where: Where = is_conv_or_linear,
    seed: int = 0,
) -> list[str]:
    """Transfer to a new task from several trained networks of one architecture (KFLO sec. 4.4).

    The kernels of all of them are stacked into W_1, rho being their number; the model starts as
    the first of them, norms included. Returns the names of the layers that start fresh, because
    the first network has none of that name and shape (e.g. another number of classes). Where only
    a later network differs, its filters start fresh.

    Raises ValueError without networks, for one that is expanded, and where nothing fits.
    """
    if depth < 2 and len(pretrained) > 1:
        raise ValueError(
            f"depth must be >= 2, got {depth}: a plain kernel cannot hold those of several networks"
        )
    if not pretrained:
        raise ValueError("expand_from_ needs at least one pre-trained network")
    for number, network in enumerate(pretrained):
        if expanded := expanded_layers(network):
            raise ValueError(
                f"pretrained[{number}]: {expanded[0]} is expanded; collapse_kernels_(model) first"
            )
    shapes = {
        name: {tensor: value.shape for tensor, value in own.items()}
        for name, module in model.named_modules()
        if (own := _own_state(module))
    }
    fitting = [_fitting(shapes, network) for network in pretrained]
    fresh = [name for name in shapes if name not in fitting[0]]
    if len(fresh) == len(shapes):
        raise ValueError(
            "no layer of the first pre-trained network has the model's names and shapes"
        )
    expand_kernels_(model, KernelFilter(depth, rho=len(pretrained)), where, seed)
    with torch.no_grad():
        for name in fitting[0]:
            layer = model.get_submodule(name)
            for number, source in enumerate(fitting):
                for tensor, value in source.get(name, {}).items():
                    bank = _bank(layer, tensor)
                    if bank is not None:
                        rows = value
                        if value.dim() > 1:
                            rows = Layout.of(layer).to_convolution(value)
                        bank[number * len(rows) : (number + 1) * len(rows)] = rows
                    elif number == 0:
                        getattr(layer, tensor).copy_(value)
    return fresh


def _own_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters and buffers, without those of its parts."""
    own = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in own.items() if tensor is not None}


def _fitting(
    shapes: Mapping[str, Mapping[str, torch.Size]], network: nn.Module
) -> dict[str, dict[str, Tensor]]:
    """The network's tensors of each layer that has all of its tensors in these shapes."""
    found = {}
    for name, module in network.named_modules():
        theirs, wanted = _own_state(module), shapes.get(name, {})
        if wanted and {tensor: value.shape for tensor, value in theirs.items()} == wanted:
            found[name] = theirs
    return found


def _bank(layer: nn.Module, tensor: str) -> Tensor | None:
    """The filter bank that makes a layer's tensor, None where the layer is plain."""
    if not parametrize.is_parametrized(layer, tensor):
        return None
    parametrizations = layer.parametrizations
    assert isinstance(parametrizations, nn.ModuleDict)
    bank = parametrizations[tensor].original
    assert isinstance(bank, Tensor)
    return bank
