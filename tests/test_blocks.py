from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import fill_, images, residual
from torch import Tensor, nn

from planter.arch import Architecture
from planter.edits.expand import collapse_kernels_, expand_kernels_
from planter.kernels.blocks import expanded_layers
from planter.kernels.forms import AsymmetricBlock, FeatureFilter
from planter.networks.assembly import build

KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
MODES = ("zeros", "reflect", "replicate", "circular")
FEATURES = st.builds(FeatureFilter, rho=st.floats(1, 3), expand_inputs=st.booleans())


@st.composite
def square_convs(draw: st.DrawFn) -> nn.Sequential:
    """A convolution that ACNet's block is for, in float64, and the norm behind it if it has one."""
    groups, size = draw(st.integers(1, 2)), draw(st.sampled_from([3, 5]))
    inputs, outputs = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    norm = draw(st.booleans())
    padding = draw(
        st.one_of(
            st.tuples(st.integers(0, 4), st.integers(0, 4)), st.sampled_from(["same", "valid"])
        )
    )
    stride = (1, 1) if padding == "same" else draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    conv = nn.Conv2d(
        inputs,
        outputs,
        size,
        stride,
        padding,
        draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        groups,
        bias=draw(st.booleans()) or not norm,
        padding_mode=draw(st.sampled_from(MODES)),
    )
    parts: list[nn.Module] = [conv]
    if norm:
        parts.append(nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.3))
    return nn.Sequential(*parts, nn.Tanh()).double()


@st.composite
def convs(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A convolution of one to three axes in float64 and the shape of one input."""
    axes, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    stride = draw(st.integers(1, 2))
    padding: int | str = draw(st.integers(0, 2))
    # torch warns of its own copy where the padding cannot be even.
    if stride == 1 and all(k % 2 for k in kernel) and draw(st.booleans()):
        padding = "same"
    conv = KINDS[axes - 1](
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 3)),
        kernel,
        stride,
        padding,
        draw(st.integers(1, 2)),
        groups,
        draw(st.booleans()),
        draw(st.sampled_from(MODES)),
    )
    return conv.double(), (conv.in_channels, *[5] * axes)


def train_(net: nn.Module, x: Tensor, steps: int = 3) -> None:
    """Steps of SGD in train mode towards a random target, from random norms."""
    fill_(net)
    net.train()
    target = torch.randn_like(net(x))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        (net(x) - target).square().mean().backward()
        optimizer.step()
    net.eval()


def collapses_to_what_it_computes(net: nn.Module, x: Tensor) -> None:
    """The trained network in eval mode before and after its collapse, by torch's plain layers."""
    output = net.eval()(x)
    assert float(output.detach().std()) > 1e-3, "a constant output would hide everything"
    # float64: sums of a few dozen terms of size 1 in another order.
    torch.testing.assert_close(collapse_kernels_(net)(x), output, rtol=0, atol=1e-10)


@settings(max_examples=150)
@given(square_convs(), st.integers(0, 9))
def test_an_asymmetric_block_collapses_to_what_it_computes_in_eval_mode(
    net: nn.Sequential, seed: int
) -> None:
    names, types, shown = set(net.state_dict()), [type(m) for m in net.modules()], repr(net)
    x = images(3, (net[0].in_channels, 10, 11), seed)
    expand_kernels_(net, AsymmetricBlock(), seed=seed)
    assert expanded_layers(net) == ["0"]
    train_(net, x)
    collapses_to_what_it_computes(net, x)
    assert set(net.state_dict()) == names
    assert [type(m) for m in net.modules()] == types
    assert repr(net) == shown
    assert all(p.requires_grad and p.is_leaf for p in net.parameters())


@settings(max_examples=40)
@given(square_convs())
def test_an_asymmetric_block_is_the_sum_of_three_normed_kernels(net: nn.Sequential) -> None:
    conv = net[0]
    block = expand_kernels_(net, AsymmetricBlock())[0]
    fill_(block)
    x = images(3, (conv.in_channels, 10, 11))
    half = conv.kernel_size[0] // 2
    expected: Tensor | float = 0.0
    for part, norm in zip((conv, block.vertical, block.horizontal), block.norms, strict=True):
        kernel = torch.zeros_like(conv.weight)
        rows, columns = part.weight.shape[2:]
        top, left = half - rows // 2, half - columns // 2
        kernel[:, :, top : top + rows, left : left + columns] = part.weight
        y = conv._conv_forward(x, kernel, part.bias)
        mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)
        scaled = (y.movedim(1, 3) - mean) / (var + norm.eps).sqrt() * norm.weight + norm.bias
        expected = expected + scaled.movedim(3, 1)
    # A constant map has a variance of 0, which eps alone keeps from the division.
    torch.testing.assert_close(block.train()(x), expected, rtol=0, atol=1e-9)


