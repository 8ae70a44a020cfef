"""Norm statistics recomputed over the stream a network trains on."""

from __future__ import annotations

import pytest
import torch
from nets import fill_, flat, split
from test_augmentation import windows
from test_train import DATA, network, recalibrate
from torch import Tensor, nn
from torch.nn import functional

from planter.data import InMemorySplit
from planter.training.augment import Augment
from planter.training.recipe import Recipe
from planter.training.scores import recalibrate_batchnorm_


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
