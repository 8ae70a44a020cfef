from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import fill_, images, residual
from torch import Tensor, nn
from torch.nn import functional

from planter.arch import Architecture
from planter.assembly import build, build_network, check_architecture, step_down, takes_stride
from planter.backbones import StagedNet
from planter.kernels import KernelFilter, collapse_kernels_, expand_kernels_
from planter.pipelines import Entry, Pipelines
from planter.places import cuts

Specs = dict[str, dict[str, Any]]
TWO: Specs = {"cut1": {"kernel": 1, "stride": 1, "before": "block1"}, "late": {"before": "block2"}}


def architecture(builder: str, pipelines: Specs | None = None, size: int = 32) -> Architecture:
    options = {"classes": 5, "image": (3, size, size)}
    return Architecture(builder, {}, options, pipelines or {})


def residual_pipelines(seed: int = 0) -> Pipelines:
    net = build(architecture("nets:residual", TWO, size=8), seed)
    assert isinstance(net, Pipelines)
    fill_(net, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # statistics of the pipelines, none like another
        for name, buffer in net.norms.named_buffers():
            if not name.endswith("num_batches_tracked"):
                buffer.uniform_(0.5, 1.5, generator=generator)
    return net.double()


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
def test_step_down_refuses_what_it_cannot_do(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        step_down(3, 4, **settings)


CUTS = {
    "convnet": [("conv2", 16, 2), ("conv3", 16, 4), ("conv4", 16, 4), ("conv5", 16, 4)],
    "toy": [("conv2", 32, 1), ("conv3", 32, 2), ("conv4", 64, 2)],
    # CNSN's two are cut2 (64 channels, stride 2) and cut7 (256, 8).
    "vgg16": [
        ("conv2", 64, 1),
        ("conv3", 64, 2),
        ("conv4", 128, 2),
        ("conv5", 128, 4),
        ("conv6", 256, 4),
        ("conv7", 256, 4),
        ("conv8", 256, 8),
        ("conv9", 512, 8),
        ("conv10", 512, 8),
        ("conv11", 512, 16),
        ("conv12", 512, 16),
        ("conv13", 512, 16),
    ],
    "nets:residual": [("block1", 4, 1), ("down", 4, 1), ("block2", 6, 2)],
}


@pytest.mark.parametrize("builder", CUTS)
def test_cuts_are_the_places_between_stages(builder: str) -> None:
    found = {
        alias: (c.before, c.channels, c.stride) for alias, c in cuts(architecture(builder)).items()
    }
    assert found == {f"cut{i}": cut for i, cut in enumerate(CUTS[builder], start=1)}


def test_cuts_of_stl10_follow_its_poolings() -> None:
    strides = [cut.stride for cut in cuts(architecture("convnet", size=96)).values()]
    assert strides == [2, 4, 8, 8]


@pytest.mark.parametrize("place", ["cut9", "conv1", "nowhere"])
def test_an_unknown_cut_lists_the_legal_ones(place: str) -> None:
    with pytest.raises(ValueError, match=r"not a cut; cuts are cut1 \(before conv2\), cut2"):
        build(architecture("toy", {"early": {"before": place}}))


def test_an_unknown_key_of_a_pipeline_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"cut2: unknown pad; beside 'before' known are kernel"):
        build(architecture("toy", {"cut2": {"pad": 1}}))


@pytest.mark.parametrize("name", ["a/b", "a.b", "", "a b"])
def test_a_pipelines_name_is_a_plain_word(name: str) -> None:
    with pytest.raises(ValueError, match="pipeline name"):
        build(architecture("toy", {name: {"before": "cut2"}}))


def test_pipelines_need_named_stages() -> None:
    with pytest.raises(ValueError, match="Linear has no named stages"):
        Pipelines(nn.Linear(2, 2), {"cut": Entry("conv2", nn.Identity())})


def test_an_architecture_without_an_image_is_asked_for_one() -> None:
    arch = Architecture("toy", {}, {"classes": 5})
    for act in (cuts, check_architecture):
        with pytest.raises(ValueError, match="image"):
            act(arch)
    with pytest.raises(ValueError, match="image"):
        build(Architecture("toy", {}, {}, {"cut2": {}}))


def test_alias_and_stage_name_give_the_same_pipeline() -> None:
    by_alias = build(architecture("toy", {"cut2": {}}))
    by_stage = build(architecture("toy", {"cut2": {"before": "conv3", "kernel": 2, "stride": 2}}))
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(by_alias(x)["cut2"], by_stage(x)["cut2"])


def by_hand(net: Pipelines, name: str) -> nn.Sequential:
    """A pipeline put together from copies of the backbone's parts and its statistics."""
    stages = list(net.backbone.stages.children())
    first = {"base": 0, "cut1": 1, "late": 3}[name]
    parts = [net.modules_of[name]] if name != "base" else []
    return nn.Sequential(*copy.deepcopy([*parts, *stages[first:], net.backbone.head]))


@pytest.mark.parametrize("name", ["base", "cut1", "late"])
def test_a_detached_pipeline_gives_the_same_bits(name: str) -> None:
    net = residual_pipelines().eval()
    x = images(4)
    whole, alone = net(x)[name], net.detach(name)
    assert torch.equal(alone.eval()(x), whole)
    if name == "base":
        assert torch.equal(net.backbone(x), whole)
        assert torch.equal(by_hand(net, name)(x), whole)
    else:
        assert not torch.allclose(by_hand(net, name)(x), whole), "its statistics are its own"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["base", "cut1"])
