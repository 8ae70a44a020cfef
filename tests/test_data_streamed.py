"""Images that are decoded as they are asked for: the same study, bounded memory, told losses."""

import json
import re
import sqlite3
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

import planter
from planter.data import load_data
from planter.data.cache import pixels as streaming
from planter.training.batches import batch_order
from planter.training.recipe import Recipe


def _fill(root, count=24, size=(12, 12)):
    for i in range(count):
        drawn = np.random.default_rng(i)
        pixels = drawn.integers(0, 160, (*size, 3), dtype=np.uint8)
        pixels[..., i % 2] += 90
        file = root / "ab"[i % 2] / f"{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return root


@pytest.fixture
def photos(tmp_path):
    return _fill(tmp_path / "photos")


_STUDY = """
name: small
data: {name: folder, root: photos, validation: 6, test: 4, cache_gb: CACHE}
teacher: {builder: convnet, widths: 3}
baselines: [{builder: convnet, widths: 2}]
plant: {start: 2, channels: 1, rounds: 1}
recipe: {epochs: 2, batch: 5, augment: {flip: true}}
resources: {workers: WORKERS}
"""


def _searched(folder, name, cache, workers=0):
    text = _STUDY.replace("CACHE", str(cache)).replace("WORKERS", str(workers))
    (folder / "study.yaml").write_text(text)
    return planter.search(folder / "study.yaml", out=folder / name)


def _facts(found):
    kept = ("id", "accuracy", "test_accuracy", "macs", "params", "on_front")
    return [{key: point[key] for key in kept} for point in found["points"]]


def _weights(run):
    return {
        str(file.relative_to(run)): file.read_bytes()
        for file in sorted(run.glob("models/*/*/weights.safetensors"))
    }


def test_a_study_gives_the_same_front_in_memory_cached_and_streamed(tmp_path, monkeypatch):
    _fill(tmp_path / "photos")
    kinds = {"cached": 1, "streamed": 0, "memory": 1}
    found, kind = {}, {}
    for name, cache in kinds.items():
        folder = tmp_path / f"cache-{name}"
        if name == "memory":
            folder.write_text("no folder")
        monkeypatch.setenv("PLANTER_CACHE", str(folder))
        data = load_data("folder", root=tmp_path / "photos", cache_gb=cache)
        kind[name] = type(getattr(data.train, "pixels", data.train)).__name__
        found[name] = _facts(_searched(tmp_path, name, cache))
    assert kind == {
        "cached": "MappedPixels",
        "streamed": "StreamedPixels",
        "memory": "InMemorySplit",
    }
    assert found["cached"] == found["streamed"] == found["memory"]
    weights = {name: _weights(tmp_path / name) for name in kinds}
    assert len(weights["cached"]) >= 3
    assert weights["cached"] == weights["streamed"] == weights["memory"]


@pytest.mark.parametrize("cache", [1, 0])
def test_workers_open_the_images_themselves(tmp_path, monkeypatch, cache):
    _fill(tmp_path / "photos")
    monkeypatch.setenv("PLANTER_CACHE", str(tmp_path / "cache"))
    here = _facts(_searched(tmp_path, "here", cache))
    on_ray = _facts(_searched(tmp_path, "ray", cache, workers=2))
    assert sorted(here, key=str) == sorted(on_ray, key=str)


def test_announced_batches_are_decoded_before_they_are_asked_for(photos, monkeypatch):
    """Two ahead, each once, in any order of threads; other batches in between are right as well."""
    data = load_data("folder", root=photos, validation=4, cache_gb=0)
    held = data.train.images
    split, asked, lock = data.train, [], threading.Lock()
    whole = streaming.read_unchanged

    def noted(image, digest):
        with lock:
            asked.append(str(image))
        return whole(image, digest)

    monkeypatch.setattr(streaming, "read_unchanged", noted)
    parts, _ = batch_order(split, Recipe(epochs=1, batch=4), seed=1, epoch=0)
    assert asked == []
    for at, index in enumerate(parts):
        assert torch.equal(split.batch(index), held[index])
        if at == 1:
            assert torch.equal(split.batch(slice(0, 3)), held[:3])
        ahead = sum(map(len, parts[: at + 3])) + 3 * (at >= 1)
        end = time.monotonic() + 60
        while len(asked) < ahead and time.monotonic() < end:
            time.sleep(0.01)
        assert len(asked) == ahead
    assert len(asked) == len(split) + 3
    split.announce(parts)
    split.batch(parts[0])
    split.announce(parts[::-1])  # what was begun is dropped
    for index in parts[::-1]:
        assert torch.equal(split.batch(index), held[index])


def test_epochs_of_the_same_seed_have_the_same_batches_however_many_threads(photos):
    found = []
    for workers in (1, 3):
        split = load_data("folder", root=photos, cache_gb=0, workers=workers).train
        recipe = Recipe(epochs=2, batch=5)
        found.append(
            [
                split.batch(index)
                for epoch in range(2)
                for index in batch_order(split, recipe, 7, epoch)[0]
            ]
        )
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("gone", [True, False])
def test_a_file_that_goes_or_changes_while_it_streams_is_named(photos, gone):
    data = load_data("folder", root=photos, validation=4, cache_gb=0)
    held = data.train.images
    file = photos / "a" / "002.png"
    kept = file.read_bytes()
    if gone:
        file.unlink()
    else:
        Image.new("RGB", (12, 12)).save(file)
    told = r"002\.png cannot be read" if gone else r"002\.png has changed since the data set"
    every = [data.train, data.validation]
    (message,) = filter(None, map(_failure, every))
    assert re.search(told, message)
    file.write_bytes(kept)
    assert torch.equal(data.train.batch(slice(None)), held)


def _failure(split):
    try:
        split.batch(slice(None))
    except ValueError as error:
        return str(error)
    return None


def test_a_trial_whose_file_is_gone_fails_and_the_search_goes_on_when_it_is_back(
    tmp_path, monkeypatch
):
    """The teacher is trained; a file goes; the others fail by its name; it comes back."""
    from planter.driver.trials.jobs import SearchStoppedError

    root = _fill(tmp_path / "photos")
    monkeypatch.setenv("PLANTER_CACHE", str(tmp_path / "cache"))
    expected = _facts(_searched(tmp_path, "whole", 0))
    file, away = root / "a" / "002.png", tmp_path / "away.png"

    def observe(now):
        if now.kind == "done" and file.exists():
            file.rename(away)

    with pytest.raises(SearchStoppedError, match=r"002\.png|failed"):
        planter.search(tmp_path / "study.yaml", out=tmp_path / "run", observe=observe)
    text = json.dumps([p.read_text() for p in (tmp_path / "run").rglob("log.txt")])
    document = (tmp_path / "run" / "pareto.json").read_text()
    assert "002.png" in text + document + _attributes(tmp_path / "run" / "study.db")
    away.rename(file)
    found = _facts(planter.search(tmp_path / "study.yaml", out=tmp_path / "run"))
    by_id = {point["id"]: point for point in found}
    for point in expected:
        assert by_id[point["id"]] == point


def _attributes(database):
    with sqlite3.connect(database) as db:
        return str(db.execute("select value_json from trial_user_attributes").fetchall())
