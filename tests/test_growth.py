"""Growing keeps what a network computes: plain, residual, depthwise and flattened ones, and those
with several ways through them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nets import fill_, images, split
from torch import Tensor, nn
from torch.nn import functional

from planter.arch import Architecture
from planter.backbones import full_widths
from planter.data import InMemorySplit
from planter.edits.freeze import freeze_inherited_, thaw_
from planter.edits.inherit import inherit_weights
from planter.networks.assembly import build, build_network
from planter.networks.norms import NormMode
from planter.networks.pipelines import Pipelines
from planter.planting.plants import plant, train_plant
from planter.training.batches import Batch
from planter.training.recipe import Recipe

CLASSES = 4
# Builder, size of the images, options, widths other than 3 throughout.
FAMILIES: dict[str, tuple[str, int, dict[str, Any], dict[str, int]]] = {
    "convnet": ("convnet", 8, {}, {"fc1": 5}),
    "flat": ("nets:flat", 8, {}, {"conv2": 4, "fc1": 7}),
    "flat_norm": ("nets:flat_norm", 8, {}, {"fc1": 7}),
    "residual": ("nets:residual", 8, {}, {"stem": 4, "down": 6}),
    "depthwise": ("nets:depthwise", 8, {}, {"stem": 2}),
    "resnet": ("resnet", 8, {"depth": 8}, {"group2": 4, "group3": 5}),
    "resnet, one width": ("resnet", 8, {"depth": 8}, {}),
    "resnet, convolved": ("resnet", 8, {"depth": 8, "shortcut": "conv"}, {"group2": 4}),
    "wrn": ("wrn", 8, {"depth": 10, "widen": 1}, {}),
    "wrn, rising": ("wrn", 8, {"depth": 10, "widen": 1}, {"group1": 8}),
    "mobilenet": ("mobilenet", 8, {}, {"sep3": 2, "sep13": 4}),
    "toy": ("toy", 8, {}, {"conv2": 2}),
    "cifar_quick": ("cifar_quick", 15, {}, {"conv2": 2}),
    "alexnet": ("alexnet", 63, {}, {"conv2": 2}),
    "vgg16": ("vgg16", 32, {"head": "hidden"}, {"conv2": 2}),
    "densenet": ("densenet", 8, {"depth": 7}, {"stem": 4}),
}
# Zero channels that a shortcut pads with become planted ones, an identity becomes a convolution
# (never the other way round: no width comes to be its neighbour's), or what is joined is joined in
# another order.
REFUSED = {
    "resnet": {"group1", "group2"},
    "resnet, convolved": {"stem", "group1"},
    "wrn": {"stem", "group1"},
    "densenet": {"stem", "growth"},
}


def architecture(family: str) -> Architecture:
    builder, size, options, widths = FAMILIES[family]
    full = {**dict.fromkeys(full_widths(builder, None, options), 3), **widths}
    return Architecture(builder, full, {**options, "classes": CLASSES, "image": (3, size, size)})


def network(arch: Architecture, seed: int) -> nn.Module:
    """In float64, with the builder's random weights and random norms."""
    return fill_(build_network(arch, seed=seed), seed).double().eval()


def gap(a: Tensor, b: Tensor) -> float:
    """Relative to the larger of 1 and `b`."""
    return float((a - b).abs().max() / b.abs().max().clamp_min(1))


def parents_blocks(parent: nn.Module, child: nn.Module) -> set[str]:
    """The names whose leading block in the child is not the parent's, bit for bit."""
    after = child.state_dict()
    assert set(after) == set(parent.state_dict())
    return {
        name
        for name, old in parent.state_dict().items()
        if not torch.equal(after[name][tuple(map(slice, old.shape))], old)
    }


def planted_in(families: Sequence[str], *, refused: bool) -> st.SearchStrategy[tuple[str, str]]:
    """A family and one of its layers, of those that cannot grow or of the others."""
    places = [
        (family, layer)
        for family in families
        for layer in architecture(family).widths
        if (layer in REFUSED.get(family, ())) == refused
    ]
    return st.sampled_from(places)


SEEDS = st.integers(0, 2**16)


