from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import depthwise, fill_, flat, residual
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from planter.arch import Architecture
from planter.backbones import full_widths
from planter.costs.macs import Cost, cost, training_cost
from planter.edits.expand import collapse_kernels_, expand_kernels_
from planter.kernels.forms import KernelFilter, TrainingForm, form_of
from planter.networks.assembly import build

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


# Inputs, filters, kernel places and output pixels of each layer, from the papers' descriptions
# (facts.md 3.6): three 5x5 convolutions on maps of 32, 15, 7 pixels; thirteen 3x3 ones.
Layers = list[tuple[int, int, int, int]]
QUICK: Layers = [(3, 32, 25, 1024), (32, 32, 25, 225), (32, 64, 25, 49)]
QUICK += [(576, 64, 1, 1), (64, 10, 1, 1)]
_VGG = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
_SIDES = [32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2]
VGG: Layers = [(a, b, 9, n * n) for a, b, n in zip(_VGG, _VGG[1:], _SIDES, strict=False)]
VGG += [(512, 512, 1, 1), (512, 10, 1, 1)]
QUICK_NET = Architecture("cifar_quick", {}, {"classes": 10, "image": (3, 32, 32)})
VGG_NET = Architecture("vgg16", {}, {"classes": 10, "image": (3, 32, 32), "head": "hidden"})
PUBLISHED_STEPS = [(QUICK_NET, QUICK), (VGG_NET, VGG)]
both_nets = pytest.mark.parametrize(("net", "layers"), PUBLISHED_STEPS, ids=["quick", "vgg16"])


def forward_macs(layers: Layers) -> list[int]:
    return [a * b * places * pixels for a, b, places, pixels in layers]


def plain_step(layers: Layers, batch: int) -> int:
    """Each layer forward, for its weights and for its input; images need no gradient."""
    each = forward_macs(layers)
    return batch * (3 * sum(each) - each[0])


def kflo_product(layers: Layers, rho: float) -> int:
    """Multiply-adds of W_2 W_1 of every layer."""
    return sum(b * round(rho * b) * a * places for a, b, places, _ in layers)


def kflo_weights(layers: Layers, rho: float) -> int:
    return sum(round(rho * b) * (a * places + b) for a, b, places, _ in layers)


def norms(layers: Layers) -> int:
    """Scales and shifts of the batch norms: behind every convolution."""
    return sum(2 * b for _, b, places, _ in layers if places > 1)


def biases(layers: Layers) -> int:
    return sum(b for _, b, places, _ in layers if places == 1)


def every_part(net: Architecture, form: TrainingForm) -> dict[str, TrainingForm]:
    convs = {name: form for name in full_widths(net.builder) if name.startswith("conv")}
    return {**convs, "head": form}


@both_nets
def test_a_plain_step_is_three_times_the_forward_pass_less_the_images_gradient(
    net: Architecture, layers: Layers
) -> None:
    for kernels in (None, {"conv1": None, "head": KernelFilter(depth=1)}):
        found = training_cost(net, kernels, batch=5)
        assert found.macs_step == found.macs_step_plain == plain_step(layers, 5)
        weights = sum(a * b * places for a, b, places, _ in layers)
        assert found.params == found.params_plain == weights + norms(layers) + biases(layers)


@both_nets
def test_kernel_filtering_adds_its_products_three_times_whatever_the_batch(
    net: Architecture, layers: Layers
) -> None:
    for rho, batch in ((1.3, 3), (2.0, 128)):
        step = training_cost(net, every_part(net, KernelFilter(rho=rho)), batch)
        assert step.macs_step_plain == plain_step(layers, batch)
        assert step.macs_step - step.macs_step_plain == 3 * kflo_product(layers, rho)
        bank_biases = sum(round(rho * b) for _, b, places, _ in layers if places == 1)
        assert step.params == kflo_weights(layers, rho) + norms(layers) + bank_biases


