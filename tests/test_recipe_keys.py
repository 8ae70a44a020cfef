"""Keys of a recipe that concern a step, against the same step in plain torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import fill_, residual
from sklearn.utils.class_weight import compute_class_weight
from test_fast_round import CLASSES, Doubled, data
from torch import Tensor, nn
from torch.nn import functional

from planter.arch import Architecture
from planter.backbones import full_widths
from planter.edits.expand import expand_kernels_
from planter.kernels.forms import KernelFilter
from planter.networks.assembly import build_network
from planter.networks.checkpoint import content_key
from planter.planting.plants import plant, train_plant
from planter.planting.round import train_round
from planter.training.augment import Augment
from planter.training.batches import Batch
from planter.training.class_weights import entropy_settings, weights_of_classes
from planter.training.loop import fit
from planter.training.losses import classification_loss, distillation_loss, multi_pipeline_loss
from planter.training.recipe import Recipe, make_optimizer

WEIGHTS = [2.0, 0.5, 0.0, 1.25]
RECIPE = Recipe(epochs=3, batch=10, lr=0.05, weight_decay=0.05, schedule="constant")


def with_keys(**keys: Any) -> Recipe:
    return Recipe.model_validate(RECIPE.model_dump() | keys)


def normed() -> nn.Module:
    torch.manual_seed(3)
    return fill_(residual(residual.widths, classes=CLASSES, image=(3, 8, 8))).double()


def plain() -> nn.Module:
    """No norms: what images do in a step does not depend on those beside them."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, CLASSES)
    ).double()


def trained(model: nn.Module, recipe: Recipe, **more: Any) -> tuple[nn.Module, list[Batch]]:
    """The model after `fit` with the loss that planter's tasks use, and the batches it saw."""
    images, seen = data(30), []
    entropy = entropy_settings(recipe, images.labels, CLASSES)
    kd_weight = 0.7 if "teacher" in more else 0.0

    def loss(net: nn.Module, batch: Batch) -> Tensor:
        seen.append(batch)
        logits = net(batch.images)
        return classification_loss(
            logits, batch.labels, batch.teacher, kd_weight=kd_weight, **entropy
        )

    return fit(model, loss, images, recipe, seed=5, **more), seen


def assert_same(one: nn.Module, other: nn.Module, tolerance: float = 1e-10) -> None:
    """Of float64, over some nine steps, but for the order of sums."""
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(
            tensor, other.state_dict()[name], rtol=tolerance, atol=tolerance, msg=name
        )


def far_apart(one: nn.Module, other: nn.Module) -> bool:
    return any(
        not torch.allclose(tensor, other.state_dict()[name], rtol=1e-4, atol=1e-6)
        for name, tensor in one.state_dict().items()
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_losses_are_torchs_with_smoothing_and_weights(
    smoothing: float, weights: list[float] | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 9, CLASSES, generator=generator, dtype=torch.float64)
    labels = torch.arange(9) % CLASSES
    weighed = None if weights is None else torch.tensor(weights)
    keys = {"label_smoothing": smoothing, "class_weights": weighed}
    doubled = None if weighed is None else weighed.double()
    expected = functional.cross_entropy(logits, labels, doubled, label_smoothing=smoothing)
    divergence = distillation_loss(logits, teacher, 2.0)
    alone = classification_loss(logits, labels, **keys)
    torch.testing.assert_close(alone, expected, rtol=1e-12, atol=0)
    both = {"ce_weight": 0.25, "kd_weight": 0.5, "temperature": 2.0}
    guided = classification_loss(logits, labels, teacher, **both, **keys)
    torch.testing.assert_close(guided, 0.25 * expected + 0.5 * divergence, rtol=1e-12, atol=0)
    named = {"base": logits, "exit": 2 * logits}
    joint = multi_pipeline_loss(named, labels, weights={"exit": 0.5}, **keys)
    other = functional.cross_entropy(2 * logits, labels, doubled, label_smoothing=smoothing)
    torch.testing.assert_close(joint, expected + 0.5 * other, rtol=1e-12, atol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_images_of_weight_0_alone_leave_the_weights_where_they_are(smoothing: float) -> None:
    """Torch's own mean is then 0 / 0."""
    logits = torch.zeros(2, CLASSES, requires_grad=True)
    labels = torch.tensor([2, 2])
    weights = torch.tensor(WEIGHTS)
    loss = classification_loss(logits, labels, class_weights=weights, label_smoothing=smoothing)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40))
