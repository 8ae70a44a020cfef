from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import fill_, flat, residual, split
from torch import Tensor, nn
from torch.nn import functional

from planter import train
from planter.checkpoint import write_training
from planter.data import InMemorySplit, Split
from planter.forms import KernelFilter
from planter.freeze import freeze_inherited_
from planter.kernels import collapse_kernels_, expand_kernels_
from planter.morph import inherit_weights
from planter.recipe import Augment, Recipe
from planter.train import (
    Batch,
    Epoch,
    Pool,
    augmented,
    batch_order,
    evaluate,
    fit,
    predict,
    recalibrate_batchnorm_,
    training_images,
    view_pool,
)

DATA = split(50, classes=4)
RECIPE = Recipe(
    epochs=4,
    batch=16,
    lr=0.05,
    weight_decay=0.01,
    warmup=1.0,
    augment=Augment(crop=1, flip=True),
)


def entropy(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch.images), batch.labels)


class Dropped(nn.Module):
    """A network that draws while it trains."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.dropout = net, nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.dropout(x))


def network(form: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    options = {"classes": 4, "image": (3, 8, 8)}
    net = residual(residual.widths, **options)
    if form == "expanded":
        expand_kernels_(net, KernelFilter(rho=2), seed=seed)
    if form == "planted":
        torch.manual_seed(0)  # one parent for all
        parent = fill_(net)
        net = residual({**residual.widths, "down": 8}, **options)
        inherit_weights(net, parent)
        freeze_inherited_(net, parent)
    return Dropped(net)


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(t, b.state_dict()[name]) for name, t in a.state_dict().items())


class Stopped(Exception):
    pass


@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("form", ["plain", "expanded", "planted"])
def test_a_resumed_training_ends_in_the_same_bits(
    form: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_CHECKPOINT_EVERY_S", 0)
    recipe = RECIPE.model_copy(update={"optimizer": kind})
    path, seen = tmp_path / "checkpoint.pt", []

    def stop(epoch: Epoch) -> None:
        if epoch.epoch == 3:  # before its checkpoint is written: epoch 3 is done again
            raise Stopped

    def count(epoch: Epoch) -> None:
        seen.append(epoch.epoch)

    whole = fit(network(form, 1), entropy, DATA, recipe, seed=7)
    with pytest.raises(Stopped):
        fit(network(form, 1), entropy, DATA, recipe, seed=7, checkpoint=path, on_epoch=stop)
    # The second process starts from other weights: all that counts is in the checkpoint.
    other = network(form, 2 if form != "planted" else 1)
    resumed = fit(other, entropy, DATA, recipe, seed=7, checkpoint=path, on_epoch=count)
    assert seen == [3, 4]
    assert same_bits(whole, resumed)


def test_a_checkpoint_of_a_network_of_other_parts_means_a_fresh_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "checkpoint.pt"
    state = {f"older.{name}": t for name, t in network("plain", 2).state_dict().items()}
    write_training(path, {"model": state, "optimizer": {}, "epoch": 3})
    again = fit(network("plain", 1), entropy, DATA, RECIPE, seed=7, checkpoint=path)
    assert "of another network; the training starts afresh" in caplog.text
    whole = fit(network("plain", 1), entropy, DATA, RECIPE, seed=7)
    assert all(
        torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters(), strict=True)
    )


def test_a_broken_checkpoint_means_a_fresh_start(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"PK\x03\x04 cut short")
    again = fit(network("plain", 1), entropy, DATA, RECIPE, seed=7, checkpoint=path)
    assert same_bits(again, fit(network("plain", 1), entropy, DATA, RECIPE, seed=7))


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    torch.manual_seed(1)
    first = fit(network("plain", 1), entropy, DATA, RECIPE, seed=7)
    torch.manual_seed(2)
    model = network("plain", 1)
    state = torch.get_rng_state()
    again = fit(model, entropy, DATA, RECIPE, seed=7)
    assert torch.equal(torch.get_rng_state(), state), "fit has drawn from the caller's generator"
    assert same_bits(first, again)
    assert not same_bits(first, fit(network("plain", 1), entropy, DATA, RECIPE, seed=8))


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_steps_are_those_computed_by_hand(nesterov: bool) -> None:
    data = split(12, image=(1, 2, 2), classes=3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False))
    w = model[1].weight.detach().double().numpy().copy()
    x = ((data.images.double() / 255 - 0.5) / 0.25).reshape(12, 4).numpy()
    onehot = np.eye(3)[data.labels.numpy()]
    recipe = Recipe(
        epochs=4,
        batch=12,
        lr=0.1,
        momentum=0.9,
        nesterov=nesterov,
        weight_decay=0.05,
        schedule="multistep",
        milestones=[2],
        gamma=0.5,
    )
    losses: list[float] = []
    fit(model, entropy, data, recipe, seed=0, on_epoch=lambda epoch: losses.append(epoch.loss))
    velocity = np.zeros_like(w)
    for epoch in range(4):
        logits = x @ w.T
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        # float32 against float64: about 1e-7 a step.
        assert losses[epoch] == pytest.approx(-np.log((p * onehot).sum(axis=1)).mean(), rel=1e-5)
        grad = (p - onehot).T @ x / 12 + 0.05 * w
        velocity = 0.9 * velocity + grad
        w -= (0.1 if epoch < 2 else 0.05) * (grad + 0.9 * velocity if nesterov else velocity)
    np.testing.assert_allclose(model[1].weight.detach().numpy(), w, rtol=1e-4, atol=1e-5)


def test_an_expanded_layer_decays_as_its_kernel_and_not_as_its_bank() -> None:
    """With the loss switched off, one step moves W_1 by -lr * lambda * W_2^T W' alone."""
    torch.manual_seed(0)
    model = expand_kernels_(
        nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)), KernelFilter(rho=2)
    )
    chain = model[1].parametrizations.weight
    bank, mixing = chain.original.detach().clone(), list(chain.parameters())[1]
    with torch.no_grad():
        mixing.add_(torch.randn_like(mixing), alpha=0.2)
    mix = mixing.detach().clone()
    recipe = Recipe(epochs=1, batch=8, lr=0.1, momentum=0.0, weight_decay=0.5, schedule="constant")

    def nothing(net: nn.Module, batch: Batch) -> Tensor:
        return 0 * net(batch.images).sum()

    fit(model, nothing, split(8, image=(1, 2, 2)), recipe, seed=0)
    kernel = mix @ bank
    # float32; the optimiser's own 1e-9 on W_2 is far below it.
    torch.testing.assert_close(chain.original, bank - 0.05 * mix.T @ kernel, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mixing, mix - 0.05 * kernel @ bank.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_training(value: float) -> None:
    seen: list[int] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return entropy(model, batch) * (value if len(seen) == 1 else 1.0)

    with pytest.raises(FloatingPointError, match="epoch 2 of 4"):
        fit(
            network("plain", 0),
            loss,
            DATA,
            RECIPE,
            seed=0,
            on_epoch=lambda epoch: seen.append(epoch.epoch),
        )
    assert seen == [1]


COUNTED = InMemorySplit(
    torch.arange(50, dtype=torch.float32).reshape(50, 1, 1, 1),
    torch.arange(50) % 7,
    torch.zeros(1, 1, 1),
    torch.ones(1, 1, 1),
)


@given(st.integers(1, 60), st.integers(1, 3), st.integers(0, 99))
def test_batches_cover_every_image_once_an_epoch(batch: int, epochs: int, seed: int) -> None:
    seen: list[Batch] = []

    def note(model: nn.Module, given: Batch) -> Tensor:
        seen.append(given)
        return model(given.images.flatten(1)).sum()

    recipe = Recipe(epochs=epochs, batch=batch, lr=1e-6)
    teacher = torch.arange(50.0)[:, None] * 2
    fit(nn.Linear(1, 1), note, COUNTED, recipe, seed=seed, teacher=teacher)
    steps = len(seen) // epochs
    assert steps == math.ceil(50 / batch)
    sizes = [len(given.labels) for given in seen]
    assert max(sizes) <= batch
    assert max(sizes) - min(sizes) <= 1
    orders = []
    for at in range(0, len(seen), steps):
        epoch = seen[at : at + steps]
        order = torch.cat([given.images.flatten() for given in epoch])
        assert sorted(order.tolist()) == list(range(50))
        assert torch.equal(torch.cat([given.labels for given in epoch]), order.long() % 7)
        assert torch.equal(torch.cat([given.teacher for given in epoch]), 2 * order[:, None])
        orders.append(order.tolist())
    assert len(set(map(tuple, orders))) == epochs, "two epochs in one order"


def test_a_teacher_network_is_asked_for_the_images_as_they_are_changed() -> None:
    teacher = fill_(residual(residual.widths, classes=4, image=(3, 8, 8))).train()
    state = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}

    def check(model: nn.Module, batch: Batch) -> Tensor:
        # Another copy in eval mode must see what the teacher saw.
        torch.testing.assert_close(batch.teacher, frozen(batch.images), rtol=0, atol=0)
        assert not batch.teacher.requires_grad
        return entropy(model, batch)

    frozen = fill_(residual(residual.widths, classes=4, image=(3, 8, 8)))
    frozen.load_state_dict(state)
    frozen.eval()
    fit(network("plain", 0), check, DATA, RECIPE, seed=0, teacher=teacher)
    assert teacher.training
    assert all(torch.equal(t, state[name]) for name, t in teacher.state_dict().items())


