"""What planted channels start as, what several plants are together, and how many are planted."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nets import fill_, images
from torch import Tensor, nn
from torch.nn import functional

from planter.arch import Architecture
from planter.backbones import full_widths
from planter.networks.assembly import build, build_network
from planter.networks.pipelines import Pipelines
from planter.planting.plants import channels_to_plant, merge, plant
from planter.planting.starts import PROPOSALS, check_init, pick_filters_, scale_filters_

CLASSES = 4
X = images(12)
LABELS = torch.arange(12) % CLASSES
State = dict[str, Tensor]
# Layers by builder, with widths of 3 but for these.
LAYERS = {
    "convnet": ["conv1", "conv4", "conv5", "fc1"],
    "nets:flat": ["conv1", "conv2", "fc1"],
    "nets:flat_norm": ["conv2", "fc1"],
    "nets:residual": ["stem", "inner1", "down"],
    "nets:depthwise": ["stem", "point"],
    "mobilenet": ["sep6"],
}
PLACES = [(builder, layer) for builder, layers in LAYERS.items() for layer in layers]
places = pytest.mark.parametrize(("builder", "layer"), PLACES)


def family(builder: str, **pipelines: Mapping[str, Any]) -> tuple[Architecture, nn.Module]:
    """An architecture and its network in float64 with random norms. Their shifts are above 0: of
    14 layers of three channels one would be silent otherwise, and all behind it constant."""
    widths = {**dict.fromkeys(full_widths(builder), 3), **({"fc1": 6} if "flat" in builder else {})}
    arch = Architecture(builder, widths, {"classes": CLASSES, "image": (3, 8, 8)}, pipelines)
    made = build(arch, 1) if pipelines else build_network(arch, seed=1)
    for module in fill_(made, 1).modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.bias.data.add_(0.7)
    return arch, made.double().eval()


def loss(network: nn.Module) -> Tensor:
    return functional.cross_entropy(network(X), LABELS)


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp_min(1))


def wider_layers(child: nn.Module, parent: nn.Module, axis: int) -> dict[str, int]:
    """Convolutions and linear layers that are wider along an axis of their weight, and how wide
    they were."""
    old = dict(parent.named_modules())
    return {
        name: old[name].weight.shape[axis]
        for name, module in child.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
        and module.weight.shape[axis] > old[name].weight.shape[axis]
    }


def answer(network: nn.Module, layer: str) -> Tensor:
    """What a layer answers to X, by channel: `[channels, values]`."""
    heard: list[Tensor] = []
    hook = network.get_submodule(layer).register_forward_hook(lambda *a: heard.append(a[2]))
    with torch.no_grad():
        network.eval()(X)
    hook.remove()
    return heard[0].transpose(0, 1).flatten(1)


def assert_parents_slices(network: nn.Module, parent: nn.Module, zero: bool | None = None) -> None:
    """The parent's block stands first in each tensor; with `zero`, old rows read nothing new."""
    state = network.state_dict()
    assert set(state) == set(parent.state_dict())
    for name, old in parent.state_dict().items():
        assert torch.equal(state[name][tuple(map(slice, old.shape))], old), name
        if zero and old.dim() > 1:
            assert not state[name][:, old.shape[1] :].any(), name


@places
def test_zero_filters_are_silent_and_read_by_random_slices(builder: str, layer: str) -> None:
    arch, parent = family(builder)
    _, child = plant(arch, parent, layer, 2, seed=2, filters="zero", outgoing="random")
    assert_parents_slices(child, parent)
    outputs, inputs = wider_layers(child, parent, 0), wider_layers(child, parent, 1)
    for name, old in outputs.items():
        one = child.get_submodule(name)
        assert not one.weight[old:].any()
        assert one.bias is None or not one.bias[old:].any()
        assert not answer(child, name)[old:].any()
    for name, old in inputs.items():
        rows = outputs.get(name)  # its old rows: new ones are filters
        assert bool((child.get_submodule(name).weight[:rows, old:] != 0).all()), name
    with torch.no_grad():
        assert gap(child(X), parent(X)) <= 1e-12