@settings(max_examples=30)
@given(planted_in(list(FAMILIES), refused=False), st.integers(1, 3), SEEDS)
def test_a_child_starts_as_its_parents_function_and_cut_down_again_is_its_parent(
    place: tuple[str, str], channels: int, seed: int
) -> None:
    family, layer = place
    arch = architecture(family)
    parent = network(arch, seed)
    wider, child = plant(arch, parent, layer, channels, seed=seed + 1)
    assert wider.widths == {**arch.widths, layer: arch.widths[layer] + channels}
    x = images(3, arch.options["image"], seed)
    with torch.no_grad():
        expected, found = parent(x), child.eval()(x)
    assert gap(found, expected) <= 1e-12
    assert not parents_blocks(parent, child)
    # Whatever the new channels are:
    fill_new_(child, parent, seed)
    narrow = network(arch, seed + 3)
    inherit_weights(narrow, child)
    shrunk = narrow.state_dict()
    assert set(shrunk) == set(parent.state_dict())
    for name, old in parent.state_dict().items():
        assert torch.equal(shrunk[name], old), name


@settings(max_examples=30)
@given(planted_in(list(REFUSED), refused=True), st.integers(1, 3), SEEDS)
# Its parent's ReLUs are silent for most images.
@example(("resnet", "group2"), 3, 2191)
def test_what_does_not_start_as_its_parents_function_is_refused(
    place: tuple[str, str], channels: int, seed: int
) -> None:
    family, layer = place
    arch = architecture(family)
    parent = network(arch, seed)
    refusal = None
    try:
        _, child = plant(arch, parent, layer, channels, seed=seed + 1)
    except ValueError as error:
        refusal = str(error)
    if refusal is not None:
        assert refusal.startswith(f"{arch.builder} cannot grow in {layer}: ")
        return
    x = images(64, arch.options["image"], seed)
    with torch.no_grad():
        assert gap(child.eval()(x), parent(x)) <= 1e-9, "plant() took it for the same function"


def fill_new_(child: nn.Module, parent: nn.Module, seed: int) -> None:
    """Random numbers in every entry that the parent does not have."""
    generator = torch.Generator().manual_seed(seed)
    for name, old in parent.state_dict().items():
        new = child.state_dict()[name]
        fresh = torch.rand(new.shape, generator=generator, dtype=torch.float64) + 0.5
        if new.shape != old.shape:
            fresh[tuple(map(slice, old.shape))] = old
            new.copy_(fresh)


# With several ways: what is planted in `layer` is read by, or stands behind, ways of its own.
Specs = dict[str, dict[str, Any]]
WAYS: dict[str, Specs] = {
    "residual": {
        "cut": {"before": "down", "kernel": 1, "stride": 1},
        "late": {"before": "block2", "kernel": 3, "stride": 2},
        "early": {"after": "block1", "branch": "rest"},
        "mean": {"after": "down", "branch": "fc"},
    },
    "depthwise": {
        "cut": {"before": "deep", "kernel": 1, "stride": 1},
        "early": {"after": "stem", "branch": "conv"},
    },
    "flat": {
        "cut": {"before": "conv2", "kernel": 1, "stride": 1, "norm": "none"},
        "early": {"after": "conv1", "branch": "rest"},
    },
    "wrn": {
        "sharp": {"head": "fsrcnn"},
        "cut": {"before": "group3_1", "stride": 2},
        "early": {"after": "group2_1", "branch": "blocks"},
    },
    "mobilenet": {
        "cut": {"before": "sep6", "kernel": 2, "stride": 2},
        "early": {"after": "sep5", "branch": "blocks"},
    },
}
# Layers to plant in, and the tensors of ways that then are wider in one of their axes.
PLANTS: list[tuple[str, str, dict[str, int]]] = [
    ("residual", "stem", {"cut.conv.weight": 0, "cut.norm.weight": 0}),
    ("residual", "down", {"late.conv.weight": 0, "mean.fc1.weight": 1, "mean.fc2.weight": 1}),
    ("residual", "inner1", {}),
    ("residual", "inner2", {"early.block2.second.weight": 1}),
    ("depthwise", "stem", {"cut.conv.weight": 0, "early.conv.weight": 1}),
    ("depthwise", "point", {}),
    ("flat", "conv1", {"cut.conv.weight": 0, "early.conv2.conv.weight": 1}),
    ("flat", "conv2", {"early.head.fc1.weight": 1}),
    ("flat", "fc1", {"early.head.fc2.weight": 1}),
    ("wrn", "group2", {"cut.conv.weight": 0, "early.group3_1.conv1.weight": 1}),
    ("wrn", "group3", {"early.group3_1.conv1.weight": 0}),
    ("mobilenet", "sep5", {"cut.conv.weight": 0, "early.sep6.depth_conv.weight": 0}),
]
MODES: list[NormMode] = ["shared", "switch_stats", "switch_all"]
RECIPE = Recipe(epochs=2, batch=10, lr=0.05, momentum=0.9, weight_decay=0.05)