def test_cached_teacher_logits_of_changed_images_are_refused() -> None:
    with pytest.raises(ValueError, match="give the network"):
        fit(network("plain", 0), entropy, DATA, RECIPE, seed=0, teacher=torch.zeros(50, 4))


LR = 0.4
SCHEDULES: list[tuple[dict[str, Any], Callable[[float], float]]] = [
    ({"schedule": "constant"}, lambda e: LR),
    (
        {"schedule": "multistep", "milestones": [5.0, 12.0], "gamma": 0.2},
        lambda e: LR if e < 5 else LR * 0.2 if e < 12 else LR * 0.04,
    ),
    ({"schedule": "step", "step": 6.0, "gamma": 0.5}, lambda e: LR * 0.5 ** math.floor(e / 6)),
    ({"schedule": "cosine"}, lambda e: LR * math.cos(math.pi * e / 40) ** 2),
    (
        {"schedule": "cosine", "warmup": 4.0},
        lambda e: LR * e / 4 if e < 4 else LR * math.cos(math.pi * (e - 4) / 32) ** 2,
    ),
    (
        {"schedule": "onecycle"},
        lambda e: LR * e / 6 if e < 6 else LR * math.cos(math.pi * (e - 6) / 28) ** 2,
    ),
    (
        {"schedule": "constant", "warmup": 2.5},
        lambda e: LR * e / 2.5 if e < 2.5 else LR,
    ),
]


