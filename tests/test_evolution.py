"""Edits of trained networks, against plain torch and against what cost says."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from benches import Bench, Probed, counted
from hypothesis import given, settings
from hypothesis import strategies as st

from planter import Architecture
from planter.backbones import full_widths, with_data_options
from planter.evolution.cut import Cut
from planter.evolution.depth import Deepen, Remove
from planter.evolution.edit import EditError, Individual
from planter.evolution.grow import Grow
from planter.evolution.shrink import Shrink
from planter.evolution.table import EDITS, apply_all, from_data, to_data
from planter.evolution.whole import GoOn, Reform
from planter.networks.assembly import build_network

CONV8 = {"depth": 8, "shortcut": "conv"}
PAD8 = {"depth": 8, "shortcut": "pad"}


def individual(key, options=None, widths=None, pipelines=None, pipeline="base", image=(3, 16, 16)):
    options = options or {}
    plain = Architecture(key, full_widths(key, widths, options), options, pipelines or {})
    architecture = with_data_options(plain, 10, image)
    network = build_network(architecture, pipeline, seed=3).eval()
    with torch.no_grad():  # as if it had trained: statistics that are no longer those of the start
        for name, tensor in network.state_dict().items():
            if name.endswith("running_mean"):
                tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))
    return Individual(architecture, pipeline, network)


PARENTS = {
    "convnet": lambda: individual("convnet"),
    "conv shortcuts": lambda: individual("resnet", CONV8),
    "padded shortcuts": lambda: individual("resnet", PAD8),
    "depthwise": lambda: individual("mobilenet", widths=12, image=(3, 32, 32)),
    "behind a cut": lambda: individual(
        "resnet", CONV8, pipelines={"sub": {"before": "group2_1", "kernel": 4, "stride": 2}},
        pipeline="sub",
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", ["even", "magnitude", "norm", "taylor"])
@pytest.mark.parametrize("parent", PARENTS)
def test_a_shrunk_network_keeps_to_its_size_and_to_weights_of_its_parent(parent, rule):
    parent = PARENTS[parent]()
    before = {n: t.clone() for n, t in parent.network.state_dict().items()}
    child, macs = Shrink(0.5, rule).apply(parent, Bench())
    assert 0.35 * counted(parent) < counted(child) <= 0.5 * counted(parent)
    assert counted(child) == child.macs
    assert macs == (1234 if rule == "taylor" else 0)
    for name, tensor in parent.network.state_dict().items():
        assert torch.equal(tensor, before[name])
    values = {float(v) for v in before_values(before)}
    for name, tensor in child.network.state_dict().items():
        if "weight" in name and tensor.dim() == 4:
            assert {float(v) for v in tensor.flatten()} <= values, name


def before_values(state):
    return torch.cat([t.flatten() for t in state.values() if t.dim() == 4])


@pytest.mark.parametrize("rule", ["even", "magnitude"])
def test_a_shrunk_network_keeps_to_bounds_that_its_macs_say_nothing_of(rule):
    """A rank over all layers took macs where they are, early: the child of a ResNet-20 was trained
    for an hour and had 48,165 parameters where the study allowed 40,600."""

    def params(network):
        return sum(parameter.numel() for parameter in network.parameters())

    class Bounded(Bench):
        def within_bounds(self, architecture, pipeline):
            return params(build_network(architecture, pipeline, 0)) <= most

    parent = individual("resnet", CONV8)
    with torch.no_grad():
        for name, tensor in parent.network.named_parameters():
            if name.startswith(("stem", "group1")):
                tensor.mul_(0.1)  # what matters least is what costs the most multiply-adds
    free, _ = Shrink(0.5, rule).apply(parent, Bench())
    most = 0.8 * params(free.network)
    child, _ = Shrink(0.5, rule).apply(parent, Bounded())
    assert 0.5 * most < params(child.network) <= most
    assert child.macs <= free.macs
    most = 10
    with pytest.raises(EditError, match="beyond the study's bounds"):
        Shrink(0.5, rule).apply(parent, Bounded())


@given(size=st.floats(0.05, 0.95))
@settings(max_examples=15, deadline=None)
def test_any_size_is_met_from_below_and_nearly(size):
    parent = individual("convnet")
    child, _ = Shrink(size).apply(parent, Bench())
    assert child.macs <= size * parent.macs
    # One channel more anywhere would cost too much: a channel is at most a fifth of this network.
    assert child.macs > size * parent.macs - 0.2 * parent.macs


def test_a_shrunk_network_computes_what_plain_torch_does_with_the_channels_that_matter():
    """Two channels of conv2 are dead; they, and no other, are taken out: the function stays."""
    parent = individual("convnet", widths={"conv1": 4, "conv2": 10, "conv3": 4, "conv4": 4,
                                           "conv5": 4, "fc1": 8})  # fmt: skip
    with torch.no_grad():
        for name in ("conv2.conv.weight", "conv2.conv.bias"):
            parent.network.state_dict()[name][[2, 7]] = 0
        parent.network.state_dict()["conv3.conv.weight"][:, [2, 7]] = 0
    wanted = 1 - 2 * (4 * 9 * 64 + 4 * 9 * 16) / parent.macs  # conv2 at 8 x 8, conv3 at 4 x 4
    child, _ = Shrink(wanted, "magnitude").apply(parent, Bench())
    assert child.architecture.widths["conv2"] == 8
    images = torch.randn(5, 3, 16, 16)
    assert torch.allclose(child.network(images), parent.network(images), atol=1e-6)


@pytest.mark.parametrize("parent", PARENTS)
def test_a_grown_network_starts_as_its_parents_function(parent):
    parent = PARENTS[parent]()
    child, macs = Grow(1.8).apply(parent, Bench())
    assert parent.macs < counted(child) <= 1.8 * parent.macs
    assert macs == 0
    images = torch.randn(4, *parent.architecture.options["image"])
    assert torch.allclose(child.network(images), parent.network(images), rtol=1e-4, atol=1e-5)


def test_growing_where_a_planting_round_measured_most():
    parent = individual("convnet", widths=4)
    costs = {}
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5"):
        costs[name] = Grow(1.3, name).apply(parent, Bench())[0].macs - parent.macs
    bench = Bench(found={name: 0.01 * cost for name, cost in costs.items()})
    bench.found["conv3"] *= 2  # twice the fall for each multiply-add
    child, macs = Grow(1.3, "measured").apply(parent, bench)
    assert macs == 77
    grown = {n for n, w in child.architecture.widths.items() if w > parent.architecture.widths[n]}
    assert grown == {"conv3"}
    assert set(costs) <= set(bench.asked)


@pytest.mark.parametrize("rule", ["measured", "gradient"])
def test_where_a_width_leads_beyond_the_bounds_another_grows(rule):
    parent = individual("convnet", widths=8)
    bench = Probed(torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    bench.found = dict.fromkeys(READERS, 1.0)
    first, _ = Grow(1.3, rule).apply(parent, bench)
    bench.beyond = (first.architecture.key(),)
    second, _ = Grow(1.3, rule).apply(parent, bench)
    assert second.architecture != first.architecture
    # With none that keeps to them, the best of all.
    bench.within_bounds = lambda *_: False
    assert Grow(1.3, rule).apply(parent, bench)[0].architecture == first.architecture


READERS = {"conv1": "conv2.conv", "conv2": "conv3.conv", "conv3": "conv4.conv",
           "conv4": "conv5.conv", "conv5": "head.fc1", "fc1": "head.fc2"}  # fmt: skip


def test_growing_where_gradients_promise_most():
    """Against plain autograd, of each width alone: of what is zero and is to read new channels."""
    parent = individual("convnet", widths=8)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    bench = Probed(images)
    child, macs = Grow(1.3, "gradient").apply(parent, bench)
    (probe,) = bench.seen
    promised = {}
    for width, reader in READERS.items():
        quarter = parent.architecture.widths[width] // 4
        wider = {**parent.architecture.widths, width: 5 * quarter}
        network = build_network(replace(parent.architecture, widths=wider))
        with torch.no_grad():
            for name, tensor in network.state_dict().items():
                tensor.copy_(probe[name][tuple(map(slice, tensor.shape))])
        torch.testing.assert_close(network(images), parent.network(images))
        gradient = bench.gradients_of(network).values[f"{reader}.weight"]
        old = parent.network.state_dict()[f"{reader}.weight"].shape[1]
        added = counted(replace(parent, network=network)) - counted(parent)
        promised[width] = float(gradient[:, old:].square().sum()) / added
    best = max(promised, key=promised.__getitem__)
    assert promised[best] > 1.05 * sorted(promised.values())[-2]
    assert macs == 1234
    grown = {n for n, w in child.architecture.widths.items() if w > parent.architecture.widths[n]}
    assert grown == {best}


@pytest.mark.parametrize("parent", ["conv shortcuts", "padded shortcuts", "behind a cut"])
def test_growing_by_gradients_keeps_the_function(parent):
    parent = PARENTS[parent]()
    child, _ = Grow(1.8, "gradient").apply(parent, Bench())
    assert parent.macs < counted(child) <= 1.8 * parent.macs
    images = torch.randn(4, *parent.architecture.options["image"])
    assert torch.allclose(child.network(images), parent.network(images), rtol=1e-4, atol=1e-5)


def test_growing_in_steps_keeps_the_function_and_comes_to_the_same_size():
    parent = individual("resnet", CONV8)
    grow, child, sizes = Grow(4.0, steps=3), parent, []
    for number in range(3):
        child, _ = grow.step(number, parent.macs, child, Bench())
        sizes.append(counted(child) / counted(parent))
    for size, most in zip(sizes, (4 ** (1 / 3), 4 ** (2 / 3), 4), strict=True):
        assert 0.9 * most < size <= most
    images = torch.randn(4, 3, 16, 16)
    assert torch.allclose(child.network(images), parent.network(images), rtol=1e-4, atol=1e-5)
    # New channels read each other, but no older one reads them.
    weight = child.network.state_dict()["group1_1.conv2.weight"]
    assert weight[16:, 16:].abs().max() > 0 == weight[:16, 16:].abs().max()
    at_once, _ = grow.apply(parent, Bench())
    assert at_once.architecture == child.architecture
    assert Grow(8.0, steps=4).parts(16) == [(0, 2), (2, 4), (4, 6), (6, 16)]
    assert Grow(8.0).parts(16) == [(0, 16)]


def test_a_step_without_room_for_a_channel_leaves_its_room_to_the_next():
    parent = individual("convnet", widths=1)
    grow, sizes = Grow(3.0, "conv2", steps=40), []
    child = parent
    for number in range(40):
        child, _ = grow.step(number, parent.macs, child, Bench())
        sizes.append(child.architecture.widths["conv2"])
    assert sizes[0] == 1
    assert sizes == sorted(sizes)
    assert sizes[-1] == Grow(3.0, "conv2").apply(parent, Bench())[0].architecture.widths["conv2"]


def test_steps_stand_in_data_only_where_there_are_several():
    assert to_data([Grow(2.0)]) == [{"edit": "grow", "size": 2.0, "rule": "even"}]
    (told,) = to_data([Grow(2.0, "measured", 3)])
    assert told == {"edit": "grow", "size": 2.0, "rule": "measured", "steps": 3}
    assert from_data([told]) == [Grow(2.0, "measured", 3)]
    with pytest.raises(EditError, match="one step or more"):
        Grow(2.0, steps=0).check(individual("convnet", widths=4).architecture, "base")


def test_growing_says_why_no_width_can_be_measured():
    with pytest.raises(EditError, match="rule: even"):
        Grow(1.3, "measured").apply(individual("convnet", widths=4), Bench(found={}))


def test_a_cut_keeps_the_tail_bit_for_bit():
    parent = individual("resnet", CONV8)
    child, _ = Cut("group2", kernel=4, stride=2).apply(parent, Bench())
    assert child.pipeline == "from-group2_1"
    theirs, ours = parent.network.state_dict(), child.network.state_dict()
    shared = {name for name in ours if not name.startswith("step_down")}
    assert shared
    assert all(torch.equal(ours[name], theirs[name]) for name in shared)
    conv = child.network.get_submodule("step_down.conv")
    assert (conv.kernel_size, conv.stride) == ((4, 4), (2, 2))
    again, _ = Cut("group3").apply(child, Bench())
    assert list(again.architecture.pipelines) == ["from-group3_1"]
    with pytest.raises(EditError, match="enters before group3_1 already"):
        Cut("group2").check(again.architecture, again.pipeline)


def test_what_a_network_cannot_take_is_refused_by_its_architecture_alone():
    small = individual("convnet", widths={"conv1": 1, "conv2": 1, "conv3": 1, "conv4": 1,
                                          "conv5": 1, "fc1": 1})  # fmt: skip
    with pytest.raises(EditError, match="narrowest network costs"):
        Shrink(0.5).check(small.architecture, "base")
    dense = individual("densenet", {"depth": 10})
    for edit in (Shrink(0.5), Grow(2.0)):
        with pytest.raises(EditError, match="no width that can change by itself"):
            edit.check(dense.architecture, "base")
    with pytest.raises(EditError, match="expected even, magnitude"):
        Shrink(0.5, "largest").check(small.architecture, "base")
    with pytest.raises(EditError, match=r"one channel more costs more than 1\.001 times"):
        Grow(1.001).check(small.architecture, "base")
    with pytest.raises(EditError, match="share"):
        Shrink(1.5).check(small.architecture, "base")
    with pytest.raises(EditError, match="cuts are"):
        Cut("conv9").check(small.architecture, "base")
    with pytest.raises(EditError):
        Reform("no_form").check(small.architecture, "base")


def test_edits_are_data_and_a_lineage_can_be_done_again():
    parent = individual("resnet", CONV8)
    edits = [Shrink(0.6, "norm"), Cut("group2", 2, 2), Reform("kflo:2x2")]
    child, _ = apply_all(edits, parent, Bench())
    again, _ = apply_all(from_data(to_data(edits)), parent, Bench())
    assert again.architecture == child.architecture
    for name, tensor in child.network.state_dict().items():
        assert torch.equal(tensor, again.network.state_dict()[name])
    assert {one["edit"] for one in to_data([Shrink(0.5), Grow(2.0), GoOn()])} <= set(EDITS)


@pytest.mark.parametrize(
    ("data", "told"),
    [({"edit": "mutate"}, "edits are shrink"), ({"edit": "shrink", "share": 1}, "has no 'share'")],
)
def test_edits_of_another_version_are_refused(data, told):
    with pytest.raises(EditError, match=told):
        from_data([data])


@pytest.mark.parametrize(
    ("key", "options"), [("resnet", CONV8), ("resnet", PAD8), ("wrn", {"depth": 10, "widen": 1})]
)
@pytest.mark.parametrize("group", ["group1", "group2", "group3"])
def test_a_block_more_starts_as_its_parents_function_and_taken_out_again_is_the_parent(
    key, options, group
):
    parent = individual(key, options)
    child, _ = Deepen(group).apply(parent, Bench())
    assert counted(child) == child.macs > parent.macs
    images = torch.randn(4, 3, 16, 16)
    assert torch.allclose(child.network(images), parent.network(images), atol=1e-6)
    back, _ = Remove(group).apply(child, Bench())
    assert back.architecture.options["blocks"] == [1, 1, 1]
    for name, tensor in parent.network.state_dict().items():
        assert torch.equal(tensor, back.network.state_dict()[name])


def test_blocks_learn_after_they_started_as_the_identity():
    child, _ = Deepen("group2").apply(individual("resnet", CONV8), Bench())
    child.network.train()(torch.randn(4, 3, 16, 16)).square().sum().backward()
    assert child.network.get_submodule("group2_2.norm2").weight.grad.abs().sum() > 0


def test_blocks_that_are_not_there_are_refused():
    resnet = individual("resnet", CONV8).architecture
    with pytest.raises(EditError, match="one block"):
        Remove("group1").check(resnet, "base")
    with pytest.raises(EditError, match="groups are group1, group2, group3"):
        Deepen("group9").check(resnet, "base")
    with pytest.raises(EditError, match="no blocks"):
        Deepen("group1").check(individual("convnet").architecture, "base")
    late = individual("resnet", CONV8, pipelines={"sub": {"before": "group3_1"}}, pipeline="sub")
    with pytest.raises(EditError, match="groups are group3"):
        Deepen("group1").check(late.architecture, "sub")


def test_blocks_of_a_group_are_an_option():
    plain = individual("resnet", {"depth": 14})
    same = individual("resnet", {"depth": 14, "blocks": [2, 2, 2]})
    for name, tensor in plain.network.state_dict().items():
        assert torch.equal(tensor, same.network.state_dict()[name])
    with pytest.raises(ValueError, match="blocks are 3 whole numbers"):
        individual("resnet", {"depth": 14, "blocks": [2, 0, 2]})


def test_going_on_is_the_same_network():
    parent = individual("convnet")
    child, macs = GoOn().apply(parent, SimpleNamespace(seed=0))
    assert child.network is parent.network
    assert macs == 0
