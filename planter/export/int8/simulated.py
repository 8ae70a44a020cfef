"""A network that rounds, while it is trained, where its INT8 file will round.

What that is depends on onnxruntime's quantiser, which leaves out tensors between fused operations
and gives several one scale. So it is read from a quantised file of the network.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, fx, nn

from planter.export import onnx_file
from planter.export.int8 import static

log = logging.getLogger(__name__)
# onnxruntime has no scale below it: such a tensor is taken for zeros.
_LEAST_SCALE = torch.finfo(torch.float32).tiny
_CALIBRATION_BATCH = 64


class Rounded(NamedTuple):
    """What a quantised file rounds, by the names that tensors have in the program it was made of:
    groups of activations that share a scale, and the axis of each weight's scales, None where the
    whole tensor has one. `input` and `output` are the file's names of these two."""

    activations: dict[str, str]
    weights: dict[str, int | None]
    input: str
    output: str


class RoundedActivation(nn.Module):
    """Activations of one scale, in signed 8 bits; while `watching`, they pass as they are, and
    their least and largest values set the range, which always holds 0."""

    def __init__(self) -> None:
        super().__init__()
        self.watching = False
        self.low: Tensor
        self.high: Tensor
        self.scale: Tensor
        self.zero_point: Tensor
        for name in ("low", "high"):
            self.register_buffer(name, torch.zeros(()), persistent=False)
        self.register_buffer("scale", torch.ones(()), persistent=False)
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32), persistent=False)

    def watch_(self) -> None:
        self.watching = True
        self.low.zero_()
        self.high.zero_()

    def settle_(self) -> None:
        """Scale and zero point of what was seen, as onnxruntime computes them."""
        self.watching = False
        scale = (self.high.double() - self.low.double()) / 255
        if float(scale) < _LEAST_SCALE:
            self.scale.fill_(1)
            self.zero_point.zero_()
        else:
            self.scale.copy_(scale)
            self.zero_point.copy_((-128 - self.low.double() / scale).round())

    def forward(self, values: Tensor) -> Tensor:
        if self.watching:
            least, most = values.detach().aminmax()
            torch.minimum(self.low, least, out=self.low)
            torch.maximum(self.high, most, out=self.high)
            return values
        return torch.fake_quantize_per_tensor_affine(values, self.scale, self.zero_point, -128, 127)


class RoundedWeight(nn.Module):
    """A weight in signed 8 bits from -127 to 127, with a scale for each index of `axis` or one;
    while `watching`, it passes as it is."""

    def __init__(self, axis: int | None) -> None:
        super().__init__()
        self.axis = axis
        self.watching = False

    def watch_(self) -> None:
        self.watching = True

    def settle_(self) -> None:
        self.watching = False

    def forward(self, weight: Tensor) -> Tensor:
        if self.watching:
            return weight
        axis = self.axis
        others = [n for n in range(weight.dim()) if n != axis]
        largest = weight.detach().abs().amax(others) if others else weight.detach().abs()
        scale = torch.where(largest / 127 < _LEAST_SCALE, 1.0, largest / 127)
        zero = torch.zeros_like(scale, dtype=torch.int32)
        if axis is None:
            return torch.fake_quantize_per_tensor_affine(weight, scale, zero, -127, 127)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, axis, -127, 127)


class Simulated(nn.Module):
    """What the INT8 file of a network computes, but for the order of sums and the rounding of
    biases, which have 32 bits. Gradients pass each rounding as if it were none and end where a
    value is beyond its range ("straight through"). Its parameters are those of `network`."""

    def __init__(self, network: nn.Module, program: fx.GraphModule) -> None:
        super().__init__()
        self.network = network  # its layers tell `fit` how images may lie in memory
        self.program = program

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.program(images)
        return logits

    def set_ranges_(self, images: Tensor) -> Self:
        """Takes each range from what the images `[n, channels, height, width]`, as the network
        takes them, lead to without any rounding."""
        roundings = [
            module
            for module in self.program.modules()
            if isinstance(module, (RoundedActivation, RoundedWeight))
        ]
        for rounding in roundings:
            rounding.watch_()
        with torch.no_grad():
            for first in range(0, len(images), _CALIBRATION_BATCH):
                self.program(images[first : first + _CALIBRATION_BATCH])
        for rounding in roundings:
            rounding.settle_()
        return self