@pytest.mark.parametrize(("settings", "closed"), SCHEDULES)
def test_learning_rate_follows_its_closed_form(
    settings: dict[str, Any], closed: Callable[[float], float]
) -> None:
    recipe = Recipe(epochs=20, lr=LR, **settings)
    for epoch in np.arange(0, 20.01, 0.25):
        assert recipe.lr_at(float(epoch)) == pytest.approx(
            closed(float(epoch)), rel=1e-9, abs=1e-12
        )


def test_the_learning_rate_moves_within_an_epoch() -> None:
    """A loss with gradient 1 and no momentum: the weight has moved by the sum of the rates."""
    recipe = Recipe(epochs=2, batch=10, lr=0.5, momentum=0.0, weight_decay=0.0, schedule="cosine")
    model = nn.Linear(1, 1, bias=False)
    start = float(model.weight.detach())
    fit(model, lambda net, batch: net.weight.sum(), COUNTED, recipe, seed=0)
    moved = sum(0.5 * math.cos(math.pi * i / 20) ** 2 for i in range(10))
    assert start - float(model.weight.detach()) == pytest.approx(moved, rel=1e-5)  # float32


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"schedule": "multistep"}, "needs milestones"),
        ({"schedule": "step"}, "needs step"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov needs"),
        ({"nesterov": True, "optimizer": "adam"}, "nesterov needs"),
        ({"warmup": 21.0}, "longer than the 20 epochs"),
        ({"epoch": 3}, "Extra inputs"),
    ],
)
def test_recipes_without_a_meaning_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Recipe(**settings)