def test_balanced_weights_are_those_of_scikit_learn(labels: list[int]) -> None:
    every = [*labels, *range(5)]  # none is without an image
    found = weights_of_classes(Recipe(class_weights="balanced"), torch.tensor(every), 5)
    expected = compute_class_weight("balanced", classes=np.arange(5), y=np.array(every))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([1.0, 2.0, 3.0], "3 weights, expected one for each of 4 classes"),
        ([1.0] * 5, "5 weights, expected one for each of 4 classes"),
        ("balanced", "no training image of class 1, 3"),
    ],
)
def test_weights_of_classes_that_are_not_there_are_refused(weights: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        weights_of_classes(Recipe(class_weights=weights), torch.tensor([0, 2, 2]), 4)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"class_weights": [0.0, 0.0]}, "no weight above 0"),
        ({"class_weights": [1.0, -0.5]}, "class_weights"),
        ({"class_weights": "equal"}, "balanced"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"clip_grad": 0.0}, "clip_grad"),
        ({"accumulate": 0}, "accumulate"),
        ({"accumulate": 9, "batch": 8}, "parts of a batch of 8 images"),
        ({"patience": 0}, "patience"),
        ({"patience": 2, "validate_every": 0}, "patience needs validations"),
    ],
)
def test_settings_without_a_meaning_are_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Recipe.model_validate(keys)


@pytest.mark.parametrize(("kind", "clip"), [("sgd", 1.0), ("adamw", 0.6)])
def test_a_training_with_every_key_is_the_one_in_plain_torch(kind: str, clip: float) -> None:
    """Smoothing, weights, clipping and timm's rule for decays, over the batches that were given."""
    keys = {"label_smoothing": 0.2, "class_weights": WEIGHTS, "clip_grad": clip, "no_decay": True}
    recipe = with_keys(**keys, optimizer=kind, momentum=0.0)
    found, batches = trained(normed(), recipe)
    model = normed().train()
    named = list(model.named_parameters())
    spared = [p for name, p in named if p.ndim <= 1 or name.endswith(".bias")]
    others = [p for name, p in named if not (p.ndim <= 1 or name.endswith(".bias"))]
    assert len(spared) > len(others) > 0
    of_torch = torch.optim.SGD if kind == "sgd" else torch.optim.AdamW
    optimizer = of_torch(
        [{"params": others, "weight_decay": 0.05}, {"params": spared, "weight_decay": 0.0}], lr=0.05
    )
    norms = []
    for batch in batches:
        loss = functional.cross_entropy(
            model(batch.images),
            batch.labels,
            torch.tensor(WEIGHTS, dtype=torch.float64),
            label_smoothing=0.2,
        )
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), clip)))
        optimizer.step()
    assert max(norms) > clip > min(norms), "some steps are clipped, some are not"
    # Adam divides by the root of a small second moment.
    assert_same(found, model, 1e-8 if kind == "sgd" else 1e-6)
    for key in keys:
        without = recipe.model_copy(update={key: Recipe.model_fields[key].default})
        assert far_apart(found, trained(normed(), without)[0]), key


@pytest.mark.parametrize("form", ["plain", "expanded"])
@pytest.mark.parametrize("weights", [None, [2.0, 0.5, 0.1, 1.25], "balanced"])
@pytest.mark.parametrize("parts", [2, 3, 10])
def test_a_step_in_parts_is_the_step_of_the_whole(parts: int, weights: Any, form: str) -> None:
    """Without norms, also where images change, gradients are clipped and kernels are expanded."""

    def network() -> nn.Module:
        return expand_kernels_(plain(), KernelFilter(rho=2)) if form == "expanded" else plain()

    keys = {"class_weights": weights, "label_smoothing": 0.1, "clip_grad": 0.5}
    keys["augment"] = Augment(crop=1, flip=True).model_dump()
    whole, _ = trained(network(), with_keys(**keys))
    found, seen = trained(network(), with_keys(**keys, accumulate=parts))
    assert max(len(batch.labels) for batch in seen) == -(-10 // parts)
    assert len(seen) == 3 * 3 * parts
    assert_same(found, whole)


def test_a_step_in_parts_asks_the_teacher_for_the_same() -> None:
    keys = {"augment": {"flip": True}}
    teacher = plain()
    whole, _ = trained(plain(), with_keys(**keys), teacher=teacher)
    found, seen = trained(plain(), with_keys(**keys, accumulate=4), teacher=teacher)
    assert {len(batch.teacher) for batch in seen} == {2, 3}
    assert_same(found, whole)


def test_batch_norms_see_the_parts() -> None:
    """As in plain torch: statistics of five images, twice a step."""
    found, batches = trained(normed(), with_keys(accumulate=2, momentum=0.0))
    assert {len(batch.labels) for batch in batches} == {5}
    model = normed().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=0.05)
    for at in range(0, len(batches), 2):
        optimizer.zero_grad()
        for batch in batches[at : at + 2]:
            (functional.cross_entropy(model(batch.images), batch.labels) / 2).backward()
        optimizer.step()
    assert_same(found, model, 1e-8)


