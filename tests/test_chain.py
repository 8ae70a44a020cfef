"""Stages of networks that were not written for planter: parts that run one after another."""

from __future__ import annotations

import chained_nets
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from planter import Architecture, cost
from planter.backbones import build_backbone
from planter.backbones.outside.chain import chained
from planter.channels.groups import groups
from planter.networks.assembly import build, build_network, check_architecture
from planter.networks.cut_points import cuts

FACTS = {"classes": 10, "image": [3, 16, 16]}


def arch(name: str, pipelines=None, widths=None) -> Architecture:
    return Architecture(f"chained_nets:{name}", widths or {}, FACTS, pipelines or {})


def images() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Strides by hand: pooling belongs to the stage it follows.
        ("Plain", [("cut1", "conv2", 6, 2), ("cut2", "conv3", 8, 4)]),
        ("sequence", [("cut1", "2", 4, 1), ("cut2", "4", 5, 2)]),
        ("Nested", [("cut1", "features_3", 4, 2), ("cut2", "block", 6, 2)]),
    ],
)
def test_cuts_stand_before_each_part_with_weights(name, expected):
    known = cuts(arch(name))
    assert [(alias, c.before, c.channels, c.stride) for alias, c in known.items()] == expected


@pytest.mark.parametrize("name", ["Plain", "sequence", "Nested"])
def test_stages_and_head_compute_what_the_network_does(name):
    network = build_backbone(arch(name), seed=3).eval()
    view = chained(network)
    assert torch.equal(view(images()), network(images()))
    # They hold the network's own tensors, each once.
    assert {id(p) for p in view.parameters()} == {id(p) for p in network.parameters()}
    assert len(list(view.parameters())) == len(list(network.parameters()))


def test_a_sub_model_is_its_step_down_and_the_rest_of_the_network():
    pipelines = {"cut2": {"before": "conv3", "kernel": 4, "stride": 4, "norm": "none"}}
    architecture = arch("Plain", pipelines)
    check_architecture(architecture)
    joint = build(architecture, seed=1).eval()
    logits = joint(images())
    plain = joint.backbone.whole
    entry = joint.modules_of["cut2"]
    x = F.relu(F.conv2d(images(), entry.conv.weight, entry.conv.bias, stride=4))
    x = F.relu(plain.conv3(x))
    expected = plain.fc(x.mean((2, 3)))
    torch.testing.assert_close(logits["cut2"], expected)
    assert torch.equal(logits["base"], plain(images()))
    torch.testing.assert_close(joint.detach("cut2")(images()), expected)


def test_the_base_stays_an_object_of_its_own_class():
    architecture = arch("Plain", {"cut1": {}})
    joint = build(architecture, seed=1).eval()
    base = joint.detach("base")
    assert type(base) is chained_nets.Plain
    alone = build_network(architecture, "base").eval()
    alone.load_state_dict(base.state_dict())
    assert torch.equal(alone(images()), joint(images())["base"])
    with torch.no_grad():
        joint.backbone.whole.conv1.weight.add_(1)
    assert not torch.equal(joint.backbone.whole.conv1.weight, base.conv1.weight)


def test_widths_of_a_sub_model_are_the_networks():
    architecture = arch("Plain", {"cut1": {"before": "conv2"}})
    assert [(g.widths, g.size) for g in groups(architecture)] == [
        (("conv1",), 6), (("conv2",), 8), (("conv3",), 7),
    ]  # fmt: skip
    inside = groups(architecture, "cut1")
    assert [(g.widths, g.size) for g in inside] == [
        (("conv1",), 6),
        (("conv2",), 8),
        (("conv3",), 7),
    ]
    step_down = {axis.tensor for axis in inside[0].axes}
    assert "step_down.conv.weight" in step_down
    narrow = arch("Plain", {"cut1": {"before": "conv2"}}, {"conv1": 3, "conv2": 4, "conv3": 5})
    # Step-down 2 x 2 to 8 x 8 places, conv2 there, conv3 at 4 x 4 behind its pooling, and the head.
    macs = 64 * 3 * 3 * 4 + 64 * 3 * 4 * 9 + 16 * 4 * 5 * 9 + 5 * 10
    assert cost(narrow).pipelines["cut1"].macs == macs


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Skips", "Skips has no parts that run one after another: add takes other than"),
        ("Twice", "Twice runs conv more than once"),
        ("Branches", "no parts that run one after another"),
        ("Headless", "has no head behind its last convolution"),
    ],
)
def test_a_network_that_runs_otherwise_is_refused_with_what_does_so(name, words):
    with pytest.raises(ValueError, match=words):
        cuts(arch(name))


def test_a_cut_elsewhere_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"'relu' is not a cut; cuts are cut1 \(before conv2\)"):
        check_architecture(arch("Plain", {"x": {"before": "relu"}}))


def test_a_branch_leaves_behind_a_part():
    architecture = arch("Plain", {"early": {"after": "conv1"}})
    check_architecture(architecture)
    network = build(architecture, seed=1).eval()
    assert network(images())["early"].shape == (2, 10)
    assert isinstance(network.detach("early"), nn.Sequential)
