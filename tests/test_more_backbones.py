"""Residual networks, DenseNet, MobileNet and AlexNet against their papers and torchvision."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from nets import fill_, images
from torch import Tensor, nn
from torch.nn import functional

from planter.arch import Architecture
from planter.backbones import build_backbone
from planter.costs.macs import cost

State = dict[str, Tensor]


def on_meta(builder: str, options: dict, widths: dict[str, int] | None = None) -> nn.Module:
    with torch.device("meta"):
        return build_backbone(Architecture(builder, widths or {}, options))


@pytest.mark.parametrize(
    ("builder", "options", "classes", "image", "parameters"),
    [
        # He et al. 0.46 M, 1.7 M, 19.4 M; Huang et al. 1.0 M, 7.0 M; torchvision's; facts.md 7.
        ("resnet", {"depth": 32}, 10, (3, 32, 32), 464_154),
        ("resnet", {"depth": 110}, 10, (3, 32, 32), 1_727_962),
        ("resnet", {"depth": 1202}, 10, (3, 32, 32), 19_421_274),
        ("densenet", {"depth": 40}, 10, (3, 32, 32), 1_019_722),
        ("densenet", {"depth": 100}, 10, (3, 32, 32), 6_979_642),
        ("resnet18", {"stem": "small"}, 10, (3, 32, 32), 11_173_962),
        ("resnet18", {"stem": "imagenet"}, 1000, (3, 224, 224), 11_689_512),
        ("alexnet", {}, 1000, (3, 224, 224), 61_100_840),
        ("mobilenet", {}, 100, (3, 32, 32), 3_309_476),
    ],
)
def test_backbones_have_the_published_number_of_parameters(
    builder: str, options: dict, classes: int, image: tuple[int, ...], parameters: int
) -> None:
    net = on_meta(builder, {**options, "classes": classes, "image": image})
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("builder", "options"), [("resnet18", {"stem": "imagenet"}), ("alexnet", {})]
)
def test_resnet18_and_alexnet_are_torchvisions(builder: str, options: dict, training: bool) -> None:
    from torchvision import models

    arch = Architecture(builder, {}, {**options, "classes": 7, "image": (3, 64, 64)})
    own, theirs = build_backbone(arch), models.get_model(builder, weights=None, num_classes=7)
    fill_(own).double().train(training)
    # Ours keeps the order of the layers, so the states match one by one.
    states = zip(theirs.state_dict(), own.state_dict().values(), strict=True)
    theirs.double().train(training).load_state_dict(dict(states))
    x = images(3, (3, 64, 64))
    torch.manual_seed(3)
    found = own(x)
    torch.manual_seed(3)
    assert torch.equal(found, theirs(x))


class ByHand:
    """Layers as functions of a state: what the papers' networks are written in below."""

    def __init__(self, state: State, training: bool) -> None:
        self.state, self.training = state, training

    def conv(self, place: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        weight = self.state[f"{place}.weight"]
        padding = weight.shape[2] // 2
        return functional.conv2d(x, weight, None, stride, padding, groups=groups)

    def norm(self, place: str, x: Tensor) -> Tensor:
        leaves = ("running_mean", "running_var", "weight", "bias")
        tensors = (self.state[f"{place}.{leaf}"].clone() for leaf in leaves)
        return functional.batch_norm(x, *tensors, self.training)

    def fc(self, place: str, x: Tensor) -> Tensor:
        pooled = x.mean(dim=(2, 3))
        return functional.linear(pooled, self.state[f"{place}.weight"], self.state[f"{place}.bias"])


def resnet_by_hand(net: ByHand, x: Tensor, groups: int, blocks: int, shortcut: str) -> Tensor:
    """He et al.: two convolutions with norm, the sum, then ReLU."""
    x = net.norm("stages.stem.norm", net.conv("stages.stem.conv", x)).relu()
    for group in range(1, groups + 1):
        for block in range(1, blocks + 1):
            place, stride = f"stages.group{group}_{block}", 2 if block == 1 and group > 1 else 1
            y = net.norm(f"{place}.norm1", net.conv(f"{place}.conv1", x, stride)).relu()
            y = net.norm(f"{place}.norm2", net.conv(f"{place}.conv2", y))
            if x.shape != y.shape and shortcut == "pad":
                around = torch.zeros_like(y)
                both = min(x.shape[1], y.shape[1])
                around[:, :both] = x[:, :both, ::stride, ::stride]
                x = around
            elif x.shape != y.shape:
                x = net.conv(f"{place}.shortcut.conv", x, stride)
                x = net.norm(f"{place}.shortcut.norm", x)
            x = (x + y).relu()
    return net.fc("head.fc", x)


def densenet_by_hand(net: ByHand, x: Tensor, layers: int) -> Tensor:
    """Huang et al.: a layer reads what all layers of its block before it have made."""
    x = net.conv("stages.stem", x)
    for block in (1, 2, 3):
        made = [x]
        for layer in range(1, layers + 1):
            place = f"stages.block{block}.layer{layer}"
            read = net.norm(f"{place}.norm", torch.cat(made, dim=1)).relu()
            made.append(net.conv(f"{place}.conv", read))
        x = torch.cat(made, dim=1)
        if block < 3:
            place = f"stages.transition{block}"
            x = net.conv(f"{place}.conv", net.norm(f"{place}.norm", x).relu())
            x = functional.avg_pool2d(x, 2)
    return net.fc("head.fc", net.norm("head.norm", x).relu())


def mobilenet_by_hand(net: ByHand, x: Tensor) -> Tensor:
    x = net.norm("stages.stem.norm", net.conv("stages.stem.conv", x)).relu()
    for sep in range(1, 14):
        place, stride = f"stages.sep{sep}", 2 if sep in (6, 12) else 1
        x = net.conv(f"{place}.depth_conv", x, stride, groups=x.shape[1])
        x = net.norm(f"{place}.depth_norm", x).relu()
        x = net.norm(f"{place}.point_norm", net.conv(f"{place}.point_conv", x)).relu()
    return net.fc("head.fc", x)


RESNET = {"stem": 3, "group1": 4, "group2": 6, "group3": 5}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("builder", "widths", "options", "by_hand", "arguments"),
    [
        ("resnet", RESNET, {"depth": 14, "shortcut": "pad"}, resnet_by_hand, (3, 2, "pad")),
        ("resnet", RESNET, {"depth": 14, "shortcut": "conv"}, resnet_by_hand, (3, 2, "conv")),
        ("resnet18", {**RESNET, "group4": 7}, {}, resnet_by_hand, (4, 2, "conv")),
        ("densenet", {"stem": 5, "growth": 3}, {"depth": 13}, densenet_by_hand, (3,)),
        (
            "mobilenet",
            {"stem": 3, **{f"sep{i}": 2 + i % 3 for i in range(1, 14)}},
            {},
            mobilenet_by_hand,
            (),
        ),
    ],
)
def test_a_backbone_is_the_network_of_its_paper(
    builder: str,
    widths: dict,
    options: dict,
    by_hand: Callable[..., Tensor],
    arguments: tuple,
    training: bool,
) -> None:
    options = {**options, "classes": 7, "image": (2, 17, 12)}
    net = fill_(build_backbone(Architecture(builder, widths, options))).double().train(training)
    state = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
    x = images(5, (2, 17, 12))
    expected = by_hand(ByHand(state, training), x, *arguments)
    torch.testing.assert_close(net(x), expected, rtol=1e-10, atol=1e-10)  # orders of sums


