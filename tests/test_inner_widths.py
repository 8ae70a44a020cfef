"""Widths inside the blocks of a network: names, what they are unless given, what they cost."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import Block, fill_, images
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import planter
from planter.arch import Architecture
from planter.backbones import (
    BUILDERS,
    StagedNet,
    build_backbone,
    canonical,
    free_widths,
    full_widths,
    with_data_options,
)
from planter.cli import app
from planter.costs.macs import cost
from planter.front.describe import difference
from planter.front.points import Point
from planter.networks.assembly import build_network
from planter.study.space import Candidate

SHALLOW: dict[str, dict[str, Any]] = {
    "resnet": {"depth": 8},
    "resnet18": {},
    "wrn": {"depth": 10, "widen": 1},
}
WIDTHS = {"stem": 4, "group1": 4, "group2": 6, "group3": 8}


def architecture(builder: str, widths: Mapping[str, int], **options: Any) -> Architecture:
    options = {**SHALLOW[builder], **options}
    if builder == "resnet18":
        widths = {"group4": 10, **widths}
    return with_data_options(Architecture(builder, {**WIDTHS, **widths}, options), 10, (3, 32, 32))


def shapes(net: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in net.state_dict().items()}


def on_meta(arch: Architecture) -> nn.Module:
    with torch.device("meta"):
        return build_backbone(arch)


# What was there before


@pytest.mark.parametrize(
    ("builder", "options", "key"),
    [
        ("resnet", {}, "30e129c1ff5b492f"),
        ("resnet", {"depth": 14, "shortcut": "conv"}, "c811bfbf2712d914"),
        ("resnet18", {}, "f8093ad5da6459c7"),
        ("wrn", {}, "e3fa74e9f4ad0c46"),
    ],
)
def test_architectures_of_old_runs_are_what_they_were(
    builder: str, options: dict[str, Any], key: str
) -> None:
    """The keys are those that ea58aeb, which knew no inner widths, gave."""
    arch = architecture(builder, {}, **options)
    last = {"group4": 10} if builder == "resnet18" else {}
    assert arch.to_dict()["widths"] == {**last, **WIDTHS}
    assert arch.key() == key


@pytest.mark.parametrize(
    ("builder", "shortcut"), [("resnet", "pad"), ("resnet", "conv"), ("wrn", "")]
)
def test_weights_are_torchs_draws_in_their_old_order(builder: str, shortcut: str) -> None:
    options = {"shortcut": shortcut} if shortcut else {}
    found = build_backbone(architecture(builder, {}, **options), seed=3).state_dict()
    torch.manual_seed(3)
    drawn = {"stem": nn.Conv2d(3, 4, 3, bias=False)}
    before = 4
    for group, width in (("group1", 4), ("group2", 6), ("group3", 8)):
        drawn[f"{group}_1.conv1"] = nn.Conv2d(before, width, 3, bias=False)
        drawn[f"{group}_1.conv2"] = nn.Conv2d(width, width, 3, bias=False)
        if group != "group1" and shortcut != "pad":
            drawn[f"{group}_1.shortcut"] = nn.Conv2d(before, width, 1, bias=False)
        before = width
    drawn["head"] = nn.Linear(8, 10)
    kept = [tensor for name, tensor in found.items() if tensor.dim() > 1]
    assert len(kept) == len(drawn)
    for tensor, (name, layer) in zip(kept, drawn.items(), strict=True):
        assert torch.equal(tensor, layer.weight), name


# Names, and what they are


def test_free_widths_are_the_owners_and_then_the_inner_ones() -> None:
    arch = architecture("resnet", {"group2_1.conv1": 5})
    assert list(free_widths(arch).items()) == [
        *WIDTHS.items(),
        *{"group1_1.conv1": 4, "group2_1.conv1": 5, "group3_1.conv1": 8}.items(),
    ]
    deep = free_widths(Architecture("wrn", {}, {"depth": 28, "widen": 2}))
    assert list(deep)[:5] == ["stem", "group1", "group2", "group3", "group1_1.conv1"]
    assert list(deep)[-1] == "group3_4.conv1"
    assert len(deep) == 4 + 12
    assert deep["group2_3.conv1"] == 64
    assert len(free_widths(Architecture("resnet18", {}))) == 5 + 8


@pytest.mark.parametrize("name", sorted(set(BUILDERS) - set(SHALLOW)))
def test_other_builders_have_the_widths_they_name(name: str) -> None:
    assert free_widths(Architecture(name, {})) == full_widths(name)


@pytest.mark.parametrize("builder", SHALLOW)
def test_every_free_width_is_read_and_changes_its_own_layer_alone(builder: str) -> None:
    arch = architecture(builder, {})
    before = shapes(on_meta(arch))
    for name in free_widths(arch):
        after = shapes(on_meta(arch.widen(name, 1)))
        changed = {layer for layer in before if after[layer] != before[layer]}
        assert changed, f"{builder} ignores {name}"
        if "." in name:
            block = name.partition(".")[0]
            assert all(layer.startswith(f"stages.{block}.") for layer in changed)
            assert after[f"stages.{name}.weight"][0] == before[f"stages.{name}.weight"][0] + 1


def test_an_owner_widens_what_is_not_given_and_a_given_width_stays() -> None:
    arch = architecture("resnet", {"group1_1.conv1": 5}, depth=14)
    wider = arch.widen("group1", 3)
    assert (wider.width("group1"), wider.width("group1_1.conv1")) == (7, 5)
    assert wider.width("group1_2.conv1") == 7
    net = on_meta(wider)
    assert net.get_submodule("stages.group1_1.conv1").out_channels == 5
    assert net.get_submodule("stages.group1_2.conv1").out_channels == 7
    assert arch.widen("group1_2.conv1", 2).widths["group1_2.conv1"] == 6


def test_a_stage_that_is_a_width_owns_its_layers() -> None:
    arch = Architecture("x", {"block_1": 3, "block": 5})
    assert arch.width("block_1.conv") == 3
    assert arch.width("block_2.conv.deep") == 5
    for unknown in ("block_2", "blocks_1.conv", "block_1x.conv", "other.conv"):
        for act in (arch.width, lambda name: arch.widen(name, 1)):
            with pytest.raises(ValueError, match=f"'{unknown}' is not a width; widths are block_1"):
                act(unknown)


CHOICES = st.fixed_dictionaries(
    {"group1": st.integers(3, 4), "group2": st.integers(3, 4)},
    optional={
        f"group{group}_{block}.conv1": st.integers(3, 4) for group in (1, 2) for block in (1, 2)
    },
)


@given(CHOICES, CHOICES)
def test_keys_are_equal_exactly_for_equal_networks(one: dict, other: dict) -> None:
    archs = [architecture("resnet", widths, depth=14) for widths in (one, other)]
    a, b = (shapes(on_meta(arch)) for arch in archs)
    assert (archs[0].key() == archs[1].key()) == (a == b)
    for arch, widths in zip(archs, (one, other), strict=True):
        assert canonical(arch) == arch
        raw = Architecture("resnet", {**WIDTHS, **widths}, {"depth": 14})
        assert shapes(on_meta(raw)) == shapes(on_meta(arch)) == shapes(on_meta(canonical(raw)))


def test_an_unknown_inner_width_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        ValueError,
        match=r"resnet has no width group1_2\.conv1; widths are stem, group1, group2, group3, and "
        r"inner ones, group1_1\.conv1, group2_1\.conv1, group3_1\.conv1$",
    ):
        architecture("resnet", {"group1_2.conv1": 5})
    with pytest.raises(ValueError, match=r"15 inner ones, group1_1\.conv1 \.\.\. group3_5\.conv1$"):
        full_widths("resnet", {"group1_6.conv1": 5})
    with pytest.raises(ValueError, match=r"toy has no width conv1\.conv; widths are conv1, .*fc1$"):
        full_widths("toy", {"conv1.conv": 5})
    with pytest.raises(ValueError, match=r"depth of a resnet is 6 n \+ 2"):
        full_widths("resnet", {"group1_1.conv1": 5}, {"depth": 9})


# What they cost


@given(
    st.sampled_from(["resnet", "wrn"]),
    st.fixed_dictionaries({f"group{group}_1.conv1": st.integers(1, 9) for group in (1, 2, 3)}),
)
def test_parameters_and_macs_are_the_closed_form(builder: str, inner: dict[str, int]) -> None:
    arch = architecture(builder, inner)
    params, macs, before, side = 27 * 4, 27 * 4 * 32 * 32, 4, 32
    params += 2 * (4 if builder == "resnet" else 8)  # the norm of the stem, or before the head
    for group, width in (("group1", 4), ("group2", 6), ("group3", 8)):
        within = inner[f"{group}_1.conv1"]
        side //= 1 if group == "group1" else 2
        convs = 9 * before * within + 9 * within * width
        if builder == "wrn" and group != "group1":
            convs += before * width
        params += convs + 2 * within + 2 * (width if builder == "resnet" else before)
        macs += convs * side * side
        before = width
    params, macs = params + 8 * 10 + 10, macs + 8 * 10
    found = cost(arch)
    assert (found.params, found.macs) == (params, macs)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        build_network(arch).eval()(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() == 2 * macs


def test_cost_names_inner_widths_as_the_builder_does() -> None:
    command = ["cost", "resnet", "--option", "depth=8", "--widths"]
    widths = ",".join(f"{name}={width}" for name, width in WIDTHS.items())
    done = CliRunner().invoke(app, [*command, f"{widths},group1_1.conv1=9", "--json"])
    assert done.exit_code == 0, done.output
    assert (
        json.loads(done.stdout)["params"]
        == cost(architecture("resnet", {"group1_1.conv1": 9})).params
    )
    done = CliRunner().invoke(app, [*command, "group1_9.conv1=9"])
    assert done.exit_code != 0
    assert "resnet has no width group1_9.conv1" in str(done.exception)


# Through files and words


@pytest.mark.parametrize("builder", SHALLOW)
def test_a_saved_network_comes_back_bit_for_bit(builder: str, tmp_path: Path) -> None:
    arch = architecture(builder, {"group1_1.conv1": 7, "group2_1.conv1": 3})
    net = fill_(build_network(arch)).eval()
    planter.save(tmp_path / "net", net, arch, "base")
    again = planter.load(tmp_path / "net")
    x = images(2, (3, 32, 32)).float()
    with torch.no_grad():
        assert torch.equal(again(x), net(x))
    assert shapes(again)["group1_1.conv1.weight"][0] == 7


def test_pipelines_stand_around_a_network_with_inner_widths() -> None:
    ways = {"cut": {"before": "group2_1"}, "exit": {"after": "group1_1"}, "rest": {
        "after": "group1_1", "branch": "rest"}}  # fmt: skip
    plain = architecture("wrn", {"group1_1.conv1": 7, "group2_1.conv1": 3})
    arch = Architecture(plain.builder, plain.widths, plain.options, ways)
    net = planter.build(arch).eval()
    parts = {name: dict(shapes(net.detach(name))) for name in net.names}
    assert parts["cut"]["group2_1.conv1.weight"][0] == 3
    copies = {
        way: [
            shape[0] for name, shape in parts[way].items() if name.endswith("group2_1.conv1.weight")
        ]
        for way in ("exit", "rest")
    }
    assert copies == {"exit": [6], "rest": [3]}, "a copied group has its owner's width"


def test_a_difference_of_two_networks_tells_inner_widths() -> None:
    def point(widths: Mapping[str, int], trial: str) -> Point:
        spec = architecture("resnet", widths).to_dict()
        return Point(trial, "base", "sample", 0.5, 1.0, 9, 9, 9, 1.0, spec)

    told = difference(point({}, "a"), point({"group1_1.conv1": 7}, "b"))
    assert told == "group1_1.conv1 4 -> 7"
    told = difference(point({"group1_1.conv1": 7}, "a"), point({"group1": 7}, "b"))
    assert told == "group1 4 -> 7"


def test_a_candidate_grows_as_its_plants_are_planted() -> None:
    start = Architecture("resnet", {**WIDTHS, "group1_1.conv1": 4}, {"depth": 8})
    plants = [("group1_1.conv1", 2), ("group1", 2), ("group1", 1), ("group2_1.conv1", 1)]
    candidate = Candidate(start, plants=plants)
    # The second plant makes both equal, so that the third widens both.
    assert candidate.grown.widths == {**WIDTHS, "group1": 7, "group2_1.conv1": 7}
    five = candidate.in_multiples(5)
    assert five.architecture.widths["group1_1.conv1"] == 5


# A user's own


def stacked(
    widths: Mapping[str, int],
    *,
    classes: int = 10,
    image: Sequence[int] = (3, 8, 8),
    blocks: int = 2,
) -> StagedNet:
    stages = OrderedDict(stem=nn.Conv2d(image[0], widths["body"], 1))
    for i in range(blocks):
        stages[f"body_{i + 1}"] = Block(widths["body"], widths[f"body_{i + 1}.first"])
    pooled = OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
    return StagedNet(
        nn.Sequential(stages),
        nn.Sequential(OrderedDict(pooled, fc=nn.Linear(widths["body"], classes))),
    )


def inner_of_stacked(*, blocks: int = 2, **_: object) -> list[str]:
    return [f"body_{i + 1}.first" for i in range(blocks)]


stacked.widths = {"body": 4}
stacked.inner = inner_of_stacked


def orphan(widths: Mapping[str, int], **_: object) -> nn.Module:
    return nn.Linear(widths["body"], 2)


orphan.widths = {"body": 4}
orphan.inner = ["limb_1.first"]


def dotted(widths: Mapping[str, int], **_: object) -> nn.Module:
    return nn.Linear(widths["body"], widths["body.out"])


dotted.widths = {"body": 4, "body.out": 6}


def test_a_users_builder_names_inner_widths() -> None:
    arch = Architecture(
        f"{__name__}:stacked", {"body_3.first": 9, "body_2.first": 4}, {"blocks": 3}
    )
    assert free_widths(arch) == {
        "body": 4, "body_1.first": 4, "body_2.first": 4, "body_3.first": 9,
    }  # fmt: skip
    full = with_data_options(arch, 5, (3, 8, 8))
    assert full.widths == {"body": 4, "body_3.first": 9}
    net = build_backbone(full)
    assert [block.second.in_channels for block in list(net.stages)[1:]] == [4, 4, 9]
    with pytest.raises(ValueError, match=r"no width body_4.first; widths are body, and inner ones"):
        build_backbone(full.widen("body_4.first", 1))


def test_an_inner_width_of_no_owner_is_refused_and_an_own_width_with_a_dot_is_kept() -> None:
    with pytest.raises(ValueError, match=r"inner width 'limb_1.first' of .* follows no width"):
        build_backbone(Architecture(f"{__name__}:orphan", {}))
    arch = Architecture(f"{__name__}:dotted", {"body": 6, "body.out": 6})
    assert canonical(arch) == arch
    assert full_widths(arch.builder, {"body": 6}) == {"body": 6, "body.out": 6}
    assert canonical(arch.widen("body", 1)).widths == {"body": 7, "body.out": 6}
