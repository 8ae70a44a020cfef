from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import fill_, images
from torch import nn

from planter.arch import Architecture
from planter.backbones import build_backbone, full_widths
from planter.edits.inherit import inherit_optimizer_state_, inherit_weights, optimizer_state

SMALL_VGG = dict(zip(full_widths("vgg16"), (3, 3, 4, 4, 5, 5, 5, 6, 6, 6, 6, 6, 6), strict=True))
NETWORKS: dict[str, tuple[Mapping[str, int], tuple[int, int, int]]] = {
    "convnet": (full_widths("convnet", {f"conv{i}": 4 for i in range(1, 6)}), (3, 8, 8)),
    "vgg16": (SMALL_VGG, (3, 32, 32)),
    "nets:residual": (full_widths("nets:residual"), (3, 8, 8)),
    "nets:depthwise": (full_widths("nets:depthwise"), (3, 8, 8)),
    "nets:flat": (full_widths("nets:flat"), (3, 7, 9)),
    "nets:flat_norm": (full_widths("nets:flat_norm"), (3, 7, 9)),
}


def built(arch: Architecture, seed: int) -> nn.Module:
    return fill_(build_backbone(arch, seed), seed).double()


def architecture(name: str) -> Architecture:
    widths, image = NETWORKS[name]
    return Architecture(name, widths, {"classes": 5, "image": image})


def same_function(parent: nn.Module, child: nn.Module, image: tuple[int, int, int]) -> None:
    x = images(6, image)
    for training in (False, True):
        with torch.no_grad():
            before, after = parent.train(training)(x), child.train(training)(x)
        assert float(before.std()) > 1e-3, "a constant output would hide everything"
        # The child adds exact zeros, perhaps in another order of summation; values are about 1.
        torch.testing.assert_close(after, before, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "layer"), [(n, w) for n in NETWORKS for w in NETWORKS[n][0]])
def test_widening_keeps_the_function(name: str, layer: str) -> None:
    arch = architecture(name)
    parent, child = built(arch, 1), built(arch.widen(layer, 3), 2)
    found = inherit_weights(child, parent)
    assert found == ([], [])
    same_function(parent, child, NETWORKS[name][1])


@settings(max_examples=25)
@given(st.sampled_from(sorted(set(NETWORKS) - {"vgg16"})), st.integers(0, 99), st.data())
def test_widening_several_layers_by_any_amount_keeps_the_function(
    name: str, seed: int, data: st.DataObject
) -> None:
    _, image = NETWORKS[name]
    arch = architecture(name)
    for layer in arch.widths:
        arch = arch.widen(layer, data.draw(st.integers(0, 3)))
    wider = arch
    for layer in arch.widths:
        wider = wider.widen(layer, data.draw(st.integers(0, 4)))
    parent, child = built(arch, seed), built(wider, seed + 1)
    inherit_weights(child, parent)
    same_function(parent, child, image)


@settings(max_examples=25)
@given(st.sampled_from(sorted(set(NETWORKS) - {"vgg16"})), st.booleans(), st.data())
def test_growing_then_shrinking_returns_the_parent_bit_for_bit(
    name: str, zero: bool, data: st.DataObject
) -> None:
    arch = wider = architecture(name)
    for layer in arch.widths:
        wider = wider.widen(layer, data.draw(st.integers(0, 4)))
    parent, child, again = built(arch, 1), built(wider, 2), built(arch, 3)
    inherit_weights(child, parent, "zero" if zero else "random")
    inherit_weights(again, child)
    back = again.state_dict()
    for key, tensor in parent.state_dict().items():
        assert torch.equal(back[key], tensor), key


@pytest.mark.parametrize("outgoing", ["zero", "random"])
def test_every_entry_is_inherited_zero_or_fresh(outgoing: str) -> None:
    parent = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 1)).double()
    child = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1)).double()
    fresh = {name: tensor.clone() for name, tensor in child.state_dict().items()}
    inherit_weights(child, parent, outgoing)
    for o in range(4):
        source = parent[0] if o < 2 else None
        expected = source.weight[o] if source else fresh["0.weight"][o]
        assert torch.equal(child[0].weight[o], expected)
        assert child[0].bias[o] == (source.bias[o] if source else fresh["0.bias"][o])
    for o in range(3):
        for i in range(4):
            new = torch.zeros(1, 1).double() if outgoing == "zero" else fresh["2.weight"][o, i]
            expected = parent[2].weight[o, i] if i < 2 else new
            assert torch.equal(child[2].weight[o, i], expected)
    assert torch.equal(child[2].bias, parent[2].bias)


def test_what_the_child_inherits_is_its_own() -> None:
    arch = architecture("nets:flat")
    parent, child = built(arch, 1), built(arch, 2)
    inherit_weights(child, parent)
    before = parent.stages.conv1.conv.weight.detach().clone()
    with torch.no_grad():
        child.stages.conv1.conv.weight.add_(1)
    assert torch.equal(parent.stages.conv1.conv.weight, before)


def test_names_without_a_partner_are_listed_on_both_sides() -> None:
    parent = nn.ModuleDict({"a": nn.Linear(2, 2), "old": nn.BatchNorm1d(2, affine=False)})
    child = nn.ModuleDict({"a": nn.Linear(2, 2), "new": nn.Linear(2, 2, bias=False)})
    found = inherit_weights(child, parent)
    assert found.fresh == ["new.weight"]
    assert found.dropped == ["old.num_batches_tracked", "old.running_mean", "old.running_var"]