@given(
    st.integers(0, 3), st.booleans(), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**16)
)
def test_an_augmented_image_is_a_window_of_the_padded_one_or_its_mirror_image(
    crop: int, flip: bool, height: int, width: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(1, 256, (6, 2, height, width), generator=generator, dtype=torch.uint8)
    out = augmented(raw, Augment(crop=crop, flip=flip), generator)
    assert out.dtype == torch.uint8
    for image, found in zip(raw, out, strict=True):
        padded = torch.zeros(2, height + 2 * crop, width + 2 * crop, dtype=torch.uint8)
        padded[:, crop : crop + height, crop : crop + width] = image
        windows = [
            padded[:, y : y + height, x : x + width]
            for y in range(2 * crop + 1)
            for x in range(2 * crop + 1)
        ]
        if flip:
            windows += [torch.flip(window, [2]) for window in windows]
        assert any(torch.equal(found, window) for window in windows)


def test_every_window_and_both_directions_are_drawn_equally_often() -> None:
    image = torch.arange(1, 7, dtype=torch.uint8).reshape(1, 1, 2, 3)
    many = augmented(
        image.expand(9000, -1, -1, -1), Augment(crop=1, flip=True), torch.Generator().manual_seed(0)
    )
    kinds, counts = torch.unique(many.flatten(1), dim=0, return_counts=True)
    assert len(kinds) == 2 * 9
    # 500 expected of each; the deviation of the count is 22, five of those are allowed.
    assert int(counts.min()) > 390
    assert int(counts.max()) < 610


def test_nothing_to_change_leaves_the_images() -> None:
    assert augmented(DATA.images, Augment(), torch.Generator()) is DATA.images


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_is_the_count_over_single_images_and_keeps_the_mode(training: bool) -> None:
    data = split(1030, image=(3, 4, 4), classes=4)  # three scoring batches, the last one short
    model = fill_(residual(residual.widths, classes=4, image=(3, 4, 4))).train(training)
    score, logits = evaluate(model, data), predict(model, data)
    assert {module.training for module in model.modules()} == {training}
    model.double().eval()
    correct, loss = 0, 0.0
    with torch.no_grad():
        for at in range(len(data)):
            x = (data.images[at : at + 1].double() / 255 - 0.5) / 0.25
            z = model(x)[0].numpy()
            # float32 against float64.
            np.testing.assert_allclose(logits[at].numpy(), z, rtol=1e-4, atol=1e-4)
            correct += int(z.argmax() == int(data.labels[at]))
            loss += float(np.log(np.exp(z - z.max()).sum()) + z.max() - z[int(data.labels[at])])
    assert score.accuracy == correct / 1030
    assert score.loss == pytest.approx(loss / 1030, rel=1e-5)


def recalibrate(model: nn.Module, split: Split, batch: int = 512, **how: int) -> nn.Module:
    """Over images as they are."""
    return recalibrate_batchnorm_(model, split, Recipe(batch=batch), seed=0, **how)


@pytest.mark.parametrize("act", [evaluate, predict, recalibrate])
@pytest.mark.parametrize("training", [True, False])
def test_a_part_held_in_another_mode_stays_in_it(
    training: bool, act: Callable[[nn.Module, Split], object]
) -> None:
    model = residual(residual.widths, classes=4, image=(3, 8, 8)).train(training)
    model.stages.down.train(not training)
    modes = [module.training for module in model.modules()]
    act(model, DATA)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("part", [None, split(0)])
def test_nothing_to_evaluate_on_is_an_error(part: Split | None) -> None:
    with pytest.raises(ValueError, match="nothing to evaluate on"):
        evaluate(network("plain", 0), part)


def normed() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.Flatten())


@pytest.mark.parametrize("training", [True, False])
def test_recalibration_gives_the_datas_statistics_and_restores_the_rest(training: bool) -> None:
    model, data = fill_(normed()).train(training), split(40)
    weights = [p.detach().clone() for p in model.parameters()]
    recalibrate(model, data)
    x = (data.images.double() / 255 - 0.5) / 0.25
    conv, norm = model[0], model[1]
    y = functional.conv2d(x, conv.weight.double(), conv.bias.double()).detach()
    # float32 against float64.
    torch.testing.assert_close(norm.running_mean.double(), y.mean(dim=(0, 2, 3)), rtol=0, atol=1e-5)
    variance = y.var(dim=(0, 2, 3), unbiased=True)
    torch.testing.assert_close(norm.running_var.double(), variance, rtol=1e-5, atol=0)
    assert norm.momentum == 0.3
    assert {module.training for module in model.modules()} == {training}
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_recalibration_weighs_every_image_alike() -> None:
    """514 images are a full scoring batch and two more; those two must not count for half."""
    data = split(514)
    data.images[512:] = 255
    model = fill_(normed())
    recalibrate(model, data)
    x = (data.images.double() / 255 - 0.5) / 0.25
    y = functional.conv2d(x, model[0].weight.double(), model[0].bias.double()).detach()
    mean = y.mean(dim=(0, 2, 3))
    # float32 against float64, in two batches of one size.
    torch.testing.assert_close(model[1].running_mean.double(), mean, rtol=0, atol=1e-4)


