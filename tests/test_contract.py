"""What every backbone and every cut must keep, run for each by its being listed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from planter.arch import Architecture
from planter.backbones import BUILDERS, StagedNet, full_widths, with_data_options
from planter.networks.assembly import build, build_network, build_without_data, check_architecture
from planter.networks.cut_points import Cut, cuts
from planter.networks.pipelines import Pipelines
from planter.training.losses import multi_pipeline_loss

CLASSES = 7
LARGER = {"alexnet": (3, 64, 64)}
# Where a network is really trained: few blocks and few channels.
SHALLOW: dict[str, dict[str, Any]] = {
    "densenet": {"depth": 10},
    "resnet": {"depth": 14},
    "wrn": {"depth": 16},
}
WITHOUT_WIDTHS = [f"torchvision:{name}" for name in ("resnet18", "resnet50", "resnet152")]
BACKBONES = [*BUILDERS, *WITHOUT_WIDTHS, "nets:residual", "nets:flat"]
# resnet152 has the blocks of resnet50, 34 more of them.
TRAINED = [key for key in BACKBONES if key != "torchvision:resnet152"]


def whole(key: str) -> Architecture:
    """The backbone as it is when nothing is said of it."""
    arch = Architecture(key, full_widths(key))
    return with_data_options(arch, CLASSES, LARGER.get(key, (3, 32, 32)))


def small(key: str) -> Architecture:
    options = SHALLOW.get(key, {})
    widths = dict.fromkeys(full_widths(key, None, options), 8)
    arch = Architecture(key, widths, options)
    return with_data_options(arch, CLASSES, LARGER.get(key, (3, 32, 32)))


def shapes(net: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in net.state_dict().items()}


def known_cuts(arch: Architecture) -> dict[str, Cut]:
    with torch.device("meta"):  # else torchvision's networks are initialised for their shapes
        return cuts(arch)


def expected_state(base: nn.Module, cut: Cut, channels: int) -> dict[str, torch.Size]:
    """The step-down's tensors, then those of the base behind the cut."""
    width = cut.channels
    step_down = {
        "conv.weight": (width, channels, cut.stride, cut.stride),
        **dict.fromkeys((f"norm.{leaf}" for leaf in ("weight", "bias")), (width,)),
        **dict.fromkeys((f"norm.running_{leaf}" for leaf in ("mean", "var")), (width,)),
        "norm.num_batches_tracked": (),
    }
    parts = list(base._modules)
    behind = tuple(f"{part}." for part in parts[parts.index(cut.before) :])
    rest = {name: shape for name, shape in shapes(base).items() if name.startswith(behind)}
    return {**{f"step_down.{name}": torch.Size(s) for name, s in step_down.items()}, **rest}


@pytest.mark.parametrize("key", BACKBONES)
def test_every_cut_of_a_backbone_makes_a_network(key: str) -> None:
    """All cuts at once, on the meta device."""
    with torch.device("meta"):
        plain = whole(key)
        found = cuts(plain)
        arch = replace(plain, pipelines={alias: {} for alias in found})
        check_architecture(arch)  # every pipeline takes an image and gives logits of the classes
        again = Architecture.from_dict(json.loads(json.dumps(arch.to_dict())))
        assert again == arch
        net = build_without_data(arch).eval()
        assert isinstance(net, Pipelines)
        assert net.names == ["base", *found]
        base = net.detach("base")
        channels, height, width = arch.options["image"]
        for name, cut in found.items():
            expected = expected_state(base, cut, channels)
            assert list(shapes(net.detach(name)).items()) == list(expected.items())
        for name in ("base", middle(found)):
            # Without the other pipelines: fifty of them would be built for each.
            ways = {way: spec for way, spec in again.pipelines.items() if way == name}
            alone, anew = net.detach(name), build_network(replace(again, pipelines=ways), name)
            assert alone(torch.empty(2, channels, height, width)).shape == (2, CLASSES)
            assert {tensor.device.type for tensor in alone.state_dict().values()} == {"meta"}
            assert list(shapes(alone).items()) == list(shapes(anew).items())


