"""Auxiliary branches: classifiers that read the map behind a stage (DKS, arXiv 1906.00675)."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from planter.arch import Architecture
from planter.backbones import Builder, build_backbone, find_builder, full_widths, is_known
from planter.networks.cut_points import stage_names, staged

COPIES = ("blocks", "narrow", "shallow")
SIMPLE = ("fc", "conv")
KINDS = (*COPIES, "rest", *SIMPLE)


def branch(
    architecture: Architecture, after: str, channels: int, kind: str | None = None
) -> nn.Module:
    """A classifier that turns the map `[batch, channels, height, width]` behind stage `after` of
    the architecture's backbone into logits `[batch, classes]`; it shares nothing with the backbone.

    - "blocks": the groups behind the stage again, shorter or wider, and the backbone's kind of
      head (DKS; each family's rule stands in its file). "narrow" is that with half the widths,
      "shallow" with one block a group. Not every family has them.
    - "rest": a fresh copy of all stages behind and of the head. Any network with `stages`.
    - "fc": the mean over places and two linear layers; "conv": a convolution as well. Any network;
      `after` is not looked at. DKS does worse with them than without branches (its Table 3).

    Initial weights come from torch's global generator. Raises ValueError for an unknown kind or
    stage, and for a kind that the family or the stage does not have.
    """
    builder = find_builder(architecture.builder)
    if kind is None:
        kind = default_kind(architecture.builder)
    if kind not in KINDS:
        raise ValueError(f"unknown kind of branch {kind!r}; kinds are {', '.join(KINDS)}")
    if kind == "rest":
        return _rest(architecture, after)
    options = _options(builder, architecture)
    if kind in SIMPLE:
        return _simple(channels, options["classes"], kind)
    if builder.branch is None:
        raise ValueError(
            f"{architecture.builder} has no branch of kind {kind!r}; "
            f"kinds it has are {', '.join(('rest', *SIMPLE))}"
        )
    with torch.device("meta"):  # planter's and torchvision's builders can do without data
        backbone = build_backbone(replace(architecture, pipelines={}))
    stage_names(backbone)
    widths = full_widths(architecture.builder, architecture.widths, architecture.options)
    return builder.branch(backbone.stages, after, channels, widths, kind=kind, **options)


def default_kind(builder: str) -> str:
    """ "blocks" where the family has it, else "rest"."""
    return "rest" if find_builder(builder).branch is None else "blocks"


def _options(builder: Builder, architecture: Architecture) -> dict[str, Any]:
    """The options the backbone is built with, those that have their default among them."""
    named = inspect.signature(builder.function).parameters.values()
    options = {p.name: p.default for p in named if p.default is not p.empty}
    options.update(architecture.options)
    if "classes" not in options:
        raise ValueError(f"a branch of {architecture.builder} needs the option classes")
    return options


def _rest(architecture: Architecture, after: str) -> nn.Sequential:
    # build_backbone seeds itself; this seed makes what it draws follow the global generator.
    seed = int(torch.randint(2**31, (), device="cpu"))
    # A user's builder may compute with tensors, which it cannot without data.
    known = is_known(architecture.builder)
    with nullcontext() if known else torch.device("cpu"):
        backbone = staged(build_backbone(replace(architecture, pipelines={}), seed))
    names = stage_names(backbone)
    if after not in names:
        raise ValueError(f"{after!r} is not a stage; stages are {', '.join(names)}")
    stages: Any = backbone.stages
    behind = list(stages._modules.items())[names.index(after) + 1 :]
    return nn.Sequential(OrderedDict([*behind, ("head", backbone.head)]))  # type: ignore[list-item]


def _simple(channels: int, classes: int, kind: str) -> nn.Sequential:
    """The table says AP+2FC and AP+1Conv+2FC and no sizes: they were in a supplement that is lost.
    Read as its order has it, mean before convolution: to 4 x 4 places, as it would otherwise leave
    none to convolve; the linear layers see the mean over those. They are `channels` wide."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if kind == "conv":
        layers["reduce"] = _MeanAtMost(4)
        layers["conv"] = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        layers["norm"] = nn.BatchNorm2d(channels)
        layers["relu"] = nn.ReLU()
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(channels, channels)
    layers["relu1"] = nn.ReLU()
    layers["fc2"] = nn.Linear(channels, classes)
    return nn.Sequential(layers)


class _MeanAtMost(nn.AdaptiveAvgPool2d):
    """Means over fields, `size` x `size` of them; a smaller side is left as it is, where torch's
    layer would repeat its places. A subclass, so that `macs_all` counts it as a pooling."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        return functional.adaptive_avg_pool2d(x, (min(self.size, height), min(self.size, width)))
