from __future__ import annotations

import copy
import io
import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Block, flat, images, residual
from test_kernels import as_stored, by_output, layers, move_, train_
from torch import Tensor, nn

from planter.arch import Architecture
from planter.costs.macs import cost
from planter.edits.expand import collapse_kernels_, expand_kernels_
from planter.edits.inherit import inherit_weights
from planter.kernels.blocks import expanded_layers
from planter.kernels.filters import is_conv_or_linear, kernel_decay
from planter.kernels.forms import (
    AsymmetricBlock,
    DOConv,
    FeatureFilter,
    KernelFilter,
    TrainingForm,
    form_names,
    form_of,
    forms_of,
)
from planter.networks.assembly import build
from planter.training.recipe import Recipe, make_optimizer

PARAMETRIZED = [KernelFilter(2, 2), DOConv()]
FORMS = [*PARAMETRIZED, AsymmetricBlock(), FeatureFilter(2), FeatureFilter(2, expand_inputs=False)]
each_form = pytest.mark.parametrize("form", FORMS, ids=str)


def small(**more: nn.Module) -> nn.Sequential:
    """Two convolutions that every form takes, and one that stays."""
    parts = OrderedDict(
        first=nn.Conv2d(2, 4, 3, padding=1),
        norm=nn.BatchNorm2d(4),
        relu=nn.ReLU(),
        second=nn.Conv2d(4, 2, 3, padding=1, groups=2, padding_mode="circular"),
        **more,
    )
    return nn.Sequential(parts)


def refused(net: nn.Module, form: TrainingForm, words: str, where=None) -> None:
    """Expanding raises these words and leaves the network as it was."""
    types, state = [type(m) for m in net.modules()], net.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    with pytest.raises(ValueError, match=words):
        expand_kernels_(net, form, where)
    assert [type(m) for m in net.modules()] == types
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


@given(
    st.one_of(
        st.builds(
            "kflo:{}x{:g}".format, st.integers(1, 9), st.integers(4, 256).map(lambda n: n / 4)
        ),
        st.builds("expandnet:{:g}".format, st.integers(4, 256).map(lambda n: n / 4)),
        st.builds("features:{:g}".format, st.integers(4, 256).map(lambda n: n / 4)),
        st.sampled_from(["do-conv", "acnet"]),
    )
)
def test_a_forms_short_name_is_read_back(text: str) -> None:
    assert str(form_of(text)) == text


def test_short_names_name_these_forms() -> None:
    assert form_of("plain") is None
    assert form_of("kflo:3x1.5") == KernelFilter(depth=3, rho=1.5)
    assert form_of("do-conv") == DOConv()
    assert form_of("acnet") == AsymmetricBlock(gamma=1 / 3)
    assert form_of("expandnet:2") == FeatureFilter(rho=2, expand_inputs=True)
    assert form_of("features:2") == FeatureFilter(rho=2, expand_inputs=False)


@pytest.mark.parametrize(
    "form",
    [
        *(None, KernelFilter(2, 4), KernelFilter(3, 4 / 3), KernelFilter(2, 4, wd_scale=2)),
        *(KernelFilter(2, 0.5, low_rank=True), AsymmetricBlock(1.0), FeatureFilter(1.5)),
    ],
    ids=repr,
)
def test_what_is_recorded_of_a_form_is_read_back_as_that_form(form: TrainingForm | None) -> None:
    assert forms_of(form_names(form)) == form
    assert forms_of(form_names({"conv1": form, "head": None})) == {"conv1": form, "head": None}


