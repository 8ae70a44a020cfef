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

from planter.edits.expand import collapse_kernels_, expand_kernels_
from planter.kernels.filters import kernel_decay
from planter.kernels.forms import KernelFilter
from planter.training.recipe import Recipe, make_optimizer

KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
MODES = ("zeros", "reflect", "replicate", "circular")


@st.composite
def layers(
    draw: st.DrawFn, least: int = 0, most: int = 3, *, transposed: bool | None = None
) -> tuple[nn.Module, tuple[int, ...]]:
    """A layer of `least` (0: linear) to `most` axes in float64 and the shape of one input, large
    enough for kernel and padding."""
    axes, bias = draw(st.integers(least, most)), draw(st.booleans())
    seed = draw(st.integers(0, 2**16))
    groups = draw(st.integers(1, 3)) if axes else 1
    # One input and one output each group is a depthwise convolution.
    inputs, outputs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    stride, dilation = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    padding: int | str = draw(st.integers(0, 2))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if not axes:
            layer = nn.Linear(inputs, outputs, bias=bias)
        elif draw(st.booleans()) if transposed is None else transposed:
            more = draw(st.integers(0, max(stride, dilation) - 1))
            layer = TRANSPOSED[axes - 1](
                inputs, outputs, kernel, stride, padding, more, groups, bias, dilation
            )
        else:
            # torch warns of its own copy where the padding cannot be even.
            if stride == 1 and all(k % 2 for k in kernel) and draw(st.booleans()):
                padding = "same"
            mode = draw(st.sampled_from(MODES))
            layer = KINDS[axes - 1](
                inputs, outputs, kernel, stride, padding, dilation, groups, bias, mode
            )
    return layer.double(), (inputs, *[5] * axes)  # 5 = dilated kernel of 3; padding stays below it


FORMS = st.builds(KernelFilter, depth=st.integers(2, 3), rho=st.floats(1, 4))
LOW_RANK = st.builds(
    KernelFilter, depth=st.integers(2, 3), rho=st.floats(0.5, 0.99), low_rank=st.just(True)
)


def outputs(layer: nn.Module) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def by_output(layer: nn.Module, weight: Tensor) -> Tensor:
    """The filter of each output, `[out, in / groups, ...]`, one after the other."""
    if not isinstance(layer, TRANSPOSED):
        return weight
    each, reads = weight.shape[1], layer.in_channels // layer.groups
    filters = []
    for output in range(layer.out_channels):
        group, place = divmod(output, each)
        filters.append(weight[group * reads : (group + 1) * reads, place])
    return torch.stack(filters)


def as_stored(layer: nn.Module, filters: Tensor) -> Tensor:
    """The layer's weight made of the filter of each output."""
    if not isinstance(layer, TRANSPOSED):
        return filters
    each, reads = layer.out_channels // layer.groups, layer.in_channels // layer.groups
    rows = []
    for source in range(layer.in_channels):
        group, place = divmod(source, reads)
        rows.append(filters[group * each : (group + 1) * each, place])
    return torch.stack(rows)


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
    if isinstance(layer, TRANSPOSED):
        axes = len(layer.kernel_size)
        function = getattr(functional, f"conv_transpose{axes}d")
        places = (layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)
        return function(x, weight, bias, *places)
    return layer._conv_forward(x, weight, bias)


def train_(layer: nn.Module, x: Tensor, steps: int = 4) -> None:
    """Some steps of momentum towards a random target."""
    start = [p.detach().clone() for p in layer.parameters()]
    target = torch.randn_like(layer(x))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        (layer(x) - target).square().mean().backward()
        optimizer.step()
    assert not all(torch.equal(a, b) for a, b in zip(start, layer.parameters(), strict=True))


