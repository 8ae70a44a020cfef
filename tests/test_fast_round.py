"""A round in which what is frozen is computed once, against each candidate trained in full."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import fill_, split
from torch import Tensor, nn
from torch.nn import functional

from planter.arch import Architecture
from planter.backbones import full_widths
from planter.data import InMemorySplit, Split
from planter.edits.freeze import freeze_inherited_, thaw_
from planter.networks.assembly import build_network
from planter.planting import round as fast_round
from planter.planting.activations import activations
from planter.planting.contribution import Contribution, Suffix, candidate_of
from planter.planting.plants import accept, plant, train_plant
from planter.planting.round import CandidateResult, train_round
from planter.training.batches import Batch, batch_order, mix_seed
from planter.training.loop import Epoch
from planter.training.recipe import Recipe, make_optimizer

CLASSES = 4
State = dict[str, Tensor]


class Doubled(InMemorySplit):
    """A split whose network inputs are float64."""

    def normalise(self, images: Tensor) -> Tensor:
        return (images.double() / 255 - self.mean) / self.std


def data(count: int = 30, size: int = 8, seed: int = 0) -> Doubled:
    made = split(count, (3, size, size), CLASSES, seed)
    return Doubled(made.images, made.labels, made.mean, made.std)


def _net(*stages: tuple[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(stages))


def _options(widths: Mapping[str, int], function: Callable[..., nn.Module]) -> None:
    function.widths = widths  # type: ignore[attr-defined]


def dropping(
    widths: Mapping[str, int], *, classes: int = 10, image: Sequence[int] = (3, 32, 32)
) -> nn.Module:
    """Dropout between the second convolution and the linear layer."""
    return _net(
        ("conv1", nn.Conv2d(image[0], widths["conv1"], 3, padding=1)),
        ("relu1", nn.ReLU()),
        ("conv2", nn.Conv2d(widths["conv1"], widths["conv2"], 3, stride=2, padding=1)),
        ("relu2", nn.ReLU()),
        ("dropout", nn.Dropout(0.3)),
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(widths["conv2"] * (image[1] // 2) * (image[2] // 2), classes)),
    )


def dropping_early(
    widths: Mapping[str, int], *, classes: int = 10, image: Sequence[int] = (3, 32, 32)
) -> nn.Module:
    """Dropout before the second convolution: where a suffix begins."""
    return _net(
        ("conv1", nn.Conv2d(image[0], widths["conv1"], 3, padding=1)),
        ("relu1", nn.ReLU()),
        ("dropout", nn.Dropout(0.3)),
        ("conv2", nn.Conv2d(widths["conv1"], widths["conv2"], 3, stride=2, padding=1)),
        ("relu2", nn.ReLU()),
        ("pool", nn.AdaptiveAvgPool2d(1)),
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(widths["conv2"], classes)),
    )


def in_place(
    widths: Mapping[str, int], *, classes: int = 10, image: Sequence[int] = (3, 32, 32)
) -> nn.Module:
    """ReLUs that overwrite their input, as most people write them."""
    return _net(
        ("conv1", nn.Conv2d(image[0], widths["conv1"], 3, padding=1)),
        ("relu1", nn.ReLU(inplace=True)),
        ("conv2", nn.Conv2d(widths["conv1"], widths["conv2"], 3, stride=2, padding=1)),
        ("relu2", nn.ReLU(inplace=True)),
        ("conv3", nn.Conv2d(widths["conv2"], widths["conv3"], 3, padding=1)),
        ("relu3", nn.ReLU(inplace=True)),
        ("pool", nn.AdaptiveAvgPool2d(1)),
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(widths["conv3"], classes)),
    )


def cumulative(
    widths: Mapping[str, int], *, classes: int = 10, image: Sequence[int] = (3, 32, 32)
) -> nn.Module:
    """Norms whose statistics are the plain mean over all steps (momentum None)."""
    return _net(
        ("conv", nn.Conv2d(image[0], widths["conv"], 3, padding=1)),
        ("norm", nn.BatchNorm2d(widths["conv"], momentum=None)),
        ("relu", nn.ReLU()),
        ("pool", nn.AdaptiveAvgPool2d(1)),
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(widths["conv"], classes)),
    )


def statless(
    widths: Mapping[str, int], *, classes: int = 10, image: Sequence[int] = (3, 32, 32)
) -> nn.Module:
    """A norm that keeps no statistics: what is frozen depends on who is in the batch."""
    net = cumulative(widths, classes=classes, image=image)
    net.norm = nn.BatchNorm2d(widths["conv"], track_running_stats=False)
    return net


class Whole(nn.Module):
    """No sequence: one step, all of it."""

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(torch.relu(self.conv(x)).mean(dim=(2, 3)))
        return logits


def whole(
    widths: Mapping[str, int], *, classes: int = 10, image: Sequence[int] = (3, 32, 32)
) -> nn.Module:
    return Whole(image[0], widths["conv"], classes)


for one in (dropping, dropping_early):
    _options({"conv1": 3, "conv2": 3}, one)
_options({"conv1": 3, "conv2": 3, "conv3": 3}, in_place)
for one in (cumulative, statless, whole):
    _options({"conv": 3}, one)

# Builder, size, options, widths other than 3, and which layers are computed as a whole suffix.
FAMILIES: dict[str, tuple[str, int, dict[str, Any], dict[str, int], set[str]]] = {
    "convnet": ("convnet", 8, {}, {"fc1": 5}, set()),
    "flat": ("nets:flat", 8, {}, {"conv2": 4, "fc1": 7}, set()),
    "flat_norm": ("nets:flat_norm", 8, {}, {"fc1": 7}, set()),
    "residual": ("nets:residual", 8, {}, {"stem": 4}, {"stem", "inner1", "down", "inner2"}),
    "depthwise": ("nets:depthwise", 8, {}, {"point": 4}, set()),
    "resnet": ("resnet", 8, {"depth": 8}, {}, {"stem", "group1", "group2", "group3"}),
    "wrn": ("wrn", 8, {"depth": 10, "widen": 1}, {}, {"group2", "group3"}),
    "mobilenet": ("mobilenet", 8, {}, {}, set()),
    "toy": ("toy", 8, {}, {"fc1": 4}, set()),
    "cifar_quick": ("cifar_quick", 15, {}, {"conv2": 2}, set()),
    "vgg16": ("vgg16", 32, {"head": "hidden"}, {}, set()),
    # Dropout, even with probability 0, is none of the operations known to keep channels apart.
    "alexnet": ("alexnet", 63, {"dropout": 0.0}, {}, {"conv5", "fc1"}),
    "dropping": ("test_fast_round:dropping", 8, {}, {}, {"conv1", "conv2"}),
    "dropping_early": ("test_fast_round:dropping_early", 8, {}, {}, {"conv1", "conv2"}),
    "whole": ("test_fast_round:whole", 8, {}, {}, {"conv"}),
}
LAYERS = {  # of the deep ones not all
    "wrn": ["group2", "group3"],
    "mobilenet": ["stem", "sep5", "sep6", "sep13"],
    "vgg16": ["conv1", "conv4", "conv13", "fc1"],
    "alexnet": ["conv1", "conv5", "fc1", "fc2"],
}
SGD = Recipe(epochs=2, batch=10, lr=0.05, momentum=0.9, weight_decay=0.05)
ADAM = Recipe(epochs=2, batch=10, optimizer="adam", lr=0.01, weight_decay=0.05)


def architecture(family: str) -> Architecture:
    if family not in FAMILIES:
        FAMILIES[family] = (f"test_fast_round:{family}", 8, {}, {}, set())
    builder, size, options, widths, _ = FAMILIES[family]
    full = {**dict.fromkeys(full_widths(builder, None, options), 3), **widths}
    return Architecture(builder, full, {**options, "classes": CLASSES, "image": (3, size, size)})


@cache
def _planted(family: str, channels: int = 2) -> tuple[nn.Module, dict[str, nn.Module]]:
    arch = architecture(family)
    parent = fill_(build_network(arch, seed=1)).double().eval()
    layers = LAYERS.get(family, list(arch.widths))
    made = {name: plant(arch, parent, name, channels, seed=2)[1] for name in layers}
    return parent, made


def planted(family: str, channels: int = 2) -> tuple[nn.Module, dict[str, nn.Module]]:
    """A float64 parent with random norms, and a child for each layer; copies."""
    return copy.deepcopy(_planted(family, channels))


def loss_of(logits: Tensor, labels: Tensor, teacher: Tensor | None) -> Tensor:
    """Cross-entropy, and the divergence from the teacher where there is one."""
    total = functional.cross_entropy(logits, labels)
    if teacher is not None:
        own, other = logits.log_softmax(dim=1), teacher.log_softmax(dim=1)
        total = total + (other.exp() * (other - own)).sum(dim=1).mean()
    return total


def literal(
    parent: nn.Module,
    children: Mapping[str, nn.Module],
    images: Split,
    recipe: Recipe,
    teacher: Tensor | nn.Module | None = None,
) -> dict[str, list[Epoch]]:
    """Each child trained in full."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return loss_of(model(batch.images), batch.labels, batch.teacher)

    epochs: dict[str, list[Epoch]] = {name: [] for name in children}
    for name, child in children.items():
        train_plant(
            child, parent, images, recipe, loss, teacher=teacher, seed=3,
            on_epoch=epochs[name].append,
        )  # fmt: skip
    return epochs


