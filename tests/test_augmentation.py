"""Augmented images, and pools of views of them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import fill_, split
from test_train import DATA, RECIPE, entropy, network, same_bits
from torch import Tensor, nn
from torch.nn import functional

from planter.training import loop as train
from planter.training.augment import Augment
from planter.training.batches import Batch, Pool, augmented, batch_order, training_images, view_pool
from planter.training.loop import Epoch, fit
from planter.training.recipe import Recipe
from planter.training.scores import predict


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
