from __future__ import annotations

import sys
from collections import OrderedDict
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import fill_, images
from torch import Tensor, nn

from planter.arch import Architecture
from planter.backbones import StagedNet, full_widths, with_data_options
from planter.channels.groups import network_without_data
from planter.edits.inherit import inherit_weights
from planter.networks.assembly import (
    build,
    build_network,
    build_without_data,
    check_architecture,
    code_called,
    step_down,
    takes_stride,
)
from planter.networks.norms import NormMode
from planter.networks.pipelines import Pipelines

Specs = dict[str, Any]
EVERY: Specs = {
    "cut1": {"kernel": 3, "stride": 1},
    "late": {"before": "block2", "norm": "none"},
    "exit": {"after": "cut2", "branch": "conv"},
    "rest": {"after": "block1", "branch": "rest"},
    "sharp": {"head": "fsrcnn"},
}


def architecture(
    builder: str, pipelines: Specs | None = None, size: int = 32, **options: Any
) -> Architecture:
    options = {"classes": 5, "image": (3, size, size), **options}
    return Architecture(builder, {}, options, pipelines or {})


def built(arch: Architecture, seed: int = 0, norms: NormMode = "switch_stats") -> Pipelines:
    net = build(arch, seed, norms)
    assert isinstance(net, Pipelines)
    return net


@given(st.integers(1, 8), st.integers(0, 7), st.integers(1, 5), st.sampled_from(["batch", "none"]))
def test_step_down_gives_the_image_over_the_stride(
    stride: int, more: int, size: int, norm: str
) -> None:
    kernel = stride + more
    if stride == 1 and kernel % 2 == 0:
        with pytest.raises(ValueError, match="odd kernel"):
            step_down(3, 2, kernel=kernel, stride=stride, norm=norm)
        return
    with torch.device("meta"):
        module = step_down(3, 2, kernel=kernel, stride=stride, norm=norm)
        assert module(torch.empty(2, 3, stride * size, stride)).shape == (2, 2, size, 1)
    # CNSN 2.1: kernel = stride needs no padding. With a norm behind it a bias would be idle.
    assert more or module.conv.padding == (0, 0)
    expected = 3 * 2 * kernel**2 + (4 if norm == "batch" else 2)
    assert sum(p.numel() for p in module.parameters()) == expected


