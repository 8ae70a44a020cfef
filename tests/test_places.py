from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from planter.arch import Architecture
from planter.backbones import StagedNet
from planter.networks.assembly import build, check_architecture
from planter.networks.cut_points import (
    Cut,
    backbone_without_data,
    cuts,
    find_entry,
    find_exit,
    image_of,
    stage_names,
)
from planter.networks.pipelines import Pipelines

Specs = dict[str, dict[str, Any]]


def architecture(
    builder: str, pipelines: Specs | None = None, size: int = 32, **options: Any
) -> Architecture:
    options = {"classes": 5, "image": (3, size, size), **options}
    return Architecture(builder, {}, options, pipelines or {})


CUTS = {
    "convnet": [("conv2", 16, 2), ("conv3", 16, 4), ("conv4", 16, 4), ("conv5", 16, 4)],
    "toy": [("conv2", 32, 1), ("conv3", 32, 2), ("conv4", 64, 2)],
    # CNSN's two are cut2 (64 channels, stride 2) and cut7 (256, 8).
    "vgg16": [
        ("conv2", 64, 1),
        ("conv3", 64, 2),
        ("conv4", 128, 2),
        ("conv5", 128, 4),
        ("conv6", 256, 4),
        ("conv7", 256, 4),
        ("conv8", 256, 8),
        ("conv9", 512, 8),
        ("conv10", 512, 8),
        ("conv11", 512, 16),
        ("conv12", 512, 16),
        ("conv13", 512, 16),
    ],
    "nets:residual": [("block1", 4, 1), ("down", 4, 1), ("block2", 6, 2)],
}


@pytest.mark.parametrize("builder", CUTS)
def test_cuts_are_the_places_between_stages(builder: str) -> None:
    found = {
        alias: (c.before, c.channels, c.stride) for alias, c in cuts(architecture(builder)).items()
    }
    assert found == {f"cut{i}": cut for i, cut in enumerate(CUTS[builder], start=1)}


def test_cuts_of_stl10_follow_its_poolings() -> None:
    strides = [cut.stride for cut in cuts(architecture("convnet", size=96)).values()]
    assert strides == [2, 4, 8, 8]


@settings(max_examples=15)
@given(st.integers(8, 63), st.integers(8, 63))
def test_strides_do_not_depend_on_odd_sizes(height: int, width: int) -> None:
    arch = Architecture("convnet", {}, {"classes": 5, "image": (3, height, width)})
    assert [cut.stride for cut in cuts(arch).values()] == [2, 4, 4, 4]


def test_every_cut_has_a_stage_on_either_side() -> None:
    for builder in CUTS:
        names = stage_names(backbone_without_data(architecture(builder)))
        sides = [(cut.after, cut.before) for cut in cuts(architecture(builder)).values()]
        assert sides == list(pairwise(names))


# Stages of a resnet with two blocks a group, as its docstring names them.
RESNET = ["stem", *(f"group{i}_{j}" for i in (1, 2, 3) for j in (1, 2))]
KNOWN = {
    f"cut{i}": Cut(before, 4, 1, after)
    for i, (after, before) in enumerate(pairwise(RESNET), start=1)
}


@pytest.mark.parametrize(
    ("place", "before"),
    [
        ("cut1", "group1_1"),
        ("cut6", "group3_2"),
        ("group1", "group1_1"),
        ("group2", "group2_1"),
        ("group3", "group3_1"),
        ("group2_2", "group2_2"),
    ],
)
def test_an_entry_stands_before_a_stage_or_its_group(place: str, before: str) -> None:
    assert find_entry(KNOWN, place).before == before
    net = build(architecture("resnet", {"p": {"before": place}}, size=8, depth=14))
    assert isinstance(net, Pipelines)
    names = list(net.detach("p")._modules)
    assert names == ["step_down", *RESNET[RESNET.index(before) :], "head"]


@pytest.mark.parametrize(
    ("place", "after"),
    [
        ("cut1", "stem"),
        ("cut6", "group3_1"),
        ("stem", "stem"),
        ("group1", "group1_2"),
        ("group2", "group2_2"),
        ("group2_1", "group2_1"),
    ],
)
def test_an_exit_stands_after_a_stage_or_its_group(place: str, after: str) -> None:
    assert find_exit(KNOWN, place).after == after
    spec = {"p": {"after": place, "branch": "fc"}}
    net = build(architecture("resnet", spec, size=8, depth=14))
    assert isinstance(net, Pipelines)
    names = list(net.detach("p")._modules)
    assert names == [*RESNET[: RESNET.index(after) + 1], "branch"]


LISTED_ENTRIES = ", ".join(f"{alias} (before {cut.before})" for alias, cut in KNOWN.items())
LISTED_EXITS = ", ".join(f"{alias} (after {cut.after})" for alias, cut in KNOWN.items())


@pytest.mark.parametrize("place", ["cut0", "cut7", "stem", "group4", "group", "_1", "", "head"])
def test_an_entry_elsewhere_lists_the_legal_ones(place: str) -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011, the whole message is compared
        find_entry(KNOWN, place)
    assert str(refusal.value) == f"{place!r} is not a cut; cuts are {LISTED_ENTRIES}"


