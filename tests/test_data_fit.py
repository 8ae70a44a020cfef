"""Images of any shape brought to one size: as torchvision and Pillow do it, and as old runs did."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from planter.data import load_data
from planter.data.decode import decode_bytes
from planter.data.fit import fitted, is_shaped, within

_OWN = "planter_tests_fit:make"


def _own(made, **settings):
    module = types.ModuleType("planter_tests_fit")
    module.make = lambda: made
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        return load_data(_OWN, **{"validation": 2, **settings})


def _photo(height, width, seed=0):
    """Smooth colours `[height, width, 3]`, as photos have."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def _folder(root, shapes, ending="png"):
    """A photo of each shape, of two classes; its pixels by the name of its file."""
    pixels = {}
    for i, (height, width) in enumerate(shapes):
        file = root / "ab"[i % 2] / f"{i}.{ending}"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels[i] = _photo(height, width, i)
        Image.fromarray(pixels[i]).save(file)
    return pixels


def _by_label(data):
    """All images, training and validation, in the order of their classes and draws undone."""
    found = {}
    for split in (data.train, data.validation):
        for image, label in zip(split.images, split.labels.tolist(), strict=True):
            found.setdefault(label, []).append(image)
    return found


@pytest.mark.parametrize("size", [8, [6, 10], [10, 6]])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_files_are_fitted_as_pillow_fits_them(tmp_path, size, fit):
    pixels = _folder(tmp_path, [(20, 31), (33, 17), (24, 24), (40, 25)])
    data = load_data("folder", root=tmp_path, resize=size, fit=fit, validation=2)
    height, width = (size, size) if isinstance(size, int) else size
    assert data.image == (3, height, width)
    found = torch.cat([data.train.images, data.validation.images]).long()
    for image in pixels.values():
        photo = Image.fromarray(image)
        scales = width / photo.width, height / photo.height
        scale = max(scales) if fit == "crop" else min(scales)
        sides = round(photo.width * scale), round(photo.height * scale)
        left, top = (abs(s - n) // 2 for s, n in zip(sides, (width, height), strict=True))
        resized = photo.resize(sides, Image.Resampling.BILINEAR)
        if fit == "crop":
            made = resized.crop((left, top, left + width, top + height))
        else:
            made = Image.new("RGB", (width, height))
            made.paste(resized, (left, top))
        expected = torch.from_numpy(np.array(made)).permute(2, 0, 1).long()
        assert (found - expected).abs().amax((1, 2, 3)).min() <= 1


@given(
    given_=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    size=st.tuples(st.integers(2, 20), st.integers(2, 20)),
    seed=st.integers(0, 99),
)
def test_tensors_are_cropped_as_torchvision_crops_them(given_, size, seed):
    images = torch.rand(2, 1, *given_, generator=torch.Generator().manual_seed(seed))
    found = fitted(images, size, "crop")
    assert found.shape[-2:] == size
    scale = max(size[0] / given_[0], size[1] / given_[1])
    sides = [max(1, round(side * scale)) for side in given_]
    if is_shaped(given_, size):
        sides = list(size)
    resized = v2.functional.resize(images, sides, InterpolationMode.BILINEAR, antialias=True)
    top, left = (sides[0] - size[0]) // 2, (sides[1] - size[1]) // 2
    assert torch.equal(found, resized[..., top : top + size[0], left : left + size[1]])


@given(
    given_=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    size=st.tuples(st.integers(2, 20), st.integers(2, 20)),
)
def test_padding_keeps_all_of_an_image_and_adds_black(given_, size):
    """Of a white image as much is white as its proportions leave, in the middle."""
    found = fitted(torch.ones(1, 1, *given_), size, "pad")[0, 0]
    assert found.shape == size
    scale = min(size[0] / given_[0], size[1] / given_[1])
    height, width = (max(1, round(side * scale)) for side in given_)
    assert found.sum().item() == pytest.approx(height * width, rel=1e-5)
    rows, columns = found.amax(1).nonzero().flatten(), found.amax(0).nonzero().flatten()
    assert rows.tolist() == list(range((size[0] - height) // 2, (size[0] - height) // 2 + height))
    left = (size[1] - width) // 2
    assert columns.tolist() == list(range(left, left + width))


def test_of_square_images_every_fit_is_one_and_as_before(tmp_path):
    """The rule of before: torch's antialiased resize of the whole image, rounded."""
    pixels = _folder(tmp_path, [(64, 64), (48, 48), (30, 30), (64, 64)], "jpg")
    found = {
        fit: load_data("folder", root=tmp_path, resize=16, fit=fit, validation=2)
        for fit in ("crop", "pad", "squash")
    }
    assert len({data.fingerprint() for data in found.values()}) == 1
    every = torch.cat([found["crop"].train.images, found["crop"].validation.images])
    for i in pixels:
        decoded = np.array(Image.open(tmp_path / "ab"[i % 2] / f"{i}.jpg"))
        whole = torch.from_numpy(decoded).permute(2, 0, 1)[None].float()
        made = torch.nn.functional.interpolate(whole, (16, 16), mode="bilinear", antialias=True)
        expected = made.round().clamp(0, 255).byte()
        assert (every == expected).flatten(1).all(1).any()
    assert found["crop"].account.notes == ()


def test_a_run_that_does_not_say_how_its_images_were_fitted_squashed_them(tmp_path):
    _folder(tmp_path / "photos", [(20, 31), (33, 17), (24, 20), (40, 25)])
    settings = {"name": "folder", "root": str(tmp_path / "photos"), "resize": 8, "validation": 2}
    run = tmp_path / "run"
    run.mkdir()
    (run / "resolved.yaml").write_text(json.dumps({"data": settings, "seed": 0}))
    of_run = load_data(run).fingerprint()
    assert of_run == load_data(**settings, fit="squash").fingerprint()
    assert of_run != load_data(**settings).fingerprint()
    (run / "resolved.yaml").write_text(json.dumps({"data": {**settings, "fit": "pad"}, "seed": 0}))
    assert load_data(run).fingerprint() == load_data(**settings, fit="pad").fingerprint()


@pytest.mark.parametrize(
    ("fit", "told"),
    [
        ("crop", "were cropped (fit: crop)"),
        ("pad", "were padded with black (fit: pad)"),
        ("squash", "were squashed (fit: squash)"),
    ],
)
def test_the_account_tells_which_fit_was_used(tmp_path, fit, told):
    _folder(tmp_path, [(20, 31), (24, 24), (33, 17), (12, 12)])
    data = load_data("folder", root=tmp_path, resize=8, fit=fit, validation=2)
    (note,) = data.account.notes
    assert note.startswith("of 4 images 2 are not of the proportions of 8 x 8")
    assert note.endswith(told)
    tall = torch.zeros(6, 3, 9, 5)
    made = {"train": (tall, torch.arange(6) % 2)}
    (note,) = _own(made, resize=4, fit=fit).account.notes
    assert note.endswith(told)
    assert _own(made, resize=[9, 5], fit=fit).account.notes == ()


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_large_jpeg_is_decoded_at_a_smaller_scale(tmp_path, orientation):
    """Upright, in its proportions, close to the whole one scaled down; no smaller than needed."""
    file = tmp_path / "large.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(_photo(200, 320)).save(file, exif=exif, quality=95)
    whole = decode_bytes(file.read_bytes(), ".jpg")
    size = (20, 30)
    small = decode_bytes(file.read_bytes(), ".jpg", lambda image: within(image, size, "crop"))
    assert small.shape == whole.shape == whole.pixels.shape[:2]
    least = within(whole.shape, size, "crop")
    assert all(a >= b for a, b in zip(small.pixels.shape, least, strict=False))
    assert small.pixels.shape[0] <= whole.pixels.shape[0] / 2
    made = Image.fromarray(whole.pixels).resize(small.pixels.shape[1::-1], Image.Resampling.BOX)
    assert np.abs(np.asarray(made).astype(int) - small.pixels).mean() < 3


def test_a_jpeg_that_is_not_twice_as_large_as_needed_is_decoded_whole(tmp_path):
    file = tmp_path / "a.jpg"
    Image.fromarray(_photo(39, 60)).save(file)
    made = decode_bytes(file.read_bytes(), ".jpg", lambda image: within(image, (20, 20), "crop"))
    assert made.pixels.shape[:2] == (39, 60)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"resize": 0}, r"resize is a number of pixels, or \[height, width\]; got 0"),
        ({"resize": [8]}, r"got \[8\]"),
        ({"resize": [8, 8.5]}, r"got \[8, 8\.5\]"),
        ({"fit": "stretch"}, "fit is crop, pad, squash; got 'stretch'"),
        ({"cache_gb": -1}, "cache_gb is a size in 1e9 bytes, 0 or more; got -1"),
        ({"workers": 0}, "workers is a number of threads, 1 or more; got 0"),
    ],
)
def test_settings_that_are_none_are_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        load_data("digits", **settings)
