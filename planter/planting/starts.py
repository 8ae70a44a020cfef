"""What planted channels start as: their filters, and the slices of what reads them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from planter.machine.torch_state import evaluating

Filters = Literal["random", "zero", "scaled", "gradient"]
Outgoing = Literal["zero", "random", "scaled"]
PROPOSALS = 8

_Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


def check_init(filters: Filters, outgoing: Outgoing) -> None:
    """Raises ValueError for an unknown start, a combination without meaning, and one from which no
    gradient reaches the new weights."""
    for name, start, known in (("filters", filters, Filters), ("outgoing", outgoing, Outgoing)):
        if start not in get_args(known):
            raise ValueError(f"{name} are {', '.join(get_args(known))}, got {start!r}")
    if filters == "zero" and outgoing == "zero":
        raise ValueError(
            "filters zero with outgoing zero: no gradient ever reaches either; one of them random"
        )
    if filters == "gradient" and outgoing != "zero":
        raise ValueError(
            f"filters gradient with outgoing {outgoing}: the gradient is that of the outgoing "
            "slices at zero; outgoing: zero"
        )


def check_learns(child: nn.Module, parent: nn.Module, image: tuple[int, int, int]) -> None:
    """Raises ValueError if no gradient reaches any new weight. After filters of zero, torch's ReLU
    passes none, whatever the outgoing weights are."""
    network = copy.deepcopy(child).cpu().double().eval()
    generator = torch.Generator().manual_seed(0)
    logits = network(torch.randn(8, *image, generator=generator, dtype=torch.float64))
    logits.square().sum().backward()
    old = parent.state_dict()
    for name, parameter in network.named_parameters():
        if parameter.grad is None or parameter.shape == old[name].shape:
            continue
        inherited = tuple(slice(size) for size in old[name].shape)
        parameter.grad[inherited] = 0
        if parameter.grad.any():
            return
    raise ValueError("filters zero never learn in front of a ReLU: filters random, or scaled")


def zero_filters_(child: nn.Module, parent: nn.Module) -> None:
    """The planted channels are zero for every image, until their filters learn."""
    with torch.no_grad():
        for layer, old in _wider_outputs(child, parent):
            layer.weight[old:] = 0
            if layer.bias is not None:
                layer.bias[old:] = 0


def scale_filters_(child: nn.Module, parent: nn.Module, images: Tensor) -> None:
    """Scales each planted filter so that its responses to `images` `[n, channels, height, width]`
    spread as much as those of the layer's older ones do on average."""
    for layer, old in _wider_outputs(child, parent):
        with torch.no_grad(), evaluating(child), _outputs(child, [layer]) as heard:
            child(images)
            spread = heard[layer].transpose(0, 1).flatten(1).std(dim=1)
            factor = _ratio(spread[:old].mean(), spread[old:])
            layer.weight[old:] *= factor.view(-1, *[1] * (layer.weight.dim() - 1))
            if layer.bias is not None:
                layer.bias[old:] *= factor


def scale_outgoing_(child: nn.Module, parent: nn.Module, images: Tensor) -> None:
    """Scales each slice that reads planted channels so that what it adds to `images`'
    pre-activations spreads as its share of the inputs would: std(added) / std(before) =
    sqrt(planted inputs / older inputs)."""
    readers = list(_wider_inputs(child, parent))
    with torch.no_grad(), evaluating(child):
        slices = {layer: layer.weight[:, old:].clone() for layer, old in readers}
        for layer, old in readers:
            layer.weight[:, old:] = 0
        for layer, old in readers:
            with _outputs(child, [layer]) as heard:
                child(images)
                before = heard[layer]
            layer.weight[:, old:] = slices[layer]
            with _outputs(child, [layer]) as heard:
                child(images)
                added = heard[layer] - before
            share = (slices[layer].shape[1] / old) ** 0.5
            layer.weight[:, old:] *= share * _ratio(before.std(), added.std())


def pick_filters_(
    child: nn.Module,
    parent: nn.Module,
    proposals: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    channels: int,
) -> None:
    """Sets the `channels` planted filters of the child to the best of many random ones.

    `proposals` is the same network with PROPOSALS times as many planted filters, whose outgoing
    slices are zero. The selected filters are those whose outgoing slices have the largest gradient
    of `loss(network)`.

    The criterion is that of GradMax (Evci et al., ICLR 2022): it maximises the norm of the gradient
    of new weights while the function is unchanged. GradMax sets the incoming filters to zero and
    chooses outgoing weights; we do the reverse, because torch's ReLU has no gradient at 0.
    """
    proposals.zero_grad()
    with evaluating(proposals):
        loss(proposals).backward()  # type: ignore[no-untyped-call]
    old = parent.state_dict()
    grown = {name: p for name, p in proposals.named_parameters() if name in old}
    count = PROPOSALS * channels
    # Where fewer channels follow (a branch of half the widths), which of them is nobody's choice.
    fresh = [n for n, p in grown.items() if (len(p) - len(old[n])) in range(count, len(p), count)]
    score = torch.zeros(count)
    for name, parameter in grown.items():
        if parameter.dim() < 2 or (parameter.shape[1] - (inputs := old[name].shape[1])) % count:
            continue
        if parameter.shape[1] > inputs:
            assert parameter.grad is not None
            grad = parameter.grad[: old[name].shape[0], inputs:].cpu()
            # Channels of a flattened map stand together, so do a channel's repetitions.
            score += grad.reshape(len(grad), count, -1).square().sum(dim=(0, 2))
    mine, theirs = child.state_dict(), proposals.state_dict()
    best = score.topk(channels).indices.sort().values
    with torch.no_grad():
        for name in fresh:
            have = old[name].shape[0]
            rows = theirs[name][have:].unflatten(0, (count, -1))[best.to(theirs[name].device)]
            target, rows = mine[name][have:], rows.flatten(0, 1)
            if target.dim() > 1:
                # A residual stream reads itself: what reads planted channels stays zero.
                inputs = old[name].shape[1]
                target[:, :inputs] = rows[:, :inputs]
            else:
                target.copy_(rows)


def _ratio(wanted: Tensor, found: Tensor) -> Tensor:
    """The factor that makes `found` `wanted`; 1 where nothing is heard, which no factor changes."""
    heard = found > 1e-6 * wanted
    return torch.where(heard, wanted / found.where(heard, 1.0), 1.0)


def _wider_outputs(child: nn.Module, parent: nn.Module) -> Iterator[tuple[_Layer, int]]:
    """Each layer of the child with more outputs than the parent's, and how many that had."""
    return _wider(child, parent, 0)


def _wider_inputs(child: nn.Module, parent: nn.Module) -> Iterator[tuple[_Layer, int]]:
    """Each layer of the child that reads more than the parent's, and how many inputs that had."""
    return _wider(child, parent, 1)


def _wider(child: nn.Module, parent: nn.Module, axis: int) -> Iterator[tuple[_Layer, int]]:
    old = parent.state_dict()
    for name, layer in child.named_modules():
        if not isinstance(layer, _Layer) or f"{name}.weight" not in old:
            continue
        if layer.weight.shape[axis] > (before := old[f"{name}.weight"].shape[axis]):
            yield layer, before


@contextmanager
def _outputs(network: nn.Module, layers: list[_Layer]) -> Iterator[Mapping[nn.Module, Tensor]]:
    """What the layers answer while the network runs within the block."""
    heard: dict[nn.Module, Tensor] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        heard[layer] = output

    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()