@pytest.mark.parametrize(
    "text", ["", "kflow:2x4", "KFLO:2x4", "acnet:3", "do-conv:", "plain:1", "None"]
)
def test_unknown_short_names_are_refused_with_the_known(text: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown training form '{text}'; forms are plain, kflo"):
        form_of(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kflo", "expected kflo:BxRHO, e.g. kflo:2x4, got ''"),
        ("kflo:2", "expected kflo:BxRHO, e.g. kflo:2x4, got '2'"),
        ("kflo:2x", "expected kflo:BxRHO, e.g. kflo:2x4, got '2x'"),
        ("kflo:2x3x4", "expected kflo:BxRHO, e.g. kflo:2x4, got '2x3x4'"),
        ("kflo:2xfour", "expected kflo:BxRHO"),
        ("kflo:1.5x2", "must be a whole number >= 1, got 1.5"),
        ("kflo:infx2", "must be a whole number >= 1, got inf"),
        ("kflo:0x2", "depth"),
        ("kflo:2x0.5", "rho must be >= 1"),
        ("kflo:2xnan", "rho must be a number above 0"),
        ("kflo:2xinf", "rho must be a number above 0"),
        ("kflo:2x4,wdscale=2", "has no setting 'wdscale'; its settings are wd_scale, low_rank"),
        ("kflo:2x4,depth=3", "has no setting 'depth'"),
        ("kflo:2x4,", "has no setting ''"),
        ("kflo:2x4,wd_scale=", "expected wd_scale=NUMBER, got ''"),
        ("kflo:2x0.5,low_rank=1", "low_rank is true or false, got '1'"),
        ("acnet,gamma=nan", "gamma must be a finite number"),
        ("do-conv,rho=2", "has no setting 'rho'; it has no settings"),
        ("expandnet", "expected expandnet:RHO, e.g. expandnet:4, got ''"),
        ("expandnet:0.5", "rho must be >= 1"),
        ("features:nan", "rho must be >= 1"),
    ],
)
def test_short_names_with_bad_numbers_are_refused_with_the_reason(text: str, words: str) -> None:
    with pytest.raises(
        ValueError, match=f"cannot read the training form '{text}': .*{re.escape(words)}"
    ):
        form_of(text)


@pytest.mark.parametrize("depth", [0, -1, 1.5, math.nan])
def test_depths_without_a_meaning_are_refused(depth: float) -> None:
    with pytest.raises(ValueError, match=r"depth|NaN"):
        KernelFilter(depth=depth)


@pytest.mark.parametrize("rho", [0.99, 0.0, -1.0, math.nan, math.inf])
def test_ratios_without_a_meaning_are_refused(rho: float) -> None:
    for build_form in (KernelFilter, FeatureFilter):
        with pytest.raises(ValueError, match="rho"):
            build_form(rho=rho)


def test_a_ratio_below_one_needs_low_rank_and_a_scale_is_no_less_than_zero() -> None:
    assert KernelFilter(rho=0.5, low_rank=True).rho == 0.5
    for rho in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="rho"):
            KernelFilter(rho=rho, low_rank=True)
    for scale in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="wd_scale"):
            KernelFilter(wd_scale=scale)


def test_a_whole_depth_written_with_a_point_is_that_depth() -> None:
    form = KernelFilter(depth=2.0, rho=2)
    assert str(form) == "kflo:2x2"
    conv = expand_kernels_(nn.Conv2d(1, 2, 3), form)
    assert len(conv.parametrizations.weight[0].mixing.factors) == 1


@each_form
def test_expanding_twice_is_refused(form: TrainingForm) -> None:
    net = expand_kernels_(small(), form)
    words = r"first.* is already expanded.*collapse_kernels_\(model\) first"
    for again in FORMS:
        refused(net, again, words, lambda module, name: name.startswith("first"))


@each_form
def test_a_lazy_layer_is_refused_by_name_until_it_has_a_shape(form: TrainingForm) -> None:
    net = nn.Sequential(OrderedDict(first=nn.Conv2d(2, 4, 3), lazy=nn.LazyConv2d(3, 3)))
    with pytest.raises(ValueError, match="lazy is a LazyConv2d without a shape yet"):
        expand_kernels_(net, form)
    assert not expanded_layers(net)
    assert list(net.state_dict()) == ["first.weight", "first.bias", "lazy.weight", "lazy.bias"]
    net(torch.zeros(1, 2, 8, 8))
    assert expanded_layers(expand_kernels_(net, form)) == ["first", "lazy"]


