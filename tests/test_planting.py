from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import fill_, split
from torch import nn

from planter.arch import Architecture
from planter.backbones import full_widths, with_data_options
from planter.networks.assembly import build_network
from planter.planting.plants import accept, live_channels, plant, train_plant
from planter.training.augment import Augment
from planter.training.batches import Batch
from planter.training.loop import Epoch
from planter.training.losses import distillation_loss
from planter.training.recipe import Recipe

LOSSES = st.integers(0, 4).map(float)  # few values, so that ties happen


@given(st.dictionaries(st.sampled_from("abcdef"), LOSSES, max_size=6), LOSSES)
def test_accepted_is_the_first_of_the_smallest_below_the_parent(
    losses: dict[str, float], parent: float
) -> None:
    below = [name for name in losses if losses[name] < parent]
    best = [name for name in below if all(losses[name] <= losses[other] for other in losses)]
    assert accept(losses, parent) == best[:1]


@given(
    st.dictionaries(
        st.sampled_from("abcdef"), st.tuples(LOSSES, st.sampled_from([1.0, 2.0, 4.0])), max_size=6
    ),
    LOSSES,
    st.integers(1, 7),
    st.booleans(),
)
def test_accepted_are_the_best_of_those_below_the_parent_one_after_another(
    candidates: dict[str, tuple[float, float]], parent: float, most: int, by_cost: bool
) -> None:
    """By taking the best of what is left again and again; small whole numbers, exact quotients."""
    losses = {name: loss for name, (loss, _) in candidates.items()}
    costs = {name: cost for name, (_, cost) in candidates.items()}
    left, expected = [name for name in losses if losses[name] < parent], []
    while left and len(expected) < most:
        best = left[0]
        for name in left[1:]:
            worth = [(parent - losses[n]) / (costs[n] if by_cost else 1) for n in (name, best)]
            if worth[0] > worth[1]:
                best = name
        expected.append(best)
        left.remove(best)
    assert accept(losses, parent, costs if by_cost else None, most) == expected


def test_a_small_fall_that_costs_little_is_better_than_a_large_one_that_costs_much() -> None:
    losses, added = {"conv1": 0.75, "conv5": 0.5}, {"conv1": 100.0, "conv5": 2121.0}
    assert accept(losses, 1.0) == ["conv5"]
    assert accept(losses, 1.0, added) == ["conv1"]
    assert accept(losses, 1.0, added, most=2) == ["conv1", "conv5"]
    assert accept(losses, 0.75, added, most=2) == ["conv5"]


def test_equal_to_the_parent_is_not_accepted() -> None:
    assert accept({"conv1": 0.5}, 0.5) == []
    assert accept({"conv1": math.nextafter(0.5, 0)}, 0.5) == ["conv1"]
    assert accept({}, 0.5) == []


@pytest.mark.parametrize("added", [None, {"conv1": 1.0, "conv2": 2.0}])
@pytest.mark.parametrize("order", [["conv1", "conv2"], ["conv2", "conv1"]])
def test_a_loss_that_is_no_number_does_not_hide_a_better_candidate(
    order: list[str], added: dict[str, float] | None
) -> None:
    losses = {"conv1": math.nan, "conv2": 0.4}
    assert accept({name: losses[name] for name in order}, 0.5, added, 2) == ["conv2"]
    assert accept({"conv1": math.nan}, 0.5, added) == []


# facts.md 1.3: parameters one more channel costs, by data set and width.
MARGINAL = {
    ("cifar", 8): {"conv1": 100, "conv2": 145, "conv3": 145, "conv4": 145, "conv5": 2_121},
    ("stl", 8): {"conv1": 100, "conv2": 145, "conv3": 145, "conv4": 145, "conv5": 4_681},
    ("cifar", 16): {"conv1": 172, "conv2": 289, "conv3": 289, "conv4": 289, "conv5": 2_193},
    ("stl", 16): {"conv1": 172, "conv2": 289, "conv3": 289, "conv4": 289, "conv5": 4_753},
}
FC_MARGINAL = {"cifar": 139, "stl": 299}  # one more fc1 unit at width 8, ten classes
SIZES = {"cifar": 32, "stl": 96}


def params(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("data", "width"), MARGINAL)
def test_a_planted_channel_costs_what_the_paper_implies(data: str, width: int) -> None:
    size = SIZES[data]
    options = {"classes": 10, "image": (3, size, size)}
    arch = Architecture("convnet", full_widths("convnet", width), options)
    parent = build_network(arch)
    costs = dict(MARGINAL[data, width])
    if width == 8:
        costs["fc1"] = FC_MARGINAL[data]
    for layer, marginal in costs.items():
        wider, child = plant(arch, parent, layer, 1, seed=0)
        assert params(child) - params(parent) == marginal
        assert wider == arch.widen(layer, 1)
    # A second channel in the same layer costs the same again: its readers do not change.
    assert params(plant(arch, parent, "conv3", 4, seed=0)[1]) - params(parent) == 4 * costs["conv3"]