def move_(model: nn.Module) -> None:
    """Away from the start, where most mixing weights are zero."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.3)


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


@given(layers(), LOW_RANK)
def test_a_bank_smaller_than_the_layer_keeps_its_first_filters_and_bounds_the_rank(
    drawn: tuple[nn.Module, tuple[int, ...]], form: KernelFilter
) -> None:
    layer, shape = drawn
    filters = round(form.rho * outputs(layer))
    x, before = torch.randn(2, *shape, dtype=torch.float64), by_output(layer, layer.weight).detach()
    bias = None if layer.bias is None else layer.bias.detach().clone()
    if not filters:
        with pytest.raises(ValueError, match=r"the model itself has 1 filters: rho .* to none"):
            expand_kernels_(layer, form)
        return
    expand_kernels_(layer, form)
    after = by_output(layer, layer.weight).detach()
    assert torch.equal(after[:filters], before[:filters])
    assert not after[filters:].any()
    assert bias is None or torch.equal(layer.bias[:filters], bias[:filters])
    assert bias is None or not layer.bias[filters:].any()
    move_(layer)
    whole = by_output(layer, layer.weight).detach().flatten(1)
    assert int(torch.linalg.matrix_rank(whole)) <= filters
    output = layer(x)
    assert torch.equal(collapse_kernels_(layer)(x), output)


@given(layers(1), FORMS)
def test_an_ungrouped_kernel_is_mixed_as_its_features_would_be(
    drawn: tuple[nn.Module, tuple[int, ...]], form: KernelFilter
) -> None:
    # facts.md 3.1: W' * X = W_B ... W_2 (W_1 * X) where there is one group.
    layer, shape = drawn
    if layer.groups > 1:
        return
    expand_kernels_(layer, form)
    move_(layer)
    x = torch.randn(2, *shape, dtype=torch.float64)
    banks, mixing = factors(layer)
    bank = banks["weight"].transpose(0, 1) if isinstance(layer, TRANSPOSED) else banks["weight"]
    features = plain(layer, x, bank, banks.get("bias"))
    mixed = product(features.transpose(0, 1), mixing).transpose(0, 1)
    torch.testing.assert_close(layer(x), mixed, rtol=1e-10, atol=1e-11)


@given(layers(), FORMS)
def test_factors_have_the_papers_shapes(
    drawn: tuple[nn.Module, tuple[int, ...]], form: KernelFilter
) -> None:
    layer, _ = drawn
    shape, out = by_output(layer, layer.weight).shape, outputs(layer)
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
    expand_kernels_(layer, form)
    train_(layer, x)
    banks, mixing = factors(layer)
    weight = as_stored(layer, product(banks["weight"], mixing)).detach()
    bias = product(banks["bias"], mixing).detach() if "bias" in banks else None
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
    move_(layer)
    layer(x).sin().sum().backward()
    banks, mixing = factors(layer)
    own = [t.detach().clone().requires_grad_() for t in (*banks.values(), *mixing)]
    free = dict(zip(banks, own, strict=False))
    mixed = own[len(banks) :]
    weight = as_stored(layer, product(free["weight"], mixed))
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
    move_(layer)
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


@settings(max_examples=40)
@given(layers(2, 2), FORMS)
def test_a_bank_in_channels_last_makes_the_same_kernel(
    drawn: tuple[nn.Module, tuple[int, ...]], form: KernelFilter
) -> None:
    layer, shape = drawn
    expand_kernels_(layer, form)
    move_(layer)
    twin = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    x = torch.randn(2, *shape, dtype=torch.float64)
    bank = factors(twin)[0]["weight"]
    assert bank.is_contiguous(memory_format=torch.channels_last)
    for model in (layer, twin):
        model(x).sin().sum().backward()
    # float64: the same sums, perhaps in another order.
    torch.testing.assert_close(twin.weight, layer.weight, rtol=1e-12, atol=1e-13)
    for one, other in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-10, atol=1e-11)
    output = twin(x)
    assert torch.equal(collapse_kernels_(twin)(x), output)


def test_kernel_decay_with_a_scale_of_two_is_the_released_codes() -> None:
    nets = [
        expand_kernels_(nn.Conv2d(2, 3, 3).double(), KernelFilter(wd_scale=scale), seed=3)
        for scale in (1.0, 2.0)
    ]
    nets[1].load_state_dict(nets[0].state_dict())
    once, twice = (float(kernel_decay(net).detach()) for net in nets)
    assert twice == 2 * once > 0


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


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(2, 3, 3), nn.ConvTranspose1d(2, 3, 2), nn.Linear(2, 3)]
)
def test_a_ratio_of_one_draws_nothing_and_warns_of_nothing(layer: nn.Module) -> None:
    # torch warns of drawing zero filters; warnings are errors here.
    weight = by_output(layer, layer.weight).detach().clone()
    banks, _ = factors(expand_kernels_(layer, KernelFilter(rho=1)))
    assert torch.equal(banks["weight"], weight)


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


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("rho", [1, 2])
def test_steps_are_those_of_hand_written_decay_of_the_generated_kernel(kind: str, rho: int) -> None:
    lr, strength, momentum = 0.5, 0.05, 0.9
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).double()
    expand_kernels_(net, KernelFilter(rho=rho), where=lambda module, name: name == "0")
    move_(net)
    x = images(5, (2, 4, 4))
    own = {name: p.detach().clone() for name, p in net.named_parameters()}
    bank, bank_bias, mixing = (
        next(name for name in own if name.endswith(end))
        for end in ("weight.original", "bias.original", "factors.0")
    )
    decay = {bank: 0.0, bank_bias: 0.0, mixing: 1e-9, "3.weight": strength, "3.bias": strength}
    moments: dict[str, list[Tensor | float]] = {name: [0.0, 0.0] for name in own}
    recipe = Recipe(optimizer=kind, lr=lr, momentum=momentum, weight_decay=strength)
    optimizer = make_optimizer(net, recipe)
    for step in range(1, 4):
        optimizer.zero_grad()
        (net(x).square().mean() + strength * kernel_decay(net)).backward()
        optimizer.step()

        free = {name: p.clone().requires_grad_() for name, p in own.items()}
        kernel = torch.einsum("or,rikl->oikl", free[mixing], free[bank])
        hidden = functional.conv2d(x, kernel, free[mixing] @ free[bank_bias]).relu().flatten(1)
        output = functional.linear(hidden, free["3.weight"], free["3.bias"])
        (output.square().mean() + strength / 2 * kernel.square().sum()).backward()
        for name, p in own.items():
            gradient = free[name].grad
            first, second = moments[name]
            if kind == "sgd":
                first = momentum * first + gradient + decay[name] * p
                own[name] = p - lr * first
            else:
                first = 0.9 * first + 0.1 * gradient
                second = 0.999 * second + 0.001 * gradient**2
                spread = (second / (1 - 0.999**step)).sqrt() + 1e-8
                own[name] = p - lr * decay[name] * p - lr * first / (1 - 0.9**step) / spread
            moments[name] = [first, second]
    for name, p in net.named_parameters():
        # Tight enough to see the decay of 1e-9: it moves the mixing by some 1e-9.
        torch.testing.assert_close(p.detach(), own[name], rtol=1e-11, atol=1e-11, msg=name)


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
    with pytest.raises(
        ValueError, match="1 is a BatchNorm2d: only Conv1d/2d/3d, transposed or not, and Linear"
    ):
        expand_kernels_(
            nn.Sequential(nn.ReLU(), nn.BatchNorm2d(2)),
            KernelFilter(),
            where=lambda module, name: name == "1",
        )