def fast(
    parent: nn.Module,
    children: Mapping[str, nn.Module],
    images: Split,
    recipe: Recipe,
    teacher: Tensor | nn.Module | None = None,
    loss: fast_round.Loss = loss_of,
    **options: Any,
) -> dict[str, CandidateResult]:
    return train_round(parent, children, images, recipe, loss, teacher=teacher, seed=3, **options)


def states(children: Mapping[str, nn.Module]) -> dict[str, State]:
    return {
        name: {key: t.clone() for key, t in child.state_dict().items()}
        for name, child in children.items()
    }


def assert_close(found: Mapping[str, State], expected: Mapping[str, State], tol: float) -> None:
    """Float64: the same sums in another order."""
    assert set(found) == set(expected)
    for name, state in expected.items():
        assert set(found[name]) == set(state)
        for key, tensor in state.items():
            gap = (found[name][key] - tensor).abs().max() / tensor.abs().max().clamp_min(1)
            assert float(gap) <= tol, f"{name}: {key}"


def assert_same(found: Mapping[str, State], expected: Mapping[str, State]) -> None:
    """Bit for bit."""
    assert set(found) == set(expected)
    for name, state in expected.items():
        for key, tensor in state.items():
            assert torch.equal(found[name][key], tensor), f"{name}: {key}"


