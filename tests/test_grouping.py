"""Networks whose channels stand in groups: what can be planted in them, and the reason if not."""

from __future__ import annotations

import sys
import textwrap

import pytest
import torch
from torch import nn

from planter.arch import Architecture
from planter.backbones import with_data_options
from planter.driver.checking.check import prepare
from planter.edits.grouping import is_grouped, regrouped
from planter.networks.assembly import build_network
from planter.planting.plants import plant
from planter.study.schema import Study, StudyError

NETS = """
    from collections import OrderedDict
    from torch import nn
    from planter import StagedNet

    def _net(widths, classes, norm, groups=1):
        def stage(a, b, groups=1):
            return nn.Sequential(nn.Conv2d(a, b, 3, padding=1, groups=groups), norm(b), nn.ReLU())

        stages = OrderedDict(
            one=stage(1, widths["one"]),
            two=stage(widths["one"], widths["two"], groups),
            three=stage(widths["two"], widths["three"]),
        )
        head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths["three"], classes)
        )
        return StagedNet(nn.Sequential(stages), head)

    def four_groups(widths, *, classes=10):
        return _net(widths, classes, lambda width: nn.GroupNorm(4, width))

    def groups_of_four(widths, *, classes=10):
        return _net(widths, classes, lambda width: nn.GroupNorm(width // 4, width))

    def one_group(widths, *, classes=10):
        return _net(widths, classes, lambda width: nn.GroupNorm(1, width))

    def each_alone(widths, *, classes=10):
        return _net(widths, classes, lambda width: nn.GroupNorm(width, width))

    def grouped(widths, *, classes=10):
        return _net(widths, classes, nn.BatchNorm2d, groups=2)

    def plain(widths, *, classes=10):
        return _net(widths, classes, nn.BatchNorm2d)

    def of_eights(width):
        if width % 8:
            raise ValueError(f"this block needs multiples of 8, got {width}")
        return nn.BatchNorm2d(width)

    def eights(widths, *, classes=10):
        return _net(widths, classes, of_eights)

    for build in (eights, four_groups, groups_of_four, one_group, each_alone, grouped, plain):
        build.widths = {"one": 8, "two": 8, "three": 8}
"""