def simulated(network: nn.Module, images: Tensor) -> Simulated:
    """A network in eval mode, its norms folded, as its INT8 file with ranges from the images
    computes; all its parameters become trainable.

    Tensors that torch's program does not have, parts of an operation that ONNX writes as several,
    are not rounded; a warning of the log names them. Raises ValueError where no weight is rounded.
    """
    network.requires_grad_(True)
    written = onnx_file.program_of(network, images[:1].repeat(2, 1, 1, 1))
    with tempfile.TemporaryDirectory() as folder:
        whole, small = Path(folder) / "whole.onnx", Path(folder) / "small.onnx"
        written.save(str(whole))
        static.quantise(whole, images.cpu().numpy(), small)
        rounded = rounded_in(small)
    assert written.exported_program is not None
    program = _rounding(written.exported_program.module(check_guards=False), rounded)
    return Simulated(network, program).set_ranges_(images)


def rounded_in(file: Path) -> Rounded:
    """What an ONNX model in QDQ form rounds to 8 bits."""
    import onnx
    from onnxruntime.quantization.quant_utils import TENSOR_NAME_QUANT_SUFFIX

    graph = onnx.load(file).graph
    kept = {tensor.name: tensor for tensor in graph.initializer}
    activations: dict[str, str] = {}
    weights: dict[str, int | None] = {}
    given, sources = {}, {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in kept:
            activations[node.input[0]] = node.input[1]
            sources[node.output[0]] = node.input[0]
        elif node.op_type == "DequantizeLinear":
            given[node.output[0]] = node.input[0]
            tensor = kept.get(node.input[0])
            if tensor is not None and tensor.data_type == onnx.TensorProto.INT8:
                (axis,) = [a.i for a in node.attribute if a.name == "axis"] or [1]
                name = node.input[0].removesuffix(TENSOR_NAME_QUANT_SUFFIX)
                weights[name] = axis if kept[node.input[1]].dims else None
    output = graph.output[0].name
    return Rounded(
        activations, weights, graph.input[0].name, sources.get(given.get(output, ""), output)
    )


def _rounding(program: Any, rounded: Rounded) -> fx.GraphModule:
    """The program with a rounding behind each tensor that is rounded."""
    graph: fx.Graph = program.graph
    nodes = {node.name: node for node in graph.nodes if node.op not in ("get_attr", "output")}
    (images,) = (node for node in graph.nodes if node.op == "placeholder")
    (end,) = (node for node in graph.nodes if node.op == "output")
    nodes |= {rounded.input: images, rounded.output: end.all_input_nodes[0]}
    kept = {node.target: node for node in graph.nodes if node.op == "get_attr"}
    places: list[tuple[fx.Node, str]] = []
    groups: dict[str, str] = {}
    for name, scale in rounded.activations.items():
        if name in nodes:
            group = groups.setdefault(scale, f"rounded_{len(groups)}")
            program.add_module(group, RoundedActivation())
            places.append((nodes[name], group))
    for name, axis in rounded.weights.items():
        if name in kept:
            module = f"rounded_weight_{len(places)}"
            program.add_module(module, RoundedWeight(axis))
            places.append((kept[name], module))
    if not rounded.weights.keys() & kept.keys():
        raise ValueError(
            "none of the weights that the INT8 file rounds are parameters of torch's program of "
            "the network, so its rounding cannot be trained with; leave --qat out"
        )
    left = (rounded.activations.keys() - nodes.keys()) | (rounded.weights.keys() - kept.keys())
    if left:
        log.warning("rounded in the file, not in training: %s", ", ".join(sorted(left)))
    for node, module in places:
        with graph.inserting_after(node):
            after = graph.call_module(module, (node,))
        node.replace_all_uses_with(after)
        after.args = (node,)
    for node in graph.nodes:
        if node.target is torch.ops.aten.view.default:  # fails where images lie channels last
            node.target = torch.ops.aten.reshape.default
    graph.lint()
    return fx.GraphModule(program, graph)