def score(network: nn.Module, images: Split) -> float:
    with torch.no_grad():
        logits = network.eval()(images.normalise(images.images))
    return float(functional.cross_entropy(logits, images.labels))


def teacher_logits(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return 2 * torch.randn(count, CLASSES, generator=generator, dtype=torch.float64)


SAME = [family for family in FAMILIES if "dropping" not in family]  # it draws in another order


@pytest.mark.parametrize(
    ("family", "recipe"), [*((family, SGD) for family in SAME), ("convnet", ADAM)]
)
def test_a_round_is_that_of_candidates_trained_in_full(family: str, recipe: Recipe) -> None:
    """The same numbers, and so the same losses and the same accepted layer."""
    parent, by_hand = planted(family)
    _, children = planted(family)
    size = FAMILIES[family][1]
    images, validation = data(20, size), data(20, size, seed=1)
    teacher = teacher_logits(20)
    epochs = literal(parent, by_hand, images, recipe, teacher)
    courses = fast(parent, children, images, recipe, teacher)
    assert_close(states(children), states(by_hand), 1e-9)
    losses = [
        {name: score(net, validation) for name, net in nets.items()} for nets in (by_hand, children)
    ]
    for name in children:
        assert abs(losses[0][name] - losses[1][name]) <= 1e-6
        assert courses[name].error is None
        assert courses[name].seconds > 0
        found = [tuple(epoch)[:3] for epoch in courses[name].epochs]
        # The literal way adds its losses up in float32.
        assert found == [pytest.approx(tuple(epoch)[:3], rel=1e-6) for epoch in epochs[name]]
    for most in (1, len(children)):
        accepted = [accept(found, score(parent, validation), None, most) for found in losses]
        assert accepted[0] == accepted[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_only_what_meets_old_channels_or_draws_is_computed_as_a_whole(family: str) -> None:
    parent, children = planted(family)
    kinds = {name: type(candidate_of(child, parent)) for name, child in children.items()}
    suffixes = FAMILIES[family][4]
    assert kinds == {name: Suffix if name in suffixes else Contribution for name in children}


def test_a_child_in_which_nothing_is_new_is_refused() -> None:
    parent, _ = planted("convnet")
    with pytest.raises(ValueError, match="nothing was planted"):
        fast(parent, {"conv1": copy.deepcopy(parent)}, data(), SGD)


@pytest.mark.parametrize("family", ["dropping", "dropping_early"])
def test_dropout_is_drawn_as_when_all_of_the_child_is_computed(family: str) -> None:
    """A loop by hand over all of the frozen child, seeded at each step as the round is."""
    parent, by_hand = planted(family)
    _, children = planted(family)
    images = data(20)
    state = torch.get_rng_state()
    fast(parent, children, images, SGD)
    assert torch.equal(torch.get_rng_state(), state)
    for child in by_hand.values():
        freeze_inherited_(child, parent).train().to(memory_format=torch.channels_last)
        optimizer = make_optimizer(child, SGD)
        for epoch in range(SGD.epochs):
            parts, _ = batch_order(images, SGD, 3, epoch)
            for i, index in enumerate(parts):
                torch.manual_seed(mix_seed(3, epoch * len(parts) + i))
                for group in optimizer.param_groups:
                    group["lr"] = SGD.lr_at(epoch + i / len(parts))
                optimizer.zero_grad()
                x = images.normalise(images.images[index])
                logits = child(x.contiguous(memory_format=torch.channels_last))
                functional.cross_entropy(logits, images.labels[index]).backward()
                optimizer.step()
        thaw_(child)
    assert_close(states(children), states(by_hand), 1e-9)


GROUPED = ["convnet", "residual", "dropping", "dropping_early", "flat_norm"]


@cache
def _alone(family: str) -> tuple[dict[str, State], dict[str, list[float]]]:
    parent, children = planted(family)
    losses = {}
    for name, child in children.items():
        courses = fast(parent, {name: child}, data(20), SGD, teacher_logits(20))
        losses[name] = [epoch.loss for epoch in courses[name].epochs]
    return states(children), losses


@st.composite
def dealt(draw: st.DrawFn) -> tuple[str, list[list[str]]]:
    """The layers of a family in some order, dealt out to up to three workers."""
    family = draw(st.sampled_from(GROUPED))
    names = draw(st.permutations(list(architecture(family).widths)))
    workers = [draw(st.integers(0, 2)) for _ in names]
    groups = [[n for n, w in zip(names, workers, strict=True) if w == i] for i in range(3)]
    return family, [group for group in groups if group]


@settings(max_examples=12)
@given(dealt())
def test_how_one_is_trained_does_not_depend_on_the_others(
    deal: tuple[str, list[list[str]]],
) -> None:
    family, groups = deal
    parent, children = planted(family)
    losses = {}
    for group in groups:
        some = {name: children[name] for name in group}
        courses = fast(parent, some, data(20), SGD, teacher_logits(20))
        assert list(courses) == group
        losses |= {name: [e.loss for e in course.epochs] for name, course in courses.items()}
    expected, expected_losses = _alone(family)
    assert_same(states(children), expected)
    assert losses == expected_losses


@pytest.mark.parametrize(
    ("family", "start", "epoch"),
    # One step an epoch. At once no number, or so bold that the next step leaves float64: logits of
    # 1e200 times a filter whose gradient was 1e200.
    [("convnet", torch.nan, 1), ("residual", torch.nan, 1), ("convnet", 1e200, 2)],
)
def test_one_that_is_no_number_any_more_is_given_up_and_the_others_go_on(
    family: str, start: float, epoch: int
) -> None:
    images, recipe = data(20), SGD.model_copy(update={"epochs": 4, "batch": 20})
    parent, expected = planted(family)
    first, *others = expected
    fast(parent, {name: expected[name] for name in others}, images, recipe)
    _, children = planted(family)
    reads = children[first].state_dict()
    for name, old in parent.state_dict().items():
        if reads[name].dim() > 1 and reads[name].shape[1] > old.shape[1]:
            reads[name][:, old.shape[1] :] = start
    by_hand = copy.deepcopy(children[first])
    courses = fast(parent, children, images, recipe)
    assert_same(
        states({name: children[name] for name in others}),
        states({name: expected[name] for name in others}),
    )
    for name in others:
        assert courses[name].error is None
        assert [e.epoch for e in courses[name].epochs] == [1, 2, 3, 4]
    assert [e.epoch for e in courses[first].epochs] == list(range(1, epoch))
    assert courses[first].error == (
        f"FloatingPointError: training loss became nan in epoch {epoch} of 4; "
        "a lower lr than 0.05 may help"
    )
    if epoch == 1:
        with pytest.raises(FloatingPointError) as raised:
            literal(parent, {first: by_hand}, images, recipe)
        assert courses[first].error == f"FloatingPointError: {raised.value}"


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("family", ["convnet", "residual", "depthwise", "flat_norm", "dropping"])
def test_what_is_inherited_stays_bit_for_bit_and_the_parent_as_it_was(
    family: str, mode: str
) -> None:
    parent, children = planted(family)
    parent.train(mode == "train")
    some = list(parent.parameters())[::2]
    for parameter in some:
        parameter.requires_grad_(False)
    asked = {name: p.requires_grad for name, p in parent.named_parameters()}
    modes = {name: m.training for name, m in parent.named_modules()}
    before = states({"parent": parent})
    start = states(children)
    types = {name: [type(m) for m in child.modules()] for name, child in children.items()}
    fast(parent, children, data(20), SGD, teacher_logits(20))
    assert_same(states({"parent": parent}), before)
    assert {name: p.requires_grad for name, p in parent.named_parameters()} == asked
    assert {name: m.training for name, m in parent.named_modules()} == modes
    assert all(p.grad is None for p in parent.parameters())
    for name, child in children.items():
        assert [type(m) for m in child.modules()] == types[name]
        assert all(p.requires_grad for p in child.parameters())
        after = child.state_dict()
        assert set(after) == set(start[name])
        for key, old in before["parent"].items():
            block = after[key][tuple(map(slice, old.shape))]
            assert torch.equal(block, old), f"{name}: {key}"
            if after[key].shape != old.shape and start[name][key].dim() > 1:
                # Old rows read, from zero; new rows have decayed at least.
                assert not torch.equal(after[key], start[name][key]), f"{name}: {key} stood still"


def test_layers_that_overwrite_their_input_do_not_overwrite_what_others_read() -> None:
    parent, by_hand = planted("in_place")
    _, children = planted("in_place")
    literal(parent, by_hand, data(20), SGD)
    fast(parent, children, data(20), SGD)
    assert_close(states(children), states(by_hand), 1e-9)


def test_activations_are_not_overwritten_by_the_layer_that_reads_them() -> None:
    parent, _ = planted("in_place")
    x = data(5).normalise(data(5).images)
    every = steps_by_hand_of_in_place(parent, x)
    found = activations(parent, x, range(len(every)))
    for at, expected in enumerate(every):
        torch.testing.assert_close(found[at], expected, rtol=1e-12, atol=1e-12)


def steps_by_hand_of_in_place(network: nn.Module, x: Tensor) -> list[Tensor]:
    found = [x]
    with torch.no_grad():
        for module in network.children():
            x = functional.relu(x) if isinstance(module, nn.ReLU) else module(x)
            found.append(x)
    return found


def test_cumulative_statistics_of_what_is_new_are_its_own() -> None:
    parent, by_hand = planted("cumulative")
    _, children = planted("cumulative")
    literal(parent, by_hand, data(20), SGD)
    fast(parent, children, data(20), SGD)
    assert_close(states(children), states(by_hand), 1e-9)


def test_norms_that_keep_no_statistics_are_refused_as_the_full_way_refuses_them() -> None:
    arch = architecture("statless")
    parent = build_network(arch, seed=1).double().eval()
    _, child = plant(arch, parent, "conv", 2, seed=2)
    with pytest.raises(ValueError, match="cannot keep the statistics of a batch norm"):
        literal(parent, {"conv": copy.deepcopy(child)}, data(20), SGD)
    with pytest.raises(ValueError, match="cannot keep the statistics of a batch norm"):
        fast(parent, {"conv": child}, data(20), SGD)


def test_a_moving_average_of_the_weights_is_kept_as_the_full_way_keeps_it() -> None:
    recipe = SGD.model_copy(update={"ema": 0.5})
    parent, by_hand = planted("flat")
    _, children = planted("flat")
    literal(parent, by_hand, data(20), recipe)
    try:
        fast(parent, children, data(20), recipe)
    except ValueError:
        return  # refused rather than left out
    assert_close(states(children), states(by_hand), 1e-9)
