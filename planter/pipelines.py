"""Several ways through one network: entries at named cuts, each a network that can be taken out.

A sub-model of CNSN is an entry: a step-down convolution turns the image into the map that the stage
at the cut expects, and the stages from there on are shared with the base network.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from planter.arch import Architecture
from planter.backbones import build_backbone
from planter.blocks import expanded_layers

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_SPEC_KEYS = {"before", "kernel", "stride", "norm"}


@dataclass(frozen=True)
class Entry:
    """A module that turns the image into the input of stage `before`."""

    before: str
    module: nn.Module


@dataclass(frozen=True)
class Cut:
    """What stage `before` expects: an input of `channels` channels, `stride` times smaller than the
    image."""

    before: str
    channels: int
    stride: int


class Pipelines(nn.Module):
    """A backbone and its entries; one call gives the logits of every pipeline.

    Weights of shared stages are shared. Statistics of their batch norms are each pipeline's own:
    several input distributions through one running mean would fit none of them.
    """

    def __init__(self, backbone: nn.Module, entries: Mapping[str, Entry]) -> None:
        super().__init__()
        self.backbone = backbone
        self._before = {name: entry.before for name, entry in entries.items()}
        for name, before in self._before.items():
            _check_name(name)
            stages = _stage_names(backbone)
            if before not in stages[1:]:
                raise ValueError(
                    f"pipeline {name}: cannot enter before {before!r}; "
                    f"cuts are before {', '.join(stages[1:])}"
                )
        self.entries = nn.ModuleDict({name: entry.module for name, entry in entries.items()})
        self.statistics = nn.ModuleDict(
            {name: _Statistics(self._tail(name)) for name in self._before}
        )

    @property
    def names(self) -> list[str]:
        """ "base" first, then the entries in the order given."""
        return ["base", *self._before]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits `[batch, classes]` by pipeline for images `[batch, channels, height, width]`."""
        logits: dict[str, Tensor] = {"base": self.backbone(images)}
        for name, entry in self.entries.items():
            statistics = self.statistics[name]
            assert isinstance(statistics, _Statistics)
            logits[name] = torch.func.functional_call(
                self._tail(name), statistics.by_name(), (entry(images),)
            )
        return logits

    def detach(self, name: str) -> nn.Module:
        """An independent plain network that computes what pipeline `name` computes.

        Raises ValueError for an unknown name and while kernels are expanded.
        """
        if name not in self.names:
            raise ValueError(f"no pipeline {name!r}; pipelines are {', '.join(self.names)}")
        if expanded := expanded_layers(self):
            raise ValueError(
                f"{expanded[0]} is expanded; collapse_kernels_(model) before detaching"
            )
        if name == "base":
            if not hasattr(self.backbone, "stages"):
                return copy.deepcopy(self.backbone)
            whole = copy.deepcopy(_sequence(self.backbone, _stage_names(self.backbone)[0]))
            whole.training = self.training
            return whole
        tail = copy.deepcopy(self._tail(name))
        statistics = self.statistics[name]
        assert isinstance(statistics, _Statistics)
        tail.load_state_dict(statistics.by_name(), strict=False)
        parts = OrderedDict(step_down=copy.deepcopy(self.entries[name]), **tail._modules)
        alone = nn.Sequential(parts)
        alone.training = self.training
        return alone

    def _tail(self, name: str) -> nn.Sequential:
        return _sequence(self.backbone, self._before[name])


class _Statistics(nn.Module):
    """One pipeline's own copies of the batch-norm buffers of the stages it shares."""

    def __init__(self, tail: nn.Sequential) -> None:
        super().__init__()
        for place, module in tail.named_modules():
            if isinstance(module, _NORMS):
                for name, buffer in module.named_buffers(recurse=False):
                    # Buffer names must not contain dots; slashes stand for them.
                    self.register_buffer(f"{place}.{name}".replace(".", "/"), buffer.clone())

    def by_name(self) -> dict[str, Tensor]:
        return {name.replace("/", "."): buffer for name, buffer in self.named_buffers()}


def build(architecture: Architecture, seed: int = 0) -> nn.Module:
    """The network of an architecture, freshly initialised from `seed`: its backbone, or `Pipelines`
    around it where the architecture has pipelines.

    Raises ValueError where the builder or a pipeline cannot be built, naming it.
    """
    backbone = build_backbone(architecture, seed)
    if not architecture.pipelines:
        return backbone
    known = cuts(architecture)
    channels = image_of(architecture)[0]
    entries = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        for name, spec in architecture.pipelines.items():
            if unknown := sorted(set(spec) - _SPEC_KEYS):
                raise ValueError(
                    f"pipeline {name} has unknown {', '.join(unknown)}; "
                    f"known are {', '.join(sorted(_SPEC_KEYS))}"
                )
            cut = find_cut(known, spec.get("before", name))
            stride = spec.get("stride", cut.stride)
            entries[name] = Entry(
                cut.before,
                step_down(
                    channels,
                    cut.channels,
                    kernel=spec.get("kernel", stride),
                    stride=stride,
                    norm=spec.get("norm", "batch"),
                ),
            )
    return Pipelines(backbone, entries)


def build_without_data(architecture: Architecture) -> nn.Module:
    """The network of an architecture on torch's meta device: shapes without numbers."""
    if ":" in architecture.builder:
        # A user's builder may compute with tensors, e.g. rates that rise from layer to layer.
        return build(architecture).to("meta")
    with torch.device("meta"):
        return build(architecture)


def build_network(architecture: Architecture, pipeline: str = "base", seed: int = 0) -> nn.Module:
    """One pipeline of an architecture as the plain network that is saved, planted and shipped."""
    network = build(architecture, seed)
    if not isinstance(network, Pipelines):
        network = Pipelines(network, {})
    return network.detach(pipeline)