def test_an_asymmetric_blocks_norms_start_at_a_third_and_take_the_norms_settings() -> None:
    for form, start in ((AsymmetricBlock(), 1 / 3), (AsymmetricBlock(gamma=1), 1)):
        net = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3, 1e-3, 0.3))
        kernel = net[0].weight.detach().clone()
        block = expand_kernels_(net, form)[0]
        assert torch.equal(block.square.weight, kernel)
        assert block.vertical.weight.shape == (3, 2, 3, 1)
        assert block.horizontal.weight.shape == (3, 2, 1, 3)
        for norm in block.norms:
            assert torch.equal(norm.weight, torch.full((3,), start))
            assert not norm.bias.any()
            assert (norm.eps, norm.momentum) == (1e-3, 0.3)


def test_an_asymmetric_blocks_weights_are_drawn_from_the_seed_alone() -> None:
    def drawn(seed: int) -> Tensor:
        torch.manual_seed(7)
        net = expand_kernels_(nn.Sequential(nn.Conv2d(2, 3, 3)), AsymmetricBlock(), seed=seed)
        torch.rand(5)
        return net[0].vertical.weight.detach()

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


AWKWARD = OrderedDict(
    point=nn.Conv2d(2, 2, 1),
    seven=nn.Conv2d(2, 2, 7),
    even=nn.Conv2d(2, 2, 2),
    oblong=nn.Conv2d(2, 2, (3, 5)),
    line=nn.Conv1d(2, 2, 3),
    up=nn.ConvTranspose2d(2, 2, 3),
    linear=nn.Linear(2, 2),
    nowhere=nn.Conv2d(2, 2, 3, bias=False),
    relu=nn.ReLU(),
    norm_of_others=nn.BatchNorm2d(3),
)


def test_by_default_the_block_takes_odd_squares_of_three_and_five_with_a_place_for_a_bias() -> None:
    net = nn.Sequential(
        OrderedDict(
            **AWKWARD,
            three=nn.Conv2d(2, 2, 3),
            five=nn.Conv2d(2, 2, 5, bias=False),
            norm=nn.BatchNorm2d(2),
        )
    )
    assert expanded_layers(expand_kernels_(net, AsymmetricBlock())) == ["three", "five"]


def test_by_default_feature_filtering_takes_convolutions_larger_than_a_point() -> None:
    net = expand_kernels_(nn.Sequential(AWKWARD), FeatureFilter())
    assert expanded_layers(net) == ["seven", "even", "oblong", "line", "nowhere"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("point", r"kernel \(1, 1\): acnet needs an odd square one above 1"),
        ("even", r"kernel \(2, 2\): acnet needs an odd square"),
        ("oblong", r"kernel \(3, 5\): acnet needs an odd square"),
        ("line", r"kernel \(3,\): acnet needs an odd square"),
        ("up", "is a ConvTranspose2d: acnet is for convolutions that are not transposed"),
        ("linear", "is a Linear: acnet is for convolutions"),
        ("nowhere", "has no bias and no one batch norm behind it"),
    ],
)
def test_a_layer_the_block_is_not_for_is_refused_by_name(name: str, words: str) -> None:
    net = nn.Sequential(AWKWARD)
    with pytest.raises(ValueError, match=f"^{name} .*{words}"):
        expand_kernels_(net, AsymmetricBlock(), where=lambda module, own: own == name)
    assert not expanded_layers(net)


