from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from nets import fill_, images
from torch import nn
from torch.nn import functional

from planter.arch import Architecture
from planter.backbones import build_backbone
from planter.edits.freeze import freeze_inherited_, thaw_
from planter.edits.inherit import inherit_weights

Optimiser = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OPTIMISERS: dict[str, Optimiser] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.05),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.05),
}
BUILDERS = ["nets:residual", "nets:depthwise", "nets:flat", "nets:flat_norm"]
LAYERS = [
    ("nets:residual", "stem"),
    ("nets:residual", "inner1"),
    ("nets:residual", "down"),
    ("nets:depthwise", "stem"),
    ("nets:depthwise", "point"),
    ("nets:flat", "conv1"),
    ("nets:flat", "conv2"),
    ("nets:flat", "fc1"),
    ("nets:flat_norm", "conv2"),
    ("nets:flat_norm", "fc1"),
]


def family(
    builder: str, layer: str, outgoing: str = "zero", channels: int = 2
) -> tuple[nn.Module, nn.Module]:
    """A parent with random norms, and its child with `channels` more in `layer`."""
    arch = Architecture(builder, {}, {"classes": 5, "image": (3, 8, 8)})
    full = Architecture(builder, build_widths(builder), arch.options)
    parent = fill_(build_backbone(full, seed=1)).double()
    child = build_backbone(full.widen(layer, channels), seed=2).double()
    inherit_weights(child, parent, outgoing)
    return parent, child


def build_widths(builder: str) -> dict[str, int]:
    import nets

    return getattr(nets, builder.partition(":")[2]).widths


def inherited_bits(parent: nn.Module, child: nn.Module) -> dict[str, bool]:
    """By name: whether the leading block of the child's tensor is the parent's, bit for bit."""
    after = child.state_dict()
    found = {}
    for name, old in parent.state_dict().items():
        block = after[name]
        for axis, size in enumerate(old.shape):
            block = block.narrow(axis, 0, size)
        found[name] = torch.equal(block, old)
    return found


def train(child: nn.Module, optimiser: Optimiser, steps: int = 12) -> None:
    x, labels = images(16, seed=3), torch.arange(16) % 5
    stepper = optimiser([p for p in child.parameters() if p.requires_grad])
    child.train()
    for _ in range(steps):
        stepper.zero_grad()
        functional.cross_entropy(child(x), labels).backward()
        stepper.step()


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize(("builder", "layer"), LAYERS)
def test_inherited_state_survives_training_bit_for_bit_and_the_planted_moves(
    builder: str, layer: str, optimiser: str
) -> None:
    parent, child = family(builder, layer)
    start = {name: tensor.clone() for name, tensor in child.state_dict().items()}
    types = {name: type(module) for name, module in child.named_modules()}
    freeze_inherited_(child, parent)
    train(child, OPTIMISERS[optimiser])
    thaw_(child)
    assert {name: type(module) for name, module in child.named_modules()} == types
    assert set(child.state_dict()) == set(start)
    touched = [name for name, same in inherited_bits(parent, child).items() if not same]
    assert not touched
    for name, tensor in child.state_dict().items():
        old = parent.state_dict()[name]
        if old.shape == tensor.shape:
            continue
        new = torch.ones_like(tensor, dtype=torch.bool)
        new[tuple(slice(n) for n in old.shape)] = False
        assert not torch.equal(tensor[new], start[name][new]), f"{name} was planted and stood still"
    assert all(p.requires_grad for p in child.parameters())


@pytest.mark.parametrize(("builder", "layer"), LAYERS)
def test_thawed_network_computes_what_the_frozen_one_did(builder: str, layer: str) -> None:
    parent, child = family(builder, layer)
    freeze_inherited_(child, parent)
    train(child, OPTIMISERS["adam"], steps=4)
    x = images(4, seed=8)
    with torch.no_grad():
        before = child.eval()(x)
        after = thaw_(child).eval()(x)
        old = parent.eval()(x)
    # A norm in two parts and in one: the same sums, perhaps in another order.
    torch.testing.assert_close(after, before, rtol=0, atol=1e-12)
    assert float((after - old).abs().max()) > 1e-6, "what was planted does nothing"


@pytest.mark.parametrize(("builder", "layer"), LAYERS)
def test_child_in_training_mode_starts_as_its_parent_in_eval_mode(builder: str, layer: str) -> None:
    parent, child = family(builder, layer)
    x = images(6)
    with torch.no_grad():
        expected = parent.eval()(x)
        found = freeze_inherited_(child, parent).train()(x)
    # What reads the planted channels is zero; only the order of summation may differ.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_new_channels_get_batch_statistics_of_their_own() -> None:
    parent, child = family("nets:residual", "stem")
    freeze_inherited_(child, parent)
    x = images(6)
    with torch.no_grad():
        child.train()(x)
    thaw_(child)
    planted = functional.conv2d(x, child.stages.stem.conv.weight[4:], padding=1)
    mean = planted.mean(dim=(0, 2, 3))
    variance = planted.var(dim=(0, 2, 3), unbiased=True)
    norm = child.stages.stem.norm
    # torch's running average after one step of momentum 0.1 from mean 0 and variance 1.
    torch.testing.assert_close(norm.running_mean[4:], 0.1 * mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(norm.running_var[4:], 0.9 + 0.1 * variance, rtol=1e-10, atol=0)
    assert torch.equal(norm.running_mean[:4], parent.stages.stem.norm.running_mean)


@pytest.mark.parametrize("builder", BUILDERS)
def test_nothing_planted_is_an_error(builder: str) -> None:
    layer = next(iter(build_widths(builder)))
    parent, child = family(builder, layer, channels=0)
    with pytest.raises(ValueError, match="nothing was planted"):
        freeze_inherited_(child, parent)


def test_only_planted_entries_count_for_the_gradient() -> None:
    parent, child = family("nets:flat", "conv1", outgoing="random")
    freeze_inherited_(child, parent)
    functional.cross_entropy(child(images(6)), torch.arange(6) % 5).backward()
    grads = {name: p.grad for name, p in child.named_parameters() if p.requires_grad}
    assert set(grads) == {
        "stages.conv1.conv.parametrizations.weight.original",
        "stages.conv1.conv.parametrizations.bias.original",
        "stages.conv2.conv.parametrizations.weight.original",
    }
    first, second = (
        grads[f"stages.{c}.conv.parametrizations.weight.original"] for c in ("conv1", "conv2")
    )
    assert not first[:3].any()
    assert not second[:, :3].any()
    assert first[3:].any()
    assert second[:, 3:].any()
