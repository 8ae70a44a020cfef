"""Batches of mixed images and labels: beside torchvision, in losses, trainings and checks."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nets import fill_, split
from test_train import DATA, RECIPE, entropy, network, same_bits
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

import planter
from planter.data import InMemorySplit
from planter.study.schema import StudyError
from planter.training import loop
from planter.training.augment import Augment
from planter.training.augmentation import AUGMENTATIONS, Mixing
from planter.training.batches import Batch, batch_order, make_batch, mixed
from planter.training.loop import Epoch, fit
from planter.training.losses import classification_loss, multi_pipeline_loss, synergy_loss
from planter.training.recipe import Recipe
from planter.training.scores import recalibrate_batchnorm_
from planter.training.transforms import mixing

WAYS = {"mixup": v2.MixUp, "cutmix": v2.CutMix}


def mix(**settings: float) -> Augment:
    return Augment(**settings)


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_way_of_mixing_is_tested_here() -> None:
    assert {name for name, entry in AUGMENTATIONS.items() if isinstance(entry, Mixing)} == set(WAYS)


# ---- beside torchvision


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("share", [0.0, 0.03, 0.3, 0.77, 1.0])
@pytest.mark.parametrize("size", [(8, 8), (5, 12)])
def test_a_batch_is_mixed_as_torchvision_mixes_it(
    name: str, share: float, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randn(7, 3, *size, generator=drawn(0))
    labels = torch.randint(0, 4, (7,), generator=drawn(1))
    before = images.clone()
    theirs = WAYS[name](num_classes=4)
    theirs._dist = SimpleNamespace(sample=lambda shape: torch.tensor(share))
    monkeypatch.setattr(mixing, "_share", lambda alpha, generator: share)
    for seed in range(6):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            expected, shares = theirs(images, labels)
        found, of = mixed(images, labels, mix(**{name: 1.0}), drawn(seed), 4)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(of, shares, rtol=1e-5, atol=1e-6)
    assert torch.equal(images, before)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_a_share_is_drawn_from_the_beta_distribution(alpha: float) -> None:
    generator = drawn(0)
    shares = torch.tensor([mixing._share(alpha, generator) for _ in range(4000)])
    theirs = torch.distributions.Beta(alpha, alpha)
    assert abs(float(shares.mean()) - 0.5) < 5 * float(theirs.stddev) / math.sqrt(4000)
    assert float(shares.var()) == pytest.approx(float(theirs.variance), rel=0.12)


def test_one_of_several_ways_is_drawn_for_each_batch() -> None:
    images, labels = torch.randn(4, 1, 8, 8, generator=drawn(0)), torch.arange(4)
    generator, whole = drawn(3), 0
    for _ in range(400):
        found, _ = mixed(images, labels, mix(mixup=8.0, cutmix=8.0), generator, 4)
        # What is cut out leaves pixels as they are; what is mixed (half and half) none.
        whole += bool((found == images).any())
    assert abs(whole - 200) < 5 * 10


# ---- losses


@pytest.mark.parametrize("known", [3, 5])
def test_the_loss_of_shares_is_that_of_plain_torch(known: int) -> None:
    logits = torch.randn(6, 5, dtype=torch.float64, generator=drawn(0), requires_grad=True)
    teacher = torch.randn(6, 5, dtype=torch.float64, generator=drawn(1))
    shares = torch.rand(6, known, generator=drawn(2))
    shares /= shares.sum(1, keepdim=True)
    full = torch.cat([shares, torch.zeros(6, 5 - known)], 1).double()
    by_hand = -(full * logits.log_softmax(1)).sum(1).mean()
    kl = (teacher.softmax(1) * (teacher.log_softmax(1) - logits.log_softmax(1))).sum(1).mean()
    found = classification_loss(logits, shares, teacher, ce_weight=0.7, kd_weight=0.3)
    torch.testing.assert_close(found, 0.7 * by_hand + 0.3 * kl)
    whole = classification_loss(logits, functional.one_hot(torch.arange(5), 5).repeat(2, 1)[:6])
    torch.testing.assert_close(whole, classification_loss(logits, torch.arange(6) % 5))
    (gradient,) = torch.autograd.grad(by_hand, logits, retain_graph=True)
    (mine,) = torch.autograd.grad(classification_loss(logits, shares), logits)
    torch.testing.assert_close(mine, gradient)


def test_labels_of_more_classes_than_a_network_has_are_refused() -> None:
    with pytest.raises(RuntimeError):
        classification_loss(torch.zeros(2, 3), torch.full((2, 4), 0.25))


def test_pipelines_and_their_synergy_learn_from_shares() -> None:
    logits = {
        name: torch.randn(6, 4, generator=drawn(i)) for i, name in enumerate(["exit", "base"])
    }
    shares = torch.rand(6, 4, generator=drawn(5)).softmax(1)
    found = multi_pipeline_loss(
        logits, shares, weights={"exit": 0.5}, exits=["exit"], synergy="top_down"
    )
    expected = 0.5 * functional.cross_entropy(logits["exit"], shares)
    expected = expected + functional.cross_entropy(logits["base"], shares)
    expected = expected + synergy_loss(logits, "top_down")
    torch.testing.assert_close(found, expected)


# ---- trainings


def plain_colours(count: int = 24) -> InMemorySplit:
    """Images of one colour, which is that of their class."""
    labels = torch.arange(count) % 4
    images = (60 * labels)[:, None, None, None].expand(count, 3, 8, 8).to(torch.uint8)
    return InMemorySplit(images, labels, torch.zeros(3, 1, 1), torch.ones(3, 1, 1))


@pytest.mark.parametrize("name", WAYS)
def test_a_training_sees_labels_and_a_teacher_of_the_images_it_sees(name: str) -> None:
    recipe = RECIPE.model_copy(update={"augment": mix(**{name: 1.0}), "batch": 6})
    images, teacher = plain_colours(), fill_(network("plain", 9))
    steps = 0

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        nonlocal steps
        steps += 1
        assert batch.labels.shape == (6, 4)
        torch.testing.assert_close(batch.labels.sum(1), torch.ones(6))
        # A mean over the image is one over its classes, each by its share.
        colours = 255 * batch.images.mean((1, 2, 3))
        torch.testing.assert_close(batch.labels @ (60 * torch.arange(4.0)), colours)
        with torch.no_grad():
            told = teacher.eval()(batch.images)
        assert batch.teacher is not None
        torch.testing.assert_close(batch.teacher, told)
        return entropy(model, batch)

    fit(network("plain", 1), loss, images, recipe, seed=3, teacher=teacher)
    assert steps == 4 * recipe.epochs


def test_a_training_on_mixed_images_is_one_in_plain_torch() -> None:
    recipe = Recipe(
        epochs=2, batch=8, lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant",
        augment=mix(mixup=0.7, cutmix=0.7),
    )  # fmt: skip
    images = plain_colours()
    net, twin = network("plain", 1), network("plain", 1)
    fit(net, lambda m, b: classification_loss(m(b.images), b.labels), images, recipe, seed=5)
    twin.train()
    for epoch in range(2):
        torch.manual_seed(loop.mix_seed(5, epoch))
        parts, generator = batch_order(images, recipe, 5, epoch)
        for index in parts:
            batch = make_batch(images, index, recipe.augment, generator, None)
            log = twin(batch.images).log_softmax(1)
            gradients = torch.autograd.grad(
                -(batch.labels * log).sum(1).mean(), list(twin.parameters())
            )
            with torch.no_grad():
                for parameter, gradient in zip(twin.parameters(), gradients, strict=True):
                    parameter -= 0.1 * gradient
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_resumed_training_mixes_as_if_it_had_not_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "mixup": 0.5, "cutmix": True, "trivial": True, "erasing": 0.5, "color_jitter": 0.3,
        "resized_crop": True, "randaugment": True,
    }  # fmt: skip
    recipe = RECIPE.model_copy(update={"augment": Augment(crop=1, flip=True, **settings)})
    whole = fit(network("plain", 1), entropy, DATA, recipe, seed=3)
    monkeypatch.setattr(loop, "_CHECKPOINT_EVERY_S", -1.0)

    def stop(epoch: Epoch) -> None:
        if epoch.epoch == 3:
            raise KeyboardInterrupt

    file = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        fit(network("plain", 1), entropy, DATA, recipe, seed=3, checkpoint=file, on_epoch=stop)
    torch.rand(9)  # the process's generator stands elsewhere by now
    resumed = fit(network("plain", 2), entropy, DATA, recipe, seed=3, checkpoint=file)
    assert same_bits(whole, resumed)
    assert not same_bits(whole, fit(network("plain", 1), entropy, DATA, recipe, seed=4))


def test_kept_logits_and_views_are_refused_where_images_are_mixed() -> None:
    recipe = RECIPE.model_copy(update={"augment": mix(mixup=0.5)})
    with pytest.raises(ValueError, match="cached teacher logits do not fit augmented images"):
        fit(network("plain", 0), entropy, DATA, recipe, seed=0, teacher=torch.zeros(50, 4))
    with pytest.raises(ValueError, match="leave out views or mixup and cutmix"):
        mix(mixup=0.5, cutmix=0.5, views=3, crop=1)


def test_norm_statistics_are_those_of_mixed_images() -> None:
    """What the training saw: see docs/scoring.md."""
    images = split(40, (3, 8, 8), classes=4)
    recipe = Recipe(epochs=1, batch=10, augment=mix(mixup=4.0))
    norm = nn.BatchNorm2d(3)
    recalibrate_batchnorm_(nn.Sequential(norm), images, recipe, seed=1)
    parts, generator = batch_order(images, recipe, 1, 1)
    seen = [make_batch(images, i, recipe.augment, generator, None).images for i in parts]
    variances = torch.stack([one.var((0, 2, 3)) for one in seen]).mean(0)
    assert norm.running_var is not None
    torch.testing.assert_close(norm.running_var, variances)
    plain = images.normalise(images.batch(slice(None))).var((0, 2, 3))
    assert bool((variances < 0.75 * plain).all())  # half and half of noise has half of its variance


# ---- studies

STUDY = """
name: mixing
data: {name: digits, subset: 120, validation: 0.25}
teacher: {builder: toy, widths: 4}
baselines: [{builder: toy, widths: 2, kd: {}}]
recipe: {epochs: 1, batch: 30, optimizer: adam, lr: 0.01, augment: {AUGMENT}}
plant: {start: 2, rounds: 1, recipe: {epochs: 1, batch: 30, augment: {PLANT}}}
sample: {space: "SPACE:space", trials: 1}
resources: {workers: 0, max_failures: 0}
"""
SPACE = """
from planter import Architecture, Candidate

