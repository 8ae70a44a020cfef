from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from nets import flat
from torch import nn

from planter.arch import Architecture
from planter.backbones import BUILDERS, StagedNet, build_backbone, full_widths, with_data_options
from planter.macs import cost

IMAGES = {"cifar10": (3, 32, 32), "cifar100": (3, 32, 32), "stl10": (3, 96, 96)}
CLASSES = {"cifar10": 10, "cifar100": 100, "stl10": 10}
# Channel planting's tables (facts.md 1.1): parameters by width and data set.
PUBLISHED = {
    8: {"cifar10": 20_362, "cifar100": 31_972, "stl10": 40_842},
    16: {"cifar10": 43_914, "cifar100": 55_524, "stl10": 84_874},
    32: {"cifar10": 104_842, "cifar100": 116_452, "stl10": 186_762},
    64: {"cifar10": 281_994, "cifar100": 293_604, "stl10": 445_834},
    128: {"cifar10": 857_482, "cifar100": 869_092, "stl10": 1_185_162},
}
# Multiply-adds of the same table, as printed: value and half a unit of its last digit.
PUBLISHED_MACS = {
    8: {"cifar10": (0.497e6, 500), "stl10": (3.85e6, 5e3)},
    16: {"cifar10": (1.509e6, 500), "stl10": (11.36e6, 5e3)},
    32: {"cifar10": (5.080e6, 500), "stl10": (37.31e6, 5e3)},
    64: {"cifar10": (18.417e6, 500), "stl10": (133.0e6, 5e4)},
    128: {"cifar10": (69.86e6, 5e3), "stl10": (499.6e6, 5e4)},
}


def on_meta(arch: Architecture) -> nn.Module:
    with torch.device("meta"):
        return build_backbone(arch)