@places
@pytest.mark.parametrize("outgoing", ["zero", "random"])
def test_scaled_filters_answer_as_widely_as_the_older_ones_on_average(
    builder: str, layer: str, outgoing: str
) -> None:
    arch, parent = family(builder)
    _, child = plant(arch, parent, layer, 3, seed=2, filters="scaled", outgoing=outgoing, images=X)
    assert_parents_slices(child, parent, zero=outgoing == "zero")
    _, plain = plant(arch, parent, layer, 3, seed=2, outgoing=outgoing)
    for name, old in wider_layers(child, parent, 0).items():
        spread = answer(child, name).std(dim=1)
        assert float(spread[:old].mean()) > 1e-6
        for one in spread[old:]:
            # Of a planted channel that is silent, what reads it alone is as well.
            assert float(one) in (0.0, pytest.approx(float(spread[:old].mean()), rel=1e-9)), name
        # A positive multiple of what was drawn, the bias with it.
        one, other = child.get_submodule(name), plain.get_submodule(name)
        factor = one.weight[old:].flatten(1).norm(dim=1) / other.weight[old:].flatten(1).norm(dim=1)
        drawn = other.weight[old:] * factor.view(-1, *[1] * (one.weight.dim() - 1))
        torch.testing.assert_close(one.weight[old:], drawn, rtol=1e-10, atol=1e-14)
        if one.bias is not None:
            torch.testing.assert_close(one.bias[old:], other.bias[old:] * factor)


def test_measuring_leaves_modes_hooks_and_statistics_as_they_are() -> None:
    arch, parent = family("nets:residual")
    _, child = plant(arch, parent, "stem", 2, seed=2)
    child.train()
    child.stages.block1.eval() if hasattr(child, "stages") else child.block1.eval()
    modes = [m.training for m in child.modules()]
    buffers = {name: b.clone() for name, b in child.named_buffers()}
    scale_filters_(child, parent, X)
    assert [m.training for m in child.modules()] == modes
    assert not any(m._forward_hooks for m in child.modules())
    assert all(torch.equal(b, buffers[name]) for name, b in child.named_buffers())


@pytest.mark.parametrize(
    ("builder", "layer"),
    [place for place in PLACES if place != ("convnet", "fc1")],  # silent, see below
)
def test_scaled_slices_add_their_share_of_the_inputs_to_the_spread(
    builder: str, layer: str
) -> None:
    arch, parent = family(builder)
    _, child = plant(arch, parent, layer, 2, seed=2, outgoing="scaled", images=X)
    assert_parents_slices(child, parent)
    readers = wider_layers(child, parent, 1)
    assert readers
    for name, old in readers.items():
        weight = child.get_submodule(name).weight
        without = copy.deepcopy(child)
        with torch.no_grad():
            without.get_submodule(name).weight[:, old:] = 0
        before = answer(without, name)
        added = answer(child, name) - before
        share = math.sqrt((weight.shape[1] - old) / old)
        assert float(added.std() / before.std()) == pytest.approx(share, rel=1e-9), name


def gradient_norms(
    arch: Architecture, parent: nn.Module, layer: str, count: int, seed: int
) -> tuple[nn.Module, list[float]]:
    """The proposals, and for each the gradient's norm of the slices that read it, from a network
    that has this one proposal alone."""
    _, many = plant(arch, parent, layer, count, seed=seed)
    norms = []
    for i in range(count):
        _, one = plant(arch, parent, layer, 1, seed=seed)
        state, proposed = one.state_dict(), many.state_dict()
        for name, old in parent.state_dict().items():
            if old.dim() and state[name].shape[0] > (have := old.shape[0]):
                row = proposed[name][have + i : have + i + 1]
                state[name][have:] = row[:, : state[name].shape[1]] if row.dim() > 1 else row
        readers = wider_layers(one, parent, 1)
        weights = [one.get_submodule(name).weight for name in readers]
        total = 0.0
        for name, grad in zip(readers, torch.autograd.grad(loss(one.eval()), weights), strict=True):
            # Old rows alone: what a new channel's filter reads is not its outgoing slice.
            rows = parent.get_submodule(name).weight.shape[0]
            total += float(grad[:rows, readers[name] :].square().sum())
        norms.append(total)
    return many, norms