def test_a_detached_pipeline_keeps_the_mode(name: str, training: bool) -> None:
    net = residual_pipelines().train(training)
    assert {module.training for module in net.detach(name).modules()} == {training}


@pytest.mark.parametrize("name", ["base", "cut1"])
def test_a_detached_pipeline_is_independent(name: str) -> None:
    net = residual_pipelines()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    alone = net.detach(name).train()
    alone(images(4))
    with torch.no_grad():
        for p in alone.parameters():
            p.add_(1)
    assert all(torch.equal(net.state_dict()[key], tensor) for key, tensor in before.items())
    assert not set(map(id, alone.parameters())) & set(map(id, net.parameters()))


def test_an_unknown_pipeline_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="no pipeline 'cut7'; pipelines are base, cut1, late"):
        residual_pipelines().detach("cut7")


def test_expanded_kernels_refuse_to_detach() -> None:
    net = expand_kernels_(residual_pipelines(), KernelFilter())
    for name in ("base", "cut1"):
        with pytest.raises(ValueError, match=r"collapse_kernels_\(model\) before detaching"):
            net.detach(name)
    collapse_kernels_(net)
    assert torch.equal(net.eval().detach("late").eval()(images(2)), net(images(2))["late"])


class Twin(nn.Module):
    """Two pipelines in plain torch: shared weights and affine parameters, a batch norm each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.fc = nn.Linear(5, 5)
        self.step, self.step_norm = nn.Conv2d(3, 4, 2, 2, bias=False), nn.BatchNorm2d(4)
        self.private = nn.BatchNorm2d(5)
        self.private.weight, self.private.bias = self.norm2.weight, self.norm2.bias

    def tail(self, x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        return self.fc(torch.relu(norm(self.conv2(x))).mean(dim=(2, 3)))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        whole = functional.max_pool2d(torch.relu(self.norm1(self.conv1(x))), 2)
        short = torch.relu(self.step_norm(self.step(x)))
        return {"base": self.tail(whole, self.norm2), "cut1": self.tail(short, self.private)}


def twin_as_pipelines(twin: Twin) -> Pipelines:
    """The same network, from copies of the twin's modules, as planter sees it."""
    own = copy.deepcopy(twin)
    stages = nn.Sequential(
        OrderedDict(
            one=nn.Sequential(own.conv1, own.norm1, nn.ReLU(), nn.MaxPool2d(2)),
            two=nn.Sequential(own.conv2, own.norm2, nn.ReLU()),
        )
    )
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), own.fc)
    entry = nn.Sequential(own.step, own.step_norm, nn.ReLU())
    return Pipelines(StagedNet(stages, head), {"cut1": Entry("two", entry)})


