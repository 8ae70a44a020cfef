from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import depthwise, fill_, flat, images, residual
from torch import Tensor, nn
from torch.nn import functional

from planter.filters import kernel_decay
from planter.forms import KernelFilter
from planter.kernels import collapse_kernels_, expand_kernels_
from planter.recipe import Recipe, make_optimizer

KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A layer in float64 and the shape of one input, large enough for kernel and padding."""
    axes, bias = draw(st.integers(0, 3)), draw(st.booleans())
    seed = draw(st.integers(0, 2**16))
    groups = draw(st.integers(1, 3)) if axes else 1
    inputs, outputs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if not axes:
            return nn.Linear(inputs, outputs, bias=bias).double(), (inputs,)
        layer = KINDS[axes - 1](
            inputs,
            outputs,
            tuple(draw(st.integers(1, 3)) for _ in range(axes)),
            draw(st.integers(1, 2)),
            draw(st.integers(0, 2)),
            draw(st.integers(1, 2)),
            groups,
            bias,
            draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
        )
    return layer.double(), (inputs, *[5] * axes)  # 5 = dilated kernel of 3; padding stays below it


FORMS = st.builds(KernelFilter, depth=st.integers(2, 3), rho=st.floats(1, 4))


def factors(layer: nn.Module) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The banks W_1 and b_1, and W_2 ... W_B in this order, by their names."""
    named = dict(layer.named_parameters())
    banks = {
        leaf: named.pop(f"parametrizations.{leaf}.original")
        for leaf in ("weight", "bias")
        if f"parametrizations.{leaf}.original" in named
    }
    return banks, [named[name] for name in sorted(named)]


def product(bank: Tensor, mixing: list[Tensor]) -> Tensor:
    """W_B ... W_2 W_1, one factor after the other from the right, filter by filter."""
    for factor in mixing:
        bank = torch.einsum("or,r...->o...", factor, bank)
    return bank