def test_step_down_is_convolution_norm_and_relu() -> None:
    module = fill_(step_down(3, 4, kernel=2, stride=2)).double().eval()
    x = images(2)
    patches = x.reshape(2, 3, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(2, 4, 4, 12)
    y = patches @ module.conv.weight.reshape(4, 12).T
    norm = module.norm
    y = (y - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    # float64: another order of summation.
    torch.testing.assert_close(module(x), y.clamp(min=0).permute(0, 3, 1, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kernel": 2, "stride": 3}, "kernel >= stride >= 1, got 2 and 3"),
        ({"kernel": 1, "stride": 0}, "kernel >= stride >= 1"),
        ({"kernel": 2, "stride": 2, "norm": "group"}, "'batch' or 'none', got 'group'"),
    ],
)
def test_step_down_refuses_what_it_cannot_do(settings: Specs, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        step_down(3, 4, **settings)


def test_alias_and_stage_name_give_the_same_pipeline() -> None:
    by_alias = built(architecture("toy", {"cut2": {}}))
    by_stage = built(architecture("toy", {"cut2": {"before": "conv3", "kernel": 2, "stride": 2}}))
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(by_alias(x)["cut2"], by_stage(x)["cut2"])


def test_the_data_of_a_pipeline_says_what_is_built() -> None:
    net = built(architecture("nets:residual", EVERY, size=8))
    assert net.names == ["base", *EVERY]
    assert net.entries == ["cut1", "late", "sharp"]
    assert net.exits == ["exit", "rest"]  # both after block1, in the order given
    conv = net.modules_of["cut1"].conv
    assert (conv.kernel_size, conv.stride, conv.bias) == ((3, 3), (1, 1), None)
    late = net.modules_of["late"]
    # The stride of what was cut, a kernel as large, and with no norm a bias.
    assert (late.conv.kernel_size, late.conv.stride) == ((2, 2), (2, 2))
    assert late.conv.bias is not None
    assert not hasattr(late, "norm")
    assert list(net.detach("sharp")._modules)[:2] == ["image_head", "stem"]
    assert list(net.modules_of["rest"]._modules) == ["down", "block2", "head"]
    assert sum(p.numel() for p in net.modules_of["sharp"].parameters()) == 27_263  # facts.md 5.2


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"pad": 1}, "unknown pad; beside 'before' known are kernel, norm, stride"),
        ({"after": "cut1", "stride": 2}, "unknown stride; beside 'after' known are branch"),
        ({"head": "vdsr", "after": "cut1"}, "unknown after; beside 'head' known are residual"),
        ({"head": "srcnn"}, "unknown image head 'srcnn'"),
        ({"after": "cut1", "branch": "deep"}, "unknown kind of branch 'deep'"),
        ({"after": "block2"}, "'block2' is not a cut; a branch may leave at cut1"),
        ({"before": "stem"}, "'stem' is not a cut; cuts are cut1"),
        ({"before": "cut1", "stride": 2, "kernel": 1}, "needs kernel >= stride >= 1"),
        ({"head": "test_assembly:wider"}, r"makes \(4, 8, 8\) of an image \(3, 8, 8\)"),
        ({"head": "test_assembly:halving"}, r"makes \(3, 4, 4\) of an image \(3, 8, 8\)"),
        ({"head": "test_assembly:nowhere"}, "has no 'nowhere'"),
        ({"head": "test_assembly:no_module"}, "must return an nn.Module"),
    ],
)
def test_a_pipeline_that_cannot_be_built_is_refused_by_name(spec: Specs, words: str) -> None:
    arch = architecture("nets:residual", {"cut1": {}, "my-way": spec}, size=8)
    for act in (build, build_without_data, check_architecture):
        with pytest.raises(ValueError, match=f"pipeline my-way: .*{words}"):
            act(arch)


@pytest.mark.parametrize(
    "spec",
    [
        None,
        {"before": 2},
        {"after": 2},
        {"head": 3},
        {"before": "cut1", "stride": "2"},
        {"before": "cut1", "kernel": 2.5, "stride": 1},
        {"head": "test_assembly:gray"},
        {"head": "test_assembly:tupled"},
    ],
)
def test_data_of_a_wrong_type_is_refused_by_name(spec: Specs) -> None:
    with pytest.raises(ValueError, match="my-way"):
        build(architecture("nets:residual", {"my-way": spec}, size=8))


def test_a_head_that_holds_tensors_planter_cannot_see_is_told_how_to() -> None:
    arch = architecture("nets:residual", {"in": {"head": "test_assembly:centred"}}, size=8)
    with pytest.raises(ValueError, match=r"in: its head cannot take .* parameters or buffers"):
        build(arch)


def test_a_head_may_be_computed() -> None:
    check_architecture(
        architecture("nets:residual", {"in": {"head": "test_assembly:computed"}}, size=8)
    )


def wider(channels: int) -> nn.Module:
    return nn.Conv2d(channels, channels + 1, 1)


def halving(channels: int) -> nn.Module:
    return nn.MaxPool2d(2)


def gray(channels: int) -> nn.Module:
    return nn.Conv2d(1, 1, 1)


def no_module(channels: int) -> int:
    return channels


def computed(channels: int) -> nn.Module:
    return nn.Conv2d(channels, channels, int(torch.linspace(1, 3, 3)[0]))


class Tupled(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x,)


def tupled(channels: int) -> nn.Module:
    return Tupled()


class Centred(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean = torch.full((channels, 1, 1), 0.5)
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x - self.mean)


centred = Centred


