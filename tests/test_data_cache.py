"""The cache of decoded images: found again, never stale, whole or not there, within its bounds."""

import multiprocessing
import os
import pickle
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from planter.data import InMemorySplit, RowSplit, load_data
from planter.data.cache import decoding, place, sets
from planter.data.split import HeldPixels
from planter.data.statistics import constant_channels, statistics

_COUNT = 12


def _fill(root, count=_COUNT, size=(9, 7), seed=0):
    """Photos of two classes; old enough to be known by their stamps."""
    drawn = np.random.default_rng(seed)
    for i in range(count):
        file = root / "ab"[i % 2] / f"{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.integers(0, 256, (*size, 3), dtype=np.uint8)).save(file)
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("PLANTER_CACHE", str(folder))
    monkeypatch.setattr("planter.data.cache.contents._SURE_NS", 0)
    return folder


@pytest.fixture
def photos(tmp_path):
    return _fill(tmp_path / "photos")


def _load(root, **settings):
    return load_data("folder", root=root, **{"validation": 4, **settings})


@pytest.fixture
def decoded(monkeypatch):
    """The images that are decoded from now on."""
    names = []
    whole = decoding.decode_bytes

    def noted(content, *rest):
        names.append(len(content))
        return whole(content, *rest)

    monkeypatch.setattr(decoding, "decode_bytes", noted)
    return names


def _held(data):
    """The same data, as tensors alone."""

    def part(split):
        return InMemorySplit(split.images, split.labels, split.mean, split.std)

    return part(data.train), part(data.validation)


def test_images_are_decoded_once(cache, photos, decoded):
    first = _load(photos, resize=4)
    assert len(decoded) == _COUNT
    again, other_draw = _load(photos, resize=4), _load(photos, resize=4, validation=2, seed=3)
    assert len(decoded) == _COUNT
    assert again.fingerprint() == first.fingerprint() != other_draw.fingerprint()
    assert torch.equal(again.train.images, first.train.images)
    assert again.account == first.account
    _load(photos, resize=4, fit="pad")
    assert len(decoded) == 2 * _COUNT


def test_a_fingerprint_is_that_of_the_tensors_and_is_known_the_second_time(
    cache, photos, monkeypatch
):
    data = _load(photos)
    train, validation = _held(data)
    expected = type(data)(train, validation, None, data.class_names).fingerprint()
    assert data.fingerprint() == expected
    monkeypatch.setattr(RowSplit, "update", lambda *_: pytest.fail("the pixels were read again"))
    assert _load(photos).fingerprint() == expected


def test_statistics_are_those_of_the_tensor(cache, tmp_path):
    root = _fill(tmp_path / "some", 20, (16, 16), seed=4)
    data = _load(root)
    for found, expected in zip(
        (data.train.mean, data.train.std), statistics(data.train.images), strict=True
    ):
        assert torch.equal(found, expected)
    flat = tmp_path / "flat"
    for i in range(6):
        file = flat / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), (i, 7, 9), np.uint8)).save(file)
    data = load_data("folder", root=flat, validation=2)
    told = [f"channel {i} is {value:g}" for i, value in constant_channels(data.train.images)]
    assert told == ["channel 1 is 7", "channel 2 is 9"]
    assert [warning[:14] for warning in data.account.warnings] == told
    assert data.train.std.flatten()[1:].tolist() == [1, 1]


@pytest.mark.parametrize("keep_times", [False, True])
def test_a_changed_file_is_never_served_as_it_was(cache, photos, keep_times):
    """Also with the size and the time of change that it had."""
    before = _load(photos)
    file = photos / "a" / "000.png"
    was = file.stat()
    pixels = np.asarray(Image.open(file)).copy()
    pixels[0, 0] ^= 255
    Image.fromarray(pixels).save(file)
    if keep_times:
        content = file.read_bytes()[: was.st_size].ljust(was.st_size, b"\0")
        file.write_bytes(content)
        os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
        assert (file.stat().st_size, file.stat().st_mtime_ns) == (was.st_size, was.st_mtime_ns)
    after = _load(photos)
    assert after.fingerprint() != before.fingerprint()
    expected = torch.from_numpy(pixels).permute(2, 0, 1)
    every = torch.cat([after.train.images, after.validation.images])
    assert (every == expected).flatten(1).all(1).any()