@pytest.mark.parametrize(
    ("net", "layers", "added", "per_batch", "share", "weights"),
    [
        (QUICK_NET, QUICK, (26.2e6, 5e4), (1.378e9, 5e5), 0.019, (508_176, 0)),
        (VGG_NET, VGG, (28.7e9, 5e7), (40.1e9, 5e7), 0.72, (68.2e6, 5e4)),
    ],
    ids=["quick", "vgg16"],
)
def test_kflo_of_two_and_four_costs_what_is_published(
    net: Architecture, layers: Layers, added, per_batch, share: float, weights
) -> None:
    """facts.md 3.5, for a batch of 128; figures with half of what their last digit is worth."""
    step = training_cost(net, every_part(net, KernelFilter(2, 4)), 128)
    forward = (step.macs_step - step.macs_step_plain) / 3
    plain = 128 * sum(forward_macs(layers))
    assert abs(forward - added[0]) <= added[1]
    assert abs(plain - per_batch[0]) <= per_batch[1]
    assert abs(forward / plain - share) <= (0.0005 if share < 0.1 else 0.005)
    trained = step.params - norms(layers) - 4 * biases(layers)
    assert trained == kflo_weights(layers, 4)
    assert abs(trained - weights[0]) <= weights[1]


def test_kernel_filtering_by_default_is_counted_for_layers_of_up_to_256_filters() -> None:
    step = training_cost(VGG_NET, KernelFilter(2, 4), 4)
    narrow = [layer for layer in VGG if layer[1] <= 256]
    assert len(narrow) == 8
    assert step.macs_step - step.macs_step_plain == 3 * kflo_product(narrow, 4)


def test_three_factors_are_multiplied_in_the_cheaper_order() -> None:
    convs = QUICK[:3]
    step = training_cost(QUICK_NET, dict.fromkeys(["conv1", "conv2", "conv3"], KernelFilter(3, 2)))
    product = 0
    for a, b, places, _ in convs:
        n, r = a * places, 2 * b
        product += b * r * n + min(b * r * r, r * r * n)
    assert step.macs_step - step.macs_step_plain == 3 * product


def test_a_bias_is_not_counted_however_many_factors_make_it() -> None:
    step = training_cost(QUICK_NET, {"head": KernelFilter(3, 2)}, 4)
    product = 0
    for n, b in ((576, 64), (64, 10)):
        r = 2 * b
        product += b * r * n + min(b * r * r, r * r * n)
    assert step.macs_step - step.macs_step_plain == 3 * product


@pytest.mark.parametrize(
    ("net", "layers", "share"), [(QUICK_NET, QUICK, 3.55), (VGG_NET, VGG, 3.58)],
    ids=["quick", "vgg16"],
)  # fmt: skip
def test_feature_filtering_costs_what_is_published(
    net: Architecture, layers: Layers, share: float
) -> None:
    """rho times every convolution and a 1 x 1 convolution of rho * out channels on each map."""
    convs = [layer for layer in layers if layer[2] > 1]
    middle = [4 * one for one in forward_macs(convs)]
    after = [4 * b * b * pixels for _, b, _, pixels in convs]
    added = sum(middle) + sum(after) - sum(forward_macs(convs))
    assert abs(added / sum(forward_macs(convs)) - share) <= 0.005  # facts.md 3.5
    rest = forward_macs([layer for layer in layers if layer[2] == 1])
    expected = 3 * (sum(middle) + sum(after) + sum(rest)) - middle[0]
    found = training_cost(net, form_of("features:4"), 6)
    assert found.macs_step == 6 * expected
    assert found.macs_step_plain == plain_step(layers, 6)
    # No norm in between and no other bias: 4 times the weights and those of the mixing.
    weights = sum(4 * a * b * places + 4 * b * b for a, b, places, _ in convs)
    linear = sum(a * b for a, b, places, _ in layers if places == 1)
    assert found.params == weights + linear + norms(layers) + biases(layers)


