"""Networks that were not written for planter: widths found by tracing, against masks, closed forms
and other tools' counts."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import traced_nets
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from planter import Architecture, cost, load
from planter.backbones import build_backbone, free_widths
from planter.backbones.outside.own import NETWORKS
from planter.channels.groups import groups, with_widths
from planter.cli import app
from planter.costs.resized import macs_by_sizes
from planter.networks import checkpoint
from planter.tracing.axes import Group
from planter.tracing.resize import resize_, with_sizes
from planter.tracing.trace import trace

PLAIN = {
    "residual": traced_nets.Residual,
    "depthwise": traced_nets.Depthwise,
    "squeeze_excite": traced_nets.SqueezeExcite,
    "dense": traced_nets.Dense,
    "two_heads": traced_nets.TwoHeads,
    "flattened": traced_nets.Flattened,
    "gated": traced_nets.Gated,
    "grouped": traced_nets.Grouped,
    "up_and_down": traced_nets.UpAndDown,
    "normalised": traced_nets.Normalised,
    "split": traced_nets.Split,
}
IMAGE = (3, 16, 16)


def randomised(network: nn.Module) -> nn.Module:
    """In double precision, with every tensor drawn, statistics of norms too."""
    network = network.double().eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                scale = 1.0 if tensor.dim() < 2 else tensor[0].numel() ** -0.5
                drawn = scale * torch.randn(tensor.shape, generator=draw, dtype=tensor.dtype)
                tensor.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else drawn)
    return network


def images(shape=IMAGE) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(2, *shape, generator=draw, dtype=torch.float64)


def sizes_of(groups: tuple[Group, ...]) -> dict[str, int]:
    return {group.widths[0]: group.size for group in groups}


@pytest.fixture(params=PLAIN, name="network")
def network_(request) -> nn.Module:
    torch.manual_seed(0)
    return randomised(PLAIN[request.param]())


def test_channels_of_a_group_may_stand_in_any_order(network):
    """Whole groups, and nothing but them: one permutation of all their axes changes nothing, one
    that leaves an axis out changes the function."""
    found = trace(network, IMAGE)
    assert found.groups
    before = network(images())
    for group in found.groups:
        moved = copy.deepcopy(network)
        order = torch.arange(group.size).roll(1)
        state = moved.state_dict()
        for axis in group.axes:
            entries = torch.arange(state[axis.tensor].shape[axis.axis])
            entries[axis.indices(torch.arange(group.size))] = axis.indices(order)
            state[axis.tensor] = state[axis.tensor].index_select(axis.axis, entries)
        moved.load_state_dict(state)
        torch.testing.assert_close(moved(images()), before, rtol=1e-9, atol=1e-9)
        reader = next(axis for axis in group.axes if axis.reads)
        entries = torch.arange(state[reader.tensor].shape[reader.axis])
        entries[reader.indices(torch.arange(group.size))] = reader.indices(order)
        state[reader.tensor] = state[reader.tensor].index_select(reader.axis, entries)
        moved.load_state_dict(state)
        assert (moved(images()) - before).abs().max() > 1e-6


def test_each_group_takes_one_and_half_less_and_three_more(network):
    found = trace(network, IMAGE)
    for i, group in enumerate(found.groups):
        for size in {max(group.size - 1, 1), max(group.size // 2, 1), group.size + 3}:
            sizes = [g.size for g in found.groups]
            sizes[i] = size
            other = resize_(copy.deepcopy(network), found.groups, sizes)
            assert other(images()).shape == network(images()).shape
            if size > 1:  # one channel is not told from what must stay one
                expected = sizes_of(found.groups) | {group.widths[0]: size}
                assert sizes_of(trace(other, IMAGE).groups) == expected


def test_a_network_without_some_channels_computes_what_one_does_that_does_not_hear_them(network):
    """Removed and masked are the same: what reads the last channels of a group is set to zero."""
    found = trace(network, IMAGE)
    for i, group in enumerate(found.groups):
        if group.size < 3 or not group.keeps:
            continue
        size = group.size - 2
        masked = copy.deepcopy(network)
        state = masked.state_dict()
        gone = torch.arange(size, group.size)
        for axis in group.axes:
            if axis.reads:
                state[axis.tensor].index_fill_(axis.axis, axis.indices(gone), 0)
        sizes = [g.size for g in found.groups]
        sizes[i] = size
        # Scaled by the number of inputs, as fresh weights are: undone here.
        smaller = resize_(copy.deepcopy(network), found.groups, sizes)
        kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        for axis in sorted(group.axes, key=lambda axis: -axis.offset):
            stays = torch.ones(kept[axis.tensor].shape[axis.axis], dtype=torch.bool)
            stays[axis.indices(gone)] = False
            index = stays.nonzero().flatten()
            kept[axis.tensor] = kept[axis.tensor].index_select(axis.axis, index)
        smaller.load_state_dict(kept)
        torch.testing.assert_close(smaller(images()), masked(images()), rtol=1e-9, atol=1e-9)


def test_names_are_those_of_the_first_layers():
    residual = trace(traced_nets.Residual(), IMAGE)
    assert sizes_of(residual.groups) == {"stem": 6, "block.conv1": 5}
    assert residual.fixed == {"fc": "the network's output"}
    dense = trace(traced_nets.Dense(), IMAGE)
    assert sizes_of(dense.groups) == {"stem": 4, "grow.0": 3, "grow.1": 3}


def test_parts_of_a_concatenation_know_where_they_stand():
    dense = trace(traced_nets.Dense(), IMAGE)
    head = {
        group.widths[0]: [(a.offset, a.repeat) for a in group.axes if a.tensor == "fc.weight"]
        for group in dense.groups
    }
    assert head == {"stem": [(0, 1)], "grow.0": [(4, 1)], "grow.1": [(7, 1)]}
    moved = with_sizes(dense.groups, [2, 5, 3])
    offsets = {
        group.widths[0]: [axis.offset for axis in group.axes if axis.tensor == "fc.weight"]
        for group in moved
    }
    assert offsets == {"stem": [0], "grow.0": [2], "grow.1": [7]}


def test_flattened_maps_have_several_entries_a_channel():
    flattened = trace(traced_nets.Flattened(), IMAGE)
    axes = {(a.tensor, a.axis): a.repeat for group in flattened.groups for a in group.axes}
    assert axes["fc1.weight", 1] == 16  # 4 x 4 places


def test_grouped_convolutions_change_by_whole_groups():
    grouped = trace(traced_nets.Grouped(), IMAGE)
    group = next(g for g in grouped.groups if g.widths == ("reduce",))
    assert group.size == 3  # of four channels each
    network = resize_(traced_nets.Grouped(), grouped.groups, [
        2 if g is group else g.size for g in grouped.groups
    ])  # fmt: skip
    assert network.mixed.groups == 2
    assert network.mixed.weight.shape == (8, 4, 3, 3)


def test_halves_of_one_layer_change_together():
    found = trace(traced_nets.Split(), IMAGE)
    assert sizes_of(found.groups) == {"both": 5, "left": 4, "right": 3}
    assert found.fixed == {"fc": "the network's output"}
    both = next(group for group in found.groups if group.widths == ("both",))
    assert [(a.offset, a.repeat) for a in both.axes if a.tensor == "both.bias"] == [(0, 1), (5, 1)]


def test_norms_over_channels_promise_no_function():
    found = trace(traced_nets.Normalised(), IMAGE)
    keeps = {group.widths[0]: group.keeps for group in found.groups}
    assert keeps == {"stem": False, "expand": True}


def test_what_cannot_be_followed_is_fixed_and_named():
    shuffled = trace(traced_nets.Shuffled(), IMAGE)
    assert sizes_of(shuffled.groups) == {"inner": 8}
    assert "stem" in shuffled.fixed
    counted = trace(traced_nets.Counted(), IMAGE)
    assert "aten.view" in counted.fixed["stem"]
    sorted_ = trace(traced_nets.Sorted(), IMAGE)
    assert "aten.sort" in sorted_.fixed["stem"]
    assert sizes_of(sorted_.groups) == {"after": 7}


def test_zeros_around_maps_change_no_width():
    found = trace(traced_nets.Padded(), IMAGE)
    assert sizes_of(found.groups) == {"stem": 5, "after": 6}


def test_a_weight_reads_channels_on_either_side_of_a_product():
    found = trace(traced_nets.Swapped(), IMAGE)
    assert sizes_of(found.groups) == {"stem": 5, "mix": 7}
    reads = {(a.tensor, a.axis) for group in found.groups for a in group.axes if a.reads}
    assert reads == {("mix", 1), ("fc.weight", 1)}


def test_what_train_mode_knows_by_heart_is_fixed():
    found = trace(traced_nets.Noisy(), IMAGE)
    assert sizes_of(found.groups) == {"inner": 5}
    assert "train mode" in found.fixed["stem"]


def test_channels_that_are_rows_of_a_product_are_counted_by_building():
    network = Architecture("traced_nets:Mixer", {}, {"classes": 10, "image": list(IMAGE)})
    assert macs_by_sizes(network, "base", groups(network)) is None
    plain = Architecture("traced_nets:Residual", {}, {"classes": 10, "image": list(IMAGE)})
    found = groups(plain)
    count = macs_by_sizes(plain, "base", found)
    sizes = [group.size + 2 for group in found]
    wider = with_widths(plain, {g.widths[0]: n for g, n in zip(found, sizes, strict=True)})
    assert count is not None
    assert count(sizes) == cost(wider).macs


def test_a_network_that_cannot_take_the_image_is_refused():
    with pytest.raises(ValueError, match=r"cannot take an image of \[5, 16, 16\]: aten.conv"):
        trace(traced_nets.Residual(), (5, 16, 16))


def test_what_depends_on_the_order_of_channels_is_fixed():
    """Each stands behind another layer, which it does not bind."""
    for name in ("Summed", "Largest", "Radix"):
        found = trace(getattr(traced_nets, name)(), IMAGE)
        assert sizes_of(found.groups) == {"after": 7}, name
        assert "stem" in found.fixed, name


def test_a_class_that_was_defined_anew_is_looked_at_again(monkeypatch):
    """As in a notebook: the factory is the same, what it calls is not."""
    monkeypatch.setitem(NETWORKS, "made", lambda num_classes: traced_nets.Tied())
    architecture = Architecture("made", {"stem": 4}, {"classes": 10, "image": list(IMAGE)})
    assert build_backbone(architecture).stem.out_channels == 4

    class Wider(traced_nets.Tied):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one = traced_nets.conv(3, 9), traced_nets.conv(9, 9)
            self.other, self.fc = traced_nets.conv(9, 9), nn.Linear(9, 10)

    monkeypatch.setattr(traced_nets, "Tied", Wider)
    again = build_backbone(architecture)
    assert again.stem.out_channels == again.fc.in_features == 4
    assert free_widths(replace(architecture, widths={"stem": 9}))["stem"] == 9


def test_a_state_without_versions_is_loaded_with_the_networks_own(tmp_path):
    """As torchvision's MNASNet asks for them."""
    architecture = Architecture("traced_nets:Versioned", {}, {"classes": 10, "image": list(IMAGE)})
    network = build_backbone(architecture)
    checkpoint.save(tmp_path / "net", network, architecture, "base")
    loaded = load(tmp_path / "net", own_code=True)
    x = torch.rand(2, *IMAGE)
    assert torch.equal(loaded(x), network.eval()(x))