@pytest.mark.parametrize("family", ["convnet", "resnet"])
@pytest.mark.parametrize(
    "keys",
    [
        {"accumulate": 3},
        {"accumulate": 2, "class_weights": WEIGHTS},
        {"clip_grad": 0.005},
        {"no_decay": True, "weight_decay": 0.5},
    ],
)
def test_a_fast_round_of_planting_takes_the_same_steps(family: str, keys: dict[str, Any]) -> None:
    options = {"depth": 8} if family == "resnet" else {}
    widths = full_widths(family, 4 if family == "convnet" else None, options)
    options |= {"classes": CLASSES, "image": [3, 8, 8]}
    architecture = Architecture(family, widths, options)
    parent = fill_(build_network(architecture)).double().eval()
    layer = "conv2" if family == "convnet" else "group2"
    recipe, images = with_keys(**keys), data(30)
    entropy = entropy_settings(recipe, images.labels, CLASSES)

    def child() -> nn.Module:
        return plant(architecture, parent, layer, 2, seed=1, outgoing="random")[1]

    def of_logits(logits: Tensor, labels: Tensor, teacher: Tensor | None) -> Tensor:
        return classification_loss(logits, labels, **entropy)

    def of_batch(model: nn.Module, batch: Batch) -> Tensor:
        return of_logits(model(batch.images), batch.labels, None)

    expected = train_plant(child(), parent, images, recipe, of_batch, teacher=None, seed=7)
    found, plain_one = child(), child()
    result = train_round(parent, {"one": found}, images, recipe, of_logits, teacher=None, seed=7)[
        "one"
    ]
    assert result.error is None
    assert len(result.epochs) == 3
    assert_same(found, expected, 1e-8)
    train_round(parent, {"one": plain_one}, images, RECIPE, of_logits, teacher=None, seed=7)
    parted = "accumulate" in keys and family == "convnet"  # which has no norms
    assert parted or far_apart(found, plain_one), "the keys change nothing"


@pytest.mark.parametrize("key", ["patience", "validate_every"])
def test_a_fast_round_refuses_what_it_cannot_do(key: str) -> None:
    parent = plain()
    with pytest.raises(ValueError, match=f"when it has ended: {key} 2, not null"):
        train_round(
            parent, {}, data(), with_keys(**{key: 2}), lambda *_: None, teacher=None, seed=0
        )


def test_factors_of_kernels_keep_their_own_decays() -> None:
    model = expand_kernels_(normed(), KernelFilter(rho=2))
    names = {id(p): name for name, p in model.named_parameters()}
    decays = {
        names[id(p)]: group["weight_decay"]
        for group in make_optimizer(model, with_keys(no_decay=True)).param_groups
        for p in group["params"]
    }
    for name, p in model.named_parameters():
        if "parametrizations.weight" not in name:
            assert decays[name] == (0.0 if p.ndim <= 1 else 0.05), name
    mixing = [decay for name, decay in decays.items() if "mixing" in name]
    assert mixing
    assert set(mixing) == {1e-9}


def test_recipes_of_before_have_the_keys_of_content_of_before() -> None:
    """As planter wrote them before it knew of these keys."""
    assert content_key([Recipe().model_dump()]) == "93ee228829176a7d"
    recipe = Recipe(epochs=3, nesterov=True, ema=0.9, augment=Augment(crop=4, views=3))
    assert content_key([recipe.model_dump()]) == "1083044f9bdcb7fe"
    said = {"label_smoothing": 0.0, "class_weights": None, "accumulate": 1, "patience": None}
    assert Recipe.model_validate(said).model_dump() == Recipe().model_dump()
    every = {
        "label_smoothing": 0.1, "class_weights": "balanced", "accumulate": 2, "patience": 3,
        "clip_grad": 1.0, "no_decay": True, "validate_every": 2,
    }  # fmt: skip
    assert every.items() <= Recipe.model_validate(every).model_dump().items()


def test_float64_images_stay_float64() -> None:
    """What the tests above rest on."""
    assert isinstance(data(), Doubled)
    assert trained(plain(), RECIPE)[1][0].images.dtype == torch.float64