def test_expandnets_widen_inputs_too_and_do_conv_multiplies_by_its_factor() -> None:
    convs, rest = QUICK[:3], sum(forward_macs(QUICK[3:]))
    sides = [32 * 32, 15 * 15, 7 * 7]  # of the inputs, which a 1 x 1 convolution widens twofold
    parts = [
        (2 * a * a * pixels, 4 * a * b * 25 * pixels, 2 * b * b * pixels)
        for (a, b, _, _), pixels in zip(convs, sides, strict=True)
    ]
    first = parts[0][0]
    expected = 3 * (sum(map(sum, parts)) + rest) - first
    assert training_cost(QUICK_NET, form_of("expandnet:2"), 3).macs_step == 3 * expected
    step = training_cost(QUICK_NET, form_of("do-conv"), 3)
    product = sum(b * a * 25 * 25 for a, b, _, _ in convs)
    assert step.macs_step - step.macs_step_plain == 3 * product
    assert step.params - step.params_plain == sum(a * 25 * 25 for a, _, _, _ in convs)


def test_an_asymmetric_block_costs_two_bars_for_every_square() -> None:
    bars = [2 * a * b * 5 * pixels for a, b, _, pixels in QUICK[:3]]
    step = training_cost(QUICK_NET, form_of("acnet"), 3)
    assert step.macs_step - step.macs_step_plain == 3 * (3 * sum(bars) - bars[0])
    # Three norms for one; the one behind the block takes no part in the training.
    more = sum(2 * a * b * 5 + 4 * b for a, b, _, _ in QUICK[:3])
    assert step.params - step.params_plain == more


CUT = {"before": "conv3", "kernel": 4, "stride": 4}
# convnet of width 16 at 32 x 32: maps of 32, 16, 8, 8, 8 pixels, a head of 4 x 4 maps.
CONVNET: Layers = [(3, 16, 9, 1024), (16, 16, 9, 256), *[(16, 16, 9, 64)] * 3]
CONVNET += [(256, 128, 1, 1), (128, 10, 1, 1)]
STEP_DOWN = (3, 16, 16, 64)


def test_pipelines_are_counted_together_and_their_kernels_once() -> None:
    net = Architecture("convnet", {}, {"classes": 10, "image": (3, 32, 32)}, {"cut2": CUT})
    each, entry = forward_macs(CONVNET), forward_macs([STEP_DOWN])[0]
    macs = 3 * (sum(each) + entry + sum(each[2:])) - each[0] - entry
    for batch in (2, 9):
        found = training_cost(net, KernelFilter(2, 3), batch)
        assert found.macs_step_plain == batch * macs
        added = found.macs_step - found.macs_step_plain
        assert added == 3 * kflo_product([*CONVNET, STEP_DOWN], 3)
    weights = kflo_weights([*CONVNET, STEP_DOWN], 3)
    # Every layer but the step-down has a bias, tripled; that one has a norm.
    assert found.params == weights + 3 * (5 * 16 + 128 + 10) + 2 * 16


def test_a_form_that_does_not_fit_is_an_error_of_the_count_too() -> None:
    net = Architecture("convnet", {}, {"classes": 10, "image": (3, 32, 32)}, {"cut2": CUT})
    with pytest.raises(ValueError, match="pipelines cut2, each with norm statistics"):
        training_cost(net, form_of("acnet"))
    with pytest.raises(ValueError, match="no part 'conv9'"):
        training_cost(QUICK_NET, {"conv9": KernelFilter()})


def test_a_count_for_training_leaves_the_architecture_and_the_callers_draws() -> None:
    before = QUICK_NET.to_dict()
    state = torch.get_rng_state()
    first = training_cost(QUICK_NET, form_of("expandnet:2"), 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert training_cost(QUICK_NET, form_of("expandnet:2"), 2) == first
    assert QUICK_NET.to_dict() == before