def test_a_wide_kernel_is_taken_where_it_is_asked_for() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 7, padding=2, dilation=1)).double()
    expand_kernels_(net, AsymmetricBlock(), where=lambda module, name: name == "0")
    x = images(4, (2, 9, 8))
    train_(net, x)
    collapses_to_what_it_computes(net, x)


@pytest.mark.parametrize("form", [AsymmetricBlock(), FeatureFilter()], ids=str)
def test_a_layer_that_is_the_model_itself_is_refused(form: AsymmetricBlock | FeatureFilter) -> None:
    conv = nn.Conv2d(2, 2, 3)
    with pytest.raises(ValueError, match=r"the model itself is the layer.*put it into nn.Sequ"):
        expand_kernels_(conv, form, where=lambda module, name: True)
    assert list(conv.state_dict()) == ["weight", "bias"]


def test_pipelines_with_entries_are_refused_and_without_any_are_taken() -> None:
    options = {"classes": 5, "image": (3, 8, 8)}
    entries = {"cut1": {"before": "block1"}}
    net = build(Architecture("nets:residual", {}, options, entries))
    with pytest.raises(ValueError, match="pipelines cut1, each with norm statistics"):
        expand_kernels_(net, AsymmetricBlock())
    assert not expanded_layers(net)
    expand_kernels_(build(Architecture("nets:residual", {}, options)), AsymmetricBlock())


class Pairs(nn.Module):
    """Two convolutions with a norm behind each, which `order` puts together."""

    def __init__(self, order: str, *, bias: bool = False) -> None:
        super().__init__()
        self.order = order
        self.conv1 = nn.Conv2d(2, 2, 3, padding=1, bias=bias)
        self.norm1 = nn.BatchNorm2d(2)
        self.conv2 = nn.Conv2d(2, 2, 3, padding=1, bias=bias)
        self.norm2 = nn.BatchNorm2d(2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        kept = x
        for name in self.order.split():
            if name == "+":
                x = x + kept
            elif name == "keep":
                kept = x
            elif name == "relu":
                x = x.relu()
            elif name == "relu_":
                x = x.relu_()
            else:
                x = self.get_submodule(name)(x)
        return x


@pytest.mark.parametrize(
    "order",
    [
        "norm1 conv1 relu norm2 conv2",
        "conv1 relu norm1 conv2 norm2",
        "conv1 + norm1 conv2 norm2",
        "conv1 relu_ norm1 conv2 norm2",
        "conv1 norm2 relu conv2 norm1",
        "conv1 conv2 norm1",
    ],
)
def test_a_norm_that_does_not_read_its_neighbour_stops_the_training(order: str) -> None:
    net = expand_kernels_(Pairs(order), AsymmetricBlock())
    with pytest.raises(RuntimeError, match=r"its place in forward\(\)"):
        net(images(3, (2, 5, 5)))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "order", ["conv1 norm1 relu conv2 norm2", "conv1 norm1 keep relu conv2 norm2 +"]
)
def test_blocks_with_their_norms_collapse_to_what_they_compute(order: str, bias: bool) -> None:
    net, x = expand_kernels_(Pairs(order, bias=bias), AsymmetricBlock()), images(4, (2, 6, 6))
    train_(net, x)
    collapses_to_what_it_computes(net, x)


def collapses_or_is_refused(net: nn.Module, x: Tensor) -> None:
    """Never a collapsed network that computes something else."""
    try:
        train_(expand_kernels_(net, AsymmetricBlock()), x)
    except (ValueError, RuntimeError):
        return
    collapses_to_what_it_computes(net, x)


@pytest.mark.parametrize(
    ("order", "bias"),
    [
        # Without a bias the other reader cannot be told, as docs/kernels.md says.
        ("conv1 keep norm1 relu conv2 norm2 +", True),
        *[("conv1 norm1 relu conv1 norm2", bias) for bias in (False, True)],
        *[("conv1 norm1 relu conv2 norm2 relu conv1 norm1", bias) for bias in (False, True)],
    ],
)
def test_an_output_read_twice_is_collapsed_right_or_refused(order: str, bias: bool) -> None:
    collapses_or_is_refused(Pairs(order, bias=bias), images(4, (2, 6, 6)))