@pytest.mark.parametrize(
    ("builder", "layer", "channels"),
    [
        *((builder, layer, 1) for builder, layer in PLACES),
        *(("convnet", "conv5", 2), ("nets:residual", "stem", 2), ("nets:depthwise", "stem", 3)),
    ],
)
def test_the_filters_picked_have_the_largest_gradients(
    builder: str, layer: str, channels: int
) -> None:
    arch, parent = family(builder)
    many, norms = gradient_norms(arch, parent, layer, PROPOSALS * channels, 2)
    assert len(set(norms)) > channels, "nothing to choose from"
    _, child = plant(arch, parent, layer, channels, seed=2, filters="gradient", loss=loss)
    assert_parents_slices(child, parent, zero=True)
    with torch.no_grad():
        assert gap(child.eval()(X), parent(X)) <= 1e-12
    best = sorted(sorted(range(len(norms)), key=lambda i: -norms[i])[:channels])
    state, proposed = child.state_dict(), many.state_dict()
    for name, old in parent.state_dict().items():
        if old.dim() and state[name].shape[0] > (have := old.shape[0]):
            rows = proposed[name][have:][best]
            found = state[name][have:]
            if found.dim() > 1:
                rows, found = rows[:, : old.shape[1]], found[:, : old.shape[1]]
            assert torch.equal(found, rows), name
    assert all(p.grad is None for p in parent.parameters())


def test_filters_of_several_ways_are_picked_by_what_all_of_them_lose() -> None:
    arch, parent = family("nets:residual", early={"after": "stem", "branch": "fc"})
    assert isinstance(parent, Pipelines)

    def of_ways(network: nn.Module) -> Tensor:
        return sum(functional.cross_entropy(x, LABELS) for x in network(X).values())

    _, many = plant(arch, parent, "stem", PROPOSALS, seed=2)
    _, child = plant(arch, parent, "stem", 1, seed=2, filters="gradient", loss=of_ways)
    readers = wider_layers(many, parent, 1)
    weights = [many.get_submodule(name).weight for name in readers]
    score = torch.zeros(PROPOSALS, dtype=torch.float64)
    for name, grad in zip(readers, torch.autograd.grad(of_ways(many.eval()), weights), strict=True):
        rows = parent.get_submodule(name).weight.shape[0]
        new = grad[:rows, readers[name] :]
        score += new.square().flatten(2).sum(2).sum(0) if new.dim() > 2 else new.square().sum(0)
    best = int(score.argmax())
    own = child.get_submodule("backbone.stages.stem.conv").weight[3]
    assert torch.equal(own, many.get_submodule("backbone.stages.stem.conv").weight[3 + best])


def test_a_branch_of_half_the_widths_grows_with_filters_of_large_gradient() -> None:
    """Where the base has one new channel, the branch has one or none; where two, one."""
    arch, parent = family("mobilenet", early={"after": "sep5", "branch": "narrow"})

    def of_ways(network: nn.Module) -> Tensor:
        return sum(functional.cross_entropy(x, LABELS) for x in network(X).values())

    for channels in (1, 2):
        _, child = plant(arch, parent, "sep6", channels, seed=2, filters="gradient", loss=of_ways)
        with torch.no_grad():
            expected, found = parent(X), child.eval()(X)
        assert all(gap(found[name], expected[name]) <= 1e-12 for name in expected)


@pytest.mark.parametrize("filters", ["random", "zero", "scaled", "gradient"])
@pytest.mark.parametrize("outgoing", ["zero", "random", "scaled"])
def test_starts_that_cannot_learn_are_refused(filters: str, outgoing: str) -> None:
    refused = {
        ("zero", "zero"): "no gradient ever reaches either",
        ("gradient", "random"): "filters gradient with outgoing random",
        ("gradient", "scaled"): "filters gradient with outgoing scaled",
    }
    arch, parent = family("nets:flat")
    plant_it: Callable[[], object] = lambda: plant(  # noqa: E731
        arch, parent, "conv1", 1, seed=0, filters=filters, outgoing=outgoing, images=X, loss=loss
    )
    if (filters, outgoing) in refused:
        for call in (lambda: check_init(filters, outgoing), plant_it):
            with pytest.raises(ValueError, match=refused[filters, outgoing]):
                call()
    elif (filters, outgoing) != ("zero", "scaled"):  # see below
        check_init(filters, outgoing)
        plant_it()


SILENT = pytest.mark.parametrize("how", ["zero filters", "dead"])


