"""What pipelines cost: apart, together in one forward pass, and stored beside the base."""

from __future__ import annotations

import random

import pytest
import torch
from nets import images
from test_macs import CNSN
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from twins import NAMES, awkward

from planter.arch import Architecture
from planter.costs.macs import cost, joint_macs, training_cost
from planter.networks.assembly import build, build_without_data
from planter.networks.norms import NormMode
from planter.networks.pipelines import Pipelines

EVERY = Architecture(
    "nets:residual",
    {},
    {"classes": 5, "image": (3, 8, 8)},
    {
        "cut1": {"kernel": 3, "stride": 1},
        "exit": {"after": "cut2", "branch": "conv"},
        "late": {"before": "block2"},
        "rest": {"after": "block1", "branch": "rest"},
        "first": {"after": "stem", "branch": "fc"},
        "sharp": {"head": "fsrcnn"},
    },
)


def by_torch(net: nn.Module, names: list[str], device: str, batch: int = 2) -> int:
    """Of one image, in the forward pass of several."""
    like = next(net.parameters())
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        net(torch.zeros(batch, 3, 8, 8, dtype=like.dtype, device=device), names)
    flops = counter.get_total_flops()
    assert flops % (2 * batch) == 0
    return flops // (2 * batch)


def subsets(names: list[str], count: int) -> list[list[str]]:
    draw = random.Random(0)
    some = [draw.sample(names, draw.randint(1, len(names))) for _ in range(count)]
    return [names, [], *([name] for name in names), *some]


@pytest.mark.parametrize("training", [True, False])
def test_joint_macs_are_those_of_the_joint_pass(training: bool) -> None:
    """Whether pipelines are merged into one batch or not, and whichever are asked for."""
    net = build_without_data(EVERY).train(training)
    assert isinstance(net, Pipelines)
    counted = cost(EVERY)
    for names in subsets(net.names, 6):
        assert joint_macs(counted, names) == by_torch(net, names, "meta")


def test_joint_macs_of_awkward_pipelines_are_those_of_the_joint_pass() -> None:
    """With a stage used twice, and groups that merge late."""
    net = awkward().train()
    counted = cost(net, (3, 8, 8))
    for names in subsets(NAMES, 6):
        assert joint_macs(counted, names) == by_torch(net, names, "cpu")


def test_pipelines_apart_cost_what_torch_counts_in_the_detached() -> None:
    net, counted = awkward().eval(), cost(awkward(), (3, 8, 8))
    assert list(counted.pipelines) == NAMES
    for name, way in counted.pipelines.items():
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            net.detach(name)(images(1))
        assert 2 * way.macs == counter.get_total_flops()
        assert way.params == sum(p.numel() for p in net.detach(name).parameters())


# facts.md 2.2: a step-down convolution of 768 or 49,152 weights and a norm of 64 or 256 channels.
BESIDE = {"base": 0, "cut2": 768 + 128, "cut7": 49_152 + 512}
# Channels of VGG16's norms behind the two cuts.
BEHIND = {"cut2": 2 * 128 + 3 * 256 + 6 * 512, "cut7": 6 * 512}


@pytest.mark.parametrize("norms", ["shared", "switch_stats", "switch_all"])
def test_cnsn_stores_its_step_downs_and_what_norms_are_its_own(norms: NormMode) -> None:
    with torch.device("meta"):
        found = cost(build(CNSN, norms=norms), (3, 32, 32))
    assert found.pipelines["cut2"].params == 14_686_090
    scales = {"cut2": 0, "cut7": 0}
    if norms == "switch_all":
        scales = {name: 2 * channels for name, channels in BEHIND.items()}
    beside = {name: BESIDE[name] + scales.get(name, 0) for name in BESIDE}
    assert {name: way.extra_params for name, way in found.pipelines.items()} == beside
    assert found.extra_params == sum(beside.values())
    statistics = {"base": 0, "cut2": 2 * 64, "cut7": 2 * 256}
    if norms != "shared":
        for name, channels in BEHIND.items():
            statistics[name] += 2 * channels
    assert {n: way.extra_statistics for n, way in found.pipelines.items()} == statistics
    assert found.extra_statistics == sum(statistics.values())


def test_cnsns_family_stores_a_third_of_a_percent_more() -> None:
    found = cost(CNSN)
    assert found.extra_params == 50_560
    assert round(found.extra_params / found.params, 4) == 0.0034
    assert found.extra_statistics == 14_976


@pytest.mark.parametrize("norms", ["shared", "switch_stats", "switch_all"])
def test_what_is_stored_is_the_base_and_what_is_beside_it(norms: NormMode) -> None:
    net = awkward(norms)
    found = cost(net, (3, 8, 8))
    assert found.params + found.extra_params == sum(p.numel() for p in net.parameters())
    buffers = sum(b.numel() for b in net.buffers() if b.is_floating_point())
    of_base = sum(b.numel() for b in net.backbone.buffers() if b.is_floating_point())
    assert of_base + found.extra_statistics == buffers


def test_an_exit_stores_its_branch_and_an_image_head_itself() -> None:
    ways = cost(EVERY).pipelines
    # Linear layers 4 -> 4 -> 5; an image head of facts.md 5.2.
    assert ways["first"].extra_params == 4 * 4 + 4 + 4 * 5 + 5
    assert ways["first"].extra_statistics == 0
    assert ways["sharp"].extra_params == 27_263
    assert ways["sharp"].macs == ways["base"].macs + 27_072 * 64


def test_a_step_of_training_counts_joint_passes() -> None:
    """Forward, and backward twice as much but for the images. The base goes through the stem
    together with what the image head makes, whose gradient is asked for: so that of the base's
    images is computed as well."""
    found = training_cost(EVERY, batch=4)
    forward = joint_macs(cost(EVERY), ["base", *EVERY.pipelines])
    cut1, late, head = 27 * 4 * 64, 12 * 6 * 16, 3 * 25 * 64 * 64
    assert found.macs_step_plain == 4 * (3 * forward - cut1 - late - head)
