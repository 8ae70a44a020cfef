"""Where pipelines may enter and leave a backbone: its cuts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from planter.arch import Architecture
from planter.backbones import build_backbone, is_known


@dataclass(frozen=True)
class Cut:
    """A place between two stages. The map that stage `after` hands to stage `before` has
    `channels` channels and is `stride` times smaller than the image."""

    before: str
    channels: int
    stride: int
    after: str


def cuts(architecture: Architecture) -> dict[str, Cut]:
    """The legal cuts of an architecture by alias: `cutN` stands before the stage after the Nth.

    Shapes are read off a forward pass without data. Raises ValueError for a network without
    `stages` and `head`, and for an image the network cannot take.
    """
    channels, height, width = image_of(architecture)
    backbone = backbone_without_data(replace(architecture, pipelines={})).eval()
    names = stage_names(backbone)
    with torch.device("meta"):
        # Enlarged, so that poolings that round an odd size down do not blur the stride.
        x = torch.empty(1, channels, 32 * height, 32 * width)
    found = {}
    for i, name in enumerate(names):
        if i:
            stride = 32 * height // int(x.shape[2])
            found[f"cut{i}"] = Cut(name, int(x.shape[1]), stride, names[i - 1])
        x = backbone.stages.get_submodule(name)(x)  # type: ignore[union-attr]
    return found


def find_entry(known: Mapping[str, Cut], place: str) -> Cut:
    """The cut of that alias, before the stage of that name, or before the group of stages
    (`group2` for `group2_1`). Raises ValueError, listing the legal ones."""
    for alias, cut in known.items():
        if place in (alias, cut.before) or cut.before == f"{place}_1":
            return cut
    listed = ", ".join(f"{alias} (before {cut.before})" for alias, cut in known.items())
    raise ValueError(f"{_refusal(known, place)}; cuts are {listed}")


def find_exit(known: Mapping[str, Cut], place: str) -> Cut:
    """The cut of that alias, after the stage of that name, or after the group of stages. Raises
    ValueError, listing the legal ones: behind the last stage stands the network's own head."""
    matching = [
        cut
        for alias, cut in known.items()
        if place in (alias, cut.after) or cut.after.rpartition("_")[0] == place
    ]
    # The last stage is after no cut; the group it belongs to would end there.
    last = list(known.values())[-1].before if known else ""
    if matching and last.rpartition("_")[0] != place:
        return matching[-1]
    listed = ", ".join(f"{alias} (after {cut.after})" for alias, cut in known.items())
    raise ValueError(f"{_refusal(known, place)}; a branch may leave at {listed}")


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


def backbone_without_data(architecture: Architecture) -> nn.Module:
    """The backbone of an architecture on torch's meta device: shapes without numbers."""
    if not is_known(architecture.builder):
        # A user's builder may compute with tensors, e.g. rates that rise from layer to layer.
        return build_backbone(architecture).to("meta")
    with torch.device("meta"):
        return build_backbone(architecture)


def stage_names(backbone: nn.Module) -> list[str]:
    """Names of a backbone's stages, in order. Raises ValueError where it has none."""
    stages = getattr(backbone, "stages", None)
    if not isinstance(stages, nn.Sequential) or not hasattr(backbone, "head"):
        raise ValueError(
            f"{type(backbone).__name__} has no named stages: pipelines need a network with "
            "stages (an nn.Sequential of named modules) and head, e.g. planter's StagedNet"
        )
    return list(stages._modules)  # named_children() leaves out a module used twice


def _refusal(known: Mapping[str, Cut], place: str) -> str:
    stages = {cut.after for cut in known.values()} | {cut.before for cut in known.values()}
    outer = place.replace("/", ".").partition(".")[0]
    if outer != place and outer in stages:
        return f"{place!r} lies inside stage {outer}, which is cut as a whole"
    return f"{place!r} is not a cut"