def test_statistics_are_those_of_a_batch_norm_of_ones_own() -> None:
    torch.manual_seed(3)
    twin = Twin().double()
    net = twin_as_pipelines(twin)
    for model in (twin, net):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        model.train()
        for step in range(5):
            optimizer.zero_grad()
            logits = model(images(8, seed=step))
            labels = torch.arange(8) % 5
            sum(functional.cross_entropy(y, labels) for y in logits.values()).backward()
            optimizer.step()
    x = images(3, seed=9)
    for name in ("base", "cut1"):
        norm = net.detach(name).two[1]
        own = twin.norm2 if name == "base" else twin.private
        # float64 over five steps: means are summed in another order.
        for leaf in ("running_mean", "running_var", "weight"):
            torch.testing.assert_close(
                getattr(norm, leaf), getattr(own, leaf), rtol=1e-9, atol=1e-11
            )
        assert int(norm.num_batches_tracked) == 5
        logits = net.eval()(x)[name]
        torch.testing.assert_close(logits, twin.eval()(x)[name], rtol=1e-9, atol=1e-9)
    assert float((twin.norm2.running_mean - twin.private.running_mean).abs().max()) > 1e-3


def test_joint_gradients_are_the_sum_of_separate_ones() -> None:
    net = residual_pipelines().train()
    x, labels = images(6), torch.arange(6) % 5
    # Parts by hand before the joint pass, whose statistics do not matter in training mode.
    separate = {name: by_hand(net, name) for name in ("base", "cut1", "late")}
    sum(functional.cross_entropy(y, labels) for y in net(x).values()).backward()
    for part in separate.values():
        functional.cross_entropy(part.train()(x), labels).backward()
    base, cut, late = (list(part.parameters()) for part in separate.values())
    mine = [p.grad for p in net.backbone.parameters()]
    for at, grad in enumerate(mine, start=-len(mine)):
        expected = base[at].grad.clone()
        for other, entry in ((cut, net.modules_of["cut1"]), (late, net.modules_of["late"])):
            if -at <= len(other) - len(list(entry.parameters())):
                expected += other[at].grad
        # float64: three sums in another order.
        torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-12)
    for part, name in ((cut, "cut1"), (late, "late")):
        for p, q in zip(net.modules_of[name].parameters(), part, strict=False):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-12)


def test_eval_mode_leaves_every_statistic_alone() -> None:
    net = residual_pipelines().eval()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    net(images(4))
    assert all(torch.equal(net.state_dict()[key], tensor) for key, tensor in before.items())


def test_state_of_the_base_keeps_its_names() -> None:
    plain = residual(residual.widths, classes=5, image=(3, 8, 8))
    assert set(residual_pipelines().backbone.state_dict()) == set(plain.state_dict())


def test_a_built_network_depends_on_the_seed_alone() -> None:
    arch = architecture("nets:residual", TWO, size=8)
    first, again, other = build(arch, 1), build(arch, 1), build(arch, 2)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )
    for name in ("cut1", "late"):
        a, b = (net.modules_of[name].conv.weight for net in (first, other))
        assert not torch.equal(a, b)


def test_one_pipeline_alone_has_the_stages_behind_its_cut() -> None:
    net = build_network(architecture("vgg16", {"cut7": {}}), "cut7")
    names = [name for name, _ in net.named_children()]
    assert names == ["step_down", *(f"conv{i}" for i in range(8, 14)), "head"]
    assert sum(p.numel() for p in net.parameters()) == 13_037_066 - 513 * 5  # facts.md, 5 classes


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
    stages = nn.Sequential(OrderedDict(one=nn.Conv2d(image[0], 2, 1), two=nn.Conv2d(2, 2, 1)))
    return StagedNet(stages, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 7)))


def test_logits_of_another_number_than_classes_are_refused() -> None:
    arch = Architecture(f"{__name__}:wrong_head", {}, {"classes": 5, "image": (3, 8, 8)})
    with pytest.raises(ValueError, match=r"gives \[1, 7\] .* expected logits \[1, 5\]"):
        check_architecture(arch)