class Quantised(nn.Module):
    """As torch.ao's layers, whose weight is a method."""

    def weight(self) -> Tensor:
        return torch.zeros(1)


@each_form
def test_a_quantised_layer_is_refused_by_name(form: TrainingForm) -> None:
    refused(small(int8=Quantised()), form, r"int8 is quantised \(Quantised\)")


def test_layers_that_share_a_parameter_are_refused_with_both_names() -> None:
    net = small(third=nn.Conv2d(2, 4, 3), fourth=nn.Conv2d(2, 4, 3))
    net.fourth.weight = net.third.weight
    for form in FORMS:
        refused(net, form, r"third and fourth share a parameter \(weight\).*leave both out")
    expand_kernels_(net, FORMS[0], where=lambda module, name: name in ("first", "second"))
    assert expanded_layers(net) == ["first", "second"]
    assert net.fourth.weight is net.third.weight


@each_form
def test_a_where_that_accepts_nothing_is_refused(form: TrainingForm) -> None:
    refused(small(), form, "no layer to expand.*where accepted none", lambda module, name: False)
    refused(nn.Sequential(nn.ReLU()), form, "no layer to expand.*has none it is made for")


def test_a_linear_layer_is_refused_by_the_forms_of_convolutions() -> None:
    net = nn.Sequential(OrderedDict(fc=nn.Linear(2, 2)))
    for form in FORMS[1:]:
        refused(net, form, "fc is a Linear: .* is for convolutions", is_conv_or_linear)


def test_a_good_layer_before_a_bad_one_stays_plain() -> None:
    net = small(norm2=nn.BatchNorm2d(2))
    for form in FORMS:
        refused(net, form, "norm2 is a BatchNorm2d", lambda m, name: name in ("first", "norm2"))


def test_a_ratio_that_leaves_a_layer_no_filter_is_refused_by_name() -> None:
    form = KernelFilter(2, 0.2, low_rank=True)
    refused(small(), form, "second has 2 filters: rho 0.2 rounds to none")


@each_form
def test_a_frozen_layer_stays_frozen_or_is_refused(form: TrainingForm) -> None:
    net, x = small().double(), images(4, (2, 5, 5))
    kernel = net.first.requires_grad_(False).weight.detach().clone()
    try:
        expand_kernels_(net, form)
    except ValueError:
        return
    optimizer = make_optimizer(net, Recipe(lr=0.1))
    for _ in range(2):
        net(x).square().mean().backward()
        optimizer.step()
    collapse_kernels_(net)
    assert torch.equal(net.first.weight, kernel)
    assert not net.first.weight.requires_grad


@each_form
def test_an_expanded_network_is_not_grown_and_not_counted(form: TrainingForm) -> None:
    net = expand_kernels_(small(), form)
    with pytest.raises(ValueError, match=r"first of the parent is expanded.*collapse_kernels_"):
        inherit_weights(small(), net)
    with pytest.raises(ValueError, match=r"first of the child is expanded.*collapse_kernels_"):
        inherit_weights(net, small())
    with pytest.raises(ValueError, match=r"^first is expanded; collapse_kernels_\(model\) before"):
        cost(net, (2, 5, 5))
    assert cost(collapse_kernels_(net), (2, 5, 5)) == cost(small(), (2, 5, 5))


@each_form
def test_a_copy_of_an_expanded_network_is_independent(form: TrainingForm) -> None:
    net, x = expand_kernels_(small(), form).double(), images(4, (2, 5, 5))
    twin = copy.deepcopy(net)
    mine = {p.data_ptr() for p in net.parameters()}
    assert not mine & {p.data_ptr() for p in twin.parameters()}
    before, state = net.eval()(x), {k: v.clone() for k, v in net.state_dict().items()}
    train_(twin.train(), x)
    trained = twin.eval()(x)
    torch.testing.assert_close(collapse_kernels_(twin)(x), trained, rtol=0, atol=1e-12)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert torch.equal(net(x), before)
    train_(net.train(), x)
    trained = net.eval()(x)
    torch.testing.assert_close(collapse_kernels_(net)(x), trained, rtol=0, atol=1e-12)
    for model in (net, twin):
        assert [type(m) for m in model.modules()] == [type(m) for m in small().modules()]
        assert set(model.state_dict()) == set(small().state_dict())