def step_down(
    in_channels: int, out_channels: int, *, kernel: int, stride: int, norm: str = "batch"
) -> nn.Sequential:
    """CNSN's step-down convolution (sec. 2.1) with its own norm ("batch" or "none") and ReLU.

    A kernel as large as the stride needs no padding; a larger one is padded so that the output is
    still the input's size over the stride.
    """
    if stride < 1 or kernel < stride:
        raise ValueError(f"step-down needs kernel >= stride >= 1, got {kernel} and {stride}")
    if stride == 1 and kernel % 2 == 0:
        raise ValueError(f"step-down with stride 1 needs an odd kernel, got {kernel}")
    if norm not in ("batch", "none"):
        raise ValueError(f"step-down norm is 'batch' or 'none', got {norm!r}")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    padding = (kernel - stride + 1) // 2
    layers["conv"] = nn.Conv2d(
        in_channels, out_channels, kernel, stride, padding, bias=norm == "none"
    )
    if norm == "batch":
        layers["norm"] = nn.BatchNorm2d(out_channels)
    layers["relu"] = nn.ReLU()
    return nn.Sequential(layers)


def cuts(architecture: Architecture) -> dict[str, Cut]:
    """The legal cuts of an architecture by alias: `cutN` stands before the stage after the Nth.

    Shapes are read off a forward pass without data. Raises ValueError for a network without
    `stages` and `head`, and for an image the network cannot take.
    """
    channels, height, width = image_of(architecture)
    backbone = build_without_data(replace(architecture, pipelines={})).eval()
    names = _stage_names(backbone)
    with torch.device("meta"):
        # Enlarged, so that poolings that round an odd size down do not blur the stride.
        x = torch.empty(1, channels, 32 * height, 32 * width)
    found = {}
    for i, name in enumerate(names):
        if i:
            found[f"cut{i}"] = Cut(name, int(x.shape[1]), 32 * height // int(x.shape[2]))
        x = backbone.stages.get_submodule(name)(x)  # type: ignore[union-attr]
    return found


def image_of(architecture: Architecture) -> tuple[int, int, int]:
    """Shape (channels, height, width) of the architecture's images.

    Raises ValueError where its options do not name one.
    """
    image = architecture.options.get("image")
    if not isinstance(image, list) or len(image) != 3:
        raise ValueError(
            f"{architecture.builder} needs the option image: [channels, height, width], "
            f"got {image!r}"
        )
    channels, height, width = image
    return channels, height, width


def find_cut(known: Mapping[str, Cut], place: str) -> Cut:
    """The cut of that alias, or before the stage of that name."""
    for alias, cut in known.items():
        if place in (alias, cut.before):
            return cut
    listed = ", ".join(f"{alias} (before {cut.before})" for alias, cut in known.items())
    raise ValueError(f"{place!r} is not a cut; cuts are {listed}")


def check_architecture(architecture: Architecture) -> None:
    """Raises ValueError, naming the pipeline, unless every pipeline of the architecture takes an
    image and gives `classes` logits. Costs no arithmetic."""
    image = image_of(architecture)
    network = build_without_data(architecture).eval()
    if not isinstance(network, Pipelines):
        network = Pipelines(network, {})
    with torch.device("meta"):
        images = torch.empty(1, *image)
        for name in network.names:
            shown = "x".join(map(str, image))
            try:
                logits = network.detach(name)(images)
            except RuntimeError as error:
                what = architecture.pipelines.get(name)
                raise ValueError(
                    f"pipeline {name} of {architecture.builder} cannot take a {shown} image"
                    f"{f' with {dict(what)}' if what else ''}: {error}"
                ) from error
            classes = architecture.options.get("classes")
            if classes is not None and tuple(logits.shape) != (1, classes):
                raise ValueError(
                    f"pipeline {name} of {architecture.builder} gives {list(logits.shape)} for "
                    f"one {shown} image, expected logits [1, {classes}]"
                )


def takes_stride(architecture: Architecture, before: str, stride: int) -> bool:
    """Whether the rest of the network accepts a step-down of that stride at the cut."""
    probe = Architecture(
        architecture.builder,
        architecture.widths,
        architecture.options,
        {"probe": {"before": before, "stride": stride, "kernel": stride}},
    )
    try:
        check_architecture(probe)
    except ValueError:
        return False
    return True


def _check_name(name: str) -> None:
    if name == "base" or not name or not all(c.isalnum() or c in "-_" for c in name):
        raise ValueError(f"pipeline name {name!r}: letters, digits, - and _, and not 'base'")


def _stage_names(backbone: nn.Module) -> list[str]:
    stages = getattr(backbone, "stages", None)
    if not isinstance(stages, nn.Sequential) or not hasattr(backbone, "head"):
        raise ValueError(
            f"{type(backbone).__name__} has no named stages: pipelines need a network with "
            "stages (an nn.Sequential of named modules) and head, e.g. planter's StagedNet"
        )
    return list(stages._modules)  # named_children() leaves out a module used twice


def _sequence(backbone: nn.Module, first: str) -> nn.Sequential:
    """Stages from `first` on, then the head, in sequence: the modules themselves, no copies."""
    stages, head = backbone.stages, backbone.head
    assert isinstance(stages, nn.Sequential)
    assert isinstance(head, nn.Module)
    names = _stage_names(backbone)
    parts: OrderedDict[str, Any] = OrderedDict(
        (name, stages.get_submodule(name)) for name in names[names.index(first) :]
    )
    return nn.Sequential(OrderedDict(parts, head=head))