@pytest.mark.parametrize("dropout", [0.4, 1.0])
def test_densenets_dropout_stands_behind_each_convolution_but_the_stem(dropout: float) -> None:
    options = {"depth": 10, "dropout": dropout, "classes": 3}
    net = build_backbone(Architecture("densenet", {"stem": 4, "growth": 3}, options))
    drops = [part for part in net.modules() if isinstance(part, nn.Dropout)]
    assert [part.p for part in drops] == [dropout] * (3 * 2 + 2)
    if dropout == 1.0:  # nothing but the stem's channels is left within a block
        x = torch.randn(2, 4, 8, 8)
        made = net.train().stages.block1(x)
        assert torch.equal(made, torch.cat([x, torch.zeros(2, 6, 8, 8)], dim=1))


def resnet_macs(groups: tuple[int, ...], blocks: int, *, conv_shortcut: bool) -> int:
    """For images of 32 x 32 pixels."""
    macs, channels, pixels = 27 * groups[0] * 1024, groups[0], 1024
    for group, width in enumerate(groups):
        pixels = 1024 // 4**group
        macs += 9 * channels * width * pixels + (2 * blocks - 1) * 9 * width * width * pixels
        if conv_shortcut and channels != width:
            macs += channels * width * pixels
        channels = width
    return macs


@pytest.mark.parametrize("depth", [14, 32])
@pytest.mark.parametrize("shortcut", ["pad", "conv"])
def test_resnets_macs_are_the_closed_form(depth: int, shortcut: str) -> None:
    arch = Architecture("resnet", {}, {"depth": depth, "shortcut": shortcut, "image": (3, 32, 32)})
    blocks = (depth - 2) // 6
    convs = resnet_macs((16, 32, 64), blocks, conv_shortcut=shortcut == "conv")
    assert cost(arch).macs == convs + 64 * 10