@each_form
def test_an_expanded_network_is_not_pickled_but_its_state_is(form: TrainingForm) -> None:
    net, file = expand_kernels_(small(), form), io.BytesIO()
    with pytest.raises(
        RuntimeError, match=r"only supported through state|collapse_kernels_\(model\)"
    ):
        pickle.dumps(net)
    torch.save(net.state_dict(), file)
    file.seek(0)
    other = expand_kernels_(small(), form, seed=1)
    other.load_state_dict(torch.load(file))
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    again = pickle.loads(pickle.dumps(collapse_kernels_(net))).eval()
    x = torch.randn(2, 2, 5, 5)
    assert torch.equal(again(x), net.eval()(x))


@each_form
def test_collapse_keeps_what_the_convolution_was_built_with(form: TrainingForm) -> None:
    net = small()
    shown = repr(net)
    assert "groups=2" in shown
    assert "padding_mode=circular" in shown
    assert repr(collapse_kernels_(expand_kernels_(net, form))) == shown


@each_form
def test_optimiser_state_has_the_names_of_its_parameters(form: TrainingForm) -> None:
    # Collapsing may change the order of names in a layer; state by place would be misplaced.
    net = expand_kernels_(small(), form)
    for model in (net, collapse_kernels_(copy.deepcopy(net))):
        optimizer = make_optimizer(model, Recipe(lr=0.1))
        model(torch.randn(3, 2, 5, 5)).square().mean().backward()
        optimizer.step()
        named, state = dict(model.named_parameters()), optimizer.state_dict()
        found = {
            name: state["state"][place]["momentum_buffer"]
            for group in state["param_groups"]
            for name, place in zip(group["param_names"], group["params"], strict=True)
            if place in state["state"]
        }
        # The norm behind a block of ACNet's has no part in the training.
        assert set(found) == {name for name, p in named.items() if p.grad is not None}
        assert len(found) >= len(named) - 2
        assert all(buffer.shape == named[name].shape for name, buffer in found.items())
        assert all(
            named[name] is p
            for group in optimizer.param_groups
            for name, p in zip(group["param_names"], group["params"], strict=True)
        )


@pytest.mark.parametrize("form", PARAMETRIZED, ids=str)
def test_under_autocast_an_expanded_network_starts_as_the_plain_one(form: TrainingForm) -> None:
    net = flat(flat.widths, image=(3, 8, 8))
    twin, x = expand_kernels_(copy.deepcopy(net), form), images(2).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, expanded = net(x), twin(x)
        assert plain.dtype == torch.bfloat16
        assert torch.equal(expanded, plain)
        assert twin.stages.conv1.conv.weight.dtype == torch.float32
        expanded.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in twin.parameters())
    move_(twin)
    outside = twin.stages.conv2.conv.weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(twin.stages.conv2.conv.weight, outside), "mixed in low precision"
        trained = twin(x)
        assert torch.equal(collapse_kernels_(twin)(x), trained)


@pytest.fixture
def _dynamo() -> Iterator[None]:
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_dynamo")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("form", [*PARAMETRIZED, AsymmetricBlock()], ids=str)
def test_a_compiled_expanded_network_computes_what_the_eager_one_does(
    form: TrainingForm, backend: str
) -> None:
    net = expand_kernels_(small(), form).double()
    move_(net)
    twin, x = copy.deepcopy(net), images(3, (2, 5, 5))
    compiled = torch.compile(twin, fullgraph=True, backend=backend)
    outputs = [model(x) for model in (net, compiled)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-12, atol=1e-12)
    for output in outputs:
        output.sin().sum().backward()
    for (name, one), two in zip(net.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-10, atol=1e-11, msg=name)