class Own(Candidate):
    def loss_of(self, logits, labels, teacher, exits=()):
        from torch.nn.functional import nll_loss
        return nll_loss(logits["base"].log_softmax(1), labels)

def space(trial):
    widths = dict.fromkeys(["conv1", "conv2", "conv3"], trial.suggest_int("w", 2, 4))
    augment = {"mixup": trial.suggest_float("mixup", 0.1, 0.8), "erasing": {"p": 0.5}}
    return KIND(Architecture("toy", widths), recipe={"augment": augment, **MORE}, kd_weight=0.5)
"""


@pytest.fixture
def study(tmp_path: Path) -> Any:
    def written(
        augment: str = "{}", plant: str = "{}", kind: str = "Candidate", more: str = "{}"
    ) -> Path:
        place = tmp_path / "space.py"
        place.write_text(SPACE.replace("KIND", kind).replace("MORE", more))
        text = STUDY.replace("{AUGMENT}", augment).replace("{PLANT}", plant)
        file = tmp_path / "study.yaml"
        file.write_text(text.replace("SPACE", str(place)))
        return file

    return written


def test_a_search_mixes_everywhere_and_asks_its_teacher_anew(study: Any) -> None:
    file = study(
        "{crop: 1, randaugment: true, mixup: 0.2, cutmix: true}", "{trivial: true, views: 2}"
    )
    run = file.parent / "run"
    found = planter.search(file, out=run)
    assert not found["failed"]
    methods = {point["method"] for point in found["points"]}
    assert {"teacher", "baseline", "plant", "sample"} <= methods
    text = (run / "resolved.yaml").read_text()
    assert "mixup: 0.2" in text
    assert "cutmix: 1.0" in text
    assert planter.search(file, out=run) == found
    off = planter.search(
        file, out=file.parent / "off", overrides=["recipe.augment={}", "sample=null", "plant=null"]
    )
    mine = {p["trial"]: p for p in found["points"]}
    plain = {p["trial"]: p for p in off["points"]}
    asked = mine["b-width2"]["train_macs"] - plain["b-width2"]["train_macs"]
    assert asked == 90 * mine["teacher"]["macs"]


@pytest.mark.parametrize(
    ("change", "place", "told"),
    [
        ({"augment": "{crop: 8}"}, "recipe.augment.crop", "fewer pixels than an image of 8 x 8"),
        ({"augment": "{erasing: {value: 3}}"}, "recipe.augment.erasing", r"between 0 \(black\)"),
        (
            {"augment": "{erasing: {value: [0, 0, 1]}}"},
            "recipe.augment.erasing",
            "a value for each of 1 channels",
        ),
        ({"plant": "{mixup: 1, views: 2}"}, "plant.recipe.augment", "leave out views or mixup"),
        ({"augment": "{erasing: {q: 1}}"}, "recipe.augment.erasing.q", "one of p, scale, ratio"),
        ({"augment": "{mxup: 1}"}, "recipe.augment.mxup", "'mixup'"),
        ({"kind": "Own"}, "sample.space", "its loss takes no labels of mixed images"),
        ({"more": "{'batch': 1}"}, "sample.space", "a batch of 2 or more images to mix, not 1"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_trained(
    study: Any, change: dict[str, str], place: str, told: str
) -> None:
    file = study(**change)
    with pytest.raises(StudyError, match=told) as error:
        planter.search(file, out=file.parent / "run")
    assert [problem.place for problem in error.value.problems] == [place]
    assert not (file.parent / "run").exists()


def test_a_batch_of_one_image_is_told(study: Any) -> None:
    file = study("{mixup: 1}, batch: 1")
    file.write_text(file.read_text().replace(" batch: 30,", "", 1))
    with pytest.raises(StudyError, match="a batch of 2 or more images to mix, not 1"):
        planter.search(file, out=file.parent / "run")


@pytest.mark.parametrize(
    ("shape", "kind", "refused"),
    [
        ((3, 6, 6), torch.uint8, []),
        ((1, 6, 6), torch.uint8, []),
        ((2, 6, 6), torch.uint8, ["color_jitter", "randaugment", "trivial"]),
        ((3, 6, 6), torch.float32, ["color_jitter", "randaugment", "trivial"]),
        ((3, 1, 1), torch.uint8, ["crop", "resized_crop", "erasing", "cutmix"]),
    ],
)
def test_images_that_a_change_cannot_take_are_known(
    shape: tuple[int, int, int], kind: torch.dtype, refused: list[str]
) -> None:
    every = dict.fromkeys((name for name in AUGMENTATIONS if name not in ("crop", "flip")), True)
    found = list(Augment(crop=1, flip=True, **every).misfits(shape, kind))
    assert [name for name, _, _ in found] == refused
