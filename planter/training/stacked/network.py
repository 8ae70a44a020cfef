"""Networks of one shape as one network: their channels side by side, each layer in groups."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from planter.backbones.resnet import PaddedShortcut


def stack(models: Sequence[nn.Module]) -> nn.Module:
    """A network that computes at once what each of `models` does: from images
    `[batch, n * channels, height, width]`, those of the n networks one behind the other, to logits
    `[batch, n * classes]`.

    It has no tensors of its own. In each pass it reads those of the networks, as their training
    forms generate them; gradients and the statistics of batch norms arrive there. Whether the rest
    of the forward pass (views, sums over channels) keeps the networks apart is for the caller to
    try. Raises ValueError for networks that differ in more than their tensors' values, and for a
    layer with tensors that has no counterpart here.
    """
    first = models[0]
    if any(shape_of(model) != shape_of(first) for model in models):
        raise ValueError("networks of different shapes cannot be stacked: train them apart")
    whole = copy.deepcopy(first)
    for place, layer in first.named_modules():
        made = next((m for kind, m in _LAYERS if _is_plain(layer, kind)), None)
        if made is None:
            continue
        parent, _, name = place.rpartition(".")
        if not place:
            raise ValueError(f"{type(layer).__name__} alone is no network")
        setattr(whole.get_submodule(parent), name, made([m.get_submodule(place) for m in models]))
    left = [name for name, _ in [*whole.named_parameters(), *whole.named_buffers()]]
    if left:
        raise ValueError(
            f"{', '.join(left[:3])} of {type(first).__name__} belongs to a layer that has no form "
            "for several networks: train them apart"
        )
    return whole


def shape_of(model: nn.Module) -> tuple[object, ...]:
    """What two networks have in common that differ in their tensors' values alone."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    shapes = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors)
    return type(model), repr(model), shapes


@contextmanager
def answering(
    models: Sequence[nn.Module], whole: nn.Module, images: Sequence[Tensor], layout: Any
) -> Iterator[None]:
    """Within the block each model answers about its `images` `[batch, channels, height, width]`,
    by one pass of the `whole` stack for all of them, laid out as `layout` says."""
    made: list[Any] = []

    def answer(at: int) -> Callable[..., Any]:
        def forward(own: Tensor, *args: Any, **kwargs: Any) -> Any:
            if own is not images[at]:
                raise ValueError("within a stack a network is asked about its batch alone")
            if not made:
                together = torch.cat(list(images), 1).contiguous(memory_format=layout)
                made.append(whole(together, *args, **kwargs))
            return _share(made[0], at, len(models))

        return forward

    try:
        for at, model in enumerate(models):
            model.__dict__["forward"] = answer(at)
        yield
    finally:
        for model in models:
            model.__dict__.pop("forward", None)


def _share(given: Any, at: int, count: int) -> Any:
    """What is one network's of what all of them give."""
    if isinstance(given, Mapping):
        return {name: _share(one, at, count) for name, one in given.items()}
    return given.unflatten(1, (count, -1))[:, at]


def _is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer computes as torch's of that kind does, its tensors generated or not."""
    return isinstance(layer, kind) and type(layer).forward is kind.forward


def _joint(tensors: Sequence[Any]) -> Tensor | None:
    """Tensors of all networks one behind the other; None where the layer has none."""
    return None if tensors[0] is None else torch.cat(list(tensors))


class _Layers(nn.Module):
    """The same layer of each network; not its parts, whose tensors stay the networks'."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers: Any = tuple(layers)

    def joint(self, name: str) -> Tensor | None:
        return _joint([getattr(layer, name) for layer in self.layers])


class _Convolutions(_Layers):
    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__(layers)
        if self.layers[0].padding_mode != "zeros":
            raise ValueError(f"padding_mode {self.layers[0].padding_mode} has no form for several")

    def forward(self, x: Tensor) -> Tensor:
        own, weight = self.layers[0], self.joint("weight")
        assert weight is not None
        groups = own.groups * len(self.layers)
        return functional.conv2d(
            x, weight, self.joint("bias"), own.stride, own.padding, own.dilation, groups
        )


class _Products(_Layers):
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 2:
            raise ValueError("linear layers of several networks take rows [batch, features]")
        own = x.view(len(x), len(self.layers), -1).transpose(0, 1)
        weights = torch.stack([layer.weight for layer in self.layers]).transpose(1, 2)
        if self.layers[0].bias is None:
            made = torch.bmm(own, weights)
        else:
            biases = torch.stack([layer.bias for layer in self.layers])
            made = torch.baddbmm(biases[:, None], own, weights)
        return made.transpose(0, 1).flatten(1)


class _BatchNorms(_Layers):
    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__(layers)
        if not self.layers[0].track_running_stats or self.layers[0].momentum is None:
            raise ValueError("batch norms without running statistics, or with their plain mean")

    def forward(self, x: Tensor) -> Tensor:
        own = self.layers[0]
        mean, variance = self.joint("running_mean"), self.joint("running_var")
        assert mean is not None
        assert variance is not None
        weight, bias = self.joint("weight"), self.joint("bias")
        y = functional.batch_norm(
            x, mean, variance, weight, bias, own.training, own.momentum, own.eps
        )
        if own.training:
            parts = mean.chunk(len(self.layers)), variance.chunk(len(self.layers))
            for layer, its_mean, its_variance in zip(self.layers, *parts, strict=True):
                layer.running_mean.copy_(its_mean)
                layer.running_var.copy_(its_variance)
                layer.num_batches_tracked.add_(1)
        return y


class _GroupNorms(_Layers):
    def forward(self, x: Tensor) -> Tensor:
        own = self.layers[0]
        groups = own.num_groups * len(self.layers)
        return functional.group_norm(x, groups, self.joint("weight"), self.joint("bias"), own.eps)


class _PaddedShortcuts(_Layers):
    def forward(self, x: Tensor) -> Tensor:
        # Each network's zero channels stand behind its own.
        count = len(self.layers)
        apart = x.reshape(len(x) * count, -1, *x.shape[2:])
        padded: Tensor = self.layers[0](apart)
        return padded.reshape(len(x), -1, *padded.shape[2:])


_LAYERS: list[tuple[type[nn.Module], Callable[[Sequence[nn.Module]], nn.Module]]] = [
    (nn.Conv2d, _Convolutions),
    (nn.Linear, _Products),
    (_BatchNorm, _BatchNorms),
    (nn.GroupNorm, _GroupNorms),
    (PaddedShortcut, _PaddedShortcuts),
]