RECIPE = Recipe(epochs=4, batch=20, optimizer="adam", lr=0.01, weight_decay=0.05)


def from_teacher(model: nn.Module, batch: Batch) -> torch.Tensor:
    assert batch.teacher is not None
    return distillation_loss(model(batch.images), batch.teacher)


def kl(teacher: torch.Tensor, student: torch.Tensor) -> float:
    def log_softmax(logits: torch.Tensor) -> np.ndarray:
        array = logits.double().numpy()
        return array - np.log(np.exp(array).sum(axis=1, keepdims=True))

    p, q = log_softmax(teacher), log_softmax(student)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


@pytest.mark.parametrize(
    ("builder", "layer"),
    [("convnet", "conv2"), ("convnet", "fc1"), ("nets:residual", "inner1"), ("nets:flat", "conv2")],
)
def test_a_trained_plant_lowers_the_divergence_and_keeps_the_parents_bits(
    builder: str, layer: str
) -> None:
    data = split(60, classes=4)
    widths = full_widths(builder, 4) if builder == "convnet" else full_widths(builder)
    arch = Architecture(builder, widths, {"classes": 4, "image": (3, 8, 8)})
    parent = fill_(build_network(arch, seed=1)).eval()
    teacher = 2 * torch.randn(60, 4, generator=torch.Generator().manual_seed(5))
    inputs = (data.images.float() / 255 - 0.5) / 0.25
    before = {name: tensor.clone() for name, tensor in parent.state_dict().items()}
    _, child = plant(arch, parent, layer, 3, seed=2)
    train_plant(child, parent, data, RECIPE, from_teacher, teacher=teacher, seed=3)
    with torch.no_grad():
        assert kl(teacher, child.eval()(inputs)) < kl(teacher, parent(inputs))
    after = child.state_dict()
    assert set(after) == set(before)
    for name, old in before.items():
        assert torch.equal(after[name][tuple(slice(n) for n in old.shape)], old), name
        assert torch.equal(parent.state_dict()[name], old), f"the parent's {name} has changed"


def test_a_teacher_network_teaches_what_its_logits_teach() -> None:
    data = split(40, classes=4)
    arch = Architecture("nets:flat", full_widths("nets:flat"), {"classes": 4, "image": (3, 8, 8)})
    parent, teacher = build_network(arch, seed=1), build_network(arch, seed=7).eval()
    with torch.no_grad():
        logits = teacher((data.images.float() / 255 - 0.5) / 0.25)
    trained = []
    for given_teacher in (logits, teacher):
        _, child = plant(arch, parent, "conv1", 2, seed=2)
        trained.append(
            train_plant(child, parent, data, RECIPE, from_teacher, teacher=given_teacher, seed=3)
        )
    for name, tensor in trained[0].state_dict().items():
        # Logits of 40 images at once and of 20: float32 sums in another order, then 8 Adam steps.
        torch.testing.assert_close(tensor, trained[1].state_dict()[name], rtol=0, atol=1e-4)


