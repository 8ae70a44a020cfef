"""Each child from the next larger one: channels of least magnitude go, all weights train on.

Plain torch on the modules of a ResNet of basic blocks, one block a group; shares no code with
planter's own edits.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from task import Arena
from torch import Tensor, nn

LEAST = 2
"""Channels that a group keeps."""


@dataclass(frozen=True)
class Group:
    """Channels that only go together: layers that write them (a convolution and its norm), layers
    that read them."""

    writers: tuple[tuple[str, str], ...]
    readers: tuple[str, ...]


def groups_of(blocks: tuple[str, ...] = ("group1_1", "group2_1", "group3_1")) -> list[Group]:
    """Of a stem, blocks of which all but the first have a 1x1 shortcut, and a linear head."""
    groups = []
    writers = [("stem.conv", "stem.norm")]
    for block, following in zip(blocks, (*blocks[1:], None), strict=True):
        inner = (f"{block}.conv1", f"{block}.norm1")
        groups.append(Group((inner,), (f"{block}.conv2",)))
        writers.append((f"{block}.conv2", f"{block}.norm2"))
        readers = ["head.fc"]
        if following is not None:
            readers = [f"{following}.conv1", f"{following}.shortcut.conv"]
        if block == blocks[0]:
            readers.append(f"{block}.conv1")  # of an identity shortcut: what enters the block too
        groups.append(Group(tuple(writers), tuple(readers)))
        writers = [(f"{following}.shortcut.conv", f"{following}.shortcut.norm")]
    return groups


def run(arena: Arena, variant: str) -> None:
    parent = arena.teacher
    for target in arena.targets():
        parent = arena.child(shrunk(parent, target, arena.data.image))


@torch.no_grad()
def shrunk(parent: nn.Module, macs: int, image: tuple[int, ...]) -> nn.Module:
    """A copy without its least channels, one after another, of at most so many multiply-adds.

    What a channel is worth: the mean over all layers of its group of the sum of squares of its
    weights, over the mean of the group. Raises ValueError where nothing is left to take away.
    """
    network = copy.deepcopy(parent)
    groups = groups_of()
    places = _places(network, image)
    while _macs(network, places) > macs:
        scores = [_scores(network, group) for group in groups if _width(network, group) > LEAST]
        if not scores:
            raise ValueError(f"no network of {LEAST} channels or more has {macs:,} macs")
        open_ = [group for group in groups if _width(network, group) > LEAST]
        least = min(range(len(open_)), key=lambda i: float(scores[i].min()))
        _remove(network, open_[least], int(scores[least].argmin()))
    return network


def _scores(network: nn.Module, group: Group) -> Tensor:
    """`[channels]`."""
    sums = []
    for conv, norm in group.writers:
        sums.append(_weight(network, conv).flatten(1).square().sum(1))
        sums.append(_weight(network, norm).square())
    sums += [
        _weight(network, name).transpose(0, 1).flatten(1).square().sum(1) for name in group.readers
    ]
    worth = torch.stack(sums).mean(0)
    return worth / worth.mean()


def _remove(network: nn.Module, group: Group, channel: int) -> None:
    kept = [i for i in range(_width(network, group)) if i != channel]
    for conv, norm in group.writers:
        _take_(network.get_submodule(conv), kept, axis=0)
        _take_(network.get_submodule(norm), kept, axis=0)
    for name in group.readers:
        _take_(network.get_submodule(name), kept, axis=1)


def _take_(layer: nn.Module, kept: list[int], axis: int) -> None:
    """Keeps some outputs (axis 0) or inputs (axis 1) of a layer."""
    assert isinstance(layer.weight, Tensor)
    layer.weight = nn.Parameter(_picked(layer.weight, kept, axis))
    if axis == 0 and isinstance(layer.bias, Tensor):
        layer.bias = nn.Parameter(_picked(layer.bias, kept, 0))
    if isinstance(layer, nn.BatchNorm2d):
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean = _picked(layer.running_mean, kept, 0)
        layer.running_var = _picked(layer.running_var, kept, 0)
        layer.num_features = len(kept)
    elif isinstance(layer, nn.Conv2d):
        layer.out_channels, layer.in_channels = layer.weight.shape[:2]
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape


def _picked(tensor: Tensor, kept: list[int], axis: int) -> Tensor:
    return tensor.detach().index_select(axis, torch.tensor(kept)).contiguous()


def _weight(network: nn.Module, name: str) -> Tensor:
    weight = network.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight


def _width(network: nn.Module, group: Group) -> int:
    return len(_weight(network, group.writers[0][0]))


def _places(network: nn.Module, image: tuple[int, ...]) -> dict[str, int]:
    """Pixels that each convolution and linear layer answers for."""
    places: dict[str, int] = {}
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):

            def note(_: nn.Module, inputs: object, output: Tensor, name: str = name) -> None:
                places[name] = output[0, 0].numel()

            hooks.append(module.register_forward_hook(note))
    network.eval()(torch.zeros(1, *image))
    for hook in hooks:
        hook.remove()
    return places


def _macs(network: nn.Module, places: dict[str, int]) -> int:
    return sum(_weight(network, name).numel() * count for name, count in places.items())