def test_files_that_were_just_written_are_looked_into_again(cache, photos, monkeypatch, decoded):
    """A clock that stands still between two writes gives both one stamp."""
    monkeypatch.setattr("planter.data.cache.contents._SURE_NS", 10**12)
    stamp = (b"same", 0)
    before = _load(photos).fingerprint()
    now = time.time_ns()
    monkeypatch.setattr("planter.data.cache.contents._stamps", lambda images: (stamp[0], now))
    _load(photos)
    file = photos / "a" / "000.png"
    Image.new("RGB", (7, 9)).save(file)
    assert _load(photos).fingerprint() != before


def test_touched_moved_and_copied_files_are_not_decoded_again(cache, photos, decoded, tmp_path):
    first = _load(photos, resize=4).fingerprint()
    for file in photos.rglob("*.png"):
        file.touch()
    assert _load(photos, resize=4).fingerprint() == first
    photos.rename(tmp_path / "elsewhere")
    assert _load(tmp_path / "elsewhere", resize=4).fingerprint() == first
    assert len(decoded) == _COUNT


def test_what_is_left_out_is_not_read(cache, photos, decoded):
    data = _load(photos, resize=4, subset=6, validation=2, test=3, label_noise=0.5)
    assert len(data.train) + len(data.validation) + len(data.test) == len(decoded) == 9


def test_what_is_drawn_is_what_was_drawn_of_tensors(cache, photos):
    """Subsets, parts and noise of a folder against those of the same images as arrays."""
    import sys
    import types

    every = [(np.asarray(Image.open(f)).transpose(2, 0, 1), f.parent.name)
             for f in sorted(photos.rglob("*.png"))]  # fmt: skip
    module = types.ModuleType("planter_tests_as_arrays")
    module.make = lambda: {
        "train": (np.stack([image for image, _ in every]), [name for _, name in every])
    }
    settings = {"subset": 8, "validation": 2, "test": 3, "label_noise": 0.4, "seed": 5}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        expected = load_data("planter_tests_as_arrays:make", **settings)
    found = load_data("folder", root=photos, **settings)
    for part in ("train", "validation", "test"):
        mine, other = getattr(found, part), getattr(expected, part)
        assert torch.equal(mine.images, other.images)
        assert torch.equal(mine.labels, other.labels)
    assert found.fingerprint() == expected.fingerprint()


# ---- kills, neighbours, bounds


def _load_here(root, cache, started=None):
    os.environ["PLANTER_CACHE"] = str(cache)
    if started is not None:
        whole = decoding.decode_bytes

        def slow(content, *rest):
            started.set()
            time.sleep(0.2)
            return whole(content, *rest)

        decoding.decode_bytes = slow
    _load(root, workers=1)


def _noting(root, cache, log):
    whole = decoding.decode_bytes

    def noted(content, *rest):
        with open(log, "a") as file:
            file.write("x\n")
        time.sleep(0.02)
        return whole(content, *rest)

    decoding.decode_bytes = noted
    os.environ["PLANTER_CACHE"] = str(cache)
    _load(root, resize=4)


def test_a_kill_while_the_cache_is_filled_leaves_nothing_half(cache, photos):
    fork = multiprocessing.get_context("fork")
    started = fork.Event()
    process = fork.Process(target=_load_here, args=(photos, cache, started))
    process.start()
    assert started.wait(60)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not list(cache.glob("sets/*/about.json"))
    data = _load(photos)
    assert len(data.train) == _COUNT - 4
    assert not list(cache.rglob("*.new"))


def test_processes_that_need_a_set_at_once_build_it_once(cache, photos, tmp_path):
    fork = multiprocessing.get_context("fork")
    log = tmp_path / "decoded"
    group = [fork.Process(target=_noting, args=(photos, cache, log)) for _ in range(3)]
    for process in group:
        process.start()
    for process in group:
        process.join(60)
    assert [process.exitcode for process in group] == [0, 0, 0]
    assert len(log.read_text().splitlines()) == _COUNT


