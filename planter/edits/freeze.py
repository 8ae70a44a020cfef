"""Train only what was planted: everything inherited stays bit for bit what it was."""

from __future__ import annotations

from typing import TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrize

from planter.edits.inherit import shared_slice
from planter.machine.torch_state import remove_parametrization_

_Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
_Module = TypeVar("_Module", bound=nn.Module)


class FreezeCore(nn.Module):
    """A tensor whose `frozen` entries are those of `core`, whatever the optimiser does.

    A gradient mask would not do: momentum and weight decay still move masked entries.
    """

    core: Tensor
    frozen: Tensor

    def __init__(self, core: Tensor, frozen: Tensor) -> None:
        super().__init__()
        self.register_buffer("core", core)
        self.register_buffer("frozen", frozen)

    def forward(self, tensor: Tensor) -> Tensor:
        return torch.where(self.frozen, self.core, tensor)


class PlantedNorm(nn.Module):
    """A batch norm of which the first channels keep their statistics and affine parameters, and
    the planted ones have a batch norm of their own."""

    def __init__(self, norm: _Norm, old: int) -> None:
        super().__init__()
        self.norm = norm
        self.old = old
        self.norm.requires_grad_(False)
        self.new: _Norm | None = None
        if norm.num_features > old:
            self.new = type(norm)(norm.num_features - old, norm.eps, norm.momentum, norm.affine).to(
                norm.running_mean
            )
            with torch.no_grad():
                for name, tensor in self.new.state_dict().items():
                    if tensor.dim():
                        tensor.copy_(norm.state_dict()[name][old:])

    def forward(self, x: Tensor) -> Tensor:
        norm, old = self.norm, self.old
        assert norm.running_mean is not None
        assert norm.running_var is not None
        kept = functional.batch_norm(
            x[:, :old],
            norm.running_mean[:old],
            norm.running_var[:old],
            norm.weight[:old] if norm.affine else None,
            norm.bias[:old] if norm.affine else None,
            training=False,
            eps=norm.eps,
        )
        return kept if self.new is None else torch.cat([kept, self.new(x[:, old:])], dim=1)

    def merged(self) -> _Norm:
        """One batch norm with the old channels untouched and the new ones as trained."""
        norm = self.norm.requires_grad_(True)
        if self.new is not None:
            state = norm.state_dict()
            for name, tensor in self.new.state_dict().items():
                if tensor.dim():
                    state[name][self.old :] = tensor
        return norm


def check_norms(model: nn.Module) -> None:
    """Raises ValueError for a batch norm without running statistics, and for an instance norm with
    them: old channels would not keep theirs."""
    for place, other in _modules(model, _InstanceNorm):
        if other.running_mean is not None:
            raise ValueError(f"{place}: cannot keep the statistics of an instance norm")
    for place, norm in [found for kind in get_args(_Norm) for found in _modules(model, kind)]:
        if norm.running_mean is None:
            raise ValueError(f"{place}: cannot keep the statistics of a batch norm that has none")


def freeze_inherited_(child: nn.Module, parent: nn.Module) -> nn.Module:
    """Freezes in `child` all it inherited from `parent` (see `inherit_weights`) until `thaw_`.

    Raises ValueError where nothing of the child is new, or a batch norm keeps no statistics.
    """
    check_norms(child)
    old = parent.state_dict()
    planted: dict[nn.Parameter, PlantedNorm] = {}
    for place, norm in [found for kind in get_args(_Norm) for found in _modules(child, kind)]:
        statistics = old.get(f"{place}.running_mean")
        if statistics is None:
            raise ValueError(f"{place}: cannot keep the statistics of a batch norm that has none")
        one = PlantedNorm(norm, len(statistics))
        if norm.affine and one.new is not None:
            # Pipelines may share a norm's scale and shift, but not its statistics.
            first = planted.setdefault(norm.weight, one).new
            assert first is not None
            one.new.weight, one.new.bias = first.weight, first.bias
        _replace(child, place, one)
    for name, parameter in list(child.named_parameters()):
        if name not in old:
            continue  # of a PlantedNorm, which sees to itself
        source = old[name]
        if source.shape == parameter.shape:
            parameter.requires_grad_(False)
            continue
        frozen = torch.zeros_like(parameter, dtype=torch.bool)
        frozen[shared_slice(source, parameter)] = True
        place, _, leaf = name.rpartition(".")
        core = FreezeCore(parameter.detach().clone(), frozen)
        parametrize.register_parametrization(child.get_submodule(place), leaf, core)
    if not any(p.requires_grad for p in child.parameters()):
        raise ValueError("nothing was planted: the child is as wide as its parent")
    return child


def thaw_(child: nn.Module) -> nn.Module:
    """The plain network again, with the trained values of what was planted."""
    for _, module in list(child.named_modules()):
        if not parametrize.is_parametrized(module):
            continue
        parametrizations = module.parametrizations
        assert isinstance(parametrizations, nn.ModuleDict)
        for tensor in list(parametrizations):
            remove_parametrization_(module, tensor)
    for place, planted in _modules(child, PlantedNorm):
        _replace(child, place, planted.merged())
    return child.requires_grad_(True)


def _modules(model: nn.Module, kind: type[_Module]) -> list[tuple[str, _Module]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, kind)]


def _replace(model: nn.Module, place: str, module: nn.Module) -> None:
    owner, _, leaf = place.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)