def test_each_part_gets_its_own_form() -> None:
    net = flat(flat.widths, image=(3, 8, 8)).double()
    x = images(2)
    before = net(x)
    forms = {"conv1": KernelFilter(3, 2), "conv2": None, "head": KernelFilter(2, 4)}
    assert expand_kernels_(net, forms) is net
    assert expanded_layers(net) == ["stages.conv1.conv", "head.fc1", "head.fc2"]
    conv, linear = net.stages.conv1.conv, net.head.fc2
    assert len(conv.parametrizations.weight[0].mixing.factors) == 2
    assert conv.parametrizations.weight.original.shape == (6, 3, 3, 3)
    assert linear.parametrizations.weight.original.shape == (40, 7)
    assert torch.equal(net(x), before)


def test_parts_are_stages_by_name_or_any_module_by_its_full_name() -> None:
    net = residual(residual.widths)
    forms = {"stages.block1.first": DOConv(), "down": KernelFilter(), "head.fc": KernelFilter()}
    expand_kernels_(net, forms)
    assert expanded_layers(net) == ["stages.block1.first.conv", "stages.down.conv", "head.fc"]


def test_a_part_gives_its_form_the_layers_it_can_take() -> None:
    net = nn.Sequential(
        OrderedDict(a=nn.Sequential(nn.Conv2d(2, 2, 3), nn.Linear(2, 2), Block(2, 2)), ab=small())
    )
    expand_kernels_(net, {"a": AsymmetricBlock()})
    assert expanded_layers(net) == ["a.0", "a.2.first.conv", "a.2.second"]


def test_parts_that_overlap_are_refused_before_anything_is_expanded() -> None:
    net = flat(flat.widths, image=(3, 8, 8))
    with pytest.raises(ValueError, match=r"stages\.conv1\.conv"):
        expand_kernels_(net, {"stages": KernelFilter(), "conv1": DOConv()})
    assert not expanded_layers(net)


def test_forms_by_part_take_no_where() -> None:
    net = flat(flat.widths, image=(3, 8, 8))
    with pytest.raises(ValueError, match="without where="):
        expand_kernels_(net, {"conv1": DOConv()}, where=is_conv_or_linear)
    assert not expanded_layers(net)


def test_stages_inside_pipelines_are_found_by_their_own_names() -> None:
    net = build(
        Architecture(
            "nets:residual", {}, {"classes": 5, "image": (3, 8, 8)}, {"cut1": {"before": "block1"}}
        )
    )
    expand_kernels_(net, {"block1": KernelFilter(), "head": KernelFilter()})
    inside = ["stages.block1.first.conv", "stages.block1.second", "head.fc"]
    assert expanded_layers(net) == [f"backbone.{name}" for name in inside]


def test_an_unknown_part_is_refused_before_anything_is_expanded() -> None:
    net = flat(flat.widths, image=(3, 8, 8))
    with pytest.raises(ValueError, match="no part 'conv9' to expand"):
        expand_kernels_(net, {"conv1": KernelFilter(), "conv9": None})
    assert not expanded_layers(net)


def test_a_part_without_a_layer_for_its_form_is_refused_before_anything_is_expanded() -> None:
    net = flat(flat.widths, image=(3, 8, 8))
    with pytest.raises(ValueError, match="no layer to expand as acnet"):
        expand_kernels_(net, {"conv1": KernelFilter(), "head": AsymmetricBlock()})
    assert not expanded_layers(net)


def do_conv(layer: nn.Module, weight: Tensor, depthwise: Tensor) -> Tensor:
    """W'[o, i, m] = sum_s (D + I)[i, m, s] W[o, i, s]; D counts inputs through the groups."""
    kernel = by_output(layer, weight).flatten(2)
    reads, each = kernel.shape[1], layer.out_channels // layer.groups
    factor = depthwise + torch.eye(kernel.shape[2], dtype=kernel.dtype)
    filters = []
    for output in range(layer.out_channels):
        first = output // each * reads
        filters.append(torch.stack([factor[first + i] @ kernel[output, i] for i in range(reads)]))
    return as_stored(layer, torch.stack(filters).view(layer.out_channels, reads, *weight.shape[2:]))