def all_ways(model: nn.Module, batch: Batch) -> Tensor:
    """The sum of the ways' cross-entropies."""
    logits = model(batch.images)
    return torch.stack([functional.cross_entropy(x, batch.labels) for x in logits.values()]).sum()


class Doubled(InMemorySplit):
    """A split whose network inputs are float64."""

    def normalise(self, images: Tensor) -> Tensor:
        return (images.double() / 255 - self.mean) / self.std


def data(count: int) -> Doubled:
    made = split(count, classes=CLASSES)
    return Doubled(made.images, made.labels, made.mean, made.std)


def ways(family: str, norms: NormMode) -> tuple[Architecture, Pipelines]:
    arch = architecture(family)
    arch = Architecture(arch.builder, arch.widths, arch.options, WAYS[family])
    parent = fill_(build(arch, 1, norms), 1).double().eval()
    assert isinstance(parent, Pipelines)
    return arch, parent


@pytest.mark.parametrize("norms", MODES)
@pytest.mark.parametrize(("family", "layer", "wider_ways"), PLANTS)
def test_all_ways_grow_and_what_they_inherited_stays_theirs(
    family: str, layer: str, wider_ways: dict[str, int], norms: NormMode
) -> None:
    arch, parent = ways(family, norms)
    before = {name: t.clone() for name, t in parent.state_dict().items()}
    _, child = plant(arch, parent, layer, 2, seed=2)
    assert isinstance(child, Pipelines)
    assert child.norm_mode == norms
    for name, axis in wider_ways.items():
        old = parent.modules_of.state_dict()[name]
        assert child.modules_of.state_dict()[name].shape[axis] > old.shape[axis], name
    x = images(4)
    with torch.no_grad():
        expected, found = parent(x), child.eval()(x)
    assert list(found) == ["base", *WAYS[family]]
    for name in expected:
        assert gap(found[name], expected[name]) <= 1e-12, name
    start = {name: t.clone() for name, t in child.state_dict().items()}
    types = {name: type(m) for name, m in child.named_modules()}
    train_plant(child, parent, data(20), RECIPE, all_ways, teacher=None, seed=3)
    assert {name: type(m) for name, m in child.named_modules()} == types
    assert not parents_blocks(parent, child)
    for name, old in before.items():
        assert torch.equal(parent.state_dict()[name], old), f"the parent's {name}"
    for name, parameter in child.named_parameters():
        if not torch.equal(start[name], grown_with_zeros(before[name], parameter.shape)):
            # Not zero, so that decay alone moves it.
            assert not torch.equal(parameter, start[name]), f"{name} stood still"
    for key, norm in child.norms.items():
        shared = norm_of_base(child, key)
        assert (norm.weight is shared.weight) == (norms == "switch_stats"), key
        assert (norm.bias is shared.bias) == (norms == "switch_stats"), key
        assert norm.running_mean is not shared.running_mean
    assert bool(child.norms) == (norms != "shared" and family != "flat")


def grown_with_zeros(old: Tensor, shape: torch.Size) -> Tensor:
    new = old.new_zeros(shape)
    new[tuple(map(slice, old.shape))] = old
    return new