def test_a_name_whose_tensor_has_other_axes_is_listed_too() -> None:
    parent, child = nn.ModuleDict({"a": nn.Linear(2, 2)}), nn.ModuleDict({"a": nn.Conv2d(2, 2, 1)})
    fresh = child["a"].weight.detach().clone()
    found = inherit_weights(child, parent)
    assert torch.equal(child["a"].weight, fresh)
    assert found == (["a.weight"], ["a.weight"])


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda net: torch.optim.SGD(net.named_parameters(), lr=0.1, momentum=0.9),
    "nesterov": lambda net: torch.optim.SGD(
        net.named_parameters(), lr=0.1, momentum=0.9, nesterov=True, fused=True
    ),
    "adam": lambda net: torch.optim.Adam(net.named_parameters(), lr=0.01, fused=True),
    "adamw": lambda net: torch.optim.AdamW(net.named_parameters(), lr=0.01, weight_decay=0.1),
}
MOMENTS = {
    "sgd": {"momentum_buffer"},
    "nesterov": {"momentum_buffer"},
    "adam": {"exp_avg", "exp_avg_sq"},
    "adamw": {"exp_avg", "exp_avg_sq"},
}


def step(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    labels = torch.arange(6) % 5
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(images(6, (3, 8, 8), seed)), labels).backward()
    optimizer.step()


def grown_pair(kind: str) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
    """A residual network trained for three steps, a wider one and the narrow one's optimiser."""
    arch = architecture("nets:residual")
    wider = arch
    for layer, more in zip(arch.widths, (0, 2, 3, 1, 2), strict=False):
        wider = wider.widen(layer, more)
    parent, child = built(arch, 1), built(wider, 2)
    optimizer = OPTIMIZERS[kind](parent)
    for seed in range(3):
        step(parent, optimizer, seed)
    inherit_weights(child, parent)
    return parent, child, optimizer


def leading(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return tensor[tuple(map(slice, shape))]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_grown_networks_optimiser_knows_what_the_narrower_ones_did_and_nothing_else(
    kind: str, tmp_path: Path
) -> None:
    parent, child, optimizer = grown_pair(kind)
    before = {name: dict(optimizer.state[p]) for name, p in parent.named_parameters()}
    learned = optimizer_state(optimizer)
    assert set(learned) == set(before)
    torch.save(learned, tmp_path / "state.pt")  # as a run keeps it
    learned = torch.load(tmp_path / "state.pt", weights_only=True)
    fresh = OPTIMIZERS[kind](child)
    inherit_optimizer_state_(fresh, learned)
    wider = 0
    for name, parameter in child.named_parameters():
        state = fresh.state[parameter]
        assert set(state) == MOMENTS[kind] | ({"step"} if "adam" in kind else set())
        for key in MOMENTS[kind]:
            old = before[name][key]
            expected = torch.zeros_like(parameter)
            leading(expected, old.shape).copy_(old)
            assert torch.equal(state[key], expected), (name, key)
            wider += parameter.shape != old.shape
        if "adam" in kind:
            assert float(state["step"]) == 3
    assert wider
    # It is the new optimiser's own: a step of one leaves the other's moments.
    kept = {name: {k: v.clone() for k, v in state.items()} for name, state in before.items()}
    step(child, fresh, 9)
    for name, parameter in parent.named_parameters():
        for key, value in kept[name].items():
            assert torch.equal(optimizer.state[parameter][key], value), (name, key)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_next_step_moves_each_weight_as_its_formula_says(kind: str) -> None:
    """Momentum, and Adam's moments with the bias correction of the fourth step, in plain torch."""
    _, child, optimizer = grown_pair(kind)
    learned = {
        name: {key: value.clone() for key, value in state.items()}
        for name, state in optimizer_state(optimizer).items()
    }
    fresh = OPTIMIZERS[kind](child)
    inherit_optimizer_state_(fresh, learned)
    before = {name: p.detach().clone() for name, p in child.named_parameters()}
    step(child, fresh, 9)
    for name, parameter in child.named_parameters():
        gradient = parameter.grad
        assert gradient is not None
        old = {}
        for key in MOMENTS[kind]:
            old[key] = torch.zeros_like(parameter)
            leading(old[key], learned[name][key].shape).copy_(learned[name][key])
        expected = before[name]
        if "adam" in kind:
            if kind == "adamw":
                expected = expected * (1 - 0.01 * 0.1)
            first = 0.9 * old["exp_avg"] + 0.1 * gradient
            second = 0.999 * old["exp_avg_sq"] + 0.001 * gradient**2
            root = (second / (1 - 0.999**4)).sqrt() + 1e-8
            expected = expected - 0.01 * first / (1 - 0.9**4) / root
        else:
            buffer = 0.9 * old["momentum_buffer"] + gradient
            moved = gradient + 0.9 * buffer if kind == "nesterov" else buffer
            expected = expected - 0.1 * moved
        # float64: the order of a few products and sums.
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_what_nobody_knows_of_starts_as_torch_starts_it(kind: str) -> None:
    """State of other names is not taken over."""
    _, _, optimizer = grown_pair(kind)
    learned = {f"{name}.elsewhere": state for name, state in optimizer_state(optimizer).items()}
    ours, plain = built(architecture("nets:residual"), 2), built(architecture("nets:residual"), 2)
    mine, torchs = OPTIMIZERS[kind](ours), OPTIMIZERS[kind](plain)
    inherit_optimizer_state_(mine, learned)
    for net, one in ((ours, mine), (plain, torchs)):
        step(net, one, 4)
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
