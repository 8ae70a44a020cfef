"""Stages of a network that was not written for planter: parts that run one after another."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from planter.backbones.staged import StagedNet


class ChainNet(StagedNet):
    """A network seen as stages and a head, which hold its own parts. `whole` is the network itself,
    and what is shipped of its base; `layers` says where in the stages its parts stand."""

    def __init__(
        self, network: nn.Module, stages: nn.Sequential, head: nn.Module, layers: dict[str, str]
    ) -> None:
        super().__init__(stages, head)
        self._whole = [network]  # in a list it is no part of this one: its tensors are there once
        self.layers = layers

    @property
    def whole(self) -> nn.Module:
        return self._whole[0]


class Apply(nn.Module):
    """A function or a tensor's method between two parts, as a part: `function(x, ...)`."""

    def __init__(self, function: Any, args: tuple[Any, ...], settings: dict[str, Any]) -> None:
        super().__init__()
        self.function, self.args, self.settings = function, args, settings

    def forward(self, x: Tensor) -> Any:
        function = getattr(type(x), self.function) if isinstance(self.function, str) else None
        return (function or self.function)(x, *self.args, **self.settings)

    def extra_repr(self) -> str:
        return getattr(self.function, "__name__", str(self.function))


class _Step(NamedTuple):
    name: str
    """Of a part in the network; empty for a function."""
    module: nn.Module


class _Chain(fx.Tracer):
    """Goes into plain sequences, and takes all other parts of a network as they are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) is not nn.Sequential


def chained(network: nn.Module) -> ChainNet:
    """The network's parts as stages, where they run one after another, each on what the one before
    gives: an `nn.Sequential`, or a network whose forward calls its children in a row. A stage
    begins with each part that has weights; what follows without (norms, activations, poolings,
    functions) belongs to it. Names are the parts', dots as underscores. The head begins where maps
    end: with the pooling or flattening before the last layers.

    Raises ValueError, naming the place, where something else runs.
    """
    steps = list(_steps(network))
    first_of_head = _head(steps)
    stages: OrderedDict[str, list[_Step]] = OrderedDict()
    for step in steps[:first_of_head]:
        if not stages or _has_weights(step.module):
            stages[(step.name or "input").replace(".", "_")] = []
        next(reversed(stages.values())).append(step)
    if len(stages) < 2:
        raise ValueError(f"{type(network).__name__} has fewer than two parts with weights in a row")
    layers: dict[str, str] = {}
    parts = OrderedDict((name, _part(name, own, layers)) for name, own in stages.items())
    head = _part("head", steps[first_of_head:], layers)
    return ChainNet(network, nn.Sequential(parts), head, layers)


def _steps(network: nn.Module) -> Iterator[_Step]:
    """What runs, in order."""
    kind = type(network).__name__
    try:
        graph = _Chain().trace(network)
    except Exception as error:  # whatever tracing meets in a user's code
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"{kind} has no parts that run one after another: {first}") from error
    before: fx.Node | None = None
    called: set[str] = set()
    for node in graph.nodes:
        if node.op == "output":
            if node.args != (before,):
                raise ValueError(f"{kind} returns more than what its last part gives")
        elif node.op == "placeholder":
            if before is not None:
                raise ValueError(f"{kind} takes more than images: {node.name}")
            before = node
        elif (
            node.op == "get_attr" or node.all_input_nodes != [before] or node.args[:1] != (before,)
        ):
            raise ValueError(
                f"{kind} has no parts that run one after another: {node.name} takes other than "
                "what comes right before it"
            )
        else:
            if node.op == "call_module":
                module = network.get_submodule(str(node.target))
                if str(node.target) in called and list(module.parameters()):
                    raise ValueError(f"{kind} runs {node.target} more than once")
                called.add(str(node.target))
                yield _Step(str(node.target), module)
            else:
                yield _Step("", Apply(node.target, tuple(node.args[1:]), dict(node.kwargs)))
            before = node


def _has_weights(module: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in module.parameters())


def _head(steps: list[_Step]) -> int:
    """The place of the first step of the head: behind the last convolution, or part that has one,
    what pools and flattens its maps."""
    last = max(
        (i for i, step in enumerate(steps) if _has_convolutions(step.module)), default=len(steps)
    )
    for i in range(last + 1, len(steps)):
        pools = isinstance(steps[i].module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d)
        flattens = isinstance(steps[i].module, nn.Flatten) or steps[i].module.extra_repr() in (
            "flatten", "adaptive_avg_pool2d", "adaptive_max_pool2d", "mean", "view", "reshape",
        )  # fmt: skip
        if pools or flattens or _has_weights(steps[i].module):
            return i
    raise ValueError("it has no head behind its last convolution")


def _has_convolutions(module: nn.Module) -> bool:
    convolution = nn.modules.conv._ConvNd
    return any(isinstance(part, convolution) for part in module.modules())


def _part(stage: str, steps: list[_Step], layers: dict[str, str]) -> nn.Module:
    """The steps of a stage as one module; where the network's parts stand in it is put down."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (name, module) in enumerate(steps):
        inner = name.replace(".", "_") or f"step{i}"
        while inner in parts:  # one without weights may run twice
            inner += "_"
        parts[inner] = module
        if name:
            layers[name] = f"{stage}.{inner}"
    return nn.Sequential(parts)