def norm_of_base(net: Pipelines, key: str) -> nn.Module:
    """The norm that the base has where an entry has the one called `key` ("cut/down/norm")."""
    place = key.split("/", 1)[1].replace("/", ".")
    inner = place if place.startswith("head.") else f"stages.{place}"
    return net.backbone.get_submodule(inner)


@pytest.mark.parametrize("norms", MODES)
@pytest.mark.parametrize("layer", ["stem", "down"])
def test_ways_cut_down_again_are_the_parents(layer: str, norms: NormMode) -> None:
    arch, parent = ways("residual", norms)
    _, child = plant(arch, parent, layer, 2, seed=2)
    train_plant(child, parent, data(20), RECIPE, all_ways, teacher=None, seed=3)
    narrow = build(arch, 9, norms)
    inherit_weights(narrow, child)
    for name, old in parent.state_dict().items():
        assert torch.equal(narrow.state_dict()[name], old), name


def test_planted_channels_of_a_way_have_statistics_of_their_own() -> None:
    """`block2` reads `down`'s map in the base and the step-down's map in `late`."""
    arch, parent = ways("residual", "switch_stats")
    _, child = plant(arch, parent, "inner2", 2, seed=2)
    conv = child.backbone.stages.block2.first.conv
    # Filters that stand still: then the statistics after one step are those of the maps.
    recipe = Recipe(epochs=1, batch=20, lr=1e-30, momentum=0.0, weight_decay=0.0)
    twenty = data(20)
    x = twenty.normalise(twenty.images)
    filters = conv.weight[3:].detach().clone()
    stages, late = parent.backbone.stages, parent.modules_of["late"]
    with torch.no_grad():
        map_of = {"base": stages.down(stages.block1(stages.stem(x)))}
        # All but what is planted stays as it is in eval mode.
        map_of["late"] = late(x)
    train_plant(child, parent, twenty, recipe, all_ways, teacher=None, seed=3)
    norm_of = {
        "base": child.backbone.stages.block2.first.norm,
        "late": child.norms["late/block2/first/norm"],
    }
    for way, norm in norm_of.items():
        maps = functional.conv2d(map_of[way], filters, padding=1)
        mean = maps.mean(dim=(0, 2, 3))
        # torch's running average after one step of momentum 0.1 from mean 0.
        torch.testing.assert_close(norm.running_mean[3:], 0.1 * mean, rtol=1e-10, atol=1e-12)
    means = [norm.running_mean[3:] for norm in norm_of.values()]
    assert float((means[0] - means[1]).abs().min()) > 1e-3


class Gentle(nn.Sequential):
    """A sequence whose norms start as others than torch's: a smaller scale, a shift."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__(*parts)
        for part in self:
            if isinstance(part, nn.BatchNorm2d):
                nn.init.constant_(part.weight, 0.25)
                nn.init.constant_(part.bias, 0.5)


def gentle(
    widths: dict[str, int], *, classes: int = 10, image: tuple[int, ...] = (3, 32, 32)
) -> nn.Module:
    """A builder of norms that start with a scale of 0.25 and a shift of 0.5."""
    return Gentle(
        nn.Conv2d(image[0], widths["conv"], 3, padding=1),
        nn.BatchNorm2d(widths["conv"]),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(widths["conv"], classes),
    )


@pytest.mark.parametrize("outgoing", ["zero", "random"])
def test_freezing_and_thawing_keep_the_childs_function_and_numbers(outgoing: str) -> None:
    """Also where the builder starts its norms otherwise than torch does."""
    arch = Architecture("test_growth:gentle", {"conv": 3}, {"classes": CLASSES, "image": (3, 8, 8)})
    parent = network(arch, 1)
    _, child = plant(arch, parent, "conv", 2, seed=2, outgoing=outgoing)
    start = {name: t.clone() for name, t in child.state_dict().items()}
    x = images(4)
    with torch.no_grad():
        expected = child.eval()(x)
        found = freeze_inherited_(child, parent).eval()(x)
    thaw_(child)
    for name, tensor in child.state_dict().items():
        assert torch.equal(tensor, start[name]), name
    assert gap(found, expected) <= 1e-12