@pytest.fixture(autouse=True)
def _nets(tmp_path, monkeypatch):
    (tmp_path / "grouped_nets.py").write_text(textwrap.dedent(NETS), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("grouped_nets", None)


def _arch(name):
    return with_data_options(Architecture(f"grouped_nets:{name}", {}, {}), 10, (1, 8, 8))


def _same(child, parent):
    """By the two networks' answers, in float64."""
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answers = [copy.double().eval()(x) for copy in (child, parent)]
    return torch.allclose(*answers, rtol=0, atol=1e-9)


# What a layer of 8 channels can take: groups keep what they hold only where new channels make
# groups of their own, of the same size.
CAN = {
    ("four_groups", "one", 4): False,
    ("four_groups", "three", 8): False,
    ("groups_of_four", "one", 4): True,
    ("groups_of_four", "three", 8): True,
    ("one_group", "two", 4): False,
    ("each_alone", "two", 3): True,
    ("grouped", "one", 2): False,
    ("grouped", "two", 2): False,
    ("grouped", "three", 3): True,
    ("plain", "two", 3): True,
}


@pytest.mark.parametrize(("name", "layer", "channels"), CAN)
def test_a_plant_is_refused_for_its_groups_where_it_would_change_the_function(
    name, layer, channels
):
    arch = _arch(name)
    parent = build_network(arch, seed=1)
    _, child = plant(arch, parent, layer, channels, seed=2, outgoing="random")
    if CAN[name, layer, channels]:
        assert regrouped(child, parent) == []
        _, child = plant(arch, parent, layer, channels, seed=2)
        assert _same(child, parent)
        return
    with pytest.raises(ValueError, match=f"cannot grow in {layer}") as told:
        plant(arch, parent, layer, channels, seed=2)
    reasons = regrouped(child, parent)
    assert reasons
    assert all(reason in str(told.value) for reason in reasons)
    assert "shortcut" not in str(told.value)
    # Told of layers that the planted one feeds or is, and of no other.
    near = {"one": ("one", "two"), "two": ("two",), "three": ("three",)}[layer]
    assert all(any(f" {stage}." in reason for stage in near) for reason in reasons)


def test_the_sizes_that_are_told_are_those_of_the_groups():
    parent = build_network(_arch("four_groups"))
    _, child = plant(_arch("four_groups"), parent, "three", 4, seed=0, outgoing="random")
    assert regrouped(child, parent) == [
        "GroupNorm three.1 normalises groups of 2 channels, of 3 when wider"
    ]


@pytest.mark.parametrize(
    ("layer", "is_one"),
    [
        (nn.GroupNorm(2, 8), True),
        (nn.LayerNorm([8, 4, 4]), True),
        (nn.Conv2d(8, 8, 3, groups=2), True),
        (nn.Conv2d(8, 8, 3, groups=8), False),
        (nn.Conv2d(8, 16, 3, groups=8), False),
        (nn.Conv2d(8, 8, 3), False),
        (nn.BatchNorm2d(8), False),
    ],
)
def test_layers_with_groups_are_known(layer, is_one):
    assert is_grouped(nn.Sequential(nn.ReLU(), layer)) is is_one


def _study(**plant):
    return Study.model_validate(
        {
            "name": "g",
            "data": {"name": "digits", "subset": 60, "validation": 0.5},
            "teacher": {"builder": "convnet", "widths": 2},
            "plant": {"start": 8, **plant},
        }
    )


def _problems(study):
    with pytest.raises(StudyError) as told:
        prepare(study)
    return {problem.got: problem.expected for problem in told.value.problems}


@pytest.mark.parametrize(
    "plant",
    [
        {"channels": 4},
        {"channels": 1, "multiple": 4},
        {"channels": 0.25, "multiple": 4},
        {"channels": 8, "outgoing": "scaled"},
    ],
)
def test_a_study_plants_by_its_own_step_in_groups_of_four(plant):
    prepared = prepare(_study(builder="grouped_nets:groups_of_four", **plant))
    assert prepared.layers == ["one", "two", "three"]


def test_a_block_that_needs_a_multiple_by_its_own_rule_is_told_with_it():
    """Nothing in it stands in groups."""
    study = {"builder": "grouped_nets:eights", "channels": 1}
    for told in _problems(_study(**study)).values():
        assert "this block needs multiples of 8, got 9" in told
        assert "with plant.multiple: 8 it can be planted" in told
    assert prepare(_study(**study, multiple=8)).layers == ["one", "two", "three"]


def test_a_step_that_cannot_be_is_told_with_one_that_can_and_that_one_can():
    found = _problems(_study(builder="grouped_nets:groups_of_four", channels=2))
    assert set(found) == {"one", "two", "three"}
    for told in found.values():
        assert told.startswith("8 -> 10 channels: ")
        assert told.endswith("with plant.multiple: 4 it can be planted")
    prepare(_study(builder="grouped_nets:groups_of_four", channels=2, multiple=4))


def test_the_second_step_is_tried_too():
    """8 -> 12 channels make three groups of four; 12 -> 18 make four groups of four and a half."""
    found = _problems(_study(builder="grouped_nets:groups_of_four", channels=0.5))
    assert all(told.startswith("12 -> 18 channels: ") for told in found.values())


def test_the_whole_reason_is_told_where_a_divisible_step_would_not_do_either():
    builder = "grouped_nets:four_groups"
    found = _problems(_study(builder=builder, channels=2, layers=["three"]))
    assert (
        "8 -> 10 channels: num_channels (10) must be divisible by num_groups (4)" in found["three"]
    )
    assert "8 -> 12 channels" in found["three"]
    assert "groups of 2 channels, of 3 when wider" in found["three"]
    assert "another builder" in found["three"]  # no layer is left to plant in
    assert "(9)" not in found["three"]  # one channel was not asked for


def test_a_layer_that_cannot_grow_may_be_left_out_and_then_the_study_is_sound():
    builder = "grouped_nets:grouped"
    found = _problems(_study(builder=builder, channels=2))
    assert set(found) == {"one", "two"}
    assert all("leave it out of plant.layers" in told for told in found.values())
    assert prepare(_study(builder=builder, channels=2, layers=["three"])).layers == ["three"]


def test_plants_of_a_space_are_told_with_the_same_reason_before_anything_is_trained(tmp_path):
    space = """
    from planter import Architecture, Candidate

    def space(trial):
        channels = trial.suggest_categorical("channels", [CHANNELS])
        widths = {"one": 8, "two": 8, "three": 8}
        plants = [("three", channels)]
        return Candidate(Architecture("grouped_nets:BUILDER", widths, {}), plants=plants)
    """
    file = tmp_path / "space.py"
    raw = {
        "name": "g",
        "data": {"name": "digits", "subset": 60, "validation": 0.5},
        "teacher": {"builder": "convnet", "widths": 2},
        "sample": {"space": f"{file}:space", "trials": 2},
    }

    def write(builder, channels):
        text = space.replace("BUILDER", builder).replace("CHANNELS", str(channels))
        file.write_text(textwrap.dedent(text), encoding="utf-8")

    write("four_groups", 4)
    with pytest.raises(StudyError, match="groups of 2 channels, of 3 when wider"):
        prepare(Study.model_validate(raw))
    write("groups_of_four", 4)
    prepare(Study.model_validate(raw))