@pytest.mark.parametrize(
    ("grown", "norms"),
    [
        ("stem", "switch_all"),
        ("inner1", "shared"),
        ("down", "switch_stats"),
        ("down", "switch_all"),
        ("inner2", "switch_all"),
    ],
)
def test_widening_keeps_the_function_of_every_pipeline(grown: str, norms: NormMode) -> None:
    """The entries, branches and norms grow with the stage; float64, zeros added to sums."""
    arch = architecture("nets:residual", EVERY, size=8)
    arch = replace(arch, widths=full_widths("nets:residual"))
    parent = fill_(build(arch, 1, norms), 1).double().eval()
    child = fill_(build(arch.widen(grown, 3), 2, norms), 2).double().eval()
    assert inherit_weights(child, parent) == ([], [])
    found, expected = child(images(3)), parent(images(3))
    for name in parent.names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-13)
    # A pipeline that was taken out grows as it does in the whole.
    alone = fill_(build_network(arch.widen(grown, 3), "late", 3), 3).double().eval()
    assert inherit_weights(alone, parent.detach("late")) == ([], [])
    torch.testing.assert_close(alone(images(3)), expected["late"], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("grown", ["conv1", "conv2", "conv7"])
def test_widening_a_vgg_keeps_the_function_of_every_pipeline(grown: str) -> None:
    specs = {"cut2": {}, "cut7": {}, "exit": {"after": "conv2", "branch": "fc"}}
    widths = dict.fromkeys(full_widths("vgg16"), 3)
    arch = replace(architecture("vgg16", specs), widths=widths)
    parent = fill_(build(arch, 1), 1).double().eval()
    child = fill_(build(arch.widen(grown, 2), 2), 2).double().eval()
    inherit_weights(child, parent)
    x = images(2, (3, 32, 32))
    found, expected = child(x), parent(x)
    for name in parent.names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-13)


def test_a_built_network_depends_on_the_seed_alone() -> None:
    arch = architecture("nets:residual", EVERY, size=8)
    state = torch.get_rng_state()
    first, again, other = built(arch, 1), built(arch, 1), built(arch, 2)
    assert torch.equal(torch.get_rng_state(), state)
    for name, p in first.named_parameters():
        assert torch.equal(p, again.get_parameter(name))
        # Norms, biases at zero and the last layer of an image head are the same from any seed.
        if p.dim() > 1 and p.any():
            assert not torch.equal(p, other.get_parameter(name)), name
    base = build(replace(arch, pipelines={}), 1)
    for name, p in base.named_parameters():
        assert torch.equal(p, first.backbone.get_parameter(name))
    for name in first.names:
        alone = build_network(arch, name, 1)
        assert all(
            torch.equal(a, b)
            for a, b in zip(alone.parameters(), first.detach(name).parameters(), strict=True)
        )


@pytest.mark.parametrize("norms", ["shared", "switch_stats", "switch_all"])
def test_without_data_it_is_the_same_network(norms: NormMode) -> None:
    arch = architecture("nets:residual", EVERY, size=8)
    shapes = {name: t.shape for name, t in build_without_data(arch, norms).state_dict().items()}
    state = built(arch, norms=norms).state_dict()
    assert {name: t.shape for name, t in state.items()} == shapes
    assert {t.device.type for t in build_without_data(arch, norms).state_dict().values()} == {
        "meta"
    }


def test_one_pipeline_alone_has_the_stages_behind_its_cut() -> None:
    net = build_network(architecture("vgg16", {"cut7": {}}), "cut7")
    names = [name for name, _ in net.named_children()]
    assert names == ["step_down", *(f"conv{i}" for i in range(8, 14)), "head"]
    assert sum(p.numel() for p in net.parameters()) == 13_037_066 - 513 * 5  # facts.md, 5 classes


@pytest.mark.parametrize("builder", ["resnet", "densenet", "torchvision:resnet18", "once:made"])
@pytest.mark.parametrize("without_data", [False, True])
def test_two_networks_of_an_architecture_share_nothing(
    builder: str, without_data: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the user's own function returns one network each time."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(10))
    net(torch.zeros(1, 3, 32, 32))
    once = ModuleType("once")
    once.made = lambda: net  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "once", once)
    given = Architecture(builder, {}, {})
    if builder != "once:made":
        given = Architecture(builder, full_widths(builder, None, {}), {})
    given = with_data_options(given, 10, (3, 32, 32))

    def parts() -> set[int]:
        made = network_without_data(given, "base") if without_data else build_network(given)
        kept.append(made)
        return {id(p) for p in (*made.modules(), *made.parameters(), *made.buffers())}

    kept: list[nn.Module] = []
    assert parts() & parts() == set()


