"""What a network costs: parameters and multiply-adds, with the convention named.

`macs` are the multiply-adds of convolutions and linear layers for one image, without bias and norm:
torch's `FlopCounterMode` / 2. `macs_all` follows the table of CNSN: macs + 1 per convolution output
(a bias, present or not) + 2 per batch-norm element + 1 per ReLU element + the inputs of poolings.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from planter.arch import Architecture
from planter.backbones import StagedNet, is_known
from planter.edits.expand import are_data, expand_kernels_
from planter.kernels.blocks import expanded_layers
from planter.kernels.forms import Kernels
from planter.machine.torch_state import ShapesOnly, evaluating
from planter.networks.assembly import build_without_data, code_called
from planter.networks.cut_points import image_of
from planter.networks.norms import NormMode
from planter.networks.pipelines import BRANCH, Pipelines

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


@dataclass(frozen=True)
class Stage:
    """One part of a network: what it costs and the shape it hands on (without the batch)."""

    name: str
    macs: int
    macs_all: int
    params: int
    output: tuple[int, ...]


@dataclass(frozen=True)
class Cost:
    """Cost of one network; of its base and of every pipeline where it has several.

    `extra_params` and `extra_statistics` (running means and variances) are the numbers stored for a
    pipeline beside those of the base; of the whole, those of all pipelines together. `size_bytes`
    is what the tensors of the network's weights file take, parameters and buffers.
    """

    macs: int
    macs_all: int
    params: int
    stages: tuple[Stage, ...]
    pipelines: dict[str, Cost] = field(default_factory=dict)
    extra_params: int = 0
    extra_statistics: int = 0
    size_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class TrainingCost:
    """Multiply-adds of one training step, forward and backward, and trained parameters, of the
    network in its training form and of the plain one."""

    batch: int
    macs_step: int
    macs_step_plain: int
    params: int
    params_plain: int

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


def training_cost(
    architecture: Architecture,
    kernels: Kernels | None = None,
    batch: int = 128,
    names: Collection[str] | None = None,
) -> TrainingCost:
    """What a step on `batch` images costs, all pipelines (or `names` alone) together, as
    `FlopCounterMode` / 2 counts it: convolutions and matrix products, those that make kernels too,
    no bias and no norm.

    Raises ValueError where the form cannot be given to the network.
    """
    count = _known_training_cost if are_data(architecture, kernels) else _training_cost
    return count(architecture, kernels, batch, None if names is None else tuple(names))


def _training_cost(
    architecture: Architecture, kernels: Kernels | None, batch: int, names: tuple[str, ...] | None
) -> TrainingCost:
    plain = build_without_data(architecture)
    expanded = build_without_data(architecture)
    if kernels is not None:
        expand_kernels_(expanded, kernels)
    images = torch.empty(batch, *image_of(architecture), device="meta")
    return TrainingCost(
        batch,
        _macs_of_step(expanded, images, names),
        _macs_of_step(plain, images, names),
        _trained(expanded),
        _trained(plain),
    )


# Trainings of one architecture in one form, of several rates, cost the same.
_known_training_cost: Callable[[Architecture, Any, int, Any], TrainingCost] = lru_cache(
    maxsize=1024
)(_training_cost)


def _macs_of_step(network: nn.Module, images: Tensor, names: Collection[str] | None) -> int:
    counter = FlopCounterMode(display=False)
    asked = [] if names is None or not isinstance(network, Pipelines) else [names]
    with counter, parametrize.cached():
        logits = network.train()(images, *asked)
        ways = logits.values() if isinstance(logits, dict) else [logits]
        torch.stack([way.sum() for way in ways]).sum().backward()  # type: ignore[no-untyped-call]
    return counter.get_total_flops() // 2


def _trained(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.grad is not None)


def cost(
    network: Architecture | nn.Module,
    image: Sequence[int] | None = None,
    norms: NormMode = "switch_stats",
) -> Cost:
    """Multiply-adds and parameters of a network for one image of shape (channels, height, width).

    An architecture is counted without allocating its weights, and knows its image; `norms` says
    what of shared batch norms each of its entries stores for itself. A module is run
    once on one blank image, in eval mode, and left in the mode it had. Raises ValueError for a
    module with expanded kernels: the count is that of the network that is shipped.
    """
    if isinstance(network, Architecture):
        shape = image or network.options.get("image")
        if shape is None:
            raise ValueError("cost needs the image shape, e.g. image=(3, 32, 32)")
        if is_known(network.builder) and not code_called(network):
            return _known_cost(network, tuple(shape), norms)
        return _cost_without_data(network, tuple(shape), norms)
    if image is None:
        raise ValueError("cost of a module needs the image shape, e.g. image=(3, 32, 32)")
    like = next(network.parameters())
    return _cost(network, like.new_zeros(1, *image))


def _cost_without_data(architecture: Architecture, shape: tuple[int, ...], norms: NormMode) -> Cost:
    network = build_without_data(architecture, norms)
    if isinstance(network, StagedNet) and is_known(architecture.builder):
        network = Pipelines(network, {}).detach("base", spent=True)
    return _cost(network, torch.empty(1, *shape, device="meta"))


# Checks, bounds, estimates and tables ask for the same networks one after another.
_known_cost = lru_cache(maxsize=1024)(_cost_without_data)


def _cost(network: nn.Module, images: Tensor) -> Cost:
    if expanded := expanded_layers(network):
        raise ValueError(f"{expanded[0]} is expanded; collapse_kernels_(model) before counting")
    if isinstance(network, Pipelines):
        pipelines = {name: _cost_of_pipeline(network, name, images) for name in network.names}
        base = pipelines["base"]
        ways = pipelines.values()
        return replace(
            base,
            pipelines=pipelines,
            extra_params=sum(way.extra_params for way in ways),
            extra_statistics=sum(way.extra_statistics for way in ways),
        )
    if isinstance(network, StagedNet):
        network = Pipelines(network, {}).detach("base")
    alone = _cost_of_one(network, images)
    return replace(alone, pipelines={"base": alone})


def _cost_of_one(network: nn.Module, images: Tensor) -> Cost:
    parts: list[tuple[str, nn.Module | None]] = [("network", network)]
    if isinstance(network, nn.Sequential) and type(network).forward is nn.Sequential.forward:
        parts = list(network._modules.items())
    stages = []
    x: Any = images
    with evaluating(network), torch.no_grad():
        for name, part in parts:
            assert part is not None
            extra = _Extra(part)
            counter = FlopCounterMode(display=False)
            with extra, ShapesOnly(), counter:
                x = part(x)
            macs = counter.get_total_flops() // 2
            params = sum(p.numel() for p in part.parameters())
            output = tuple(x.shape[1:])
            stages.append(Stage(name, macs, macs + extra.count, params, output))
    macs, macs_all = sum(s.macs for s in stages), sum(s.macs_all for s in stages)
    params = sum(p.numel() for p in network.parameters())
    # Of a part that is used twice a file holds two copies.
    size = sum(t.numel() * t.element_size() for t in network.state_dict().values())
    return Cost(macs, macs_all, params, tuple(stages), size_bytes=size)


class Activations(NamedTuple):
    """Numbers that layers hand on for one image: of all layers, and of the one with most."""

    all: int
    most: int


def activations(architecture: Architecture) -> Activations:
    """Of the layers of all pipelines: what a training step keeps of an image for its backward pass,
    but for a factor."""
    network = build_without_data(architecture).eval()
    counts = [0]

    def add(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        counts.append(output.numel() if isinstance(output, Tensor) else 0)

    leaves = [module for module in network.modules() if not list(module.children())]
    hooks = [leaf.register_forward_hook(add) for leaf in leaves]
    try:
        with torch.no_grad(), ShapesOnly():
            network(torch.empty(1, *image_of(architecture), device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return Activations(sum(counts), max(counts))


def alone(cost: Cost, pipeline: str) -> Cost:
    """The cost of one pipeline that is kept by itself, as a child's network is: it is all there is,
    and stores nothing beside a base."""
    way = replace(cost.pipelines[pipeline], extra_params=0, extra_statistics=0)
    return replace(way, pipelines={pipeline: way})


def joint_macs(cost: Cost, names: Collection[str]) -> int:
    """Multiply-adds of one forward pass of several pipelines: branches read the maps of the base,
    which are computed once."""
    computed = {}
    for name in names:
        stages = cost.pipelines[name].stages
        on_base = name == "base" or stages[-1].name == BRANCH
        for stage in stages:
            maps_of = "base" if on_base and stage.name != BRANCH else name
            computed[maps_of, stage.name] = stage.macs
    return sum(computed.values())


def _cost_of_pipeline(network: Pipelines, name: str, images: Tensor) -> Cost:
    of_base = {id(p) for p in network.backbone.parameters()}
    own = nn.ModuleList(network.own_modules(name))
    return replace(
        _cost_of_one(network.detach(name), images),
        extra_params=sum(p.numel() for p in own.parameters() if id(p) not in of_base),
        extra_statistics=sum(b.numel() for b in own.buffers() if b.is_floating_point()),
    )


class _Extra:
    """Counts, while active, what `macs_all` adds to the multiply-adds."""

    def __init__(self, network: nn.Module) -> None:
        self.count = 0
        self._network = network
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> None:
        for module in self._network.modules():
            self._hooks.append(module.register_forward_hook(self._add))

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _add(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, (*_CONVS, nn.ReLU)):
            self.count += output.numel()
        elif isinstance(module, _NORMS):
            self.count += 2 * output.numel()
        elif isinstance(module, _POOLS) and inputs[0].shape != output.shape:
            self.count += inputs[0].numel()
