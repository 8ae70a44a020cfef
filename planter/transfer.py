"""From several trained networks to one expanded network for a new task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from planter.blocks import expanded_layers
from planter.filters import Layout
from planter.forms import KernelFilter
from planter.kernels import Where, expand_kernels_, is_conv_or_linear


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
    if not pretrained:
        raise ValueError("expand_from_ needs at least one pre-trained network")
    for number, network in enumerate(pretrained):
        if expanded := expanded_layers(network):
            raise ValueError(
                f"pretrained[{number}]: {expanded[0]} is expanded; collapse_kernels_(model) first"
            )
    sources = [dict(network.named_modules()) for network in pretrained]
    fresh = []
    with torch.no_grad():
        for name, module in model.named_modules():
            own = _own_state(module)
            if not own:
                continue
            first = _fitting(own, sources[0].get(name))
            if first is None:
                fresh.append(name)
                continue
            for tensor, value in own.items():
                value.copy_(first[tensor])
    if len(fresh) == sum(bool(_own_state(module)) for module in model.modules()):
        raise ValueError(
            "no layer of the first pre-trained network has the model's names and shapes"
        )
    plain = {name: _own_state(module) for name, module in model.named_modules()}
    expand_kernels_(model, KernelFilter(depth, rho=len(pretrained)), where, seed)
    with torch.no_grad():
        for name, layer in model.named_modules():
            if not parametrize.is_parametrized(layer) or name in fresh:
                continue
            for number, source in enumerate(sources[1:], start=1):
                stacked = _fitting(plain[name], source.get(name))
                for tensor, value in (stacked or {}).items():
                    bank = _bank(layer, tensor)
                    if bank is not None:
                        rows = value
                        if value.dim() > 1:
                            rows = Layout.of(layer).to_convolution(value)
                        bank[number * len(rows) : (number + 1) * len(rows)] = rows
    return fresh


def _own_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters and buffers, without those of its parts."""
    own = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in own.items() if tensor is not None}


def _fitting(own: Mapping[str, Tensor], source: nn.Module | None) -> dict[str, Tensor] | None:
    """The source's tensors where it has all of `own` in the same shapes."""
    theirs = _own_state(source) if source is not None else {}
    if all(name in theirs and theirs[name].shape == tensor.shape for name, tensor in own.items()):
        return {name: theirs[name] for name in own}
    return None


def _bank(layer: nn.Module, tensor: str) -> Tensor | None:
    parametrizations = layer.parametrizations
    assert isinstance(parametrizations, nn.ModuleDict)
    if tensor not in parametrizations:
        return None
    bank = parametrizations[tensor].original
    assert isinstance(bank, Tensor)
    return bank
