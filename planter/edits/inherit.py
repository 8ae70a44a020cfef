"""From one shape of a network to another: weights are inherited by name and leading slice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from planter.kernels.blocks import expanded_layers


class Inherited(NamedTuple):
    """Names of the state that found no partner: only in the child, only in the parent, or in both
    with another number of axes."""

    fresh: list[str]
    dropped: list[str]


def inherit_weights(
    child: nn.Module, parent: nn.Module, outgoing: Literal["zero", "new", "random"] = "zero"
) -> Inherited:
    """Copies the parent's state into a child of another width: each tensor's leading slice.

    A wider child keeps its fresh values in new output channels; what reads the new channels starts
    at zero with `outgoing="zero"` (the child then computes what the parent computes) or stays
    fresh. With "new" it starts at zero where an older channel reads: the function stays just as
    well, and new channels of several layers are a fresh network beside the older one. A narrower
    child takes the leading part: sub-network extraction. Flattened maps append at the end, so
    leading slices are right there too. The rule holds for `[out, in, ...]` layouts (convolutions,
    linear layers, norms); it does not keep the function across concatenation, group norm over all
    channels, grouped convolutions, shortcuts that pad with zero channels, and where a shortcut that
    was the identity becomes a convolution.

    Raises ValueError where a layer of either is expanded: its factors have no leading slice.
    """
    for which, model in (("child", child), ("parent", parent)):
        if expanded := expanded_layers(model):
            raise ValueError(
                f"cannot grow: {expanded[0]} of the {which} is expanded or frozen; "
                "collapse_kernels_(model) or thaw_(model) first"
            )
    old, new = parent.state_dict(), child.state_dict()
    other = set()
    with torch.no_grad():
        for name, target in new.items():
            source = old.get(name)
            if source is None:
                continue
            if source.dim() != target.dim():
                other.add(name)
                continue
            if outgoing == "zero" and target.dim() > 1:
                target[:, source.shape[1] :] = 0
            if outgoing == "new" and target.dim() > 1:
                target[: source.shape[0], source.shape[1] :] = 0
            shared = shared_slice(source, target)
            target[shared] = source[shared].to(target)
    return Inherited(sorted(set(new) - set(old) | other), sorted(set(old) - set(new) | other))


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """What an optimiser over named parameters has learned of each of them, by name."""
    found = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            found[name] = {
                key: value for key, value in optimizer.state[parameter].items() if value is not None
            }
    return found


def inherit_optimizer_state_(
    optimizer: torch.optim.Optimizer, old: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Gives an optimiser over a grown network the state of the narrower one's, by name and leading
    slice; moments of what is new start at zero, counts of steps go on."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            for key, value in old.get(name, {}).items():
                if value.dim() == 0:
                    optimizer.state[parameter][key] = value.to(parameter.device, copy=True)
                elif value.dim() == parameter.dim():
                    grown = torch.zeros_like(parameter)
                    shared = shared_slice(value, grown)
                    grown[shared] = value[shared].to(grown)
                    optimizer.state[parameter][key] = grown


def shared_slice(old: Tensor, new: Tensor) -> tuple[slice, ...]:
    """The leading block that two tensors of the same number of axes have in common."""
    return tuple(slice(min(a, b)) for a, b in zip(old.shape, new.shape, strict=True))
