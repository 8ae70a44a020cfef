"""Tar shards, parquet files, torch's loaders and sets of files: the same images as a folder."""

import io
import json
import sys
import tarfile
import types
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import DatasetFolder, ImageFolder

from planter.data import InMemorySplit, load_data

_COUNT = 12
_NAMES = ("ant", "bee", "cat")
_DRAWN = np.random.default_rng(0).integers(0, 256, (_COUNT, 9, 7, 3), dtype=np.uint8)
_LABELS = [i % 3 for i in range(_COUNT)]
_OWN = "planter_tests_shards:make"


def _png(pixels):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def _own(made, **settings):
    module = types.ModuleType("planter_tests_shards")
    module.make = lambda: made
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        return load_data(_OWN, **{"validation": 3, **settings})


def _contents(*splits):
    return Counter(
        (image.numpy().tobytes(), label)
        for split in splits
        for image, label in zip(split.images, split.labels.tolist(), strict=True)
    )


_EVERY = Counter(
    (image.transpose(2, 0, 1).tobytes(), label)
    for image, label in zip(_DRAWN, _LABELS, strict=True)
)


def _tar(file, rows, label=lambda i: (".cls", str(_LABELS[i]))):
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as shard:
        for i in rows:
            ending, text = label(i)
            for name, content in ((f"{i:04}.png", _png(_DRAWN[i])), (f"{i:04}{ending}", text)):
                content = content.encode() if isinstance(content, str) else content
                one = tarfile.TarInfo(name)
                one.size = len(content)
                shard.addfile(one, io.BytesIO(content))


