from __future__ import annotations

import copy
from collections import OrderedDict
from itertools import pairwise

import pytest
import torch
from nets import fill_, flat, images
from torch import Tensor, nn
from torch.nn import functional

from planter.arch import Architecture
from planter.backbones import BUILDERS, StagedNet, build_backbone, full_widths, with_data_options
from planter.costs.macs import cost

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


@pytest.mark.parametrize(
    ("builder", "least"),
    [
        *[("convnet", 8), ("toy", 4), ("vgg16", 32), ("cifar_quick", 15), ("wrn", 4)],
        *[("alexnet", 63), ("resnet", 4), ("resnet18", 8), ("densenet", 4), ("mobilenet", 4)],
    ],
)
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


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vgg16", {"head": "hidden"}),
        *[("wrn", {"widen": 2}), ("wrn", {"widen": 1, "depth": 16})],
        *[("resnet", {"shortcut": "conv"}), ("resnet", {"depth": 8})],
        ("resnet18", {"stem": "imagenet", "image": (3, 32, 32)}),
        ("densenet", {"depth": 7}),
    ],
)
def test_widths_that_depend_on_options_are_read_under_them(name: str, options: dict) -> None:
    arch = Architecture(name, full_widths(name, None, options), options)
    plain = params(on_meta(arch))
    for width in arch.widths:
        assert params(on_meta(arch.widen(width, 1))) > plain, f"{name} ignores {width}"
    assert params(on_meta(Architecture(name, {}, options))) == plain


def weights(net: nn.Module) -> int:
    """Weights of convolutions and linear layers: no biases, no norms."""
    return sum(p.numel() for p in net.parameters() if p.dim() > 1)


def test_cifar_quick_has_the_published_number_of_weights() -> None:
    net = on_meta(Architecture("cifar_quick", {}, {"classes": 10, "image": (3, 32, 32)}))
    # facts.md 3.5 and 3.6: three 5x5 convolutions without bias, 576 -> 64 -> 10.
    assert weights(net) == 75 * 32 + 800 * 32 + 800 * 64 + 576 * 64 + 64 * 10 == 116_704
    assert params(net) == 116_704 + 2 * (32 + 32 + 64) + 64 + 10


@pytest.mark.parametrize(
    ("size", "maps"),
    [(32, (15, 7, 3)), (15, (7, 3, 1)), (16, (7, 3, 1)), (33, (16, 7, 3)), (96, (47, 23, 11))],
)
def test_cifar_quicks_maps_shrink_as_windows_of_three_fit(size: int, maps: tuple) -> None:
    arch = Architecture("cifar_quick", {}, {"classes": 7, "image": (3, size, size + 16)})
    stages = {stage.name: stage.output for stage in cost(arch).stages}
    wide, side = [], size + 16
    for _ in maps:
        side = len([at for at in range(0, side, 2) if at + 3 <= side])
        wide.append(side)
    expected = zip((32, 32, 64), maps, wide, strict=True)
    assert [stages[name] for name in ("conv1", "conv2", "conv3")] == list(expected)
    assert on_meta(arch).head.fc1.in_features == 64 * maps[-1] * wide[-1]


