from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import depthwise, fill_, flat, residual
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from planter.arch import Architecture
from planter.kernels import KernelFilter, collapse_kernels_, expand_kernels_
from planter.macs import Cost, cost
from planter.pipelines import build

CNSN = Architecture(
    "vgg16",
    {},
    {"classes": 10, "image": (3, 32, 32)},
    {
        "cut2": {"before": "conv3", "kernel": 2, "stride": 2},
        "cut7": {"before": "conv8", "kernel": 8, "stride": 8},
    },
)
# facts.md 2.2 and 2.3: macs, macs_all, parameters.
CNSN_PUBLISHED = {
    "base": (313_201_664, 314_432_512, 14_724_042),
    "cut2": (273_880_064, 274_586_624, 14_686_090),
    "cut7": (123_474_944, 123_624_448, 13_037_066),
}


def by_torch(net: nn.Module, image: tuple[int, ...]) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        net(torch.zeros(1, *image, dtype=next(net.parameters()).dtype))
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2


@st.composite
def convs(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    axes = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 3))
    inputs, outputs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))

    def each(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(least, most)) for _ in range(axes))

    kernel, stride, padding, dilation = each(1, 4), each(1, 3), each(0, 3), each(1, 2)
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = tuple(
        max(1, n - 2 * p) + draw(st.integers(0, 5)) for n, p in zip(spans, padding, strict=True)
    )
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    bias = draw(st.booleans())
    conv = kind(inputs, outputs, kernel, stride, padding, dilation, groups, bias)
    return conv, (inputs, *size)


def places(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """How often a kernel fits along one padded axis, by trying every place."""
    count, at = 0, -padding
    while at + dilation * (kernel - 1) <= size - 1 + padding:
        count += 1
        at += stride
    return count


@given(convs())
def test_macs_of_a_convolution_are_counted_one_by_one(
    drawn: tuple[nn.Module, tuple[int, ...]],
) -> None:
    conv, image = drawn
    outputs, multiplies = 1, 1
    for axis, size in enumerate(image[1:]):
        outputs *= places(
            size,
            conv.kernel_size[axis],
            conv.stride[axis],
            conv.padding[axis],
            conv.dilation[axis],
        )
        multiplies *= conv.kernel_size[axis]
    expected = 0
    for filter_ in range(conv.out_channels):
        group = filter_ // (conv.out_channels // conv.groups)
        per_group = conv.in_channels // conv.groups
        for _ in range(group * per_group, (group + 1) * per_group):
            expected += outputs * multiplies
    counted = cost(conv, image)
    assert counted.macs == expected == by_torch(conv, image)
    # A bias counts in macs_all whether it is there or not.
    assert counted.macs_all == expected + conv.out_channels * outputs


@given(st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_macs_of_a_linear_layer_are_its_weights(inputs: int, outputs: int, bias: bool) -> None:
    counted = cost(nn.Linear(inputs, outputs, bias=bias), (inputs,))
    assert counted.macs == counted.macs_all == inputs * outputs
    assert counted.params == outputs * (inputs + bias)


@pytest.mark.parametrize("builder", [residual, depthwise, flat])
def test_macs_of_a_network_are_those_of_torch(builder) -> None:
    image = (3, 9, 9)
    net = builder(builder.widths, image=image)
    counted = cost(net, image)
    assert counted.macs == by_torch(net, image)
    assert counted.params == sum(p.numel() for p in net.parameters())
    assert counted.macs == sum(stage.macs for stage in counted.stages)


@settings(max_examples=10)
@given(st.lists(st.integers(1, 40), min_size=5, max_size=5), st.integers(8, 70))
def test_an_architecture_costs_what_its_network_costs(widths: list[int], size: int) -> None:
    named = {f"conv{i}": w for i, w in enumerate(widths, start=1)}
    arch = Architecture("convnet", named, {"classes": 3, "image": (3, size, size)})
    counted = cost(arch)
    assert counted.macs == by_torch(build(arch), (3, size, size))
    assert counted == cost(build(arch), (3, size, size))


@pytest.fixture(scope="module")
def cnsn() -> Cost:
    return cost(CNSN)


@pytest.mark.parametrize("name", CNSN_PUBLISHED)
def test_cnsn_costs_what_its_table_says(cnsn: Cost, name: str) -> None:
    found = cnsn.pipelines[name]
    assert (found.macs, found.macs_all, found.params) == CNSN_PUBLISHED[name]
    assert set(cnsn.pipelines) == set(CNSN_PUBLISHED)
    assert cnsn.macs == CNSN_PUBLISHED["base"][0]


def test_macs_all_of_a_small_network_by_hand() -> None:
    # 1x6x6 -> conv 3x3 pad 1, 2 channels -> norm -> relu -> pool 2 -> conv 1x1, 3 channels
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, bias=False),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(2, 3, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 4),
    )
    macs = 9 * 2 * 36 + 2 * 3 * 9 + 3 * 4
    extra = 72 + 2 * 72 + 72 + 72 + 27 + 27
    counted = cost(net, (1, 6, 6))
    assert (counted.macs, counted.macs_all) == (macs, macs + extra)


