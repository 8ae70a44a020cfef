"""torchvision's sets, from files in their own formats."""

import hashlib
import io
import pickle
import struct

import numpy as np
import pytest
import scipy.io
import torch
from test_data import _contents, _pairs, _random
from torchvision import datasets

from planter.data import load_data

# ---- torchvision's sets, from files in their own formats


def _write(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return hashlib.md5(content).hexdigest()


def _write_cifar(root, patch, kind, *, label_key, names_key, classes):
    """Python pickles of rows [red 1024, green 1024, blue 1024]; torchvision checks their md5, so
    the sums of the files written here take the place of the originals'."""
    folder = root / kind.base_folder
    made, lists = {}, {"train": [], "test": []}
    for part, batches in (("train", kind.train_list), ("test", kind.test_list)):
        images, labels = [], []
        for i, (name, _) in enumerate(batches):
            x, y = _random(2 * classes, classes, 3, 32, 32, seed=i + 10 * (part == "test"))
            batch = {"data": x.reshape(len(x), -1), label_key: y.tolist()}
            lists[part].append([name, _write(folder / name, pickle.dumps(batch, protocol=2))])
            images.append(x)
            labels.append(y)
        made[part] = np.concatenate(images), np.concatenate(labels)
    names = [f"name {i}" for i in range(classes)]
    meta = pickle.dumps({names_key: names}, protocol=2)
    patch.setattr(kind, "train_list", lists["train"])
    patch.setattr(kind, "test_list", lists["test"])
    md5 = _write(folder / kind.meta["filename"], meta)
    patch.setattr(kind, "meta", {**kind.meta, "md5": md5})
    return made, names


def _write_cifar10(root, patch):
    return _write_cifar(
        root, patch, datasets.CIFAR10, label_key="labels", names_key="label_names", classes=10
    )


def _write_cifar100(root, patch):
    return _write_cifar(
        root,
        patch,
        datasets.CIFAR100,
        label_key="fine_labels",
        names_key="fine_label_names",
        classes=100,
    )


def _write_stl10(root, patch):
    """Bytes of [channel, column, row]; labels count from 1."""
    folder, kind = root / "stl10_binary", datasets.STL10
    made, sums = {}, {}
    for part, seed in (("train", 0), ("test", 1)):
        images, labels = _random(20, 10, 3, 96, 96, seed=seed)
        columns = np.ascontiguousarray(images.transpose(0, 1, 3, 2))
        sums[f"{part}_X.bin"] = _write(folder / f"{part}_X.bin", columns.tobytes())
        sums[f"{part}_y.bin"] = _write(
            folder / f"{part}_y.bin", (labels + 1).astype(np.uint8).tobytes()
        )
        made[part] = images, labels
    sums["unlabeled_X.bin"] = _write(folder / "unlabeled_X.bin", b"")
    names = [f"name {i}" for i in range(10)]
    _write(folder / "class_names.txt", "".join(f"{name}\n" for name in names).encode())
    for which in ("train_list", "test_list"):
        patch.setattr(kind, which, [[name, sums[name]] for name, _ in getattr(kind, which)])
    return made, names


def _write_idx(root, folder, seed):
    made = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = _random(30, 10, 28, 28, seed=seed + (part == "test"))
        raw = root / folder / "raw"
        header = struct.pack(">IIII", 0x0803, 30, 28, 28)
        _write(raw / f"{prefix}-images-idx3-ubyte", header + images.tobytes())
        header = struct.pack(">II", 0x0801, 30)
        _write(raw / f"{prefix}-labels-idx1-ubyte", header + labels.astype(np.uint8).tobytes())
        made[part] = images[:, None], labels
    return made


def _write_mnist(root, patch):
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    return _write_idx(root, "MNIST", 0), [f"{i} - {name}" for i, name in enumerate(names)]


def _write_fashion_mnist(root, patch):
    names = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker"]
    return _write_idx(root, "FashionMNIST", 2), [*names, "Bag", "Ankle boot"]


def _write_svhn(root, patch):
    """MATLAB arrays X [row, column, channel, image] and y, in which 10 stands for the digit 0."""
    made, lists = {}, dict(datasets.SVHN.split_list)
    for part, seed in (("train", 0), ("test", 1)):
        images, labels = _random(20, 10, 3, 32, 32, seed=seed)
        content = io.BytesIO()
        y = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        scipy.io.savemat(content, {"X": images.transpose(2, 3, 1, 0), "y": y})
        url, name, _ = lists[part]
        lists[part] = [url, name, _write(root / name, content.getvalue())]
        made[part] = images, labels
    patch.setattr(datasets.SVHN, "split_list", lists)
    return made, [str(i) for i in range(10)]


_SETS = {
    "cifar10": _write_cifar10,
    "cifar100": _write_cifar100,
    "stl10": _write_stl10,
    "mnist": _write_mnist,
    "fashion_mnist": _write_fashion_mnist,
    "svhn": _write_svhn,
}
_sets = pytest.mark.parametrize("name", _SETS)


@_sets
def test_a_torchvision_set_comes_through_with_every_pixel_and_label(tmp_path, monkeypatch, name):
    made, names = _SETS[name](tmp_path, monkeypatch)
    data = load_data(name, root=tmp_path, validation=10)
    assert _contents(data.train, data.validation) == _pairs(*made["train"])
    images, labels = made["test"]
    assert np.array_equal(data.test.images.numpy(), images)
    assert np.array_equal(data.test.labels.numpy(), labels)
    assert data.test.images.dtype == torch.uint8
    assert data.test.labels.dtype == torch.int64
    assert data.class_names == tuple(names)
    assert data.image == images.shape[1:]
    assert len(data.validation) == 10


@_sets
def test_a_set_without_a_root_asks_for_one(name):
    with pytest.raises(ValueError, match=f"'{name}' needs a root"):
        load_data(name)


@_sets
def test_a_set_that_is_not_there_names_the_folder_and_the_way_out(tmp_path, name):
    empty = tmp_path / "empty"
    with pytest.raises(ValueError, match=rf"{name} is not in .*empty .*root.*download"):
        load_data(name, root=empty)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10", "svhn"])
def test_a_set_with_a_damaged_file_is_refused(tmp_path, monkeypatch, name):
    _SETS[name](tmp_path, monkeypatch)
    file = max(tmp_path.rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="corrupted"):
        load_data(name, root=tmp_path)


def test_a_download_that_fails_names_the_set(tmp_path, monkeypatch):
    from urllib.error import URLError

    def offline(self):
        raise URLError("no network")

    monkeypatch.setattr(datasets.CIFAR10, "download", offline)
    with pytest.raises(ValueError, match=r"cifar10.*no network"):
        load_data("cifar10", root=tmp_path, download=True)


@pytest.mark.parametrize("name", ["cifar", "CIFAR10", "", "no_such_set", "digits "])
def test_an_unknown_set_is_told_the_known_ones(name):
    with pytest.raises(ValueError, match=r"digits, cifar10.*folder.*my_pkg\.data:make"):
        load_data(name)