def test_a_trained_plant_tells_its_epochs_and_any_loss_may_be_given() -> None:
    """A loss of the user's own: here one that pulls the mean logit to 5."""
    data = split(40, classes=4)
    arch = Architecture("nets:flat", full_widths("nets:flat"), {"classes": 4, "image": (3, 8, 8)})
    parent = build_network(arch, seed=1)
    _, child = plant(arch, parent, "fc1", 2, seed=2)
    told: list[Epoch] = []
    train_plant(
        child, parent, data, RECIPE, lambda model, batch: (model(batch.images).mean() - 5) ** 2,
        teacher=None, seed=3, on_epoch=told.append,
    )  # fmt: skip
    x = (data.images.float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        off = [abs(float(net.eval()(x).mean()) - 5) for net in (child, parent)]
    assert off[0] < off[1]
    assert [epoch.epoch for epoch in told] == [1, 2, 3, 4]
    assert told[-1].loss < told[0].loss


def test_cached_logits_of_unchanged_images_do_not_teach_changed_ones() -> None:
    data = split(20, classes=4)
    arch = Architecture("nets:flat", full_widths("nets:flat"), {"classes": 4, "image": (3, 8, 8)})
    parent = build_network(arch)
    _, child = plant(arch, parent, "conv1", 1, seed=0)
    recipe = Recipe(epochs=1, augment=Augment(flip=True))
    with pytest.raises(ValueError, match="cached teacher logits do not fit augmented images"):
        train_plant(child, parent, data, recipe, from_teacher, teacher=torch.zeros(20, 4), seed=0)


@pytest.mark.parametrize("dead", [0, 1, 3])
def test_live_channels_misses_exactly_the_dead_ones(dead: int) -> None:
    data = split(600)  # more than one scoring batch
    arch = Architecture("convnet", full_widths("convnet", 4), {"classes": 10, "image": (3, 8, 8)})
    parent = build_network(arch)
    _, child = plant(arch, parent, "conv2", 3, seed=1)
    conv = child.conv2.conv
    with torch.no_grad():
        conv.bias[4:] = 1e3  # answer to every image
        conv.bias[4 : 4 + dead] = -1e6  # never get through their ReLU
        conv.bias[:4] = -1e6  # below `first`: not asked about
    assert live_channels(child, "conv2", 4, data) == 3 - dead
    assert live_channels(child, "conv2", 0, data) == 3 - dead
    assert live_channels(child, "fc1", 0, data) is None
    assert not child.conv2._forward_hooks


def test_a_channel_that_answers_to_one_image_in_a_later_batch_is_alive() -> None:
    data = split(600)
    data.images[:] = 0
    data.images[599] = 255
    arch = Architecture("convnet", full_widths("convnet", 4), {"classes": 10, "image": (3, 8, 8)})
    net = build_network(arch)
    with torch.no_grad():
        net.conv1.conv.weight.fill_(1.0)
        net.conv1.conv.bias.fill_(0.0)
    # Inputs are -2 for all images but the last, which is +2.
    assert live_channels(net, "conv1", 1, data) == 3
    data.images[599] = 0
    assert live_channels(net, "conv1", 1, data) == 0


CANNOT_GROW = pytest.mark.parametrize(
    ("builder", "options", "layer"),
    [
        ("densenet", {"depth": 7}, "growth"),
        ("densenet", {"depth": 7}, "stem"),
        ("resnet", {"depth": 8}, "group1"),
        ("resnet", {"depth": 8, "shortcut": "conv"}, "stem"),
        ("wrn", {"depth": 10, "widen": 1}, "group1"),
    ],
)


@CANNOT_GROW
def test_a_network_that_cannot_grow_as_its_parents_function_is_refused(builder, options, layer):
    options = {**options, "classes": 5, "image": (3, 8, 8)}
    arch = with_data_options(Architecture(builder, {}, options), 5, (3, 8, 8))
    parent = fill_(build_network(arch), 0)
    with pytest.raises(ValueError, match=f"{builder} cannot grow in {layer}"):
        plant(arch, parent, layer, 2, seed=1)
    wider, child = plant(arch, parent, layer, 2, seed=1, outgoing="random")
    assert wider.widths[layer] == arch.widths[layer] + 2
    assert child(torch.zeros(2, 3, 8, 8)).shape == (2, 5)


@CANNOT_GROW
@pytest.mark.parametrize(
    ("filters", "outgoing"), [("scaled", "zero"), ("gradient", "zero"), ("zero", "random")]
)
def test_it_is_refused_whatever_the_planted_channels_start_as(
    builder, options, layer, filters, outgoing
):
    arch = with_data_options(
        Architecture(builder, {}, {**options, "classes": 5, "image": (3, 8, 8)}), 5, (3, 8, 8)
    )
    parent = fill_(build_network(arch), 0).eval()
    x = torch.rand(8, 3, 8, 8)
    if filters == "zero" and options == {"depth": 8}:
        # New channels that are zero stay so in a padded shortcut: the parent's function after all.
        _, child = plant(arch, parent, layer, 2, seed=1, filters=filters, outgoing=outgoing)
        with torch.no_grad():
            torch.testing.assert_close(
                child.double().eval()(x.double()), parent.double()(x.double())
            )
        return
    with pytest.raises(ValueError, match=f"{builder} cannot grow in {layer}"):
        plant(
            arch, parent, layer, 2, seed=1, filters=filters, outgoing=outgoing, images=x,
            loss=lambda network: network(x).square().sum(),
        )  # fmt: skip


@CANNOT_GROW
def test_it_may_still_start_as_another_function_that_is_scaled(builder, options, layer):
    arch = with_data_options(
        Architecture(builder, {}, {**options, "classes": 5, "image": (3, 8, 8)}), 5, (3, 8, 8)
    )
    parent = fill_(build_network(arch), 0)
    x = torch.rand(8, 3, 8, 8)
    _, child = plant(arch, parent, layer, 2, seed=1, filters="scaled", outgoing="scaled", images=x)
    assert bool(child.eval()(x).isfinite().all())