def test_recalibration_survives_one_image_too_many() -> None:
    """A last batch of one image has no variance after a linear layer."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.BatchNorm1d(3))
    data = split(513, image=(3, 2, 2))
    recalibrate(model, data)
    x = ((data.images.double() / 255 - 0.5) / 0.25).flatten(1)
    mean = functional.linear(x, model[1].weight.double(), model[1].bias.double()).mean(dim=0)
    # Batches of 257 and 256 images weigh alike: the means differ by 1/513 of a batch's, at most.
    torch.testing.assert_close(model[2].running_mean.double(), mean.detach(), rtol=0, atol=1e-3)


def test_recalibration_sees_as_many_images_as_asked_for_each_once() -> None:
    data = split(40)
    network = normed()
    seen: list[Tensor] = []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    recalibrate(network, data, images=10)
    images = torch.cat(seen)
    every = data.normalise(data.images)
    matches = [int((every == image).flatten(1).all(dim=1).nonzero()) for image in images]
    assert len(set(matches)) == len(matches) == 10


def test_recalibration_does_not_depend_on_the_images_being_sorted_by_class() -> None:
    # Two classes far apart: within either, the variance is 1; over both, 1 + 5 ** 2.
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2).repeat_interleave(1024)
    images = torch.randn(2048, 3, 4, 4, generator=generator) + 10.0 * labels[:, None, None, None]
    data = InMemorySplit(images, labels, torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
    network = nn.Sequential(nn.BatchNorm2d(3))
    recalibrate(network, data)
    assert torch.allclose(network[0].running_var, torch.full((3,), 26.0), rtol=0.05)
    recalibrate(network, data, images=1024)
    assert torch.allclose(network[0].running_mean, torch.full((3,), 5.0), rtol=0.1)


@pytest.mark.parametrize("views", [None, 2])
def test_recalibration_sees_what_a_training_sees(views: int | None) -> None:
    """Crops and mirrored images, each image once: told from the inputs, not from our code."""
    augment = Augment(crop=2, flip=True, views=views)
    recipe = Recipe(epochs=3, batch=7, augment=augment)
    data = split(40)
    model = fill_(normed())
    seen: list[Tensor] = []
    hook = model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    recalibrate_batchnorm_(model, data, recipe, seed=5)
    hook.remove()
    assert max(map(len, seen)) <= 7
    inputs, originals, changed = torch.cat(seen), [], 0
    for image in inputs:
        raw = ((image * 0.25 + 0.5) * 255).round().to(torch.uint8)
        (of,) = (
            i
            for i, original in enumerate(data.images)
            if any(torch.equal(raw, window) for window in windows(original, augment))
        )
        originals.append(of)
        changed += not torch.equal(raw, data.images[of])
    assert sorted(originals) == list(range(40))
    # All but few of fresh views; of a pool of two views one is the image itself.
    assert changed > (30 if views is None else 10)
    conv, norm = model[0], model[1]
    y = functional.conv2d(inputs.double(), conv.weight.double(), conv.bias.double()).detach()
    parts = y.split([len(part) for part in seen])
    # A mean over batches, of one size but for an image.
    mean = torch.stack([part.mean(dim=(0, 2, 3)) for part in parts]).mean(dim=0)
    variance = torch.stack([part.var(dim=(0, 2, 3)) for part in parts]).mean(dim=0)
    torch.testing.assert_close(norm.running_mean.double(), mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(norm.running_var.double(), variance, rtol=1e-5, atol=0)
    plain = recalibrate(fill_(normed()), data, batch=7)[1]
    assert not torch.allclose(norm.running_mean, plain.running_mean, rtol=0.01)


def test_recalibration_draws_from_its_seed_alone() -> None:
    def statistics(seed: int) -> Tensor:
        torch.manual_seed(seed + 100)
        recipe = Recipe(augment=Augment(crop=2), epochs=1)
        found: Tensor = recalibrate_batchnorm_(fill_(normed()), DATA, recipe, seed=seed)[
            1
        ].state_dict()
        return found["running_mean"]

    assert torch.equal(statistics(3), statistics(3))
    assert not torch.equal(statistics(3), statistics(4))


def test_recalibration_leaves_statistics_that_a_plant_keeps() -> None:
    model = network("planted", 1)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    recalibrate(model, DATA)
    moved = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    assert moved
    assert all(".new." in name for name in moved)


def test_without_norms_recalibration_runs_nothing() -> None:
    net = flat(flat.widths, image=(3, 8, 8))
    calls: list[int] = []
    net.register_forward_hook(lambda *_: calls.append(1))
    recalibrate(net, split(4))
    assert not calls


@given(
    st.integers(1, 3),
    st.booleans(),
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(0, 2**16),
)
@settings(max_examples=25)
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_augmented_images_are_the_slices_their_draws_name(
    kind: torch.dtype, crop: int, flip: bool, channels: int, height: int, width: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (5, channels, height, width), generator=generator).to(kind)
    if kind == torch.float32:
        raw = raw / 7 - 18
    before, state = raw.clone(), generator.get_state()
    out = augmented(raw, Augment(crop=crop, flip=flip), generator)
    assert torch.equal(raw, before)
    generator.set_state(state)
    rows, columns = torch.randint(0, 2 * crop + 1, (2, 5, 1), generator=generator)[..., 0].tolist()
    mirrored = (torch.rand(5, generator=generator) < 0.5).tolist()
    for image, found, y, x, mirror in zip(raw, out, rows, columns, mirrored, strict=True):
        padded = torch.zeros(channels, height + 2 * crop, width + 2 * crop, dtype=kind)
        padded[:, crop : crop + height, crop : crop + width] = image
        window = padded[:, y : y + height, x : x + width]
        assert torch.equal(found, torch.flip(window, [2]) if flip and mirror else window)
    assert out.dtype == kind


AVERAGED = Recipe(
    epochs=3, batch=16, lr=0.05, momentum=0.5, weight_decay=0.0, schedule="constant", ema=0.7
)


def normed_net(form: str) -> nn.Module:
    torch.manual_seed(4)
    net = residual(residual.widths, classes=4, image=(3, 8, 8))
    if form == "expanded":
        expand_kernels_(net, KernelFilter(rho=2), seed=4)
    return net


@pytest.mark.parametrize("form", ["plain", "expanded"])
def test_ema_leaves_the_moving_average_of_weights(form: str) -> None:
    """Against a loop in plain torch over the batches that were given. Statistics are those of the
    averaged weights: see `test_ema_has_the_statistics_of_its_weights`."""
    batches: list[Batch] = []

    def note(model: nn.Module, batch: Batch) -> Tensor:
        batches.append(batch)
        return entropy(model, batch)

    found = fit(normed_net(form), note, DATA, AVERAGED, seed=7).state_dict()
    model = normed_net(form).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    average: dict[str, Tensor] = {}
    for batch in batches:
        optimizer.zero_grad()
        entropy(model, batch).backward()
        optimizer.step()
        for name, tensor in model.state_dict().items():
            kept = average.get(name, tensor.clone())
            average[name] = 0.7 * kept + 0.3 * tensor
    assert len(batches) == 3 * 4
    assert set(found) == set(average)
    for name, tensor in found.items():
        if tensor.is_floating_point() and "running" not in name:
            # float32 over twelve steps, in two memory formats.
            torch.testing.assert_close(tensor, average[name], rtol=1e-3, atol=1e-5)
            last = model.state_dict()[name]
            assert not torch.allclose(tensor, last, rtol=1e-3, atol=1e-5), f"{name} is the last one"


def test_ema_has_the_statistics_of_its_weights() -> None:
    """The mean over one more pass of augmented images, norm by norm, in plain torch."""
    recipe = AVERAGED.model_copy(update={"augment": Augment(crop=1, flip=True)})
    model = fit(normed_net("plain"), entropy, DATA, recipe, seed=7)
    found = {name: t.clone() for name, t in model.state_dict().items() if "running" in name}
    own = copy.deepcopy(model).train()
    parts, generator = batch_order(DATA, recipe, 7, recipe.epochs)
    totals: dict[str, Tensor] = {}
    for part in parts:
        for norm in own.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 1.0  # the statistics of this batch
        with torch.no_grad():
            own(DATA.normalise(augmented(DATA.images[part], recipe.augment, generator)))
        for name, tensor in own.state_dict().items():
            if "running" in name:
                totals[name] = totals.get(name, 0) + tensor / len(parts)
    assert len(found) == 2 * 6
    for name, tensor in found.items():
        # float32, in two memory formats.
        torch.testing.assert_close(tensor, totals[name], rtol=1e-4, atol=1e-5)


def test_ema_does_not_change_the_training_itself() -> None:
    plain, averaged = [], []
    fit(network("plain", 1), entropy, DATA, RECIPE, seed=7, on_epoch=plain.append)
    recipe = RECIPE.model_copy(update={"ema": 0.9})
    fit(network("plain", 1), entropy, DATA, recipe, seed=7, on_epoch=averaged.append)
    assert [(e.epoch, e.loss, e.lr) for e in averaged] == [(e.epoch, e.loss, e.lr) for e in plain]


def test_ema_of_one_step_is_that_step() -> None:
    recipe = RECIPE.model_copy(update={"epochs": 1, "batch": 50, "warmup": 0.0})
    last = fit(network("plain", 1), entropy, DATA, recipe, seed=7)
    recipe = recipe.model_copy(update={"ema": 0.999})
    averaged = fit(network("plain", 1), entropy, DATA, recipe, seed=7)
    for name, parameter in averaged.named_parameters():
        assert torch.equal(parameter, last.get_parameter(name))


@pytest.mark.parametrize("form", ["plain", "expanded", "planted"])
def test_a_resumed_training_with_ema_ends_in_the_same_bits(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_CHECKPOINT_EVERY_S", 0)
    recipe = RECIPE.model_copy(update={"ema": 0.8})
    path = tmp_path / "checkpoint.pt"

    def stop(epoch: Epoch) -> None:
        if epoch.epoch == 3:
            raise Stopped

    whole = fit(network(form, 1), entropy, DATA, recipe, seed=7)
    with pytest.raises(Stopped):
        fit(network(form, 1), entropy, DATA, recipe, seed=7, checkpoint=path, on_epoch=stop)
    other = network(form, 2 if form != "planted" else 1)
    seen: list[Epoch] = []
    resumed = fit(other, entropy, DATA, recipe, seed=7, checkpoint=path, on_epoch=seen.append)
    assert [epoch.epoch for epoch in seen] == [3, 4]
    assert same_bits(whole, resumed)
    # The average, not the weights of the last step.
    assert not same_bits(whole, fit(network(form, 1), entropy, DATA, RECIPE, seed=7))


def test_ema_of_expanded_kernels_collapses_to_the_product_of_the_averages() -> None:
    plain = normed_net("plain")
    model = fit(normed_net("expanded"), entropy, DATA, AVERAGED, seed=7).double().eval()
    products = {
        name.removesuffix(".parametrizations.weight"): (
            chain.original.detach().clone(),
            chain[0].mixing.factors[0].detach().clone(),
        )
        for name, chain in model.named_modules()
        if name.endswith("parametrizations.weight")
    }
    assert len(products) == 7  # six convolutions and the linear layer
    x = (DATA.images.double() / 255 - 0.5) / 0.25
    with torch.no_grad():
        before = model(x)
        collapse_kernels_(model)
        torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)
    assert list(model.state_dict()) == list(plain.state_dict())
    for name, (bank, mixing) in products.items():
        kernel = (mixing @ bank.flatten(1)).view(-1, *bank.shape[1:])
        torch.testing.assert_close(
            model.get_submodule(name).weight.detach(), kernel, rtol=1e-12, atol=1e-12
        )


class Shuffled(nn.Module):
    """A network with a whole-number buffer that its forward reads, as many a user's has."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(192, generator=torch.Generator()))
        self.linear = nn.Linear(192, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)[:, self.order])