def _parquet(file, rows, *, names=_NAMES, image="image", label="label", group=5):
    """As Hugging Face's `datasets` writes sets of images."""
    file.parent.mkdir(parents=True, exist_ok=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": _png(_DRAWN[i]), "path": f"{i}.png"} for i in rows], kind)
    table = pa.table({image: images, label: pa.array([_LABELS[i] for i in rows], pa.int64())})
    if names:
        features = {
            image: {"_type": "Image"},
            label: {"names": list(names), "_type": "ClassLabel"},
        }
        told = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": told})
    pq.write_table(table, file, row_group_size=group)


@pytest.mark.parametrize("cache", [1, 0])
@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_shards_hold_the_images_and_labels_that_were_written(tmp_path, kind, cache):
    write = _tar if kind == "webdataset" else _parquet
    ending = "tar" if kind == "webdataset" else "parquet"
    write(tmp_path / f"a-000.{ending}", range(7))
    write(tmp_path / f"a-001.{ending}", range(7, _COUNT))
    data = load_data(kind, root=tmp_path, validation=3, cache_gb=cache)
    assert _contents(data.train, data.validation) == _EVERY
    assert data.class_names == (_NAMES if kind == "parquet" else ("0", "1", "2"))
    again = load_data(kind, root=tmp_path, validation=3, cache_gb=1 - cache)
    assert again.fingerprint() == data.fingerprint()
    small = load_data(kind, root=tmp_path, validation=3, resize=4, fit="pad", cache_gb=cache)
    assert small.image == (3, 4, 4)


@pytest.mark.parametrize("place", ["{}-00000-of-00001", "data/{}-0", "{}/0", "{}_0"])
@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_parts_are_told_by_the_names_of_shards_or_their_folders(tmp_path, kind, place):
    write = _tar if kind == "webdataset" else _parquet
    ending = "tar" if kind == "webdataset" else "parquet"
    parts = {"train": range(6), "validation": range(6, 9), "test": range(9, 12)}
    for part, rows in parts.items():
        write(tmp_path / f"{place.format(part)}.{ending}", rows)
    data = load_data(kind, root=tmp_path)
    for part, rows in parts.items():
        found = getattr(data, part)
        assert found.labels.tolist() == [_LABELS[i] for i in rows]
        expected = torch.from_numpy(_DRAWN[list(rows)]).permute(0, 3, 1, 2)
        assert torch.equal(found.images, expected)
    write(tmp_path / f"other.{ending}", range(3))
    assert [one.folder for one in load_data(kind, root=tmp_path).account.ignored] == [
        f"other.{ending}"
    ]


@pytest.mark.parametrize(
    "label",
    [
        lambda i: (".cls", _NAMES[_LABELS[i]]),
        lambda i: (".json", json.dumps({"label": _NAMES[_LABELS[i]], "more": 1})),
    ],
)
def test_labels_of_a_shard_may_be_names(tmp_path, label):
    _tar(tmp_path / "0.tar", range(_COUNT), label)
    data = load_data("webdataset", root=tmp_path, validation=3)
    assert data.class_names == _NAMES
    assert _contents(data.train, data.validation) == _EVERY


def test_columns_of_other_names_are_found(tmp_path):
    _parquet(tmp_path / "0.parquet", range(_COUNT), image="photo", label="animal")
    data = load_data("parquet", root=tmp_path, validation=3)
    assert data.class_names == _NAMES
    assert _contents(data.train, data.validation) == _EVERY


def test_a_column_of_bytes_alone_is_one_of_images(tmp_path):
    table = pa.table({"img": [_png(one) for one in _DRAWN], "labels": _LABELS})
    pq.write_table(table, tmp_path / "0.parquet")
    data = load_data("parquet", root=tmp_path, validation=3)
    assert _contents(data.train, data.validation) == _EVERY


def test_shards_that_cannot_be_read_are_told(tmp_path):
    with pytest.raises(ValueError, match=r"holds no \.tar files to train on"):
        load_data("webdataset", root=tmp_path)
    _tar(tmp_path / "test-0.tar", range(3))
    with pytest.raises(ValueError, match="those in it are of: test"):
        load_data("webdataset", root=tmp_path)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "0.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(ValueError, match=r"0\.tar cannot be read as a plain tar file"):
        load_data("webdataset", root=tmp_path / "bad")
    _tar(tmp_path / "bare" / "0.tar", range(3), lambda i: (".txt", "a caption"))
    with pytest.raises(ValueError, match=r"0000\.png and 2 more has no label"):
        load_data("webdataset", root=tmp_path / "bare")
    (tmp_path / "bad" / "0.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"0\.parquet"):
        load_data("parquet", root=tmp_path / "bad")
    _parquet(tmp_path / "other" / "0.parquet", range(3), names=None, label="animal")
    with pytest.raises(ValueError, match="labels are in a column called label or labels; it has"):
        load_data("parquet", root=tmp_path / "other")


def test_an_image_in_a_shard_that_cannot_be_read_is_named(tmp_path):
    _tar(tmp_path / "0.tar", range(_COUNT))
    content = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(content.replace(b"\x89PNG", b"xPNG", 1))
    with pytest.raises(ValueError, match=r"0\.tar/0000\.png cannot be read as an image"):
        load_data("webdataset", root=tmp_path, validation=3)


# ---- torch's


@pytest.fixture
def photos(tmp_path):
    for i, (image, label) in enumerate(zip(_DRAWN, _LABELS, strict=True)):
        file = tmp_path / _NAMES[label] / f"{i:02}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(file)
    return tmp_path


def test_an_image_folder_is_read_as_files_are(photos, monkeypatch):
    """In parallel, into the cache: its own items are not asked for."""
    made = {"train": ImageFolder(str(photos))}
    monkeypatch.setattr(DatasetFolder, "__getitem__", lambda *_: pytest.fail("asked for"))
    data = _own(made, resize=4)
    assert not isinstance(data.train, InMemorySplit)
    assert data.class_names == _NAMES
    assert (
        data.fingerprint() == load_data("folder", root=photos, validation=3, resize=4).fingerprint()
    )


def test_an_image_folder_with_a_transform_is_asked_for_its_items(photos):
    made = {"train": ImageFolder(str(photos), transform=lambda image: image.resize((2, 2)))}
    data = _own(made)
    assert data.image == (3, 2, 2)


def test_pictures_of_several_sizes_are_fitted_as_files_are(tmp_path):
    sizes = [(20, 31), (33, 17), (24, 24), (40, 25), (12, 12), (9, 30)]
    items = []
    for i, size in enumerate(sizes):
        file = tmp_path / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    for label, name in enumerate("ab"):
        items += [(Image.open(file), label) for file in sorted((tmp_path / name).iterdir())]
    for fit in ("crop", "pad", "squash"):
        found = _own({"train": items}, resize=8, fit=fit, validation=2)
        expected = load_data("folder", root=tmp_path, resize=8, fit=fit, validation=2)
        assert found.fingerprint() == expected.fingerprint()


_SET = TensorDataset(torch.from_numpy(_DRAWN).permute(0, 3, 1, 2), torch.tensor(_LABELS))


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(_SET, batch_size=5),
        lambda: iter(DataLoader(_SET, batch_size=5)),
        lambda: ((x.numpy(), y.tolist()) for x, y in DataLoader(_SET, batch_size=1)),
    ],
)
def test_batches_are_read_to_their_end(make):
    data = _own({"train": make()})
    assert _contents(data.train, data.validation) == _EVERY
    assert data.train.dtype == torch.uint8


def test_a_loader_that_shuffles_is_refused():
    with pytest.raises(ValueError, match="this one shuffles: shuffle=False"):
        _own({"train": DataLoader(_SET, batch_size=5, shuffle=True)})


def test_batches_of_several_shapes_are_refused():
    batches = [(np.zeros((2, 3, 4, 4)), [0, 1]), (np.zeros((2, 3, 5, 4)), [0, 1])]
    with pytest.raises(ValueError, match=r"one shape; got \(3, 4, 4\), \(3, 5, 4\)"):
        _own({"train": iter(batches)})