def test_convolutions_that_share_a_norm_are_collapsed_right_or_refused() -> None:
    norm = nn.BatchNorm2d(2)
    parts = [nn.Sequential(nn.Conv2d(2, 2, 3, bias=False), norm, nn.ReLU()) for _ in range(2)]
    collapses_or_is_refused(nn.Sequential(*parts).double(), images(4, (2, 8, 8)))


def test_a_convolution_used_before_two_norms_is_collapsed_right_or_refused() -> None:
    conv = nn.Conv2d(2, 2, 3, bias=False)
    net = nn.Sequential(conv, nn.BatchNorm2d(2), nn.ReLU(), conv, nn.BatchNorm2d(2)).double()
    collapses_or_is_refused(net, images(4, (2, 8, 8)))


def test_a_residual_network_keeps_names_and_types_through_blocks() -> None:
    for form in (AsymmetricBlock(), FeatureFilter(2)):
        net = residual(residual.widths, image=(3, 8, 8)).double()
        names, types = set(net.state_dict()), [type(m) for m in net.modules()]
        expand_kernels_(net, form)
        assert len(expanded_layers(net)) == 6
        train_(net, images(4))
        collapses_to_what_it_computes(net, images(4))
        assert set(net.state_dict()) == names
        assert [type(m) for m in net.modules()] == types


def test_a_collapsed_network_trains_on_from_the_same_statistics() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3, momentum=1.0)).double()
    x = images(16, (2, 6, 6))
    fill_(expand_kernels_(net, AsymmetricBlock()))
    # With momentum 1 the statistics are those of this batch, of which torch keeps the variance over
    # n - 1 and norms by the one over n.
    before = net.train()(x).detach()
    after = collapse_kernels_(net).train()(x).detach()
    n = before.numel() / 3
    torch.testing.assert_close(after, before, rtol=0, atol=2 * float(before.abs().max()) / n)


@settings(max_examples=100)
@given(convs(), FEATURES, st.integers(0, 9))
def test_a_chain_of_convolutions_collapses_to_what_it_computes(
    drawn: tuple[nn.Module, tuple[int, ...]], form: FeatureFilter, seed: int
) -> None:
    conv, shape = drawn
    net = nn.Sequential(conv)
    names, shown, groups = set(net.state_dict()), repr(net), conv.groups
    bias = None if conv.bias is None else conv.bias.detach().clone()
    expand_kernels_(net, form, lambda module, name: name == "0", seed)
    chain = net[0]
    wide_out = groups * max(1, round(form.rho * conv.out_channels / groups))
    wide_in = conv.in_channels
    if form.expand_inputs:
        wide_in = groups * max(1, round(form.rho * conv.in_channels / groups))
        assert chain.before.weight.shape[:2] == (wide_in, conv.in_channels // groups)
    assert chain.middle.weight.shape == (wide_out, wide_in // groups, *conv.kernel_size)
    assert chain.after.weight.shape[:2] == (conv.out_channels, wide_out // groups)
    assert bias is None or torch.equal(chain.after.bias, bias)
    x = torch.randn(3, *shape, dtype=torch.float64)
    train_(net, x)
    output = net(x)
    collapse_kernels_(net)
    assert set(net.state_dict()) == names
    assert repr(net) == shown
    assert net[0] is conv
    torch.testing.assert_close(net(x), output, rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", [AsymmetricBlock(), FeatureFilter(2)], ids=str)
def test_a_block_moved_to_another_precision_collapses_there(
    form: AsymmetricBlock | FeatureFilter,
) -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3, bias=True), nn.ReLU())
    expand_kernels_(net, form).double()
    x = images(4, (2, 6, 6))
    train_(net, x)
    collapses_to_what_it_computes(net, x)
    assert {p.dtype for p in net.parameters()} == {torch.float64}