def test_resnet18s_macs_are_the_closed_form() -> None:
    arch = Architecture("resnet18", {}, {"image": (3, 32, 32)})
    convs = resnet_macs((64, 128, 256, 512), 2, conv_shortcut=True)
    # facts.md 5.2: about 0.56 G.
    assert cost(arch).macs == convs + 512 * 10 == 555_422_720


def test_mobilenets_macs_are_the_closed_form() -> None:
    channels = (32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)
    macs = 27 * 32 * 32 * 32
    for sep, (before, after) in enumerate(pairwise(channels), start=1):
        side = 32 if sep < 6 else 16 if sep < 12 else 8
        macs += (9 * before + before * after) * side * side
    arch = Architecture("mobilenet", {}, {"classes": 100, "image": (3, 32, 32)})
    assert cost(arch).macs == macs + 1024 * 100


def test_densenets_macs_are_the_closed_form() -> None:
    macs, channels = 27 * 16 * 1024, 16
    for block in range(3):
        pixels = 1024 // 4**block
        macs += sum(9 * (channels + 12 * layer) * 12 * pixels for layer in range(12))
        channels += 12 * 12
        if block < 2:
            macs += channels * channels * pixels
    arch = Architecture("densenet", {}, {"image": (3, 32, 32)})
    assert cost(arch).macs == macs + channels * 10


def test_alexnets_macs_are_those_torchvision_publishes() -> None:
    arch = Architecture("alexnet", {}, {"classes": 1000, "image": (3, 224, 224)})
    convs = [(3, 64, 11, 55), (64, 192, 5, 27), (192, 384, 3, 13), (384, 256, 3, 13)]
    macs = sum(a * b * k * k * side * side for a, b, k, side in [*convs, (256, 256, 3, 13)])
    macs += 9216 * 4096 + 4096 * 4096 + 4096 * 1000
    assert cost(arch).macs == macs
    assert abs(macs / 1e9 - 0.714) <= 0.0005


@pytest.mark.parametrize("depth", [33, 2, 7, 0, -4, 32.0, "32", None, [32]])
def test_depths_that_no_resnet_has_are_refused(depth: object) -> None:
    shown = str(depth) if not isinstance(depth, str) else repr(depth)
    with pytest.raises(ValueError, match=r"depth of a resnet is 6 n \+ 2 .*got ") as refusal:
        on_meta("resnet", {"depth": depth})
    assert str(refusal.value).endswith(f"got {shown}")


@pytest.mark.parametrize("depth", [39, 4, 5, 40.0, "40", None])
def test_depths_that_no_densenet_has_are_refused(depth: object) -> None:
    shown = str(depth) if not isinstance(depth, str) else repr(depth)
    with pytest.raises(ValueError, match=r"depth of a densenet is 3 n \+ 4 .*got ") as refusal:
        on_meta("densenet", {"depth": depth})
    assert str(refusal.value).endswith(f"got {shown}")


@pytest.mark.parametrize(
    ("builder", "options", "words"),
    [
        ("resnet", {"shortcut": "zero"}, "shortcut of a resnet is 'pad' or 'conv', got 'zero'"),
        ("resnet", {"shortcut": ["pad"]}, r"'pad' or 'conv', got \['pad'\]"),
        ("resnet", {"stem": "small"}, "resnet has no option stem; options are .*shortcut"),
        ("resnet18", {"stem": "large"}, "stem of a resnet18 is 'small' or 'imagenet', got 'large'"),
        ("resnet18", {"depth": 34}, "resnet18 has no option depth; options are .*stem"),
        ("densenet", {"growth": 12}, "densenet has no option growth; options are .*depth"),
        ("densenet", {"dropout": 1.5}, "dropout.* between 0 and 1.*1.5"),
        ("alexnet", {"dropout": -1}, "dropout.* between 0 and 1.*-1"),
        ("mobilenet", {"multiplier": 2}, "mobilenet has no option multiplier; options are"),
    ],
)
def test_options_that_a_backbone_does_not_have_are_refused(
    builder: str, options: dict, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        on_meta(builder, options)


def test_imagenets_stem_needs_larger_images() -> None:
    options = {"stem": "imagenet", "image": (3, 32, 40)}
    net = on_meta("resnet18", options).eval()
    assert net(torch.empty(2, 3, 32, 40, device="meta")).shape == (2, 10)
    with pytest.raises(ValueError, match=r"3x40x31 is too small for resnet18.*32 x 32"):
        on_meta("resnet18", {**options, "image": (3, 40, 31)})


def test_a_resnets_block_keeps_its_input_where_nothing_changes_size() -> None:
    widths = dict.fromkeys(RESNET, 4)
    named = on_meta("resnet", {"depth": 14, "shortcut": "conv"}, widths).named_modules()
    shortcuts = [name for name, part in named if name.endswith("shortcut.conv")]
    assert shortcuts == [f"stages.group{group}_1.shortcut.conv" for group in (2, 3)]
