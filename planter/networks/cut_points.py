"""Where pipelines may enter and leave a backbone: its cuts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import nn

from planter.arch import Architecture
from planter.backbones import build_backbone, builds_without_data, is_known
from planter.backbones.outside.chain import chained
from planter.machine.torch_state import ShapesOnly
from planter.tracing.trace import without_data


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

    Shapes are read off a forward pass without data; a stage behind a flattened map has no cut
    before it. Raises ValueError for a network without `stages` and `head`, and for an image the
    network cannot take.
    """
    plain = replace(architecture, pipelines={})
    # A search space asks for the cuts of the same networks again and again.
    return dict(_known_cuts(plain)) if is_known(architecture.builder) else _cuts(plain)


def _cuts(architecture: Architecture) -> dict[str, Cut]:
    channels, height, width = image_of(architecture)
    backbone = staged(backbone_without_data(architecture)).eval()
    names = stage_names(backbone)
    # Enlarged, so that poolings that round an odd size down do not blur the stride; as it is where
    # a stage takes that size alone.
    for times in (32, 1):
        maps = torch.empty(1, channels, times * height, times * width, device="meta")
        found: dict[str, Cut] = {}
        try:
            for i, name in enumerate(names):
                if i and maps.dim() == 4:
                    stride = times * height // maps.shape[2]
                    found[f"cut{i}"] = Cut(name, maps.shape[1], stride, names[i - 1])
                with ShapesOnly():
                    maps = backbone.get_submodule(f"stages.{name}")(maps)
            return found
        except RuntimeError as error:
            failed = f"stage {name} cannot take a map of shape {list(maps.shape[1:])}: {error}"
    raise ValueError(f"{architecture.builder} with image {channels}x{height}x{width}: {failed}")


_known_cuts = lru_cache(maxsize=1024)(_cuts)


def find_entry(known: Mapping[str, Cut], place: str) -> Cut:
    """The cut of that alias, before the stage of that name, or else before the group of stages
    (`group2` for `group2_1`). Raises ValueError, listing the legal ones."""
    for alias, cut in known.items():
        if place in (alias, cut.before):
            return cut
    for cut in known.values():
        if cut.before == f"{place}_1":
            return cut
    listed = ", ".join(f"{alias} (before {cut.before})" for alias, cut in known.items())
    raise ValueError(f"{_refusal(known, place)}; cuts are {listed or 'none'}")


def find_exit(known: Mapping[str, Cut], place: str) -> Cut:
    """The cut of that alias, after the stage of that name, or else after the group of stages.
    Raises ValueError, listing the legal ones: behind the last stage stands the network's own head.
    """
    for alias, cut in known.items():
        if place in (alias, cut.after):
            return cut
    last = list(known.values())[-1].before if known else ""
    # Where the last stage belongs to the group, the group ends with the network.
    in_group = re.compile(rf"{re.escape(place)}_\d+").fullmatch
    if (matching := [cut for cut in known.values() if in_group(cut.after)]) and not in_group(last):
        return matching[-1]
    listed = ", ".join(f"{alias} (after {cut.after})" for alias, cut in known.items())
    raise ValueError(f"{_refusal(known, place)}; a branch may leave at {listed or 'none'}")


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
    if not builds_without_data(architecture):
        # A user's builder may compute with tensors, e.g. rates that rise from layer to layer.
        with torch.device("cpu"):
            return without_data(build_backbone(architecture))
    with torch.device("meta"):
        return build_backbone(architecture)


def is_staged(backbone: nn.Module) -> bool:
    """Whether a network has `stages`, an `nn.Sequential`, and a `head`; it then must compute
    `head(stages(images))`, unless it was not written for planter (see `own.whole`)."""
    if getattr(backbone, "without_stages", False):
        return False
    stages, head = getattr(backbone, "stages", None), getattr(backbone, "head", None)
    return isinstance(stages, nn.Sequential) and isinstance(head, nn.Module)


def staged(backbone: nn.Module) -> nn.Module:
    """The backbone, where it has no stages seen as the parts it runs one after another. Raises
    ValueError, naming the place, where it does not run so."""
    if is_staged(backbone):
        return backbone
    try:
        return chained(backbone)
    except ValueError as error:
        raise ValueError(
            f"{error}: pipelines enter and leave between stages, which are the parts of a network "
            "that runs them in a row, or those of planter's StagedNet"
        ) from error


def stage_names(backbone: nn.Module) -> list[str]:
    """Names of a backbone's stages, in order. Raises ValueError where it has none."""
    if not is_staged(backbone):
        raise ValueError(
            f"{type(backbone).__name__} has no named stages: pipelines need a network with "
            "stages (an nn.Sequential of named modules) and head, e.g. planter's StagedNet"
        )
    # named_children() leaves out a module used twice.
    return list(backbone.get_submodule("stages")._modules)


def _refusal(known: Mapping[str, Cut], place: str) -> str:
    stages = {cut.after for cut in known.values()} | {cut.before for cut in known.values()}
    outer = place.replace("/", ".").partition(".")[0]
    if outer != place and outer in stages:
        return f"{place!r} lies inside stage {outer}, which is cut as a whole"
    return f"{place!r} is not a cut"
