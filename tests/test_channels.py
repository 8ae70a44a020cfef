"""Groups of coupled channels, against closed forms and against plain torch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from planter import Architecture
from planter.backbones import full_widths, with_data_options
from planter.channels.groups import Axis, Group, groups, network_without_data, with_widths
from planter.channels.importance import MEASURES, magnitude, norm_scale, taylor
from planter.edits.narrow import inherit_channels_, widths_of
from planter.networks.assembly import build_network

CONV8 = {"depth": 8, "shortcut": "conv"}
PAD8 = {"depth": 8, "shortcut": "pad"}


def architecture(key, options=None, pipelines=None, image=(3, 16, 16), widths=None):
    options = options or {}
    plain = Architecture(key, full_widths(key, widths, options), options, pipelines or {})
    return with_data_options(plain, 10, image)


def found(key, options=None, **more):
    return {"+".join(g.widths): g for g in groups(architecture(key, options, **more))}


def randomised(network):
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                drawn = 0.3 * torch.randn(tensor.shape, generator=draw, dtype=torch.float64)
                tensor.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else drawn)
    return network.double().eval()


def test_a_plain_network_has_a_group_for_each_width():
    got = found("convnet")
    assert list(got) == ["conv1", "conv2", "conv3", "conv4", "conv5", "fc1"]
    axes = {(a.tensor, a.axis, a.repeat) for a in got["conv5"].axes}
    # 16 x 16 pixels, pooled three times: four places of a channel reach the linear layer.
    assert axes == {
        ("conv5.conv.weight", 0, 1),
        ("conv5.conv.bias", 0, 1),
        ("head.fc1.weight", 1, 4),
    }


def test_a_shortcut_that_is_the_identity_joins_two_widths():
    got = found("resnet", CONV8)
    assert "stem+group1" in got
    assert all(group.free for group in got.values())
    apart = found("resnet", CONV8, widths={"stem": 8, "group1": 12})
    assert {"stem", "group1"} <= set(apart)  # a 1x1 convolution stands between them


def test_shortcuts_that_pad_keep_channels_in_their_order():
    got = found("resnet", PAD8)
    assert not got["group1"].free
    assert not got["group3"].free


def test_depthwise_convolutions_follow_their_input():
    stem = found("mobilenet")["stem"]
    assert ("sep1.depth_conv.weight", 0) in {(a.tensor, a.axis) for a in stem.axes}
    assert ("sep1.point_conv.weight", 1) in {(a.tensor, a.axis) for a in stem.axes}


def test_channels_that_are_concatenated_are_left_out():
    assert groups(architecture("densenet", {"depth": 10})) == []


def test_the_tail_behind_a_cut_has_the_groups_it_reads():
    cut = architecture("resnet", CONV8, {"sub": {"before": "group2_1", "kernel": 2, "stride": 2}})
    got = {"+".join(g.widths): g for g in groups(cut, "sub")}
    assert "stem" not in got
    assert "step_down.conv.weight" in {a.tensor for a in got["group1"].axes}


@pytest.mark.parametrize(
    ("key", "options"),
    [("convnet", {}), ("cifar_quick", {}), ("resnet", CONV8), ("wrn", {"depth": 10, "widen": 1}),
     ("mobilenet", {}), ("toy", {})],
)  # fmt: skip
def test_a_free_group_without_a_channel_is_the_network_with_that_channel_zeroed(key, options):
    """The independent way: torch's own structured pruning zeroes what makes the channel, and the
    narrower network, whose tensors are smaller, computes the same."""
    given_ = architecture(key, options, image=(3, 32, 32), widths=None)
    small = replace(given_, widths={n: min(w, 6) for n, w in given_.widths.items()})
    network = randomised(build_network(small))
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    every = groups(small)
    for number, group in enumerate(every):
        assert group.free
        gone = group.size - 2
        kept = [torch.arange(g.size) for g in every]
        kept[number] = torch.tensor([i for i in range(group.size) if i != gone])
        sizes = [len(k) for k in kept]
        child = with_widths(small, widths_of(every, sizes))
        narrow = build_network(child).double().eval()
        if narrow.state_dict().keys() != network.state_dict().keys():
            continue  # a shortcut has come or gone: other edits see to it
        inherit_channels_(narrow, network, every, kept)
        zeroed = build_network(small).double().eval()
        state = {n: t.clone() for n, t in network.state_dict().items()}
        for axis in group.axes:
            if axis.axis == 1:  # nobody reads the channel
                state[axis.tensor].index_fill_(1, axis.indices(torch.tensor([gone])), 0.0)
        zeroed.load_state_dict(state)
        assert torch.allclose(narrow(images), zeroed(images), rtol=1e-9, atol=1e-9), group.widths


@given(seed=st.integers(0, 2**16))
@settings(max_examples=10, deadline=None)
def test_all_channels_kept_are_the_parent(seed):
    given_ = architecture(
        "resnet", CONV8, widths={"stem": 5, "group1": 5, "group2": 6, "group3": 7}
    )
    parent = build_network(given_, seed=seed)
    every = groups(given_)
    child = inherit_channels_(
        build_network(given_, seed=seed + 1), parent, every, [torch.arange(g.size) for g in every]
    )
    for name, tensor in parent.state_dict().items():
        assert torch.equal(tensor, child.state_dict()[name]), name


def test_a_child_of_other_layers_or_widths_is_refused():
    given_ = architecture("resnet", CONV8, widths=6)
    every, parent = groups(given_), build_network(given_)
    whole = [torch.arange(g.size) for g in every]
    other = build_network(architecture("convnet"))
    with pytest.raises(ValueError, match="other layers than its parent"):
        inherit_channels_(other, parent, every, whole)
    narrower = build_network(with_widths(given_, {"group2": 4}))
    with pytest.raises(ValueError, match=r"in the channels that stay, .* in the child"):
        inherit_channels_(narrower, parent, every, whole)


def test_magnitude_is_the_norm_over_all_that_makes_or_reads_a_channel():
    given_ = architecture("convnet", widths=4)
    network = randomised(build_network(given_))
    group = groups(given_)[1]  # conv2
    state = network.state_dict()
    made, read = state["conv2.conv.weight"], state["conv3.conv.weight"]
    expected = (
        made.flatten(1).square().sum(1) + read.transpose(0, 1).flatten(1).square().sum(1)
    ).sqrt()
    assert torch.allclose(magnitude(group, state, {}), expected)


def test_magnitude_drops_what_torch_prunes_first():
    """Where readers are alike, the order is that of torch's structured pruning by the 2-norm."""
    given_ = architecture("convnet", widths=8)
    network = build_network(given_)
    with torch.no_grad():
        network.get_submodule("conv2.conv").weight.fill_(0.1)
        network.get_submodule("conv1.conv").weight.mul_(torch.rand(8)[:, None, None, None] + 0.1)
    conv = nn.Conv2d(3, 8, 3)
    conv.weight = nn.Parameter(network.get_submodule("conv1.conv").weight.detach().clone())
    prune.ln_structured(conv, "weight", amount=3, n=2, dim=0)
    theirs = set((conv.weight_mask.flatten(1).sum(1) == 0).nonzero().flatten().tolist())
    ours = magnitude(groups(given_)[0], network.state_dict(), {}).argsort()[:3].tolist()
    assert set(ours) == theirs


