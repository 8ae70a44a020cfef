"""What the fast ways to photos must not change: pixels, numbers, order; what is not imported."""

import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from planter.data import load_data
from planter.data.cache import decoding, lent
from planter.data.cache.lent import lent as lent_pixels
from planter.data.fit import fitted_photo
from planter.machine.importing import uncollected


def _photo(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(217, 333), (1, 1), (3, 5000), (2049, 2100)])
def test_lent_pixels_are_those_of_the_picture(shape):
    """The last one is too large to lie in one piece."""
    pixels = _photo(*shape)
    assert np.array_equal(lent_pixels(Image.fromarray(pixels))[..., :3], pixels)


def test_lent_pixels_outlive_the_picture_and_go_with_the_last_view():
    pixels = _photo(300, 401)
    view = lent_pixels(Image.fromarray(pixels))[10:]
    gc.collect()
    others = [Image.new("RGB", (401, 300), "white") for _ in range(20)]
    assert np.array_equal(view[..., :3], pixels[10:])
    assert len(others) == 20


def test_a_pillow_that_does_not_lend_gives_copies(monkeypatch):
    pixels = _photo(30, 41)
    monkeypatch.delattr(Image.Image, "__arrow_c_array__", raising=False)
    found = lent_pixels(Image.fromarray(pixels))
    assert found.shape == pixels.shape
    assert np.array_equal(found, pixels)
    monkeypatch.undo()
    monkeypatch.setattr(lent.Image.core, "get_alignment", lambda: 64, raising=False)
    assert lent_pixels(Image.fromarray(pixels)).shape == pixels.shape


@pytest.mark.parametrize("lends", [True, False])
@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("shape", [(61, 90), (90, 61), (40, 33), (33, 200), (500, 470)])
def test_a_photo_is_what_torch_makes_of_its_planes_one_by_one(shape, fit, lends, monkeypatch):
    """To the bit, as sets in caches are: each channel alone, contiguous, resized whole."""
    pixels, size = _photo(*shape), (32, 40)
    if not lends:
        monkeypatch.delattr(Image.Image, "__arrow_c_array__", raising=False)
    scales = [size[0] / shape[0], size[1] / shape[1]]
    scale = max(scales) if fit == "crop" else min(scales)
    height, width = (max(1, round(side * scale)) for side in shape)
    expected = np.zeros((3, *size), np.uint8)
    for channel in range(3):
        plane = torch.from_numpy(pixels[..., channel].copy())[None, None]
        made = functional.interpolate(plane, (height, width), mode="bilinear", antialias=True)
        top, left = abs(height - size[0]) // 2, abs(width - size[1]) // 2
        if fit == "crop":
            expected[channel] = made[0, 0, top : top + size[0], left : left + size[1]]
        else:
            expected[channel, top : top + height, left : left + width] = made[0, 0]
    for given_ in (Image.fromarray(pixels), pixels):
        found = fitted_photo(given_, size, fit)
        assert found.flags.c_contiguous
        assert np.array_equal(found, expected)


@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    low=st.integers(0, 255),
    seed=st.integers(0, 99),
)
def test_moments_are_exact(shape, low, seed):
    pixels = np.random.default_rng(seed).integers(low, 256, (3, *shape), dtype=np.uint8)
    whole = pixels.astype(np.int64).reshape(3, -1)
    expected = [whole.sum(1), (whole**2).sum(1), whole.min(1), whole.max(1)]
    assert np.array_equal(decoding._moments(pixels), np.stack(expected, 1))


def test_moments_of_a_large_white_image_are_exact():
    pixels = np.full((3, 700, 701), 255, np.uint8)
    pixels[1] = 254
    count = 700 * 701
    assert decoding._moments(pixels).tolist() == [
        [v * count, v * v * count, v, v] for v in (255, 254, 255)
    ]


@pytest.mark.parametrize("together", [1, 100, 2**22])
def test_photos_keep_their_order_however_many_are_opened_at_once(tmp_path, monkeypatch, together):
    """Against plain Pillow, of images that need no fitting; what is damaged is named."""
    monkeypatch.setattr(decoding, "_TOGETHER", together)
    monkeypatch.setenv("PLANTER_CACHE", str(tmp_path / "cache"))
    for i in range(30):
        file = tmp_path / "photos" / "ab"[i % 2] / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_photo(8, 8, i)).save(file)
    data = load_data("folder", root=tmp_path / "photos", validation=4, workers=2)
    files = sorted((tmp_path / "photos").rglob("*.png"))
    every = np.stack([np.asarray(Image.open(file)).transpose(2, 0, 1) for file in files])
    assert np.array_equal(np.load(next(tmp_path.glob("cache/sets/*/pixels.npy"))), every)
    assert data.train.pixels.moments[:, :, 0].tolist() == every.sum((2, 3), dtype=int).tolist()
    for name in ("03", "04", "29"):
        next(tmp_path.glob(f"photos/*/{name}.png")).write_bytes(b"\x89PNG no more")
    with pytest.raises(ValueError, match=r"(?s)04\.png.*03\.png.*29\.png"):
        load_data("folder", root=tmp_path / "photos", validation=4, workers=2)


def test_a_set_that_is_known_needs_no_networks_and_no_bars(tmp_path):
    """What takes a second command's time, as a process tells that has loaded a folder."""
    for i in range(8):
        file = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_photo(8, 8, i)).save(file)
    code = (
        "import gc, sys\n"
        "from planter.data import load_data\n"
        f"load_data('folder', root={str(tmp_path / 'photos')!r}, validation=4).fingerprint()\n"
        "print(gc.isenabled(), gc.get_freeze_count())\n"
        "unwanted = ('rich', 'yaml', 'planter.backbones', 'torchvision', 'pydantic', 'optuna')\n"
        "print([name for name in unwanted if name in sys.modules])\n"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.splitlines() == ["True 0", "[]"]


def test_imports_leave_the_collector_as_it_was():
    with uncollected():
        assert not gc.isenabled()
        with uncollected():  # an import within another
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
    gc.freeze()
    try:
        with uncollected():
            assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_garbage_of_an_import_is_found_later():
    class Node:
        """A circle of its own."""

    with uncollected():
        node = Node()
        node.own = node
        seen = weakref.ref(node)
        del node
    gc.collect()
    assert seen() is None