def test_a_pooling_that_changes_nothing_costs_nothing() -> None:
    conv = nn.Conv2d(1, 2, 1)
    fits = nn.Sequential(conv, nn.AdaptiveAvgPool2d(4))
    assert cost(fits, (1, 4, 4)).macs_all == cost(conv, (1, 4, 4)).macs_all


def test_a_module_used_twice_in_a_sequence_is_counted_twice() -> None:
    conv, relu = nn.Conv2d(2, 2, 3, padding=1), nn.ReLU()
    counted = cost(nn.Sequential(conv, relu, conv, relu), (2, 4, 4))
    assert counted.macs == 2 * (2 * 2 * 9 * 16)
    assert counted.macs_all == counted.macs + 4 * (2 * 16)
    assert counted.params == 2 * 2 * 9 + 2


class OwnForward(nn.Sequential):
    """A sequence whose forward is not one after the other, as torchvision has them."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self], dim=1)


class ListOfStages(nn.Module):
    """Has `stages` and `head`, yet is no staged network: its stages are a list it sums over."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 3, padding=1)])
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(sum(stage(x) for stage in self.stages).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    "net", [OwnForward(nn.Conv2d(1, 2, 1), nn.Conv2d(1, 3, 1)), ListOfStages()]
)
def test_any_module_is_counted_by_its_own_forward(net: nn.Module) -> None:
    assert cost(net, (1, 4, 4)).macs == by_torch(net, (1, 4, 4))


def test_stages_hand_on_the_shapes_of_the_network() -> None:
    arch = Architecture("convnet", {}, {"classes": 10, "image": (3, 32, 32)})
    shapes = {stage.name: stage.output for stage in cost(arch).stages}
    assert shapes == {
        "conv1": (16, 16, 16),
        "conv2": (16, 8, 8),
        "conv3": (16, 8, 8),
        "conv4": (16, 8, 8),
        "conv5": (16, 4, 4),
        "head": (10,),
    }


def test_expanded_kernels_are_refused_and_collapsed_ones_cost_the_same() -> None:
    net = flat(flat.widths, image=(3, 8, 8))
    before = cost(net, (3, 8, 8))
    expand_kernels_(net, KernelFilter())
    with pytest.raises(ValueError, match=r"collapse_kernels_\(model\) before counting"):
        cost(net, (3, 8, 8))
    assert cost(collapse_kernels_(net), (3, 8, 8)) == before


@pytest.mark.parametrize("network", [nn.Linear(2, 2), Architecture("toy", {})])
def test_cost_without_an_image_asks_for_one(network: nn.Module | Architecture) -> None:
    with pytest.raises(ValueError, match="image"):
        cost(network)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_counting_leaves_the_network_as_it_was(training: bool, mixed: bool) -> None:
    net = fill_(residual(residual.widths)).train(training)
    sequence = nn.Sequential(net.stages, net.head).train(training)
    if mixed:  # a part held in the other mode
        net.stages.down.train(not training)
    modes = [module.training for module in sequence.modules()]
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    cost(net, (3, 8, 8))
    cost(sequence, (3, 8, 8))
    assert [module.training for module in sequence.modules()] == modes
    assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())
    assert not any(module._forward_hooks for module in sequence.modules())
