"""Every family of torchvision's classifiers that is convolutional, and some of timm's: traced,
shrunk, grown, counted, saved, loaded and exported as networks of planter's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from planter import Architecture, cost, load
from planter.backbones import free_widths, with_data_options
from planter.channels.groups import groups, with_widths
from planter.edits.narrow import inherit_channels_
from planter.edits.widen import inherit_parts_
from planter.export import onnx_file, pt2_file
from planter.export.code import plain_code
from planter.networks import checkpoint
from planter.networks.assembly import build_network

SMALL = ["resnet18", "squeezenet1_0", "mobilenet_v3_small", "shufflenet_v2_x0_5"]
LARGE = [
    "alexnet", "vgg11", "vgg11_bn", "mobilenet_v2", "mnasnet0_5", "regnet_x_400mf",
    "regnet_y_400mf", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "densenet121", "resnext50_32x4d", "wide_resnet50_2", "convnext_tiny",
]  # fmt: skip
TIMM = [
    "resnet18", "mobilenetv3_small_050", "efficientnet_lite0", "regnety_002", "convnext_atto",
    "repvgg_a0", "resnetv2_50", "ghostnet_050",
]  # fmt: skip
KEYS = [
    *(f"torchvision:{name}" for name in SMALL),
    *(pytest.param(f"torchvision:{name}", marks=pytest.mark.long) for name in LARGE),
    *(pytest.param(f"timm:{name}", marks=pytest.mark.long) for name in TIMM),
]
# What a network's own code does not let change: a shuffle, numbers of channels known by heart.
# The least number of layers that can change: GhostNet's blocks cut maps at numbers of their own.
PARTLY_FIXED = {"torchvision:shufflenet_v2_x0_5": 19, "timm:ghostnet_050": 9}


@pytest.fixture(scope="module", params=KEYS, name="architecture")
def architecture_(request) -> Architecture:
    if request.param.startswith("timm:"):
        pytest.importorskip("timm")
    side = 75 if "inception" in request.param else 64
    return with_data_options(Architecture(request.param, {}), 10, (3, side, side))


@pytest.fixture(scope="module", name="network")
def network_(architecture) -> nn.Module:
    """In double precision, all numbers drawn: norms at their start would hide much."""
    network = build_network(architecture).double().eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                scale = 1.0 if tensor.dim() < 2 else max(tensor[0].numel(), 1) ** -0.5
                drawn = scale * torch.randn(tensor.shape, generator=draw, dtype=tensor.dtype)
                tensor.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else drawn)
    return network


def calibrated_(network: nn.Module, seen: torch.Tensor) -> nn.Module:
    """The network in eval mode, its norms with the statistics of images: what it answers depends on
    them, though it is deep and fresh."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        network.train()(seen)
    return network.eval()


def images(architecture, count: int = 1) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(count, *architecture.options["image"], generator=draw, dtype=torch.float64)


def with_sizes_of(architecture, change) -> tuple[Architecture, list[int]]:
    found = groups(architecture)
    sizes = [change(group.size) for group in found]
    wanted = {group.widths[0]: size for group, size in zip(found, sizes, strict=True)}
    return with_widths(architecture, wanted), sizes


def test_all_widths_are_found_but_those_of_the_output(architecture, network):
    found = groups(architecture)
    assert len(found) > 4
    assert {g.widths[0]: g.size for g in found} == free_widths(architecture)
    layers = {
        f"{name}.weight"
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    made = {axis.tensor for group in found for axis in group.axes if not axis.reads}
    if architecture.builder not in PARTLY_FIXED:
        assert len(layers - made) == 1  # the classifier
    else:
        assert len(layers & made) >= PARTLY_FIXED[architecture.builder]


def test_channels_of_every_group_may_stand_in_any_order(architecture, network):
    state = copy.deepcopy(network).state_dict()
    for group in groups(architecture):
        order = torch.arange(group.size).roll(1)
        for axis in group.axes:
            entries = torch.arange(state[axis.tensor].shape[axis.axis])
            entries[axis.indices(torch.arange(group.size))] = axis.indices(order)
            state[axis.tensor] = state[axis.tensor].index_select(axis.axis, entries)
    moved = copy.deepcopy(network)
    moved.load_state_dict(state)
    with torch.no_grad():
        expected = network(images(architecture))
        torch.testing.assert_close(moved(images(architecture)), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("change", [lambda n: max(n - 1, 1), lambda n: max(n // 2, 1)])
def test_removed_channels_are_those_that_are_not_heard(architecture, network, change):
    """Shrunk by one and by half in all widths: the network with the readers of those channels at
    zero computes the same, where no norm runs over channels."""
    found = groups(architecture)
    smaller, sizes = with_sizes_of(architecture, change)
    child = build_network(smaller).double().eval()
    kept = [torch.arange(size) for size in sizes]
    inherit_channels_(child, network, found, kept)
    masked = copy.deepcopy(network)
    state = masked.state_dict()
    for group, size in zip(found, sizes, strict=True):
        for axis in group.axes:
            if axis.reads:
                gone = axis.indices(torch.arange(size, group.size))
                state[axis.tensor].index_fill_(axis.axis, gone, 0)
    with torch.no_grad():
        logits = child(images(architecture))
        if all(group.keeps for group in found):
            expected = masked(images(architecture))
            torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    assert logits.shape == (1, 10)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        child(images(architecture))
    assert cost(smaller).macs == counter.get_total_flops() / 2


def test_grown_by_three_everywhere_a_network_keeps_its_function(architecture, network):
    found = groups(architecture)
    wider, _ = with_sizes_of(architecture, lambda n: n + 3)
    child = build_network(wider).double().eval()
    inherit_parts_(child, network, found, groups(wider))
    with torch.no_grad():
        logits, expected = child(images(architecture)), network(images(architecture))
    if all(group.keeps for group in found):
        torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    assert logits.shape == (1, 10)


def test_a_smaller_network_is_saved_loaded_and_exported(architecture, tmp_path):
    smaller, _ = with_sizes_of(architecture, lambda n: max(n // 2, 1))
    network = calibrated_(build_network(smaller, seed=3), images(architecture, 8).float())
    checkpoint.save(tmp_path / "small", network, smaller, "base")
    with torch.no_grad():
        three = images(architecture, 3).float()
        expected = network(three)
        # Each image is answered otherwise: what comes of it, not of biases, is compared.
        answers = expected / expected.abs().max()
        assert (answers - answers.mean(0)).abs().max() > 0.01
        loaded = load(tmp_path / "small")
        assert torch.equal(loaded(three), expected)
        code, state = plain_code(network, three)
        names: dict[str, object] = {}
        exec(f"import torch\nfrom torch import nn\n{code}", names)
        written = names["Network"]()  # type: ignore[operator]
        written.load_state_dict(state)
        given = {"code": written.eval()(three)}
    for writer in (onnx_file, pt2_file):
        file = tmp_path / writer.__name__
        writer.write(network, three[:2], file, {})  # one would be a fixed number
        given[writer.__name__] = torch.from_numpy(writer.load(file)(three.numpy()))
    # Norms folded into convolutions round otherwise: 4e-4 behind the 94 of inception_v3.
    for kind, logits in given.items():
        found = logits / expected.abs().max()
        torch.testing.assert_close(
            found, answers, rtol=0, atol=1e-3, msg=lambda m, k=kind: f"{k}: {m}"
        )
