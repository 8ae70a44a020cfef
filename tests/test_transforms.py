"""Changes of images beside torchvision's own, given the same draws."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from planter.training.augment import Augment
from planter.training.augmentation import AUGMENTATIONS, Augmentation
from planter.training.batches import augmented, view_pool
from planter.training.transforms import colour, erasing, geometry, policies
from planter.training.transforms.geometry import Rectangles

EVERY: dict[str, Any] = {
    "crop": 2,
    "flip": True,
    "resized_crop": True,
    "color_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.2},
    "randaugment": True,
    "trivial": True,
    "erasing": {"p": 0.5, "value": "random"},
}
COLOURS = ("color_jitter", "randaugment", "trivial")
# Of 255: torchvision cuts off where planter rounds; of greys, and once more after.
LEVELS = {"Brightness": 1, "Contrast": 1, "Sharpness": 1, "Color": 2}


def pictures(count: int, channels: int = 3, height: int = 12, width: int = 12) -> Tensor:
    """Smooth uint8 pictures: noise, enlarged."""
    generator = torch.Generator().manual_seed(count + channels)
    noise = torch.rand(count, channels, 4, 4, generator=generator)
    made = torch.nn.functional.interpolate(noise, (height, width), mode="bicubic")
    return (made.clamp(0, 1) * 255).round().to(torch.uint8)


def change(images: Tensor, name: str, setting: Any, seed: int = 0) -> Tensor:
    return augmented(images, Augment(**{name: setting}), torch.Generator().manual_seed(seed))


def spied(patch: pytest.MonkeyPatch, module: Any) -> list[Rectangles]:
    """The rectangles that a module draws."""
    drawn: list[Rectangles] = []
    real = geometry.rectangles

    def rectangles(*given: Any, **named: Any) -> Rectangles:
        drawn.append(real(*given, **named))
        return drawn[-1]

    patch.setattr(module, "rectangles", rectangles)
    return drawn


def test_every_change_of_images_is_tested_here() -> None:
    own = {name for name, entry in AUGMENTATIONS.items() if isinstance(entry, Augmentation)}
    assert own == set(EVERY)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_a_change_is_each_images_own_and_of_the_generator_alone(
    name: str, kind: torch.dtype
) -> None:
    if kind == torch.float32 and name in COLOURS:
        with pytest.raises(ValueError, match=r"images of 0..255 \(uint8\), these are float32"):
            change(pictures(2).float(), name, EVERY[name])
        return
    one = pictures(1)
    images = one.expand(40, -1, -1, -1).to(kind)
    before = images.clone()
    torch.manual_seed(3)
    random.seed(3)
    states = torch.get_rng_state(), random.getstate()
    first, again = (change(images, name, EVERY[name], seed=5) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), states[0])  # dropout draws from it
    assert random.getstate() == states[1]
    assert torch.equal(first, again)
    assert not torch.equal(first, change(images, name, EVERY[name], seed=6))
    assert torch.equal(images, before)
    assert (first.shape, first.dtype) == (images.shape, kind)
    kinds = len(torch.unique(first.flatten(1), dim=0))
    assert kinds == 2 if name == "flip" else kinds > 10


def test_torchvision_is_loaded_by_no_study_that_needs_none_of_it() -> None:
    code = (
        "import sys, torch; from planter.training.batches import augmented; "
        "from planter.training.augment import Augment; "
        "x = torch.zeros(2, 3, 8, 8, dtype=torch.uint8); g = torch.Generator(); "
        "augmented(x, Augment(crop=1, flip=True, resized_crop=True, erasing=1.0), g); "
        "print('torchvision' in sys.modules); augmented(x, Augment(color_jitter=0.4), g); "
        "print('torchvision' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


# ---- windows


@given(st.integers(2, 24), st.integers(2, 24), st.sampled_from([1, 2, 3]), st.integers(0, 2**16))
@settings(max_examples=25)
def test_a_resized_crop_is_torchvisions_of_the_same_window(
    height: int, width: int, channels: int, seed: int
) -> None:
    images = pictures(5, channels, height, width)
    with pytest.MonkeyPatch.context() as patch:
        drawn = spied(patch, geometry)
        made = change(images, "resized_crop", True, seed)
        exact = change(images.float(), "resized_crop", True, seed)
    for i in range(5):
        top, left, tall, wide, fits = (int(numbers[i]) for numbers in drawn[0])
        if not fits:
            continue
        size = [height, width]
        # In floats: torchvision's whole numbers are rounded twice, once for each axis.
        expected = functional.resized_crop(images[i].float(), top, left, tall, wide, size)
        torch.testing.assert_close(exact[i], expected, rtol=1e-5, atol=2e-3)
        torch.testing.assert_close(made[i].float(), expected, rtol=0, atol=0.51)


@pytest.mark.parametrize("size", [(4, 40), (40, 4), (6, 4)])
def test_where_no_window_fits_it_is_torchvisions_middle(size: tuple[int, int]) -> None:
    images = pictures(3, 3, *size).float()
    setting = {"scale": [1.0, 1.0], "ratio": [0.9, 1.1]}
    theirs = v2.RandomResizedCrop(size, scale=(1.0, 1.0), ratio=(0.9, 1.1))
    for image, found in zip(images, change(images, "resized_crop", setting), strict=True):
        torch.testing.assert_close(found, theirs(image), rtol=1e-5, atol=2e-3)


@pytest.mark.parametrize("what", ["crop", "erasing"])
def test_rectangles_are_drawn_as_torchvision_draws_them(what: str) -> None:
    size, scale, ratio, count = (20, 30), (0.1, 0.9), (0.5, 3.0), 4000
    image = torch.zeros(3, *size)
    torch.manual_seed(0)
    transform: Any
    if what == "crop":
        transform = v2.RandomResizedCrop(size, scale=scale, ratio=ratio)
        names, within, shape = ("top", "left", "height", "width"), size, ratio
    else:
        transform = v2.RandomErasing(p=1, scale=scale, ratio=ratio)
        names, within = ("i", "j", "h", "w"), (size[0] - 1, size[1] - 1)
        shape = (1 / ratio[1], 1 / ratio[0])  # of width over height
    params = [transform.make_params([image]) for _ in range(count)]
    theirs = torch.tensor([[p[name] for name in names] for p in params]).double()
    generator = torch.Generator().manual_seed(1)
    drawn = geometry.rectangles(count, size, scale, shape, generator, within=within)
    mine = torch.stack(drawn[:4], 1).double()
    assert drawn.fits.float().mean() > 0.99
    for a, b in zip(mine.T, theirs.T, strict=True):
        error = math.sqrt((float(a.var()) + float(b.var())) / count)
        assert abs(float(a.mean() - b.mean())) < 4 * error
        # The deviation's own error is about that of the mean, by the square root of 2 or less.
        assert abs(float(a.std() - b.std())) < 4 * error


# ---- colours

ADJUST: dict[str, Callable[[Tensor, float], Tensor]] = {
    "brightness": functional.adjust_brightness,
    "contrast": functional.adjust_contrast,
    "saturation": functional.adjust_saturation,
    "sharpness": functional.adjust_sharpness,
    "hue": functional.adjust_hue,
}


@pytest.mark.parametrize("name", ADJUST)
@pytest.mark.parametrize("channels", [1, 3])
def test_colours_change_as_torchvisions_with_the_number_of_each_image(
    name: str, channels: int
) -> None:
    images = torch.cat([pictures(20, channels).float() / 255, torch.zeros(1, channels, 12, 12)])
    generator = torch.Generator().manual_seed(0)
    numbers = torch.rand(21, generator=generator)
    numbers = numbers - 0.5 if name == "hue" else 2 * numbers
    made = getattr(colour, name)(images, numbers)
    expected = [ADJUST[name](x, float(n)) for x, n in zip(images, numbers, strict=True)]
    torch.testing.assert_close(made, torch.stack(expected), rtol=0, atol=1e-5)


@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.5]), min_size=4, max_size=4).filter(any),
    st.integers(0, 2**16),
)
@settings(max_examples=20)
def test_a_jitter_is_torchvisions_with_the_same_draws(strengths: list[float], seed: int) -> None:
    images = pictures(12)
    names = ("brightness", "contrast", "saturation", "hue")
    setting = dict(zip(names, strengths, strict=True))
    made = change(images, "color_jitter", setting, seed)
    generator = torch.Generator().manual_seed(seed)
    active = [name for name in names if setting[name]]
    drawn = {name: torch.rand(12, generator=generator).tolist() for name in active}
    orders = torch.rand(12, len(active), generator=generator).argsort(1).tolist()
    for i, order in enumerate(orders):
        image = images[i].float() / 255
        for name in (active[one] for one in order):
            low = -setting[name] if name == "hue" else 1 - setting[name]
            image = ADJUST[name](image, low + 2 * setting[name] * drawn[name][i])
        torch.testing.assert_close(made[i].float(), image * 255, rtol=0, atol=0.51)


def test_every_order_of_a_jitter_comes_up() -> None:
    image = pictures(1)
    many = change(image.expand(600, -1, -1, -1), "color_jitter", 0.4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        torch.rand(600, generator=generator)
    orders = torch.rand(600, 3, generator=generator).argsort(1)
    counts = torch.unique(orders, dim=0, return_counts=True)[1]
    assert counts.tolist() == [pytest.approx(100, abs=46)] * 6  # five deviations
    assert len(torch.unique(many.flatten(1), dim=0)) > 500


# ---- policies


def policy_draws(name: str, height: int, width: int) -> policies.Ranges:
    """The ranges that a policy uses for images of a size."""
    found: list[policies.Ranges] = []

    def operated(images: Tensor, ranges: policies.Ranges, *_: Any) -> Tensor:
        found.append(ranges)
        return images

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policies, "_operated", operated)
        change(pictures(2, 3, height, width), name, True)
    return found[0]


THEIRS: dict[str, Any] = {"randaugment": v2.RandAugment(), "trivial": v2.TrivialAugmentWide()}


@pytest.mark.parametrize("policy", THEIRS)
@pytest.mark.parametrize("operation", policies.OPERATIONS)
@pytest.mark.parametrize("size", [(3, 16, 16), (1, 9, 14)])
def test_an_operation_is_torchvisions_at_every_strength(
    policy: str, operation: str, size: tuple[int, int, int]
) -> None:
    theirs = THEIRS[policy]
    _, height, width = size
    strengths = torch.arange(31).repeat(2)
    signs = torch.tensor([1.0, -1.0]).repeat_interleave(31)
    images = pictures(62, *size)
    ranges = policy_draws(policy, height, width)
    function = policies.OPERATIONS[operation]
    made = images if function is None else function(images, ranges, strengths, signs)
    magnitudes, signed = theirs._AUGMENTATION_SPACE[operation]
    values = magnitudes(31, height, width)
    for image, found, strength, sign in zip(images, made, strengths, signs, strict=True):
        value = 0.0 if values is None else float(values[strength])
        expected = theirs._apply_image_or_video_transform(
            image, operation, value * float(sign) if signed else value, "nearest", theirs._fill
        )
        apart = (found.int() - expected.int()).abs()
        # The nearest of two pixels equally near may be either: they are few.
        ties = 0.02 if operation in ("ShearX", "ShearY", "Rotate") else 0.0
        assert float((apart > LEVELS.get(operation, 0)).float().mean()) <= ties


def test_operations_are_torchvisions_and_each_is_drawn_as_often() -> None:
    assert set(policies.OPERATIONS) == set(THEIRS["trivial"]._AUGMENTATION_SPACE)
    assert set(policies.OPERATIONS) == set(THEIRS["randaugment"]._AUGMENTATION_SPACE)
    drawn: dict[str, list[tuple[int, float]]] = {}

    def told(name: str) -> Callable[..., Tensor]:
        def function(images: Tensor, ranges: Any, strength: Tensor, signs: Tensor) -> Tensor:
            each = zip(strength.tolist(), signs.tolist(), strict=True)
            drawn.setdefault(name, []).extend(each)
            return images

        return function

    images = pictures(1).expand(1400, -1, -1, -1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policies, "OPERATIONS", {name: told(name) for name in policies.OPERATIONS})
        change(images, "trivial", True)
        trivial, drawn = drawn, {}
        change(images, "randaugment", {"num_ops": 3, "magnitude": 17})
    for found, rounds in ((trivial, 1), (drawn, 3)):
        assert set(found) == set(policies.OPERATIONS)
        # A hundred a round expected; five deviations.
        most = 5 * math.sqrt(1400 * rounds * 13 / 14 / 14)
        assert all(abs(len(each) - 100 * rounds) < most for each in found.values())
        signs = [sign for each in found.values() for _, sign in each]
        assert abs(sum(signs)) < 5 * math.sqrt(len(signs))
    assert {strength for each in drawn.values() for strength, _ in each} == {17}
    assert {strength for each in trivial.values() for strength, _ in each} == set(range(31))


# ---- erasing

MEAN, STD = torch.tensor([0.2, 0.5, 0.8])[:, None, None], torch.full((3, 1, 1), 0.1)


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
@pytest.mark.parametrize("value", ["mean", 0.0, [0.1, 0.2, 1.0]])
def test_erasing_is_torchvisions_of_the_same_rectangle(
    kind: torch.dtype, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pictures(30, 3, 10, 13).to(kind)
    augment = Augment(**{"erasing": {"p": 1.0, "value": value}})
    drawn = spied(monkeypatch, erasing)
    made = augmented(images, augment, torch.Generator().manual_seed(2), MEAN, STD)
    filled = MEAN if value == "mean" else torch.tensor(value).view(-1, 1, 1)
    if kind == torch.uint8:
        filled = (255 * filled).round().to(kind)
    assert bool(drawn[0].fits.all())
    for i in range(30):
        top, left, tall, wide, _ = (int(numbers[i]) for numbers in drawn[0])
        assert tall < 10
        assert wide < 13
        expected = functional.erase(images[i], top, left, tall, wide, filled)
        assert torch.equal(made[i], expected)


def test_an_erased_ratio_is_of_height_over_width_as_torchvisions_is() -> None:
    images = torch.ones(50, 1, 30, 30)
    setting = {"p": 1.0, "scale": [0.1, 0.2], "ratio": [2.0, 4.0], "value": 0.0}
    erased = change(images, "erasing", setting)[:, 0] == 0
    tall, wide = erased.any(2).sum(1), erased.any(1).sum(1)
    theirs = v2.RandomErasing(p=1, scale=(0.1, 0.2), ratio=(2.0, 4.0))
    params = [theirs.make_params([images[0]]) for _ in range(50)]
    assert all(one["h"] > 1.5 * one["w"] for one in params)
    assert bool((tall > 1.5 * wide).all())


def test_erased_noise_is_of_the_datas_mean_and_deviation() -> None:
    images = torch.full((400, 3, 12, 12), 9.0)
    setting = {"p": 0.4, "scale": [0.3, 0.6], "value": "random"}
    augment = Augment(**{"erasing": setting})
    made = augmented(images, augment, torch.Generator().manual_seed(0), MEAN, STD)
    erased = made != images
    share = float(erased.any(dim=3).any(dim=2).any(dim=1).float().mean())
    assert abs(share - 0.4) < 5 * math.sqrt(0.4 * 0.6 / 400)
    for channel in range(3):
        noise = made[:, channel][erased[:, channel]]
        assert float(noise.mean()) == pytest.approx(float(MEAN[channel]), abs=0.01)
        assert float(noise.std()) == pytest.approx(0.1, abs=0.01)


def test_views_of_a_pool_are_erased_in_the_splits_mean_colour() -> None:
    from nets import split

    images = split(20, (3, 12, 12))
    pool = view_pool(images, Augment(**{"erasing": 1.0, "views": 2}))
    changed = pool.images[20:] != images.images
    assert bool(changed.flatten(1).any(1).all())
    assert set(pool.images[20:][changed].tolist()) == {128}  # of a mean of a half


# ---- settings


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"resized_crop": {"scale": [0.35, 1]}}, {"scale": [0.35, 1.0], "ratio": [3 / 4, 4 / 3]}),
        ({"color_jitter": 0.3}, dict.fromkeys(("brightness", "contrast", "saturation"), 0.3)),
        ({"randaugment": True}, {"num_ops": 2, "magnitude": 9}),
        ({"erasing": 0.1}, {"p": 0.1, "value": "mean"}),
        ({"erasing": {"p": 0.1}}, {"p": 0.1, "value": "mean"}),
        ({"mixup": True}, 0.2),
        ({"cutmix": True}, 1.0),
    ],
)
def test_a_setting_is_kept_in_full_however_it_is_said(said: dict[str, Any], meant: Any) -> None:
    augment = Augment(**said)
    ((name, found),) = augment.chosen().items()
    assert name in said
    assert found == meant or meant.items() <= found.items()
    assert augment.changes()
    dumped = augment.model_dump()
    assert Augment(**dumped) == augment == Augment(**{name: found})
    assert {augment: 1}[Augment(**dumped)] == 1  # pools are kept by it


OFF: list[dict[str, Any]] = [
    {"crop": 0}, {"flip": False}, {"resized_crop": False}, {"color_jitter": 0},
    {"color_jitter": {}}, {"randaugment": False}, {"trivial": False}, {"erasing": 0},
    {"erasing": {"p": 0}}, {"mixup": 0}, {"mixup": False}, {"cutmix": 0.0},
]  # fmt: skip


@pytest.mark.parametrize("off", OFF)
def test_what_is_off_leaves_no_trace_in_what_is_dumped(off: dict[str, Any]) -> None:
    """Keys of content are made of it."""
    plain = [("crop", 0), ("flip", False), ("views", None)]
    assert list(Augment(**off).model_dump().items()) == plain
    assert Augment(**off) == Augment()
    assert not Augment(**off).changes()


def test_everything_that_can_be_set_can_be_off() -> None:
    assert {name for off in OFF for name in off} == set(AUGMENTATIONS)


@pytest.mark.parametrize(
    ("setting", "place", "told"),
    [
        ({"erasing": 2}, ("erasing", "p"), "less than or equal to 1"),
        ({"erasing": {"q": 1}}, ("erasing", "q"), "Extra inputs"),
        ({"erasing": {"value": "blue"}}, ("erasing", "value"), "mean, random, a number or a list"),
        ({"erasing": "x"}, ("erasing",), "true, a number, or a mapping of p, scale, ratio, value"),
        ({"resized_crop": 0.5}, ("resized_crop",), "true, or a mapping of scale, ratio"),
        ({"resized_crop": {"scale": [1, 0.3]}}, ("resized_crop", "scale"), r"first, \[0.3, 1"),
        ({"resized_crop": {"scale": [0, 1]}}, ("resized_crop", "scale", 0), "greater than 0"),
        ({"resized_crop": {"ratio": [1]}}, ("resized_crop", "ratio"), "at least 2 items"),
        ({"color_jitter": -1}, ("color_jitter", "brightness"), "greater than or equal to 0"),
        ({"color_jitter": {"hue": 0.6}}, ("color_jitter", "hue"), "less than or equal to 0.5"),
        ({"randaugment": {"magnitude": 31}}, ("randaugment", "magnitude"), "or equal to 30"),
        ({"randaugment": {"num_ops": 1.0}}, ("randaugment", "num_ops"), "valid integer"),
        ({"trivial": 1}, ("trivial",), "valid boolean"),
        ({"mixup": -0.1}, ("mixup",), "greater than or equal to 0"),
        ({"cutmix": math.inf}, ("cutmix",), "finite"),
    ],
)
def test_a_setting_that_means_nothing_is_refused_at_its_place(
    setting: dict[str, Any], place: tuple[Any, ...], told: str
) -> None:
    with pytest.raises(ValueError, match=told) as error:
        Augment(**setting)
    assert [one["loc"] for one in error.value.errors()] == [place]  # type: ignore[attr-defined]