def params(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def convnet(width: int, data: str) -> Architecture:
    widths = full_widths("convnet", width)
    return Architecture("convnet", widths, {"classes": CLASSES[data], "image": IMAGES[data]})


@pytest.mark.parametrize("data", IMAGES)
@pytest.mark.parametrize("width", PUBLISHED)
def test_convnet_has_the_published_number_of_parameters(width: int, data: str) -> None:
    assert params(on_meta(convnet(width, data))) == PUBLISHED[width][data]


@pytest.mark.parametrize("data", IMAGES)
@pytest.mark.parametrize("width", PUBLISHED)
def test_convnet_macs_are_the_closed_form_and_round_to_the_table(width: int, data: str) -> None:
    n, classes = width, CLASSES[data]
    maps, left = ((32, 16, 8, 8, 8), 16) if data != "stl10" else ((96, 48, 24, 12, 12), 36)
    convs = sum(9 * c * n * m * m for c, m in zip((3, n, n, n, n), maps, strict=True))
    expected = convs + left * n * 128 + 128 * classes
    assert cost(convnet(width, data)).macs == expected
    if data != "cifar100":
        value, half = PUBLISHED_MACS[width][data]
        assert abs(expected - value) <= half


@pytest.mark.parametrize(
    ("size", "parameters", "printed"), [(32, 2_168_362, 26.6e6), (64, 8_459_818, 106.3e6)]
)
def test_toy_has_the_published_size_and_macs(size: int, parameters: int, printed: float) -> None:
    arch = Architecture("toy", {}, {"classes": 10, "image": (3, size, size)})
    assert params(on_meta(arch)) == parameters
    pixels = size * size
    convs = 27 * 32 * pixels + 9 * 32 * 32 * pixels + 9 * 32 * 64 * pixels // 4
    convs += 9 * 64 * 64 * pixels // 4
    macs = convs + 64 * (pixels // 16) * 512 + 512 * 10
    assert cost(arch).macs == macs
    assert abs(macs - printed) <= 0.05e6


def test_vgg16_has_the_published_number_of_parameters() -> None:
    assert params(on_meta(Architecture("vgg16", {}, {"classes": 10}))) == 14_724_042


@pytest.mark.parametrize(("builder", "least"), [("convnet", 8), ("toy", 4), ("vgg16", 32)])
def test_smallest_image_runs_and_one_pixel_less_is_refused(builder: str, least: int) -> None:
    for shape in ((3, least, least), (1, least, least + 3)):
        arch = Architecture(builder, {}, {"classes": 7, "image": shape})
        net = on_meta(arch).eval()
        assert net(torch.empty(2, *shape, device="meta")).shape == (2, 7)
    for shape in ((3, least - 1, least), (3, least, least - 1)):
        with pytest.raises(ValueError, match=f"too small for {builder}.*{least} x {least}"):
            on_meta(Architecture(builder, {}, {"image": shape}))


def test_pool_after_moves_the_poolings() -> None:
    pools = ["conv4", "conv5"]
    arch = Architecture("convnet", full_widths("convnet", 8), {"pool_after": pools})
    # (27*8+8) + 4*(72*8+8) as in the paper; a 32-pixel image is now 8 x 8 at the end.
    assert params(on_meta(arch)) == 224 + 4 * 584 + 64 * 8 * 128 + 128 + 1290
    with pytest.raises(ValueError, match=r"'conv9'.*convolutions are conv1, conv2"):
        on_meta(Architecture("convnet", {}, {"pool_after": ["conv9"]}))


def test_unknown_builder_names_the_builders() -> None:
    with pytest.raises(ValueError, match=r"unknown builder 'vgg'; builders are .*convnet.*vgg16"):
        build_backbone(Architecture("vgg", {}))


def test_unknown_width_names_the_widths() -> None:
    with pytest.raises(ValueError, match=r"toy has no width conv9; widths are conv1, .*, fc1"):
        build_backbone(Architecture("toy", {"conv9": 3}))


def test_unknown_option_names_the_options() -> None:
    with pytest.raises(ValueError, match=r"toy has no option depth; options are classes, image"):
        build_backbone(Architecture("toy", {}, {"depth": 3}))


@pytest.mark.parametrize(
    ("place", "words"),
    [("no_such_module_x:build", "cannot import 'no_such_module_x'"), ("nets:nowhere", "'nowhere'")],
)
def test_a_builder_that_is_not_there_says_which_half_is_missing(place: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_backbone(Architecture(place, {}))


def test_one_number_stands_for_convolutions_only() -> None:
    assert full_widths("toy", 5) == {"conv1": 5, "conv2": 5, "conv3": 5, "conv4": 5, "fc1": 512}
    assert full_widths("toy", {"fc1": 3})["fc1"] == 3
    assert full_widths("toy", {"fc1": 3})["conv3"] == 64


@pytest.mark.parametrize("builder", ["convnet", "toy", "nets:residual"])
def test_weights_depend_on_the_seed_alone(builder: str) -> None:
    arch = Architecture(builder, {}, {"image": (3, 8, 8)})
    torch.manual_seed(1)
    first = build_backbone(arch, seed=3).state_dict()
    torch.manual_seed(2)
    drawn = torch.rand(3)
    torch.manual_seed(2)
    again = build_backbone(arch, seed=3).state_dict()
    assert torch.equal(torch.rand(3), drawn), "building has drawn from the caller's generator"
    other = build_backbone(arch, seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    weights = [name for name in first if first[name].dim() > 1]
    assert not any(torch.equal(first[name], other[name]) for name in weights)


def test_a_users_builder_is_the_function_itself() -> None:
    arch = Architecture("nets:flat", {"conv1": 2}, {"classes": 4, "image": (3, 6, 6)})
    torch.manual_seed(5)
    plain = flat({"conv1": 2, "conv2": 4, "fc1": 7}, classes=4, image=(3, 6, 6))
    built = build_backbone(arch, seed=5)
    assert isinstance(built, StagedNet)
    x = torch.ones(2, 3, 6, 6)
    assert torch.equal(built(x), plain(x))


def needs_no_image(widths: dict[str, int], *, classes: int) -> nn.Module:
    return nn.Linear(widths["fc"], classes)


def takes_anything(widths: dict[str, int], **options: object) -> nn.Module:
    net = nn.Sequential(OrderedDict(fc=nn.Linear(widths["fc"], 2)))
    net.options = options
    return net


def test_facts_of_the_data_are_kept_from_builders_that_do_not_take_them() -> None:
    arch = Architecture(f"{__name__}:needs_no_image", {"fc": 3})
    net = build_backbone(with_data_options(arch, classes=5, image=(3, 4, 4)))
    assert net.weight.shape == (5, 3)


def test_a_builder_with_double_star_gets_every_option() -> None:
    arch = Architecture(f"{__name__}:takes_anything", {"fc": 3}, {"depth": 2, "classes": 5})
    assert build_backbone(arch).options == {"depth": 2, "classes": 5}


def test_every_shipped_builder_reads_every_width_it_names() -> None:
    for name, builder in BUILDERS.items():
        plain = params(on_meta(Architecture(name, {})))
        for width in builder.default_widths({}):
            wider = Architecture(name, full_widths(name)).widen(width, 1)
            assert params(on_meta(wider)) > plain, f"{name} ignores {width}"