def test_ema_leaves_whole_number_buffers_as_they_are() -> None:
    model = Shuffled()
    order = model.order.clone()
    # 3 * 0.9 + 3 * 0.1 is a little less than 3: rounded down, it is another place.
    fit(model, entropy, DATA, AVERAGED.model_copy(update={"ema": 0.9}), seed=7)
    assert torch.equal(model.order, order)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_decays_of_an_average_that_are_none_are_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="ema"):
        Recipe(ema=decay)
    assert Recipe().ema is None


def windows(image: Tensor, augment: Augment) -> list[Tensor]:
    """Every view of a raw image `[channels, height, width]`, cut out of a canvas by hand."""
    channels, height, width = image.shape
    crop = augment.crop
    canvas = torch.zeros(channels, height + 2 * crop, width + 2 * crop, dtype=image.dtype)
    canvas[:, crop : crop + height, crop : crop + width] = image
    found = []
    for row in range(2 * crop + 1):
        for column in range(2 * crop + 1):
            view = canvas[:, row : row + height, column : column + width]
            found += [view, torch.stack([view[..., -1 - x] for x in range(width)], dim=-1)]
    return found if augment.flip else found[::2]


@pytest.mark.parametrize(
    "augment",
    [Augment(crop=1, views=4), Augment(flip=True, views=3), Augment(crop=2, flip=True, views=5)],
)
def test_a_pool_holds_the_images_and_then_legal_views_of_each(augment: Augment) -> None:
    images = split(600, (2, 4, 3), classes=4)  # more than are cropped at a time
    pool = view_pool(images, augment)
    views, n = augment.views or 0, len(images)
    assert len(pool) == views * n
    assert torch.equal(pool.images[:n], images.images)
    assert torch.equal(pool.mean, images.mean)
    assert torch.equal(pool.std, images.std)
    drawn = set()
    for i in range(n):
        legal = windows(images.images[i], augment)
        for view in range(views):
            at = i + view * n
            assert pool.labels[at] == images.labels[i]
            fits = [k for k, one in enumerate(legal) if torch.equal(pool.images[at], one)]
            assert fits, f"view {view} of image {i}"
            drawn |= set(fits) if view else set()
    # With so many draws every window and both directions come up.
    assert drawn == set(range(len(windows(images.images[0], augment))))