def test_the_users_code_that_an_architecture_runs_is_known() -> None:
    mine = {"cut2": {}, "in": {"head": "my_pkg.heads:build"}}
    assert code_called(architecture("toy", mine)) == ["my_pkg.heads:build"]
    both = code_called(architecture("my_pkg.nets:build", mine))
    assert both == ["my_pkg.nets:build", "my_pkg.heads:build"]
    known = {"in": {"head": "vdsr"}, "exit": {"after": "cut1", "branch": "rest"}}
    assert code_called(architecture("torchvision:resnet18", known)) == []


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_a_stride_the_rest_cannot_take_is_refused_by_name(stride: int) -> None:
    # Behind vgg16's second convolution four poolings are left: 32 / stride / 16 pixels.
    arch = architecture("vgg16", {"early": {"before": "conv3", "stride": stride}})
    with pytest.raises(ValueError, match=r"pipeline early of vgg16 cannot take a 3x32x32 image"):
        check_architecture(arch)
    assert not takes_stride(architecture("vgg16"), "conv3", stride)


@pytest.mark.parametrize(
    ("builder", "before", "stride"),
    [
        ("vgg16", "conv3", 1),
        ("vgg16", "conv3", 2),
        ("vgg16", "conv8", 8),
        ("vgg16", "conv11", 16),
        ("convnet", "conv2", 8),
    ],
)
def test_a_stride_the_rest_can_take_is_accepted(builder: str, before: str, stride: int) -> None:
    assert takes_stride(architecture(builder), before, stride)


def wrong_head(widths: dict[str, int], *, image: tuple[int, int, int] = (3, 8, 8)) -> StagedNet:
    return with_stages(7, one=nn.Conv2d(image[0], 2, 1), two=nn.Conv2d(2, 2, 1))


def with_stages(classes: int, **stages: nn.Module) -> StagedNet:
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, classes))
    return StagedNet(nn.Sequential(OrderedDict(stages)), head)


def test_logits_of_another_number_than_classes_are_refused() -> None:
    arch = Architecture(f"{__name__}:wrong_head", {}, {"classes": 5, "image": (3, 8, 8)})
    with pytest.raises(ValueError, match=r"gives \[1, 7\] .* expected logits \[1, 5\]"):
        check_architecture(arch)


def stage_called_head(widths: dict[str, int], *, classes: int) -> nn.Module:
    return with_stages(classes, one=nn.Conv2d(3, 2, 1), head=nn.Conv2d(2, 2, 3, padding=1))


class ListOfStages(nn.Module):
    """Has `stages` and `head`, yet is no staged network."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 3, padding=1)])
        self.head = nn.Linear(2, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(sum(stage(x) for stage in self.stages).mean(dim=(2, 3)))


class StemBeforeStages(StagedNet):
    """As timm's ConvNeXt: there is more than `stages` and `head`."""

    def __init__(self, classes: int) -> None:
        staged = with_stages(classes, one=nn.Conv2d(3, 2, 3, padding=1))
        super().__init__(staged.stages, staged.head)
        self.stem = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.stem(x))


def list_of_stages(widths: dict[str, int], *, classes: int) -> nn.Module:
    return ListOfStages(classes)


def stem_before_stages(widths: dict[str, int], *, classes: int) -> nn.Module:
    return StemBeforeStages(classes)


def test_a_list_of_stages_is_one_part() -> None:
    arch = architecture("test_assembly:list_of_stages", size=8)
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(build_network(arch, seed=3).eval()(x), build(arch, 3).eval()(x))
    check_architecture(arch)


def test_a_stage_cannot_have_the_heads_name() -> None:
    with pytest.raises(ValueError, match="a stage cannot be called 'head'"):
        check_architecture(architecture("test_assembly:stage_called_head", size=8))


def test_a_network_that_is_more_than_its_stages_and_head_is_refused() -> None:
    with pytest.raises(ValueError, match=r"stem_before_stages: its forward is not head\(stages\("):
        check_architecture(architecture("test_assembly:stem_before_stages", size=8))