def test_cifar_quick_rectified_after_the_maximum_is_the_papers_order() -> None:
    """Outputs and every parameter's gradient, to the last bit of float64."""
    widths = {"conv1": 5, "conv2": 4, "conv3": 3, "fc1": 6}
    net = build_backbone(Architecture("cifar_quick", widths, {"classes": 4, "image": (3, 19, 31)}))
    fill_(net).double().train()
    norm = net.stages.conv1.norm
    with torch.no_grad():
        norm.weight[1] *= -1
        norm.bias[:2] -= torch.tensor([4.0, 0.5])  # whole windows below zero
    by_paper = nn.Sequential(
        *(nn.Conv2d(3, 5, 5, padding=2, bias=False), nn.BatchNorm2d(5), nn.ReLU()),
        nn.MaxPool2d(3, 2),
        *(nn.Conv2d(5, 4, 5, padding=2, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        nn.AvgPool2d(3, 2),
        *(nn.Conv2d(4, 3, 5, padding=2, bias=False), nn.BatchNorm2d(3), nn.ReLU()),
        nn.AvgPool2d(3, 2),
        *(nn.Flatten(), nn.Linear(3 * 1 * 3, 6), nn.ReLU(), nn.Linear(6, 4)),
    ).double()
    by_place = zip(by_paper.state_dict(), net.state_dict().values(), strict=True)
    by_paper.load_state_dict(dict(by_place))
    x = images(9, (3, 19, 31))
    pooled = functional.max_pool2d(copy.deepcopy(by_paper[:2])(x), 3, 2)
    assert (pooled < 0).any(), "no window in which the order could matter"
    assert (pooled > 0).any()
    weigh = torch.randn(9, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, expected = net(x), by_paper(x)
    assert torch.equal(found, expected)
    (found * weigh).sum().backward()
    (expected * weigh).sum().backward()
    for one, other in zip(net.parameters(), by_paper.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
        assert one.grad.any()


def test_vgg16_with_a_hidden_layer_has_kflos_number_of_weights() -> None:
    net = on_meta(Architecture("vgg16", {}, {"classes": 10, "head": "hidden"}))
    channels = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    convs = sum(9 * a * b for a, b in pairwise(channels))
    # facts.md 3.5: 14.98 M; single is CNSN's (facts.md 2.2).
    assert weights(net) == convs + 512 * 512 + 512 * 10 == 14_977_728
    single = Architecture("vgg16", {}, {"classes": 10, "head": "single"})
    assert params(on_meta(single)) == 14_724_042


def test_vgg16s_hidden_head_is_two_linear_layers_with_a_relu_between() -> None:
    widths = {**{f"conv{i}": 2 for i in range(1, 14)}, "fc1": 5}
    arch = Architecture("vgg16", widths, {"classes": 3, "head": "hidden"})
    head = build_backbone(arch).double().head
    x = images(4, (2, 2, 3))
    hidden = functional.linear(x.mean(dim=(2, 3)), head.fc1.weight, head.fc1.bias)
    assert (hidden < 0).any()
    expected = functional.linear(hidden.clamp(min=0), head.fc.weight, head.fc.bias)
    torch.testing.assert_close(head(x), expected, rtol=1e-12, atol=1e-12)  # orders of sums
    assert head.fc1.weight.shape == (5, 2)


def test_vgg16s_head_is_refused_where_it_is_unknown_and_its_width_where_it_has_none() -> None:
    with pytest.raises(ValueError, match=r"head of a vgg16 is 'single' or 'hidden', got 'double'"):
        build_backbone(Architecture("vgg16", {}, {"head": "double"}))
    with pytest.raises(ValueError, match=r"vgg16 has no width fc1"):
        build_backbone(Architecture("vgg16", {"fc1": 7}, {"head": "single"}))


# facts.md 4.3, with 100 classes: the figure and what half its last digit is worth.
WRN = {(28, 10): (36_536_884, 0), (28, 2): (1.48e6, 5e3), (28, 4): (5.87e6, 5e3)}
WRN[16, 8] = (11.0e6, 5e4)


@pytest.mark.parametrize(("depth", "widen"), WRN)
def test_wrn_has_the_published_number_of_parameters(depth: int, widen: int) -> None:
    found = params(
        on_meta(Architecture("wrn", {}, {"classes": 100, "depth": depth, "widen": widen}))
    )
    value, half = WRN[depth, widen]
    assert abs(found - value) <= half


@pytest.mark.parametrize("depth", [27, 4, 29, 9, 28.0])
def test_depths_that_no_wrn_has_are_refused(depth: float) -> None:
    with pytest.raises(ValueError, match=rf"depth of a wrn is 6 n \+ 4 .*got {depth}"):
        build_backbone(Architecture("wrn", {}, {"depth": depth, "widen": 1}))


@pytest.mark.parametrize("widen", [0, -1, 1.5, "2"])
def test_a_wrn_that_is_not_widened_by_a_whole_number_is_refused(widen: object) -> None:
    with pytest.raises(ValueError, match=rf"widen of a wrn is a whole number >= 1, got {widen!r}"):
        build_backbone(Architecture("wrn", {}, {"depth": 10, "widen": widen}))


def test_a_wrns_widths_follow_its_option_and_given_ones_replace_them() -> None:
    followed = {"stem": 16, "group1": 48, "group2": 96, "group3": 192}
    assert full_widths("wrn", None, {"widen": 3}) == followed
    assert full_widths("wrn", {"group2": 7, "stem": 5}, {"widen": 3}) == {
        "stem": 5, "group1": 48, "group2": 7, "group3": 192,
    }  # fmt: skip
    options = {"depth": 10, "widen": 1, "image": (3, 20, 20), "classes": 4}
    arch = Architecture("wrn", {"group2": 7}, options)
    shapes = {stage.name: stage.output for stage in cost(arch).stages}
    assert shapes == {
        "stem": (16, 20, 20),
        "group1_1": (16, 20, 20),
        "group2_1": (7, 10, 10),
        "group3_1": (64, 5, 5),
        "head": (4,),
    }


def wrn_by_hand(
    state: dict[str, Tensor], x: Tensor, blocks: int, training: bool, dropout: float
) -> Tensor:
    """A wide residual network as its paper writes it, in functions of the weights."""

    def active(place: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            state[f"{place}.{name}"].clone()
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(x, mean, var, weight, bias, training).clamp(min=0)

    x = functional.conv2d(x, state["stages.stem.weight"], padding=1)
    for group in (1, 2, 3):
        for block in range(1, blocks + 1):
            place = f"stages.group{group}_{block}"
            stride = 2 if block == 1 and group > 1 else 1
            first = active(f"{place}.norm1", x)
            inner = functional.conv2d(
                first, state[f"{place}.conv1.weight"], stride=stride, padding=1
            )
            inner = functional.dropout(active(f"{place}.norm2", inner), dropout, training)
            inner = functional.conv2d(inner, state[f"{place}.conv2.weight"], padding=1)
            if block == 1:
                x = functional.conv2d(first, state[f"{place}.shortcut.weight"], stride=stride)
            x = x + inner
    x = active("head.norm", x).mean(dim=(2, 3))
    return functional.linear(x, state["head.fc.weight"], state["head.fc.bias"])


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("training", [True, False])
def test_a_wrn_is_the_network_of_its_paper(training: bool, dropout: float) -> None:
    widths = {"stem": 3, "group1": 4, "group2": 5, "group3": 6}
    options = {"depth": 16, "dropout": dropout, "classes": 7, "image": (2, 9, 12)}
    net = fill_(build_backbone(Architecture("wrn", widths, options))).double().train(training)
    state = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
    x = images(5, (2, 9, 12))
    torch.manual_seed(3)
    found = net(x)
    torch.manual_seed(3)
    expected = wrn_by_hand(state, x, 2, training, dropout)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)  # orders of sums


def test_a_wrns_block_keeps_its_input_where_nothing_changes_size() -> None:
    widths = {"stem": 4, "group1": 4, "group2": 4, "group3": 4}
    net = on_meta(Architecture("wrn", widths, {"depth": 16}))
    shortcuts = [name for name, _ in net.named_parameters() if "shortcut" in name]
    assert shortcuts == [f"stages.group{group}_1.shortcut.weight" for group in (2, 3)]
