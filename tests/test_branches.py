from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from nets import fill_, images
from torch import Tensor, nn
from torch.nn import functional

from planter.arch import Architecture
from planter.backbones import BUILDERS, build_backbone, full_widths, with_data_options
from planter.networks.branches import COPIES, KINDS, SIMPLE, branch


def architecture(
    builder: str,
    classes: int = 100,
    image: tuple[int, int, int] = (3, 32, 32),
    widths: dict[str, int] | None = None,
    **options: Any,
) -> Architecture:
    return with_data_options(Architecture(builder, widths or {}, options), classes, image)


def demanding(widths: dict[str, int], *, classes: int) -> nn.Module:
    return nn.Linear(1, classes)


def on_meta(arch: Architecture, after: str, channels: int, kind: str = "blocks") -> nn.Module:
    with torch.device("meta"):
        return branch(arch, after, channels, kind)


def params(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def layers(net: nn.Module) -> list[tuple[int, ...]]:
    """Inputs, outputs, kernel, stride of each convolution, inputs and outputs of a linear layer."""
    found: list[tuple[int, ...]] = []
    for part in net.modules():
        if isinstance(part, nn.Conv2d):
            kind = (part.in_channels, part.out_channels, part.kernel_size[0], part.stride[0])
            found.append(kind if part.groups == 1 else (*kind, part.groups))
        if isinstance(part, nn.Linear):
            found.append((part.in_features, part.out_features))
    return found


def channels_after(arch: Architecture) -> dict[str, int]:
    with torch.device("meta"):
        net = build_backbone(arch)
        x = torch.empty(2, *arch.options["image"])
        found = {}
        for name, stage in net.stages.named_children():
            x = stage(x)
            found[name] = x.shape[1]
    return found


# The families that copy blocks, with the taps to try; behind the last of them, nothing is copied.
_SMALL, _LARGE = (3, 37, 50), (3, 70, 99)
FAMILIES = {
    "wrn": (
        architecture("wrn", 7, _SMALL, depth=16, widen=1),
        ("stem", "group1_1", "group1_2", "group2_1", "group2_2"),
    ),
    "resnet": (architecture("resnet", 7, _SMALL, depth=14), ("stem", "group1_2", "group2_2")),
    "resnet18": (architecture("resnet18", 7, _SMALL), ("stem", "group1_2", "group2_1", "group3_2")),
    "imagenet": (architecture("resnet18", 7, _LARGE, stem="imagenet"), ("stem", "group3_2")),
    "densenet": (
        architecture("densenet", 7, _SMALL, depth=13),
        ("stem", "block1", "transition1", "block2", "transition2"),
    ),
    "mobilenet": (architecture("mobilenet", 7, _SMALL), ("stem", "sep5", "sep6", "sep11")),
    "basic": (architecture("torchvision:resnet18", 7, _LARGE), ("stem", "layer2_1", "layer3_2")),
    "bottleneck": (
        architecture("torchvision:resnet50", 7, _LARGE),
        ("stem", "layer1_2", "layer3_6"),
    ),
}


def test_wrns_branches_have_the_published_number_of_parameters() -> None:
    arch = architecture("wrn")
    with torch.device("meta"):
        base = params(build_backbone(arch))
    early = params(on_meta(arch, "group1_4", 160))
    late = params(on_meta(arch, "group2_4", 320))
    assert (base, early, late) == (36_536_884, 20_145_060, 107_464_420)
    assert base + early + late == 164_146_364


def test_mobilenets_branches_have_the_published_number_of_parameters() -> None:
    arch = architecture("mobilenet")
    assert abs(params(on_meta(arch, "sep5", 256)) - 2.64e6) <= 5e3
    assert abs(params(on_meta(arch, "sep11", 512)) - 5.48e6) <= 5e3


@pytest.mark.parametrize(("widen", "total", "half"), [(4, 26.3e6, 5e4), (2, 6.6e6, 5e4)])
def test_narrower_wrns_train_as_many_parameters_as_published(
    widen: int, total: float, half: float
) -> None:
    arch = architecture("wrn", widen=widen)
    with torch.device("meta"):
        found = params(build_backbone(arch))
    found += params(on_meta(arch, "group1_4", 16 * widen))
    found += params(on_meta(arch, "group2_4", 32 * widen))
    assert abs(found - total) <= half


def pre(inputs: int, outputs: int, count: int, stride: int) -> list[tuple[int, ...]]:
    """A group of wide blocks: convolutions as they are registered."""
    first = [(inputs, outputs, 3, stride), (outputs, outputs, 3, 1), (inputs, outputs, 1, stride)]
    return first + [(outputs, outputs, 3, 1)] * 2 * (count - 1)


def test_wrns_branches_are_the_rule_of_the_released_code() -> None:
    widths = {"stem": 3, "group1": 5, "group2": 8, "group3": 12}
    arch = architecture("wrn", 7, depth=28, widths=widths)
    early = [*pre(5, 8, 4, 2), *pre(8, 12, 2, 2), (12, 7)]
    for tap in ("group1_1", "group1_4"):
        assert layers(on_meta(arch, tap, 5)) == early
    assert layers(on_meta(arch, "group2_3", 8)) == [*pre(8, 24, 4, 2), (24, 7)]
    first = [*pre(3, 5, 4, 1), *pre(5, 8, 2, 2), *pre(8, 12, 2, 2), (12, 7)]
    assert layers(on_meta(arch, "stem", 3)) == first
    narrow = [*pre(5, 4, 4, 2), *pre(4, 6, 2, 2), (6, 7)]
    assert layers(on_meta(arch, "group1_4", 5, "narrow")) == narrow
    shallow = [*pre(5, 8, 1, 2), *pre(8, 12, 1, 2), (12, 7)]
    assert layers(on_meta(arch, "group1_4", 5, "shallow")) == shallow


def test_resnets_branches_follow_the_same_rule_with_their_shortcuts() -> None:
    arch = architecture("resnet", 7, depth=20)
    early = [
        (16, 32, 3, 2), (32, 32, 3, 1), *[(32, 32, 3, 1)] * 4,
        (32, 64, 3, 2), (64, 64, 3, 1), (64, 7),
    ]  # fmt: skip
    assert layers(on_meta(arch, "group1_3", 16)) == early
    late = [(32, 128, 3, 2), *[(128, 128, 3, 1)] * 5, (128, 7)]
    assert layers(on_meta(arch, "group2_2", 32)) == late
    conv = architecture("resnet", 7, depth=8, shortcut="conv")
    late = [(32, 128, 3, 2), (128, 128, 3, 1), (32, 128, 1, 2), (128, 7)]
    assert layers(on_meta(conv, "group2_1", 32)) == late


def test_resnet18s_branches_have_one_block_a_group_and_two_in_the_last() -> None:
    arch = architecture("resnet18", 7)
    last = [(256, 512, 3, 2), (512, 512, 3, 1), (256, 512, 1, 2), *[(512, 512, 3, 1)] * 2]
    assert layers(on_meta(arch, "group3_2", 256)) == [*last, (512, 7)]
    third = [(128, 256, 3, 2), (256, 256, 3, 1), (128, 256, 1, 2)]
    assert layers(on_meta(arch, "group2_1", 128)) == [*third, *last, (512, 7)]
    torchvisions = architecture("torchvision:resnet18", 7, (3, 64, 64))
    assert layers(on_meta(torchvisions, "layer2_1", 128)) == [*third, *last, (512, 7)]


def bottleneck(inputs: int, inner: int, out: int, stride: int, groups: int) -> list[Any]:
    middle = (inner, inner, 3, stride) if groups == 1 else (inner, inner, 3, stride, groups)
    return [(inputs, inner, 1, 1), middle, (inner, out, 1, 1)]


@pytest.mark.parametrize(
    ("name", "inner", "groups"),
    [("resnet50", 512, 1), ("wide_resnet50_2", 1024, 1), ("resnext50_32x4d", 1024, 32)],
)
def test_torchvisions_bottlenecks_keep_their_inner_width_and_groups(
    name: str, inner: int, groups: int
) -> None:
    arch = architecture(f"torchvision:{name}", 7, (3, 64, 64))
    expected = [
        *bottleneck(1024, inner, 2048, 2, groups),
        (1024, 2048, 1, 2),
        *bottleneck(2048, inner, 2048, 1, groups),
        (2048, 7),
    ]
    assert layers(on_meta(arch, "layer3_6", 1024)) == expected
    expected = [
        *bottleneck(1024, inner // 2, 1024, 2, groups),
        (1024, 1024, 1, 2),
        *bottleneck(1024, inner // 2, 1024, 1, groups),
        (1024, 7),
    ]
    assert layers(on_meta(arch, "layer3_6", 1024, "narrow")) == expected


def test_densenets_branches_have_the_transitions_that_are_left() -> None:
    arch = architecture("densenet", 7, depth=16)  # four layers a block
    grow = lambda c, g, n: [(c + i * g, g, 3, 1) for i in range(n)]  # noqa: E731
    halved = [*grow(64, 12, 4), (112, 112, 1, 1), *grow(112, 12, 2), (136, 7)]
    assert layers(on_meta(arch, "block1", 64)) == [(64, 64, 1, 1), *halved]
    assert layers(on_meta(arch, "transition1", 64)) == halved
    doubled = [*grow(112, 24, 4), (208, 7)]
    assert layers(on_meta(arch, "block2", 112)) == [(112, 112, 1, 1), *doubled]
    assert layers(on_meta(arch, "transition2", 112)) == doubled
    narrow = [(64, 64, 1, 1), *grow(64, 6, 4), (88, 88, 1, 1), *grow(88, 6, 2), (100, 7)]
    assert layers(on_meta(arch, "block1", 64, "narrow")) == narrow
    shallow = [(64, 64, 1, 1), *grow(64, 12, 1), (76, 76, 1, 1), *grow(76, 12, 1), (88, 7)]
    assert layers(on_meta(arch, "block1", 64, "shallow")) == shallow


def separable(inputs: int, outputs: int, stride: int = 1) -> list[tuple[int, ...]]:
    return [(inputs, inputs, 3, stride, inputs), (inputs, outputs, 1, 1)]


def test_mobilenets_branches_are_those_of_its_released_code() -> None:
    arch = architecture("mobilenet", 7)
    early = [
        *separable(256, 512, 2), *separable(512, 512) * 3,
        *separable(512, 1024, 2), *separable(1024, 1024), (1024, 7),
    ]  # fmt: skip
    assert layers(on_meta(arch, "sep5", 256)) == early
    late = [*separable(512, 2048, 2), *separable(2048, 2048), (2048, 7)]
    assert layers(on_meta(arch, "sep6", 512)) == late
    shallow = [*separable(256, 512, 2), *separable(512, 1024, 2), (1024, 7)]
    assert layers(on_meta(arch, "sep5", 256, "shallow")) == shallow


def test_a_wider_backbone_has_wider_branches() -> None:
    arch = architecture("wrn", 7, depth=10, widen=1).widen("group2", 5)
    assert layers(on_meta(arch, "group1_1", 16)) == [
        *pre(16, 37, 1, 2),
        *pre(37, 64, 1, 2),
        (64, 7),
    ]
    arch = architecture("mobilenet", 7).widen("sep13", 3)
    assert layers(on_meta(arch, "sep11", 512))[-1] == (2 * 1027, 7)


def test_a_branch_has_the_backbones_dropout() -> None:
    arch = architecture("wrn", 7, depth=10, widen=1, dropout=0.3)
    dropouts = [part.p for part in branch(arch, "group1_1", 16).modules() if hasattr(part, "p")]
    assert dropouts == [0.3, 0.3]


@pytest.mark.parametrize(
    ("builder", "options", "after"),
    [
        ("wrn", {"depth": 10, "widen": 1}, "group1_1"),
        ("resnet", {"depth": 8}, "group1_1"),
        ("resnet", {"depth": 8, "shortcut": "conv"}, "stem"),
        ("densenet", {"depth": 7}, "block1"),
        ("resnet18", {}, "group3_2"),
        ("torchvision:resnet18", {}, "layer3_2"),
        ("torchvision:resnet50", {}, "rest of layer3_6"),
    ],
)
def test_a_branch_that_shortens_nothing_computes_what_the_backbone_computes(
    builder: str, options: dict[str, Any], after: str
) -> None:
    kind = "blocks"
    if after.startswith("rest of "):
        kind, after = "rest", after.removeprefix("rest of ")
    arch = architecture(builder, 7, (3, 33, 40), **options)
    net: Any = fill_(build_backbone(arch)).eval()
    x = images(2, (3, 33, 40)).float()
    names = list(net.stages._modules)
    tap = net.stages[: names.index(after) + 1](x)
    made = branch(arch, after, tap.shape[1], kind).eval()
    behind = names[names.index(after) + 1 :]
    state = {
        place.removeprefix("stages."): value
        for place, value in net.state_dict().items()
        if place.startswith("head.") or place.split(".")[1] in behind
    }
    made.load_state_dict(state)
    assert torch.equal(made(tap), net(x))


def head_pool(net: Any) -> nn.Module:
    return next(part for part in net.head.modules() if isinstance(part, nn.AdaptiveAvgPool2d))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_classifier_has_as_many_down_samplings_before_it(family: str) -> None:
    arch, taps = FAMILIES[family]
    sizes: list[tuple[int, ...]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        sizes.append(tuple(inputs[0].shape[2:]))

    with torch.device("meta"):
        net: Any = build_backbone(arch)
        head_pool(net).register_forward_hook(note)
        x = torch.empty(2, *arch.options["image"])
        net(x)
        for name, stage in net.stages.named_children():
            x = stage(x)
            for kind in COPIES if name in taps else ():
                made = branch(arch, name, x.shape[1], kind)
                head_pool(made).register_forward_hook(note)
                assert made(x).shape == (2, 7)
    assert len(sizes) == 1 + len(COPIES) * len(taps)
    assert len(set(sizes)) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_narrow_and_shallow_branches_are_smaller(family: str) -> None:
    arch, taps = FAMILIES[family]
    channels = channels_after(arch)
    for tap in taps:
        full, narrow, shallow = (params(on_meta(arch, tap, channels[tap], k)) for k in COPIES)
        assert narrow < full
        assert shallow < full


def test_half_of_a_single_channel_is_one() -> None:
    widths = {"stem": 1, "group1": 1, "group2": 1, "group3": 3}
    arch = architecture("wrn", 7, depth=10, widths=widths)
    assert layers(on_meta(arch, "stem", 1, "narrow"))[-4:] == [*pre(1, 1, 1, 2), (1, 7)]


@pytest.mark.parametrize("builder", ["wrn", "densenet", "vgg16", "alexnet", "convnet", "nets:flat"])
def test_rest_has_the_layout_of_what_follows_in_the_backbone(builder: str) -> None:
    image = (3, 64, 64) if builder == "alexnet" else (3, 32, 32)
    options: dict[str, Any] = {"depth": 10, "widen": 1} if builder == "wrn" else {}
    if builder in ("alexnet", "vgg16"):
        options["widths"] = full_widths(builder, 4)
    if builder == "alexnet":
        options["widths"].update(fc1=8, fc2=8)
    arch = architecture(builder, 7, image, **options)
    arch = replace(arch, pipelines={"other": {"after": "conv1", "branch": "rest"}})
    plain = replace(arch, pipelines={})
    net = build_backbone(plain).eval()
    names = list(net.stages._modules)
    channels = channels_after(plain)
    x = torch.rand(2, *image)
    for i, name in enumerate(names):
        x = net.stages[i](x)
        made = branch(arch, name, channels[name], "rest").eval()
        kept = ("head.", *(f"stages.{other}." for other in names[i + 1 :]))
        expected = {
            place.removeprefix("stages."): value.shape
            for place, value in net.state_dict().items()
            if place.startswith(kept)
        }
        assert {place: value.shape for place, value in made.state_dict().items()} == expected
        assert made(x).shape == (2, 7)


@pytest.mark.parametrize("kind", SIMPLE)
def test_simple_branches_compute_what_their_names_say(kind: str) -> None:
    made = fill_(branch(architecture("toy", 7), "conv2", 5, kind)).double().eval()
    state = made.state_dict()
    x = images(3, (5, 8, 12))
    expected = x
    if kind == "conv":
        expected = functional.avg_pool2d(x, (2, 3))
        expected = functional.conv2d(expected, state["conv.weight"], padding=1)
        norm = [state[f"norm.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        expected = functional.batch_norm(expected, *norm).clamp(min=0)
    expected = expected.mean(dim=(2, 3))
    expected = (expected @ state["fc1.weight"].T + state["fc1.bias"]).clamp(min=0)
    expected = expected @ state["fc2.weight"].T + state["fc2.bias"]
    torch.testing.assert_close(made(x), expected, rtol=1e-10, atol=1e-10)  # orders of sums
    assert state["fc1.weight"].shape == (5, 5)


def test_a_map_below_four_places_is_convolved_as_it_is() -> None:
    made = branch(architecture("toy", 7), "conv2", 5, "conv")
    reduce = made.get_submodule("reduce")
    x = images(2, (5, 2, 3))
    assert torch.equal(reduce(x), x)
    x = images(2, (5, 1, 8))
    torch.testing.assert_close(reduce(x), x.reshape(2, 5, 1, 4, 2).mean(dim=-1))


@pytest.mark.parametrize("kind", SIMPLE)
@pytest.mark.parametrize("builder", [*BUILDERS, "nets:residual", "torchvision:resnet18"])
def test_simple_branches_stand_behind_any_backbone(builder: str, kind: str) -> None:
    made = on_meta(architecture(builder, 7), "anywhere", 6, kind)
    assert made(torch.empty(2, 6, 5, 9, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("kind", KINDS)
def test_initial_weights_follow_torchs_generator(kind: str) -> None:
    arch = architecture("resnet", 7, depth=8)

    def state(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return branch(arch, "group1_1", 16, kind).state_dict()

    first, again, other = state(3), state(3), state(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    torch.manual_seed(3)
    twice = [branch(arch, "group1_1", 16, kind).state_dict() for _ in range(2)]
    assert any(not torch.equal(twice[0][name], twice[1][name]) for name in first)


def test_torchvisions_branch_starts_with_the_spread_its_convolutions_have() -> None:
    arch = architecture("torchvision:resnet18", 7, (3, 64, 64))
    made, net = branch(arch, "layer3_2", 256), build_backbone(arch)
    for name in ("layer4_1.conv1", "layer4_1.downsample.0", "layer4_2.conv2"):
        mine = made.get_submodule(name).weight.std()
        theirs = net.stages.get_submodule(name).weight.std()
        torch.testing.assert_close(mine, theirs, rtol=0.02, atol=0)  # of 131,072 draws or more


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tap_with_no_group_behind_is_refused_and_rest_is_named(family: str) -> None:
    arch, taps = FAMILIES[family]
    channels = channels_after(arch)
    names = list(channels)
    for name in names[names.index(taps[-1]) + 1 :]:
        with pytest.raises(ValueError, match=f"no group of blocks begins after '{name}'.*'rest'"):
            on_meta(arch, name, channels[name])
        assert params(on_meta(arch, name, channels[name], "rest")) > 0


@pytest.mark.parametrize(
    "builder", ["vgg16", "toy", "convnet", "alexnet", "cifar_quick", "nets:residual"]
)
@pytest.mark.parametrize("kind", COPIES)
def test_families_without_copies_name_the_kinds_they_have(builder: str, kind: str) -> None:
    with pytest.raises(ValueError, match=f"{builder} has no branch.*'{kind}'.*rest, fc, conv"):
        branch(architecture(builder), "conv1", 8, kind)


def test_unknown_kinds_and_stages_are_refused() -> None:
    arch = architecture("wrn", depth=10, widen=1)
    with pytest.raises(
        ValueError, match=r"unknown kind of branch 'wide'; kinds are blocks, .*conv"
    ):
        branch(arch, "group1_1", 16, "wide")
    for kind in (*COPIES, "rest"):
        with pytest.raises(
            ValueError, match=r"'group4_1' is not a stage; stages are stem, group1_1"
        ):
            branch(arch, "group4_1", 16, kind)
    with pytest.raises(ValueError, match="VGG has no named stages"):
        branch(architecture("torchvision:vgg11", 7, (3, 64, 64)), "features", 16)
    with pytest.raises(ValueError, match="needs the option classes"):
        branch(Architecture("test_branches:demanding", {}), "a", 3, "fc")