def test_the_sets_that_were_not_used_for_longest_make_room(cache, tmp_path):
    roots = [_fill(tmp_path / str(i), 10, (10, 10), seed=i) for i in range(3)]
    bound = 2.5 * 10 * 300 / 1e9  # two sets of 10 images of 300 bytes, and not three

    def sets_there():
        return {file.parent.name for file in cache.glob("sets/*/about.json")}

    _load(roots[0], cache_gb=bound)
    first = sets_there()
    time.sleep(0.02)
    kept = _load(roots[1], cache_gb=bound)
    time.sleep(0.02)
    _load(roots[0], cache_gb=bound)
    time.sleep(0.02)
    pixels = kept.train.images
    _load(roots[2], cache_gb=bound)
    assert len(sets_there()) == 2
    assert first < sets_there()
    # Who has a dropped set open keeps it.
    assert torch.equal(kept.train.batch(slice(None)), pixels)


def _warned(caplog):
    return [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]


@pytest.mark.parametrize("memory", [10**12, 0])
def test_a_cache_that_cannot_be_written_is_told_once_and_nothing_fails(
    cache, photos, caplog, monkeypatch, memory
):
    expected = _load(photos).fingerprint()
    cache.rename(cache.with_name("kept"))
    cache.write_text("no folder")
    monkeypatch.setattr(sets, "available_bytes", lambda: memory)
    data = _load(photos)
    (warning,) = _warned(caplog)
    assert str(cache) in warning
    assert "PLANTER_CACHE" in warning
    assert isinstance(data.train, InMemorySplit) == (memory > 0)
    assert data.fingerprint() == expected


def test_a_full_disk_is_told_once_and_nothing_fails(cache, photos, caplog, monkeypatch):
    full = type("Usage", (), {"free": 10})()
    monkeypatch.setattr(place.shutil, "disk_usage", lambda folder: full)
    data = _load(photos)
    (warning,) = _warned(caplog)
    assert "GB free" in warning
    assert isinstance(data.train, InMemorySplit)
    assert not list(cache.glob("sets/*/pixels.npy*"))


# ---- between processes and devices


def test_between_processes_the_place_of_the_pixels_travels_alone(cache, tmp_path):
    root = _fill(tmp_path / "large", 6, (200, 200))
    data = _load(root, validation=2)
    parcel = pickle.dumps({"train": data.train, "validation": data.validation})
    assert len(parcel) < data.train.nbytes / 20
    found = pickle.loads(parcel)
    assert torch.equal(found["train"].images, data.train.images)
    assert found["train"].pixels is found["validation"].pixels


@pytest.mark.parametrize("streamed", [False, True])
def test_rows_are_samples_moved_and_taken_as_tensors_are(cache, photos, streamed):
    data = _load(photos, cache_gb=0 if streamed else 1)
    rows, (held, _) = data.train, _held(data)
    index = torch.tensor([5, 0, 3])
    mean, std = torch.full((3, 1, 1), 0.25), torch.full((3, 1, 1), 2.0)
    for mine, other in (
        (rows, held),
        (rows.sample(index), held.sample(index)),
        (rows.sample(slice(2, 6)), held.sample(slice(2, 6))),
        (rows.taken_by(mean, std, (5, 6)), held.taken_by(mean, std, (5, 6))),
        (rows.to("cpu"), held),
    ):
        assert len(mine) == len(other)
        assert (mine.image, mine.dtype) == (other.image, other.dtype)
        for part in (
            torch.tensor([2, 0, 1]),
            slice(1, 3),
            slice(None),
            torch.tensor([], dtype=int),
        ):
            assert torch.equal(mine.batch(part), other.batch(part))
            assert torch.equal(
                mine.normalise(mine.batch(part)), other.normalise(other.batch(part))
            ) or not len(mine.batch(part))
        assert torch.equal(mine.labels, other.labels)


def test_a_device_with_little_room_gets_batches(monkeypatch, cache, photos):
    """The decision, and batches from the host; what CUDA adds cannot be tested on a CPU."""
    data = _load(photos)
    (held, _), rows = _held(data), data.train
    for free, there in ((4 * rows.nbytes, True), (4 * rows.nbytes - 1, False)):
        monkeypatch.setattr("planter.data.split.free_bytes", lambda device, free=free: free)
        for split in (held, rows):
            moved = split.to("meta")
            assert moved.labels.device.type == "meta"
            assert isinstance(moved, InMemorySplit) == there
    assert isinstance(held.to("meta").pixels, HeldPixels)
    monkeypatch.setattr("planter.data.split._has_room", lambda device, nbytes: False)
    on_host = held.to("cpu")
    order = [torch.tensor([3, 1]), torch.tensor([0, 2, 4])]
    on_host.announce(order)
    for index in order:
        assert torch.equal(on_host.batch(index), held.batch(index))