def test_a_pool_is_the_same_every_time_and_its_views_are_not_each_others() -> None:
    augment = Augment(crop=2, flip=True, views=3)
    one, two = view_pool(DATA, augment), view_pool(DATA, augment)
    assert torch.equal(one.images, two.images)
    first, second, third = one.images.chunk(3)
    assert not torch.equal(second, third)
    assert not torch.equal(first, second)
    assert not torch.equal(view_pool(DATA, augment, seed=1).images, one.images)


@given(st.integers(1, 40), st.integers(2, 5), st.integers(1, 16), st.integers(0, 2**16))
def test_an_epoch_shows_each_image_of_a_pool_once_in_some_view(
    count: int, views: int, batch: int, seed: int
) -> None:
    recipe = Recipe(epochs=3, batch=batch, augment=Augment(flip=True, views=views))
    pool = view_pool(split(count, (1, 2, 2)), recipe.augment)
    shown = []
    for epoch in range(3):
        parts, _ = batch_order(pool, recipe, seed, epoch)
        index = torch.cat(parts).tolist()
        assert sorted(at % count for at in index) == list(range(count))
        assert all(0 <= at < count * views for at in index)
        assert max(map(len, parts)) <= batch
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        shown.append(index)
    again = [torch.cat(batch_order(pool, recipe, seed, epoch)[0]).tolist() for epoch in range(3)]
    assert shown == again