@settings(max_examples=60)
@given(layers(1))
def test_do_conv_starts_exactly_and_collapses_to_its_formula(
    drawn: tuple[nn.Module, tuple[int, ...]],
) -> None:
    layer, shape = drawn
    kind, names, weight = type(layer), set(layer.state_dict()), layer.weight.detach().clone()
    x = torch.randn(3, *shape, dtype=torch.float64)
    before = layer(x)
    expand_kernels_(layer, DOConv(), where=is_conv_or_linear)
    assert isinstance(layer, kind)
    assert torch.equal(layer.weight, weight)
    assert torch.equal(layer(x), before)
    move_(layer)
    kernel, factor = (
        layer.get_parameter(f"parametrizations.weight.{end}") for end in ("original", "0.depthwise")
    )
    places = weight[0, 0].numel()
    assert factor.shape == (layer.in_channels, places, places)
    expected = do_conv(layer, kernel, factor)
    torch.testing.assert_close(layer.weight, expected, rtol=1e-12, atol=1e-13)
    strength = torch.randn_like(weight)
    mine = torch.autograd.grad((layer.weight * strength).sum(), (kernel, factor))
    theirs = torch.autograd.grad((expected * strength).sum(), (kernel, factor))
    torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)
    train_(layer, x)
    expected, output = do_conv(layer, kernel, factor).detach(), layer(x).detach()
    collapse_kernels_(layer)
    assert type(layer) is kind
    assert set(layer.state_dict()) == names
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=1e-12, atol=1e-13)
    assert torch.equal(layer(x), output)


def test_do_conv_leaves_points_and_linear_layers_and_decays_as_any_layer() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.ConvTranspose2d(4, 2, (1, 3)), nn.Linear(2, 2)
    )
    expand_kernels_(net, DOConv())
    kernels = [
        type(layer) is not kind
        for layer, kind in zip(
            net, (nn.Conv2d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear), strict=True
        )
    ]
    assert kernels == [True, False, True, False]
    assert kernel_decay(net) is None
    (group,) = make_optimizer(net, Recipe(weight_decay=0.02)).param_groups
    assert group["weight_decay"] == 0.02
    assert set(group["param_names"]) == {name for name, _ in net.named_parameters()}
    assert sum(name.endswith("0.depthwise") for name in group["param_names"]) == 2


def test_a_short_name_or_a_class_is_no_form_yet() -> None:
    for wrong in ("kflo:2x4", {"first": "kflo:2x4"}, None, KernelFilter):
        refused(small(), wrong, r"a training form is KernelFilter\(...\).*form_of")


def test_a_plain_part_inside_a_part_stays_plain() -> None:
    net = expand_kernels_(residual(residual.widths), {"stages": KernelFilter(), "stem": None})
    names = expanded_layers(net)
    assert names
    assert not any(name.startswith("stages.stem") for name in names)


@each_form
def test_a_frozen_bias_stays_as_it_is_or_keeps_its_layer_plain(form: TrainingForm) -> None:
    net = small()
    net.first.bias.requires_grad_(False)
    frozen, x = net.first.bias.clone(), torch.randn(4, 2, 5, 5)
    train_(expand_kernels_(net, form), x)
    collapse_kernels_(net)
    assert torch.equal(net.first.bias, frozen)
    assert not net.first.bias.requires_grad
    assert net.second.bias.requires_grad


@each_form
def test_collapse_keeps_the_order_of_weight_and_bias(form: TrainingForm) -> None:
    names = list(small().state_dict())
    assert list(collapse_kernels_(expand_kernels_(small(), form)).state_dict()) == names


def test_a_users_own_entries_are_no_pipelines():
    """An asymmetric block is refused for pipelines, not for any module with such a name."""

    class Own(nn.Sequential):
        entries = 4

    network = Own(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
    expand_kernels_(network, AsymmetricBlock())
    assert expanded_layers(network)
