from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import fill_, residual, split
from torch import Tensor, nn
from torch.nn import functional

from planter.data import InMemorySplit, Split
from planter.edits.expand import expand_kernels_
from planter.edits.freeze import freeze_inherited_
from planter.edits.inherit import inherit_weights
from planter.kernels.forms import KernelFilter
from planter.networks.checkpoint import write_training
from planter.training import loop as train
from planter.training.augment import Augment
from planter.training.batches import Batch
from planter.training.loop import Epoch, fit
from planter.training.recipe import Recipe
from planter.training.scores import evaluate, predict, recalibrate_batchnorm_

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


def test_few_channels_before_a_strided_point_convolution_train_to_the_end():
    """With channels last, torch's backward pass writes beyond its memory there: at 8 to 15 channels
    of large maps it ended the process on processors with AVX-512."""
    program = """
import torch
from torch import nn
from planter.training.batches import layout_of
torch.set_num_threads(1)
for channels in (3, 7, 8, 10, 15):
    print(channels, flush=True)
    point = nn.Conv2d(channels, 11, 1, 2, bias=False)
    layout = layout_of(point)
    images = torch.randn(32, channels, 56, 56).contiguous(memory_format=layout).requires_grad_()
    for _ in range(3):
        point.to(memory_format=layout)(images).sum().backward()
    expected = point.weight.detach().sum(0).view(1, -1, 1, 1).expand(32, -1, 28, 28) * 3
    torch.testing.assert_close(images.grad[:, :, ::2, ::2], expected, rtol=1e-4, atol=1e-4)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    told = f"at {done.stdout.split()[-1:]} channels: {done.stderr[-500:]}"
    assert done.returncode == 0, told