def middle(known: Mapping[str, Cut]) -> str:
    return list(known)[len(known) // 2]


def step_through(key: str, name: str) -> None:
    """One joint step of the base and of the pipeline that enters at a cut."""
    arch = replace(small(key), pipelines={name: {}})
    before = known_cuts(arch)[name].before
    net = build(arch).double().train()
    assert isinstance(net, Pipelines)
    assert isinstance(net.backbone, StagedNet)
    stages = list(net.backbone.stages._modules)
    images = torch.randn(4, *arch.options["image"], dtype=torch.float64)
    logits = net(images)
    labels = torch.arange(4)

    # Of the cut's own loss a gradient reaches the entry and what stands behind it, nothing else.
    reached = {f"backbone.stages.{stage}." for stage in stages[stages.index(before) :]}
    ahead = tuple(f"backbone.stages.{stage}." for stage in stages[: stages.index(before)])
    trained = dict(net.named_parameters())
    cross_entropy = functional.cross_entropy(logits[name], labels)
    grads = torch.autograd.grad(
        cross_entropy, list(trained.values()), retain_graph=True, allow_unused=True
    )
    touched = {p for p, grad in zip(trained, grads, strict=True) if grad is not None and grad.any()}
    assert touched == {p for p in trained if not p.startswith(ahead)}
    assert all(any(p.startswith(stage) for p in touched) for stage in reached)

    loss = multi_pipeline_loss(logits, labels)
    assert loss.isfinite()
    assert loss > cross_entropy
    values = {p: tensor.detach().clone() for p, tensor in trained.items()}
    loss.backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    for p, tensor in trained.items():
        assert tensor.grad is not None, p
        assert tensor.grad.isfinite().all(), p
        assert tensor.grad.any(), p
        assert not torch.equal(tensor, values[p]), p

    net.eval()
    with torch.no_grad():
        joint: dict[str, Tensor] = net(images)
        for way in net.names:
            alone = net.detach(way)
            assert torch.equal(alone(images), joint[way])
        anew = build_network(arch, name, seed=9).double().eval()
        anew.load_state_dict(alone.state_dict())
        assert torch.equal(anew(images), joint[name])
    assert not torch.equal(joint["base"], joint[name])


@pytest.mark.parametrize("key", TRAINED)
def test_a_step_through_the_middle_cut_trains_what_it_reaches(key: str) -> None:
    step_through(key, middle(known_cuts(small(key))))


@pytest.mark.long
@pytest.mark.parametrize("key", TRAINED)
def test_a_step_through_any_cut_trains_what_it_reaches(key: str) -> None:
    for name in known_cuts(small(key)):
        step_through(key, name)


@pytest.mark.parametrize(
    ("key", "inside"),
    [
        ("resnet", "group1_1.conv1"),
        ("resnet18", "group2_1.shortcut.conv"),
        ("wrn", "group3_2.norm2"),
        ("densenet", "block2.layer3"),
        ("mobilenet", "sep6.point_conv"),
        ("torchvision:resnet18", "layer3_1.downsample"),
        ("torchvision:resnet50", "layer1_1/conv2"),
        ("nets:residual", "block1.first.conv"),
    ],
)
def test_a_cut_inside_a_stage_is_refused_and_the_legal_ones_are_listed(
    key: str, inside: str
) -> None:
    arch = small(key)
    legal = [cut.before for cut in known_cuts(arch).values()]
    for act in (build, check_architecture):
        with pytest.raises(ValueError, match=f"'{inside}'") as refusal:
            act(replace(arch, pipelines={"within": {"before": inside}}))
        listed = [part.rstrip(")") for part in str(refusal.value).split("(before ")[1:]]
        assert [part.partition(")")[0] for part in listed] == legal