def test_cost_lists_widths_and_what_is_fixed():
    done = CliRunner().invoke(app, ["cost", "traced_nets:Residual", "--image", "3x16x16"])
    assert done.exit_code == 0, done.output
    assert (
        "widths: stem=6, block.conv1=5\nfixed: fc, because of the network's output" in done.output
    )


def test_tied_weights_stay_tied():
    network = traced_nets.Tied()
    found = trace(network, IMAGE)
    smaller = resize_(network, found.groups, [group.size - 1 for group in found.groups])
    assert smaller.one.weight is smaller.other.weight
    assert smaller(torch.ones(1, *IMAGE)).shape == (1, 10)


def test_fresh_channels_are_drawn_as_the_network_draws_its_own():
    """Ones where all are ones; weights as large as an own network of that width would have."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 64, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Conv2d(64, 64, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    found = trace(network, IMAGE)
    for size in (16, 256):
        made = resize_(copy.deepcopy(network), found.groups, [size, size])
        plain = nn.Conv2d(size, size, 3, bias=False)
        assert torch.equal(made[1].weight, torch.ones(size))
        assert made[3].weight.std().item() == pytest.approx(plain.weight.std().item(), rel=0.05)


def test_costs_at_other_widths_are_what_torch_counts(network):
    network = network.float()
    found = trace(network, IMAGE)
    smaller = resize_(network, found.groups, [max(g.size - 1, 1) for g in found.groups])
    with FlopCounterMode(display=False) as counter:
        smaller(torch.ones(1, *IMAGE))
    layers = sum(
        module.weight.numel() * places for module, places in traced_nets.places_of(smaller, IMAGE)
    )
    assert counter.get_total_flops() == 2 * layers