@pytest.mark.parametrize(
    "place",
    ["cut7", "group3", "group3_2", "group4", "group", "head", ""],
)
def test_an_exit_elsewhere_lists_the_legal_ones(place: str) -> None:
    """Behind the last stage, and so behind its group, stands the head."""
    with pytest.raises(ValueError) as refusal:  # noqa: PT011, the whole message is compared
        find_exit(KNOWN, place)
    assert str(refusal.value) == f"{place!r} is not a cut; a branch may leave at {LISTED_EXITS}"


@pytest.mark.parametrize("place", ["group2_1.conv1", "group2_1/conv1", "group3_2.norm1"])
def test_a_place_inside_a_block_says_so(place: str) -> None:
    stage = place[:8]
    for find, listed in ((find_entry, LISTED_ENTRIES), (find_exit, LISTED_EXITS)):
        with pytest.raises(ValueError, match="lies inside stage") as refusal:
            find(KNOWN, place)
        assert f"{place!r} lies inside stage {stage}, which is cut as a whole" in str(refusal.value)
        assert str(refusal.value).endswith(listed)


def test_a_network_of_one_stage_has_no_cut() -> None:
    assert cuts(architecture("test_places:single")) == {}
    for spec in ({"before": "one"}, {"after": "one"}, {"after": "cut1"}):
        with pytest.raises(ValueError, match=r"pipeline p: '.*' is not a cut"):
            build(architecture("test_places:single", {"p": spec}))


@pytest.mark.parametrize("image", [None, [3, 8], 8, "3x8x8"])
def test_an_architecture_without_an_image_is_asked_for_one(image: Any) -> None:
    options = {"classes": 5, **({} if image is None else {"image": image})}
    for act in (cuts, check_architecture, image_of):
        with pytest.raises(ValueError, match="image"):
            act(Architecture("test_places:single", {}, options))
    with pytest.raises(ValueError, match="image"):
        build(Architecture("test_places:single", {}, options, {"cut2": {}}))


HEAD = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


def single(widths: dict[str, int]) -> StagedNet:
    return StagedNet(nn.Sequential(OrderedDict(one=nn.Conv2d(3, 4, 1))), nn.Sequential(*HEAD))


def computing(widths: dict[str, int]) -> StagedNet:
    """Rates that rise from layer to layer, as timm computes them: not possible without data."""
    rates = torch.linspace(0, 0.2, 2).tolist()
    stages = OrderedDict(
        one=nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Dropout(rates[0])),
        two=nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Dropout(rates[1])),
    )
    return StagedNet(nn.Sequential(stages), nn.Sequential(*HEAD))


def sized(widths: dict[str, int], *, image: tuple[int, int, int]) -> StagedNet:
    """A stage that takes maps of the image's size alone."""
    stages = OrderedDict(one=nn.Conv2d(3, 4, 1), two=nn.LayerNorm([4, *image[1:]]))
    return StagedNet(nn.Sequential(stages), nn.Sequential(*HEAD))


def flattening(widths: dict[str, int]) -> StagedNet:
    """A stage that hands on a vector."""
    stages = OrderedDict(one=nn.Conv2d(3, 4, 1), two=nn.Sequential(*HEAD[:2]), three=nn.Identity())
    return StagedNet(nn.Sequential(stages), HEAD[2])


def test_a_builder_that_computes_has_its_cuts() -> None:
    arch = architecture("test_places:computing")
    assert cuts(arch) == {"cut1": Cut("two", 4, 1, "one")}
    check_architecture(arch)


@pytest.mark.parametrize("spec", [{"before": "two"}, {"after": "one", "branch": "fc"}])
def test_a_builder_that_computes_is_checked_with_its_pipelines(spec: dict[str, Any]) -> None:
    check_architecture(architecture("test_places:computing", {"p": spec}))


def test_a_stage_that_takes_one_size_alone_has_its_cuts() -> None:
    arch = architecture("test_places:sized")
    assert cuts(arch) == {"cut1": Cut("two", 4, 1, "one")}
    check_architecture(replace(arch, pipelines={"cut1": {"kernel": 3}}))


def test_behind_a_flattened_map_there_is_no_cut() -> None:
    arch = architecture("test_places:flattening")
    assert cuts(arch) == {"cut1": Cut("two", 4, 1, "one")}
    for spec in ({"before": "three"}, {"before": "cut2"}, {"after": "two"}):
        with pytest.raises(
            ValueError, match=r"p: .* is not a cut; .* cut1 \((before two|after one)\)$"
        ):
            build(replace(arch, pipelines={"p": spec}))


def test_an_image_the_network_cannot_take_is_an_error_of_the_users() -> None:
    arch = Architecture("test_places:computing", {}, {"classes": 5, "image": (1, 8, 8)})
    with pytest.raises(ValueError, match="1x8x8"):
        cuts(arch)