def test_all_views_are_drawn_equally_often_and_for_each_image_apart() -> None:
    recipe = Recipe(epochs=1, augment=Augment(flip=True, views=4))
    pool = view_pool(split(50, (1, 2, 2)), recipe.augment)
    epochs = 400
    drawn = torch.zeros(50, 4)
    for epoch in range(epochs):
        index = torch.cat(batch_order(pool, recipe, 3, epoch)[0])
        drawn[index % 50, index // 50] += 1
    # 100 expected, a standard deviation of 9; 200 cells.
    assert drawn.sum() == epochs * 50
    assert float((drawn - 100).abs().max()) < 5 * math.sqrt(400 * 0.25 * 0.75)


def test_the_images_of_a_training_are_a_pool_where_views_are_asked_for() -> None:
    plain = Recipe(augment=Augment(crop=1))
    assert training_images(DATA, plain) is DATA
    viewed = Recipe(augment=Augment(crop=1, views=2))
    pool = training_images(DATA, viewed)
    assert isinstance(pool, Pool)
    assert torch.equal(pool.images, view_pool(DATA, viewed.augment).images)
    assert training_images(pool, viewed) is pool


@pytest.mark.parametrize(("views", "logits"), [(None, 49), (2, 50), (2, 99), (3, 100)])
def test_teacher_logits_of_other_images_are_refused(views: int | None, logits: int) -> None:
    augment = Augment() if views is None else Augment(crop=1, views=views)
    recipe = Recipe(epochs=1, augment=augment)
    words = f"teacher logits of {logits} images for {50 * (views or 1)} images"
    with pytest.raises(ValueError, match=words):
        fit(network("plain", 0), entropy, DATA, recipe, seed=0, teacher=torch.zeros(logits, 4))


def test_cached_logits_of_a_pool_teach_what_the_teacher_says_of_its_images() -> None:
    recipe = RECIPE.model_copy(update={"augment": Augment(crop=1, flip=True, views=3)})
    teacher = fill_(network("plain", 9))
    pool = view_pool(DATA, recipe.augment)
    asked: list[Tensor] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        assert batch.teacher is not None
        with torch.no_grad():
            told = teacher.eval()(batch.images)
        torch.testing.assert_close(batch.teacher, told, rtol=1e-4, atol=1e-5)
        asked.append(batch.images)
        return functional.mse_loss(model(batch.images), batch.teacher)

    trained = []
    for images, guide in (
        (DATA, predict(teacher, pool)),
        (pool, predict(teacher, pool)),
        (DATA, teacher),
    ):
        net = network("plain", 2)
        fit(net, loss, images, recipe, seed=5, teacher=guide)
        trained.append(net)
    assert same_bits(trained[0], trained[1])
    # float32: logits of other batch sizes differ in the last bits, and so do 16 steps on them.
    for a, b in zip(trained[0].parameters(), trained[2].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    # What was seen are views of the pool, and not only the images as they are.
    normal = pool.normalise(pool.images)
    seen = torch.cat(asked[: len(asked) // 3])
    places = [int((normal == one).flatten(1).all(dim=1).nonzero()[0]) for one in seen]
    assert len(places) == recipe.epochs * len(DATA)
    assert any(at >= len(DATA) for at in places)


def test_a_resumed_training_on_views_ends_in_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = RECIPE.model_copy(update={"augment": Augment(crop=1, views=3)})
    whole = fit(network("plain", 1), entropy, DATA, recipe, seed=3)
    monkeypatch.setattr(train, "_CHECKPOINT_EVERY_S", -1.0)

    def stop(epoch: Epoch) -> None:
        if epoch.epoch == 3:
            raise KeyboardInterrupt

    file = tmp_path / "checkpoint.pt"
    net = network("plain", 1)
    with pytest.raises(KeyboardInterrupt):
        fit(net, entropy, DATA, recipe, seed=3, checkpoint=file, on_epoch=stop)
    resumed = network("plain", 1)
    fit(resumed, entropy, DATA, recipe, seed=3, checkpoint=file)
    assert same_bits(whole, resumed)