@SILENT
def test_slices_that_read_silence_are_not_scaled_to_be_heard(how: str) -> None:
    """What is silent adds nothing, by whatever factor; should it awake, a factor of 1e11 stays."""
    if how == "zero filters":
        arch, parent = family("nets:flat")
        layer, reader, old, filters = "conv1", "conv2.conv", 3, "zero"
    else:
        # Behind a ReLU that no image gets through (seed 2 draws such units).
        arch, parent = family("convnet")
        layer, reader, old, filters = "fc1", "head.fc2", 3, "random"
        _, plain = plant(arch, parent, layer, 2, seed=2, outgoing="random")
        assert not answer(plain, "head.fc1")[old:].clamp_min(0).any()
    try:
        _, child = plant(
            arch, parent, layer, 2, seed=2, filters=filters, outgoing="scaled", images=X
        )
    except ValueError:
        assert how == "zero filters"  # refused: its start has no meaning
        return
    weight = child.get_submodule(reader).weight.detach()
    assert float(weight[:, old:].abs().max()) <= 100 * float(weight[:, :old].abs().max())


def test_filters_that_answer_alike_to_all_are_not_scaled_to_spread() -> None:
    """A depthwise filter of a planted channel that is silent."""
    arch, parent = family("nets:depthwise")
    _, child = plant(arch, parent, "stem", 2, seed=2)
    with torch.no_grad():
        child.get_submodule("stem.norm").bias[3:] = -100  # no image gets through its ReLU
    drawn = child.get_submodule("deep.conv").weight.detach()[3:].clone()
    scale_filters_(child, parent, X)
    found = child.get_submodule("deep.conv").weight.detach()[3:]
    assert float(found.abs().max()) <= 100 * float(drawn.abs().max())


def test_what_a_start_needs_and_is_not_given_is_named() -> None:
    arch, parent = family("nets:flat")
    with pytest.raises(ValueError, match="filters gradient needs loss="):
        plant(arch, parent, "conv1", 1, seed=0, filters="gradient", images=X)
    for filters, outgoing in (("scaled", "zero"), ("random", "scaled"), ("scaled", "scaled")):
        with pytest.raises(ValueError, match="a scaled start needs images="):
            plant(arch, parent, "conv1", 1, seed=0, filters=filters, outgoing=outgoing, loss=loss)


def test_picked_filters_do_not_need_the_childs_own() -> None:
    """Only the proposals count: what the child drew for itself is gone."""
    arch, parent = family("convnet")
    _, many = plant(arch, parent, "conv3", 16, seed=5)
    picked = []
    for seed in (2, 3):
        _, child = plant(arch, parent, "conv3", 2, seed=seed)
        pick_filters_(child, parent, copy.deepcopy(many), loss, 2)
        picked.append(child.state_dict())
    for name, tensor in picked[0].items():
        assert torch.equal(tensor, picked[1][name]), name


def filled(child: nn.Module, parent: nn.Module, seed: int, zero: bool = False) -> nn.Module:
    """As if trained: random numbers in all that is new; with `zero`, none in what old rows read."""
    generator = torch.Generator().manual_seed(seed)
    for name, old in parent.state_dict().items():
        new = child.state_dict()[name]
        if new.shape == old.shape:
            continue
        fresh = torch.rand(new.shape, generator=generator, dtype=torch.float64) + 0.1
        if zero and new.dim() > 1:
            fresh[:, old.shape[1] :] = 0
        fresh[tuple(map(slice, old.shape))] = old
        new.copy_(fresh)
    return child


MERGED = {
    "convnet": ["conv1", "conv2", "conv5", "fc1"],
    "nets:flat": ["conv1", "conv2", "fc1"],
    "nets:flat_norm": ["conv1", "conv2", "fc1"],
    "nets:residual": ["stem", "inner1", "down", "inner2"],
    "nets:depthwise": ["stem", "point"],
}


@st.composite
def several(draw: st.DrawFn) -> tuple[str, dict[str, int]]:
    builder = draw(st.sampled_from(list(MERGED)))
    layers = draw(st.permutations(MERGED[builder]))
    layers = layers[: draw(st.integers(1, len(layers)))]
    return builder, {layer: draw(st.integers(1, 3)) for layer in layers}


