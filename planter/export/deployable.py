"""A network as it is shipped: plain layers, norms folded and input normalised where asked."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from planter.data import Split

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Normalise(nn.Module):
    """Network inputs from raw images, as `Split.normalise` makes them."""

    def __init__(self, mean: Tensor, std: Tensor, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())

    def forward(self, images: Tensor) -> Tensor:
        return (images.float() / self.scale - self.mean) / self.std


def deployable(
    network: nn.Module, split: Split, *, normalise: bool = False, fold_norms: bool = False
) -> tuple[nn.Module, int]:
    """A copy of a network in eval mode on the CPU as it is shipped, and how many norms were folded.

    With `normalise` it takes raw images like those of the split. With `fold_norms` each batch norm
    right behind a convolution or linear layer, and behind nothing else, becomes part of it. Raises
    ValueError where torch.fx cannot follow the network, which folding needs.
    """
    shipped = copy.deepcopy(network).cpu().float().eval()
    _fix_poolings_(shipped, split.normalise(split.batch(slice(1))).cpu())
    if normalise:
        first = Normalise(split.mean.cpu(), split.std.cpu(), scale_of(split))
        parts: OrderedDict[str, nn.Module] = OrderedDict(normalise=first)
        # The parts of a chain keep their names.
        parts.update(shipped.named_children() if type(shipped) is nn.Sequential else ())
        if len(parts) == 1 or "normalise" in dict(shipped.named_children()):
            parts = OrderedDict(normalise=first, network=shipped)
        shipped = nn.Sequential(parts)
    if not fold_norms:
        return shipped.eval(), 0
    try:
        traced = fx.symbolic_trace(shipped)
    except Exception as error:  # a network may be the user's code
        raise ValueError(
            "--fold-norms and --qat need a network that torch.fx can follow; leave them out "
            f"({type(error).__name__}: {error})"
        ) from error
    return traced.eval(), _fold_norms_(traced)


def scale_of(split: Split) -> int:
    """What raw pixels are divided by before mean and std."""
    return 255 if split.dtype == torch.uint8 else 1


def input_text(split: Split, *, normalise: bool, batch: int | None = None) -> str:
    """What a file takes, in words: any number of images, or `batch` at once."""
    shape = f"[{batch or 'batch'}, {', '.join(map(str, split.image))}]"
    bytes_ = scale_of(split) == 255
    if normalise:
        kind = "raw uint8 images" if bytes_ else "raw float32 images"
        return f"{kind} {shape}" + (", 0..255" if bytes_ else ", as the data set holds them")
    raw = "pixel / 255" if bytes_ else "pixel"
    return f"normalised float32 images {shape}: ({raw} - mean) / std"


def _fix_poolings_(network: nn.Module, images: Tensor) -> None:
    """Puts torch's own layers in the place of planter's poolings, which look at a map's size: what
    they do to the run's images is known."""
    seen: dict[str, tuple[Any, Any]] = {}

    def note(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = (inputs[0].shape[2:], output.shape[2:])

        return hook

    poolings = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.AdaptiveAvgPool2d) and type(module) is not nn.AdaptiveAvgPool2d
    }
    handles = [module.register_forward_hook(note(name)) for name, module in poolings.items()]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    for name, (before, after) in seen.items():
        plain = nn.Identity() if before == after else nn.AdaptiveAvgPool2d(tuple(after))
        network.set_submodule(name, plain)


def _fold_norms_(traced: fx.GraphModule) -> int:
    """Folds batch norms into the layers right before them; exact but for float32's rounding."""
    modules = dict(traced.named_modules())
    calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    folded = 0
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or not isinstance(modules[node.target], _NORMS):
            continue
        before = node.all_input_nodes[0]
        if before.op != "call_module" or len(before.users) > 1:
            continue
        layer, norm = modules[before.target], modules[node.target]
        once = calls.count(before.target) == calls.count(node.target) == 1
        if not once or norm.running_mean is None:
            continue
        layer, norm = copy.deepcopy(layer).double(), copy.deepcopy(norm).double()
        if isinstance(layer, _CONVS):
            fused: nn.Module = fuse_conv_bn_eval(layer, norm)
        elif isinstance(layer, nn.Linear):
            fused = fuse_linear_bn_eval(layer, norm)
        else:
            continue
        traced.set_submodule(before.target, fused.float())
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
        folded += 1
    traced.graph.lint()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return folded