def plain(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer's function with other tensors, through torch's functional form."""
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight, bias)
    return layer._conv_forward(x, weight, bias)


@given(layers(), FORMS, st.integers(0, 9))
def test_expanding_does_not_change_the_function(
    drawn: tuple[nn.Module, tuple[int, ...]], form: KernelFilter, seed: int
) -> None:
    layer, shape = drawn
    x, kind = torch.randn(2, *shape, dtype=torch.float64), type(layer)
    weight, bias, before = layer.weight.detach().clone(), layer.bias, layer(x)
    bias = None if bias is None else bias.detach().clone()
    expand_kernels_(layer, form, seed=seed)
    # Exact: the mixing starts as ones and zeros.
    assert torch.equal(layer.weight, weight)
    assert bias is None or torch.equal(layer.bias, bias)
    assert torch.equal(layer(x), before)
    assert isinstance(layer, kind)


@given(layers(), FORMS)
def test_factors_have_the_papers_shapes(
    drawn: tuple[nn.Module, tuple[int, ...]], form: KernelFilter
) -> None:
    layer, _ = drawn
    shape, out = layer.weight.shape, len(layer.weight)
    expand_kernels_(layer, form)
    banks, mixing = factors(layer)
    filters = round(form.rho * out)
    assert banks["weight"].shape == (filters, *shape[1:])
    assert layer.bias is None or banks["bias"].shape == (filters,)
    rows = [filters] * (form.depth - 2) + [out]
    assert [tuple(m.shape) for m in mixing] == [(n, filters) for n in rows]


@settings(max_examples=60)
@given(layers(), FORMS)
def test_collapse_is_the_product_of_the_trained_factors(
    drawn: tuple[nn.Module, tuple[int, ...]], form: KernelFilter
) -> None:
    layer, shape = drawn
    names, kind = set(layer.state_dict()), type(layer)
    x = torch.randn(3, *shape, dtype=torch.float64)
    target = torch.randn_like(layer(x))
    expand_kernels_(layer, form)
    start = [p.detach().clone() for p in layer.parameters()]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05, momentum=0.9)
    for _ in range(4):
        optimizer.zero_grad()
        (layer(x) - target).square().mean().backward()
        optimizer.step()
    assert not all(torch.equal(a, b) for a, b in zip(start, layer.parameters(), strict=True))
    banks, mixing = factors(layer)
    weight = product(banks["weight"].detach(), mixing).detach()
    bias = product(banks["bias"].detach(), mixing).detach() if "bias" in banks else None
    output = layer(x).detach()
    collapse_kernels_(layer)
    assert set(layer.state_dict()) == names
    assert type(layer) is kind
    # float64: sums of at most a few dozen terms of size 1 in another order.
    torch.testing.assert_close(layer.weight, weight, rtol=1e-12, atol=1e-13)
    if bias is not None:
        torch.testing.assert_close(layer.bias, bias, rtol=1e-12, atol=1e-13)
    assert torch.equal(layer(x), output), "the collapsed layer is not the trained one"
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in layer.parameters())


@settings(max_examples=60)
@given(layers(), FORMS)
def test_gradients_are_those_of_the_explicit_product(
    drawn: tuple[nn.Module, tuple[int, ...]], form: KernelFilter
) -> None:
    layer, shape = drawn
    x = torch.randn(2, *shape, dtype=torch.float64)
    expand_kernels_(layer, form)
    with torch.no_grad():  # away from the start, where most mixing weights are zero
        for p in layer.parameters():
            p.add_(torch.randn_like(p), alpha=0.3)
    layer(x).sin().sum().backward()
    banks, mixing = factors(layer)
    own = [t.detach().clone().requires_grad_() for t in (*banks.values(), *mixing)]
    free = dict(zip(banks, own, strict=False))
    mixed = own[len(banks) :]
    weight = product(free["weight"], mixed)
    bias = product(free["bias"], mixed) if "bias" in free else None
    plain(layer, x, weight, bias).sin().sum().backward()
    for mine, theirs in zip((*banks.values(), *mixing), own, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-11)


@given(layers(), FORMS, st.floats(1e-4, 1))
def test_kernel_decay_is_half_the_square_and_pulls_with_the_kernel_itself(
    drawn: tuple[nn.Module, tuple[int, ...]], form: KernelFilter, strength: float
) -> None:
    layer, _ = drawn
    expand_kernels_(layer, form)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(torch.randn_like(p), alpha=0.3)
    banks, mixing = factors(layer)
    kernel = product(banks["weight"].detach(), mixing).detach()
    decay = kernel_decay(layer)
    expected = sum(float(value) ** 2 for value in kernel.flatten()) / 2
    assert float(decay.detach()) == pytest.approx(expected, rel=1e-12)
    # lambda * W' arrives at W', so the factors get what the chain rule makes of it; b' none.
    (strength * decay).backward()
    own = [t.detach().clone().requires_grad_() for t in (banks["weight"], *mixing)]
    product(own[0], own[1:]).backward(strength * kernel)
    for mine, theirs in zip((banks["weight"], *mixing), own, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-12)
    if "bias" in banks:
        assert banks["bias"].grad is None


def test_kernel_decay_sums_over_expanded_layers_only() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Conv2d(1, 2, 1), nn.Linear(3, 2)).double()
    assert kernel_decay(net) is None
    expand_kernels_(net, KernelFilter(), where=lambda module, name: name in ("0", "1"))
    expected = sum(float(net[i].weight.detach().square().sum()) for i in (0, 1)) / 2
    assert float(kernel_decay(net).detach()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("builder", [residual, depthwise, flat])
@pytest.mark.parametrize("form", [KernelFilter(2, 4), KernelFilter(3, 1.5)])
def test_a_network_keeps_function_names_and_types_through_expansion(builder, form) -> None:
    net = fill_(builder(builder.widths, image=(3, 8, 8))).double().eval()
    x = images(3)
    before, state, types = net(x), net.state_dict(), [type(m) for m in net.modules()]
    expand_kernels_(net, form)
    assert torch.equal(net(x), before)
    collapse_kernels_(net)
    after = net.state_dict()
    assert set(after) == set(state)
    assert all(torch.equal(after[name], state[name]) for name in state)
    assert [type(m) for m in net.modules()] == types


def test_bank_is_drawn_from_the_seed_within_torchs_default_bound() -> None:
    def bank(seed: int) -> Tensor:
        conv = nn.Conv2d(8, 16, 3)
        with torch.no_grad():
            conv.weight.zero_()
        torch.manual_seed(1)
        expand_kernels_(conv, KernelFilter(rho=4), seed=seed)
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(1)))
        return factors(conv)[0]["weight"].detach()

    first = bank(3)
    assert torch.equal(first, bank(3))
    assert not torch.equal(first, bank(4))
    drawn = first[16:]
    bound = (8 * 3 * 3) ** -0.5  # uniform over +-1/sqrt(fan in)
    assert float(drawn.abs().max()) <= bound
    # 3456 draws: the deviation of a uniform's standard deviation is about 0.8 %; 5 of those.
    assert float(drawn.std()) == pytest.approx(bound / 3**0.5, rel=0.04)


def test_depth_one_is_the_plain_network() -> None:
    net = flat(flat.widths, image=(3, 8, 8))
    names = list(net.state_dict())
    assert list(expand_kernels_(net, KernelFilter(depth=1)).state_dict()) == names


def test_layers_that_are_not_asked_for_stay_plain() -> None:
    net = flat(flat.widths, image=(3, 8, 8))
    expand_kernels_(net, KernelFilter(), where=lambda module, name: name.endswith("conv"))
    assert type(net.head.fc1) is nn.Linear
    assert type(net.stages.conv1.conv) is not nn.Conv2d


def test_collapsing_one_of_two_copies_leaves_the_other_whole() -> None:
    net = expand_kernels_(flat(flat.widths, image=(3, 8, 8)).double(), KernelFilter())
    twin, x = copy.deepcopy(net), images(2)
    before = net(x)
    assert torch.equal(collapse_kernels_(twin)(x), before)
    assert torch.equal(net(x), before)
    assert torch.equal(collapse_kernels_(net)(x), before)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_decay_is_none_on_banks_tiny_on_mixing_and_the_recipes_elsewhere(kind: str) -> None:
    net = residual(residual.widths)
    expand_kernels_(net, KernelFilter(depth=3), where=lambda m, name: isinstance(m, nn.Conv2d))
    recipe = Recipe(optimizer=kind, weight_decay=0.02, lr=0.01)
    decay = {
        name: group["weight_decay"]
        for group in make_optimizer(net, recipe).param_groups
        for name in group["param_names"]
    }
    convs = sum(isinstance(m, nn.Conv2d) for m in net.modules())
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert set(decay) == {name for name, _ in net.named_parameters()}
    assert all(decay[name] == 0 for name in decay if name.endswith(".original"))
    assert all(decay[name] == 1e-9 for name in decay if ".factors." in name)
    # A bank and two matrices for each convolution; two per norm and two of the linear layer.
    assert Counter(decay.values()) == {0.0: convs, 1e-9: 2 * convs, 0.02: 2 * norms + 2}


def test_frozen_parameters_are_not_optimised_and_none_at_all_is_an_error() -> None:
    net = flat(flat.widths, image=(3, 8, 8))
    net.stages.requires_grad_(False)
    groups = make_optimizer(net, Recipe()).param_groups
    names = [name for group in groups for name in group["param_names"]]
    assert names == ["head.fc1.weight", "head.fc1.bias", "head.fc2.weight", "head.fc2.bias"]
    with pytest.raises(ValueError, match="no trainable parameter"):
        make_optimizer(net.requires_grad_(False), Recipe())


def test_expanding_twice_is_refused() -> None:
    net = expand_kernels_(flat(flat.widths, image=(3, 8, 8)), KernelFilter())
    with pytest.raises(ValueError, match=r"stages.conv1.conv .*collapse_kernels_\(model\) first"):
        expand_kernels_(net, KernelFilter())


def test_other_layers_cannot_be_expanded() -> None:
    with pytest.raises(ValueError, match="1 is a BatchNorm2d: only Conv1d/2d/3d, transposed or not, and Linear"):
        expand_kernels_(
            nn.Sequential(nn.ReLU(), nn.BatchNorm2d(2)),
            KernelFilter(),
            where=lambda module, name: name == "1",
        )


def test_settings_without_a_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match="depth"):
        KernelFilter(depth=0)
    with pytest.raises(ValueError, match="rho"):
        KernelFilter(rho=0.99)