@settings(max_examples=25)
@given(several(), st.booleans())
def test_merged_plants_stand_side_by_side_as_they_were_trained(
    plants: tuple[str, dict[str, int]], zero: bool
) -> None:
    builder, planted = plants
    arch, parent = family(builder)
    made = []
    for i, (layer, channels) in enumerate(planted.items()):
        wider, child = plant(arch, parent, layer, channels, seed=i)
        made.append((wider, filled(child, parent, i, zero)))
    wider, merged = merge(arch, parent, made)
    assert wider.widths == {
        name: width + planted.get(name, 0) for name, width in arch.widths.items()
    }
    assert_parents_slices(merged, parent)
    state, untouched = merged.state_dict(), {}
    for name, tensor in state.items():
        untouched[name] = torch.ones_like(tensor, dtype=torch.bool)
        for _, child in made:
            slices = tuple(map(slice, child.state_dict()[name].shape))
            assert torch.equal(tensor[slices], child.state_dict()[name]), name
            untouched[name][slices] = False
        # Filters of one plant that would read another's channels.
        assert not tensor[untouched[name]].any(), name
    if len(made) == 1:
        for name, tensor in made[0][1].state_dict().items():
            assert torch.equal(tensor, state[name]), name
    with torch.no_grad():
        if zero:
            assert gap(merged.eval()(X), parent(X)) <= 1e-12
        if len(made) == 1:
            assert torch.equal(merged.eval()(X), made[0][1].eval()(X))


def test_plants_that_a_linear_layer_adds_up_do_together_what_they_do_alone() -> None:
    arch, parent = family("nets:flat")
    made = []
    for i, layer in enumerate(("fc1", "conv2")):
        wider, child = plant(arch, parent, layer, 2, seed=i)
        made.append((wider, filled(child, parent, i)))
    _, merged = merge(arch, parent, made)
    units, maps = made[0][1].eval(), made[1][1].eval()
    with torch.no_grad():
        # fc1's new units read the parent's maps alone, so that they answer as they did alone, and
        # fc2 adds them up with what the others are with conv2's new maps.
        found = merged.eval()(X)
        expected = maps(X) + (units(X) - parent(X))
    assert gap(found, expected) <= 1e-12


def test_the_order_of_plants_does_not_matter() -> None:
    arch, parent = family("convnet")
    made = []
    for i, layer in enumerate(("conv1", "conv2", "fc1")):
        wider, child = plant(arch, parent, layer, 2, seed=i)
        made.append((wider, filled(child, parent, i)))
    one, other = merge(arch, parent, made), merge(arch, parent, made[::-1])
    assert one[0] == other[0]
    for name, tensor in one[1].state_dict().items():
        assert torch.equal(tensor, other[1].state_dict()[name]), name


def test_plants_of_several_ways_merge() -> None:
    arch, parent = family(
        "nets:residual",
        cut={"before": "down", "kernel": 1, "stride": 1},
        early={"after": "stem", "branch": "rest"},
    )
    made = []
    for i, layer in enumerate(("stem", "inner2")):
        wider, child = plant(arch, parent, layer, 2, seed=i)
        made.append((wider, filled(child, parent, i, zero=True)))
    wider, merged = merge(arch, parent, made)
    assert isinstance(merged, Pipelines)
    assert (wider.widths["stem"], wider.widths["inner2"]) == (5, 5)
    assert_parents_slices(merged, parent)
    with torch.no_grad():
        expected, found = parent(X), merged.eval()(X)
    assert list(found) == ["base", "cut", "early"]
    assert all(gap(found[name], expected[name]) <= 1e-12 for name in expected)
    for _, child in made:
        for name, tensor in child.state_dict().items():
            block = merged.state_dict()[name][tuple(map(slice, tensor.shape))]
            assert torch.equal(block, tensor), name


WIDTHS, MULTIPLES = st.integers(1, 600), st.integers(1, 64)


@given(WIDTHS, st.integers(1, 100), MULTIPLES)
def test_a_number_of_channels_is_rounded_up_to_the_multiple(
    width: int, channels: int, multiple: int
) -> None:
    found = channels_to_plant(width, channels, multiple)
    fits = [n for n in range(channels, channels + multiple) if (width + n) % multiple == 0]
    assert [found] == fits


@given(WIDTHS, st.integers(1, 24), MULTIPLES)
def test_a_share_of_the_width_is_rounded_up_to_the_multiple(
    width: int, eighths: int, multiple: int
) -> None:
    found = channels_to_plant(width, eighths / 8, multiple)
    assert type(found) is int
    least = -(-width * eighths // 8)
    fits = [n for n in range(least, least + multiple) if (width + n) % multiple == 0]
    assert [found] == fits
    assert found >= 1


@example(100, 7)
@given(WIDTHS, st.integers(1, 100))
def test_a_share_in_percent_is_not_rounded_beyond_its_number(width: int, percent: int) -> None:
    """7 % of 100 channels are 7, though 100 * 0.07 is 7.000000000000001."""
    exact = math.ceil(Fraction(width * percent, 100))
    assert channels_to_plant(width, percent / 100) == exact