def test_norm_scales_are_those_of_the_norms_behind_a_channel():
    given_ = architecture("cifar_quick", widths=5)
    network = build_network(given_)
    scale = torch.tensor([0.5, 2.0, -3.0, 0.1, 1.0])
    network.get_submodule("conv2.norm").weight.data.copy_(scale)
    state = network.state_dict()
    got = norm_scale(groups(given_)[1], state, {})
    assert torch.allclose(got, scale.abs().double())


def test_norm_scales_behind_a_flattened_map_count_for_their_channel():
    group = Group(("a",), 2, (Axis("n.weight", 0), Axis("f.weight", 0, 3)))
    state = {"n.weight": torch.tensor([1.0, -2.0]), "f.weight": torch.arange(6.0)}
    assert norm_scale(group, state, {}).tolist() == [1 + 0 + 1 + 2, 2 + 3 + 4 + 5]


def test_taylor_is_the_change_of_the_loss_to_first_order():
    """By the definition: the derivative of the loss as a channel's output is scaled down."""
    given_ = architecture("convnet", widths=4)
    network = randomised(build_network(given_))
    images, labels = torch.randn(6, 3, 16, 16, dtype=torch.float64), torch.arange(6)
    nn.functional.cross_entropy(network(images), labels).backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    got = taylor(groups(given_)[2], network.state_dict(), gradients)  # conv3
    gate = torch.ones(4, dtype=torch.float64, requires_grad=True)
    hook = network.get_submodule("conv3.conv").register_forward_hook(
        lambda module, inputs, output: output * gate[:, None, None]
    )
    nn.functional.cross_entropy(network(images), labels).backward()
    hook.remove()
    assert torch.allclose(got, gate.grad.abs())


def test_every_measure_gives_a_number_for_each_channel_of_each_group():
    given_ = architecture("mobilenet", image=(3, 32, 32))
    network = build_network(given_)
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    for group in groups(given_):
        for measure in MEASURES.values():
            scores = measure(group, network.state_dict(), gradients)
            assert scores.shape == (group.size,)
            assert torch.isfinite(scores).all()


GROUPED = """
from torch import nn

def build(widths, *, classes, image):
    a, b = widths["a"], widths["b"]
    layers = [
        nn.Conv2d(image[0], a, 3), nn.GroupNorm(4 if a % 4 == 0 else 1, a), nn.ReLU(),
        nn.Conv2d(a, b, 3, groups=4 if {groups} and a % 4 == b % 4 == 0 else 1), nn.BatchNorm2d(b),
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(b, classes))
"""


def test_layers_whose_groups_follow_from_their_widths_are_asked_at_their_own_size(
    tmp_path, monkeypatch
):
    """A narrow network has no groups there: of its channels any could stand anywhere."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "grouped_norm.py").write_text(GROUPED.replace("{groups}", "False"))
    (tmp_path / "grouped_conv.py").write_text(GROUPED.replace("{groups}", "True"))
    options = {"classes": 10, "image": [1, 8, 8]}
    got = groups(Architecture("grouped_norm:build", {"a": 8, "b": 8}, options))
    assert {group.widths: group.free for group in got} == {("a",): False, ("b",): True}
    assert groups(Architecture("grouped_conv:build", {"a": 8, "b": 8}, options)) == []
    even = groups(Architecture("grouped_conv:build", {"a": 7, "b": 9}, options))
    assert [group.free for group in even] == [True, True]


def test_shapes_are_told_without_data():
    network = network_without_data(architecture("resnet", CONV8), "base")
    assert {p.device.type for p in network.parameters()} == {"meta"}
